"""Image GPT: palette, objectives, causality, sampling, files of Hugging Face, the commands."""

import dataclasses
import functools
import json
import math

from conftest import ROOT, small_config
import jax
from jax import numpy as jnp
import numpy as np
import peers
from PIL import Image
import pytest

from vit_jax import (
  convert,
  data,
  defaults,
  experiment,
  interpret,
  metrics,
  models,
  objectives,
  predict,
  step,
  train,
  weights,
)
from vit_jax.data import palette
from vit_jax.data.preprocess import Preprocess
from vit_jax.evaluation import pixels as pixels_evaluator
from vit_jax.evaluation.subject import Subject
from vit_jax.interpret import __main__ as interpret_command
from vit_jax.models import attention, fused_attention, igpt, sampling
from vit_jax.runtime import interruption, sharding


def build(variant='mu', side=4, classes=10, channels=3, **section):
  known = defaults.part('model', 'igpt').to_dict() | {'variant': variant} | section
  return models.build(
    **known, image_size=(side, side), channels=channels, num_classes=classes
  )  # fmt: skip


def shapes_of(model):
  return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


def randomised(model, seed=0):
  """Parameters without zeros, so that nothing hides behind a matrix that starts at zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes_of(model)
  )


def some_palette(count=6, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(map(tuple, rng.uniform(-1, 1, (count, channels)).astype(np.float32).tolist()))


def pictures(count=3, side=4, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, 256, (count, side, side, channels), np.uint8))


def normalised(images):
  return images.astype(jnp.float32) / 127.5 - 1


def objective_of(model, name='autoregressive', **section):
  normalise = Preprocess(model.image_size, model.channels).normalise
  known = defaults.part('objective', name).to_dict() | section
  return objectives.build(**known, model=model, normalise=normalise)


# The model.


@pytest.mark.parametrize(
  ('variant', 'side', 'count'),
  [
    ('S', 32, 76_571_648), ('M', 32, 455_157_760), ('L', 32, 1_362_250_752),
    ('L', 48, 1_364_216_832), ('XL', 64, 6_810_875_904),
  ],
)  # fmt: skip
def test_published_counts(variant, side, count):
  """Those of OpenAI's code, without a classifier; XL as the paper rounds it, 6,801M at 1 % more."""
  model = build(variant, side, classes=0)
  assert sum(x.size for x in jax.tree.leaves(shapes_of(model))) == count


def test_how_it_starts():
  """Deviations of OpenAI's code, of arrays large enough to tell; gains 1, what tells colours 0."""
  model = build('S', 16, clusters=64, depth=3, channels=1)
  params = jax.jit(lambda key: models.init(model, key))(jax.random.key(0))
  block, width, depth = params['Transformer']['encoderblock_2'], 512, 3
  attend = block['MultiHeadDotProductAttention_1']
  for array, deviation in (
    (params['token_embedding'], 0.02),
    (params['start'], 0.02),
    (params['Transformer']['posembed_input']['pos_embedding'], 0.01),
    (attend['query']['kernel'], width**-0.5),
    (attend['value']['kernel'], width**-0.5),
    (attend['out']['kernel'], (width * depth) ** -0.5),
    (block['MlpBlock_3']['Dense_0']['kernel'], 0.02),
    (block['MlpBlock_3']['Dense_1']['kernel'], 0.02),
  ):
    assert array.std() == pytest.approx(deviation, rel=0.1)
  assert (block['LayerNorm_0']['scale'] == 1).all()
  assert not params['predict']['kernel'].any() and not params['head']['kernel'].any()
  flat = models.shapes_of(model)
  assert not any(name.endswith('bias') for name in flat)


def numpy_norm(x, gain):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain


def numpys(params, colours, heads, causal):
  """The tokens of the last block of one image, as the reference says, a block at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  encoder = p['Transformer']
  x = p['token_embedding'][colours]
  if causal:
    x = np.concatenate([p['start'][0], x[:-1]])
  x = x + encoder['posembed_input']['pos_embedding'][0]
  count, width = x.shape
  for i in range(sum(name.startswith('encoderblock') for name in encoder)):
    block = encoder[f'encoderblock_{i}']
    own, y = block['MultiHeadDotProductAttention_1'], numpy_norm(x, block['LayerNorm_0']['scale'])
    for h in range(heads):
      q, k, v = (y @ own[part]['kernel'][:, h] for part in ('query', 'key', 'value'))
      scores = q @ k.T / np.sqrt(width // heads)
      if causal:
        scores = scores - 1e10 * (1 - np.tri(count))
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      x = x + weights / weights.sum(-1, keepdims=True) @ v @ own['out']['kernel'][h]
    y = numpy_norm(x, block['LayerNorm_2']['scale']) @ block['MlpBlock_3']['Dense_0']['kernel']
    x = x + y / (1 + np.exp(-1.702 * y)) @ block['MlpBlock_3']['Dense_1']['kernel']
  return numpy_norm(x, encoder['encoder_norm']['scale'])


@pytest.mark.parametrize('causal', [True, False])
def test_the_forward_pass_is_numpys(causal):
  model = build(clusters=6, colours=some_palette(), depth=2, causal=causal)
  params, images = randomised(model), normalised(pictures())
  logits, named = jax.jit(model.apply)({'params': params}, images)
  distances = ((np.asarray(images).reshape(3, 16, 1, 3) - np.array(model.palette)) ** 2).sum(-1)
  for i in range(3):
    tokens = numpys(params, distances[i].argmin(-1), 2, causal)
    np.testing.assert_allclose(named['tokens'][i], tokens, rtol=2e-3, atol=2e-3)
    told = tokens @ np.asarray(params['predict']['kernel'])
    np.testing.assert_allclose(named['colour_logits'][i], told, rtol=2e-3, atol=5e-3)
    head = tokens.mean(0) @ np.asarray(params['head']['kernel'])
    np.testing.assert_allclose(logits[i], head, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('causal', [True, False])
def test_causality_by_gradient(causal):
  """What is told of a place depends on the embeddings before it, and on no other."""
  model = build(clusters=6, depth=2, causal=causal)
  params = randomised(model)

  def told(patches, place):
    tokens, _ = model.apply({'params': params}, patches, method='encode')
    return (model.apply({'params': params}, tokens, method='predict')[0, place] ** 2).sum()

  patches = jnp.asarray(np.random.default_rng(1).normal(size=(1, 16, 32)), jnp.float32)
  gradient = jax.jit(jax.vmap(jax.grad(told), in_axes=(None, 0)))(patches, jnp.arange(16))
  reached = np.asarray(jnp.abs(gradient[:, 0]).sum(-1)) > 0
  expected = np.tri(16, k=-1, dtype=bool) if causal else np.ones((16, 16), bool)
  np.testing.assert_array_equal(reached, expected)


@pytest.mark.parametrize('length', [16, 17])
def test_the_fused_kernel_is_as_causal_as_the_plain_form(length):
  qkv = jnp.asarray(np.random.default_rng(0).normal(size=(2, length, 3, 2, 8)), jnp.float32)
  bias = attention.Attention(num_heads=2, causal=True).bias(length)
  query, key, value = attention.by_head(qkv)
  exponents, total = attention.exponents_of(query, key, 0.3, None, bias)
  plain = jnp.einsum('bhts,bhsd->bthd', exponents / total, value)
  fused = fused_attention.on_gpu(qkv, 0.3, 'xla', True)
  np.testing.assert_allclose(fused, plain, rtol=1e-4, atol=1e-5)
  tpu = type('Device', (), dict(platform='tpu', device_kind='TPU v4'))
  section = dict(num_heads=2, width=16, dtype='float32', attention_dropout=0.0, positions='learned')
  reasons = fused_attention.obstacles('pallas', tpu, section | {'causal': True}, length)
  assert any('causal' in reason for reason in reasons)


def test_a_loop_over_blocks_and_what_is_computed_again_change_nothing():
  images, found = pictures(2), []
  for more in ({}, {'scan': True}, {'remat': 'blocks'}):
    objective = objective_of(build(clusters=6, depth=2, **more))
    params = jax.tree.map(jnp.asarray, randomised(build(clusters=6, depth=2)))

    def loss(params, objective=objective):
      return objective.apply({'params': {'model': params}}, images, None, method='judge')[0].mean()

    found.append(jax.jit(jax.value_and_grad(loss))(params))
  for other in found[1:]:
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found[0], other
    )


# Palettes.


def test_a_pixel_is_its_nearest_colour():
  model = build(clusters=3, channels=1, side=2, colours=((-1.0,), (0.0,), (1.0,)))
  images = jnp.asarray([[-1.0, -0.51], [-0.49, 0.6]]).reshape(1, 2, 2, 1)
  found = model.apply({'params': randomised(model)}, images, method='colours_of')
  assert found.tolist() == [[0, 0, 1, 2]]


def dataset_of(images, channels=3, side=4, labels=None):
  labels = np.zeros(len(images), np.int32) if labels is None else labels
  source = data.sources.Listed(list(images), labels)
  splits = {'train': source, 'test': source}
  augment = data.augment.Augment()
  return data.Dataset(splits, tuple('abcdefghij'), Preprocess((side, side), channels), augment)


def test_k_means_finds_colours_that_are_there():
  """Three colours and a little noise: the centres are these, the darkest first; seeds decide."""
  rng = np.random.default_rng(0)
  colours = np.array([[20, 30, 40], [200, 40, 60], [90, 230, 240]])
  images = colours[rng.integers(0, 3, (50, 4, 4))] + rng.integers(-3, 4, (50, 4, 4, 3))
  dataset = dataset_of(images.astype(np.uint8))
  found = palette.learn(dataset, 3, 0)
  np.testing.assert_allclose((found + 1) * 127.5, colours, atol=0.5)
  np.testing.assert_array_equal(found, palette.learn(dataset, 3, 0))
  with pytest.raises(ValueError, match='clusters=4, and the training pictures have 3 colours'):
    palette.learn(dataset_of(colours[rng.integers(0, 3, (9, 4, 4))].astype(np.uint8)), 4, 0)


@pytest.mark.parametrize(
  ('array', 'message'),
  [
    (np.zeros((5, 3)), r'holds \(5, 3\).*\(4, 3\): set config.model.clusters'),
    (np.zeros((4, 1)), r'holds \(4, 1\)'),
    (np.full((4, 3), 99.0), r'colours from 99 to 99.*-1..1 with config.data.mean'),
    (None, 'no .npy file of colours'),
  ],
)
def test_palettes_that_do_not_fit(array, message, tmp_path):
  path = tmp_path / 'clusters.npy'
  if array is None:
    path.write_text('no array')
  else:
    np.save(path, array)
  with pytest.raises(ValueError, match=message):
    palette.read(path, 4, Preprocess((4, 4), 3))


def test_a_palette_of_another_size_than_the_models():
  with pytest.raises(ValueError, match='palette of 6 colours and a model of 5; set '):
    build(clusters=5, colours=some_palette(6))
  with pytest.raises(
    ValueError, match=r'of 1 channels and images of 3; set config.data.channels=1'
  ):
    build(clusters=6, colours=some_palette(6, 1))
  model = build(clusters=6, colours=some_palette(6))
  with pytest.raises(ValueError, match=r'\(4, 4, 1\) given to a model of \(4, 4, 3\)'):
    model.apply({'params': randomised(model)}, jnp.zeros((1, 4, 4, 1)))


# Objectives.


def init(objective):
  shape = (*objective.model.image_size, objective.model.channels)
  return jax.jit(lambda key: step.init_params(objective, shape, key, {}))(jax.random.key(0))


@pytest.mark.parametrize('name', ['autoregressive', 'masked_pixels'])
@pytest.mark.parametrize('clusters', [512, 6])
def test_the_first_loss_is_that_of_no_idea(name, clusters):
  objective = objective_of(build(clusters=clusters, causal=name == 'autoregressive'), name)
  params = init(objective)
  assert {*params} == {'model'}  # All that is trained is the model's.
  keys = jax.random.split(jax.random.key(0), 3)
  losses, _ = objective.apply({'params': params}, pictures(), keys, method='judge')
  np.testing.assert_allclose(losses, math.log(clusters), rtol=1e-6)
  assert weights.has_zero_head(params['model'])


def test_the_loss_of_pixels_by_hand():
  """The mean over pixels of the negative logarithm of the softmax at the pixel's colour."""
  model = build(clusters=6, colours=some_palette())
  objective, params, images = objective_of(model), randomised(model), pictures()
  losses, logits = objective.apply({'params': {'model': params}}, images, None, method='judge')
  _, named = model.apply({'params': params}, normalised(images))
  told = np.asarray(named['colour_logits'], np.float64)
  colours = np.asarray(model.apply({'params': params}, normalised(images), method='colours_of'))
  own = np.take_along_axis(told, colours[..., None], -1)[..., 0]
  expected = (np.log(np.exp(told).sum(-1)) - own).mean(-1)
  np.testing.assert_allclose(losses, expected, rtol=1e-4)
  np.testing.assert_allclose(logits, named['logits'], rtol=1e-5)


def masked(side=4, **section):
  model = build(clusters=6, colours=some_palette(), causal=False, side=side)
  return objective_of(model, 'masked_pixels', **section), randomised(model)


def test_hidden_pixels_do_not_matter_and_others_are_not_judged():
  objective, params = masked(masking=0.4)
  images, keys = pictures(), jax.random.split(jax.random.key(3), 3)
  hidden = np.asarray(objective.apply({}, keys, 16, method='draw'))
  assert 0 < hidden.sum() < hidden.size

  def losses(patches, colours):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(igpt.ImageGPT, 'embed', lambda self, images: patches)
      patch.setattr(igpt.ImageGPT, 'colours_of', lambda self, images: colours)
      return objective.apply({'params': {'model': params}}, images, keys, method='judge')[0]

  rng = np.random.default_rng(0)
  patches = jnp.asarray(rng.normal(size=(3, 16, 32)), jnp.float32)
  colours = jnp.asarray(rng.integers(0, 6, (3, 16)))
  gradient = jax.grad(lambda x: losses(x, colours).sum())(patches)
  reached = np.asarray(jnp.abs(gradient).sum(-1)) > 0
  np.testing.assert_array_equal(reached, ~hidden)
  before = losses(patches, colours)
  others = jnp.where(hidden, colours, (colours + 1) % 6)
  np.testing.assert_array_equal(losses(patches, others), before)
  for i, place in np.argwhere(hidden):
    wrong = colours.at[i, place].set((colours[i, place] + 1) % 6)
    assert losses(patches, wrong)[i] != before[i]


def test_each_pixel_is_hidden_by_a_draw_of_its_own():
  objective, _ = masked()
  hidden = objective.apply({}, jax.random.split(jax.random.key(0), 4000), 16, method='draw')
  np.testing.assert_allclose(hidden.mean(0), 0.15, atol=0.03)
  counts = np.asarray(hidden.sum(1))  # Binomial, not an exact number a picture.
  assert counts.std() == pytest.approx(math.sqrt(16 * 0.15 * 0.85), rel=0.05)


@pytest.mark.parametrize('name', ['autoregressive', 'masked_pixels'])
def test_fine_tuning_adds_the_loss_of_labels(name):
  """L_gen + w L_clf, with metrics of both; without a weight no label is asked for."""
  model = build(clusters=6, colours=some_palette(), causal=name == 'autoregressive')
  params = {'params': {'model': randomised(model)}}
  batch = {'image': pictures(), 'label': jnp.array([1, 2, 3]), 'weight': jnp.array([1.5, 1.5, 0])}
  rngs = {'masking': jax.random.key(0), 'dropout': jax.random.key(1)}
  found = {}
  for weight in (0.0, 1.0, 0.5):
    objective = objective_of(model, name, classification_weight=weight)
    assert (
      ('label' in objective.batch_shapes((4, 4, 3), 3)) == objective.trains_head == bool(weight)
    )
    loss, values = objective.apply(params, batch, {}, train=True, rngs=rngs)
    assert {*values} == {*objective.metrics}
    found[weight] = float(loss)
    assert values['bits_per_pixel'] == pytest.approx(found[0.0] / math.log(2), rel=1e-5)
  keys = objective.apply(params, 3, rngs=rngs, method='keys')
  _, logits = objective.apply(params, batch['image'], keys, method='judge')
  own = -jax.nn.log_softmax(logits)[jnp.arange(3), batch['label']]
  labels = float((own * batch['weight']).mean())
  assert found[1.0] - found[0.0] == pytest.approx(labels, rel=1e-4)
  assert found[0.5] - found[0.0] == pytest.approx(labels / 2, rel=1e-4)


@pytest.mark.parametrize(
  ('name', 'section', 'causal', 'message'),
  [
    ('autoregressive', {}, False, 'those before them alone; set config.model.causal=True'),
    ('masked_pixels', {}, True, 'see each other; set config.model.causal=False'),
    ('masked_pixels', {'masking': 0.0}, False, r'masking=0.0 must be in \(0, 1\]'),
    ('autoregressive', {'classification_weight': -1.0}, True, 'must be at least 0'),
  ],
)
def test_refusals_of_objectives(name, section, causal, message):
  with pytest.raises(ValueError, match=message):
    objective_of(build(causal=causal), name, **section)


def test_a_model_without_a_palette_is_refused():
  known = defaults.part('model', 'vit').to_dict() | {'variant': 'mu/4'}
  vit = models.build(**known, image_size=(8, 8), channels=1, num_classes=2)
  with pytest.raises(ValueError, match=r'a VisionTransformer has none; set config.model.name'):
    objective_of(vit)
  with pytest.raises(ValueError, match='a VisionTransformer has no palette'):
    vit.colours_of(jnp.zeros((1, 8, 8, 1)))
  with pytest.raises(ValueError, match='has no palette, so it draws no pixels'):
    sampling.check(vit, 1.0)


# Sampling.


def without_cache(model, params, keys, known, given, temperature):
  """The same draws from whole forward passes, one for each pixel."""
  colours = jnp.asarray(known)

  @jax.jit
  def logits_of(colours):
    patches = model.apply({'params': params}, colours, method='embed_colours')
    tokens, _ = model.apply({'params': params}, patches, method='encode')
    return model.apply({'params': params}, tokens, method='predict')

  for place in range(given, colours.shape[1]):
    logits = logits_of(colours)[:, place]
    own = jax.vmap(lambda key, place=place: jax.random.fold_in(key, place))(keys)
    new = logits.argmax(-1)
    if temperature:
      new = jax.vmap(jax.random.categorical)(own, logits / temperature)
    colours = colours.at[:, place].set(new)
  return np.asarray(colours)


@pytest.mark.parametrize(('given', 'temperature'), [(0, 1.0), (7, 0.5), (8, 0.0)])
def test_sampling_with_a_cache_is_sampling_without(given, temperature):
  model = build(clusters=6, depth=2)
  params = randomised(model)
  known = np.random.default_rng(0).integers(0, 6, (5, 16)).astype(np.int32)
  keys = jax.random.split(jax.random.key(0), 5)
  found = sampling.draw(model, params, keys, known, given, temperature)
  np.testing.assert_array_equal(
    found, without_cache(model, params, keys, known, given, temperature)
  )
  np.testing.assert_array_equal(found[:, :given], known[:, :given])
  assert (found[:, given:] != known[:, given:]).any()
  again = sampling.draw(model, params, keys, known, given, temperature, batch_size=2)
  np.testing.assert_array_equal(again, found)  # Whatever batch it is in.


def test_sampling_in_half_precision():
  """The cache has the type of the computation; what is drawn is a palette's colour."""
  model = build(clusters=6, depth=2, dtype='bfloat16')
  known, keys = np.zeros((2, 16), np.int32), jax.random.split(jax.random.key(0), 2)
  found = sampling.draw(model, randomised(model), keys, known, 3)
  assert found.shape == (2, 16) and set(found.ravel()) <= {*range(6)}
  _, caches = sampling.begin(model, randomised(model), jnp.asarray(known))
  assert jax.tree.leaves(caches)[0].dtype == jnp.bfloat16


def test_sampling_refuses_what_cannot_draw():
  with pytest.raises(ValueError, match=r'trained as BERT .*give one of config.objective.name'):
    sampling.check(build(causal=False), 1.0)
  with pytest.raises(ValueError, match='temperature=-1'):
    sampling.check(build(), -1.0)


# Files of Hugging Face.


def passport_of(model, colours, **section):
  known = defaults.part('model', 'igpt').to_dict() | {
    'variant': 'mu', 'depth': 2, 'clusters': len(colours), 'colours': colours, 'channels': 3,
    'image_size': model.image_size, 'num_classes': model.num_classes,
  } | section  # fmt: skip
  names = [f'kind {i}' for i in range(model.num_classes)]
  seen = dataclasses.asdict(Preprocess(model.image_size, 3))
  return weights.Passport.from_json({'model': known, 'preprocess': seen, 'class_names': names})


def written(folder, classes=3, side=4, seen=None, **section):
  """Random weights in a folder of ours, which see pictures as `seen` says beside their size."""
  colours = some_palette(7)
  model = build(clusters=7, colours=colours, depth=2, classes=classes, side=side, **section)
  params = jax.tree.map(np.asarray, randomised(model))
  passport = passport_of(model, colours, **section)
  preprocess = dataclasses.replace(passport.preprocess, **seen or {})
  weights.write_model(folder, params, dataclasses.replace(passport, preprocess=preprocess))
  return folder


def test_to_hugging_face_and_back(tmp_path):
  source = written(tmp_path / 'ours')
  convert.convert(source, tmp_path / 'theirs', 'huggingface')
  convert.convert(tmp_path / 'theirs', tmp_path / 'back', 'vit_jax')
  ours, back = predict.load(source), predict.load(tmp_path / 'back')
  images = np.asarray(pictures())
  for name in ('logits', 'colour_logits'):
    np.testing.assert_array_equal(ours(images, (name,))[name], back(images, (name,))[name])
  for key in ('colours', 'causal', 'clusters', 'gelu', 'epsilon', 'image_size'):
    assert back.passport.model[key] == ours.passport.model[key]
  assert back.passport.model['variant'] == 'S' and back.passport.model['width'] == 32
  assert back.class_names == ours.class_names
  assert convert.inspect(tmp_path / 'theirs')['family'] == 'huggingface'


def test_a_palette_of_other_units_travels(tmp_path):
  """Their processor makes -1..1 of pixels, and so are the colours there: the same are nearest."""
  seen = dict(mean=(0.1, 0.2, 0.3), std=(0.25,))
  source = written(tmp_path / 'ours', seen=seen)
  convert.convert(source, tmp_path / 'theirs', 'huggingface')
  told = json.loads((tmp_path / 'theirs/preprocessor_config.json').read_text())
  pixels = np.array(some_palette(7)) * 0.25 + seen['mean']
  np.testing.assert_allclose(told['clusters'], pixels * 2 - 1, rtol=1e-6)
  assert told['image_mean'] == told['image_std'] == [0.5] * 3
  ours, back = predict.load(source), predict.load(tmp_path / 'theirs')
  images = np.asarray(pictures())
  np.testing.assert_array_equal(*(x(images, ('logits',))['logits'] for x in (ours, back)))
  assert all(row['difference'] < 1e-6 for row in convert.check(source, tmp_path / 'theirs'))


@pytest.mark.parametrize(
  ('keys', 'expected'),
  [
    (dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.25] * 3),
     dict(mean=(0.1, 0.2, 0.3), std=(0.25,) * 3)),
    (dict(do_center_crop=True, size={'height': 4, 'width': 4}, crop_size=3), dict(fit='crop')),
    (dict(do_normalize=False), dict(mean=(0.0,), std=(1 / 255,))),
    (dict(resample=3), dict(resize='bicubic')),
  ],
)  # fmt: skip
def test_what_a_file_says_of_its_pictures_is_read(tmp_path, keys, expected):
  convert.convert(written(tmp_path / 'ours'), tmp_path / 'theirs', 'huggingface')
  path = tmp_path / 'theirs/preprocessor_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | keys))
  given = predict.load(tmp_path / 'theirs').preprocess
  assert {key: getattr(given, key) for key in expected} == expected


@pytest.mark.parametrize(
  ('seen', 'words'),
  [
    (dict(fit='crop'), "fit='crop': huggingface has the whole picture"),
    (dict(std=(0.2, 0.3, 0.4)), 'all channels are as far apart'),
    (dict(resize='linear'), "resize='linear': huggingface has 'bilinear'"),
  ],
)
def test_pictures_that_are_seen_otherwise_there_are_a_loss(tmp_path, seen, words):
  source = written(tmp_path / 'ours', seen=seen)
  with pytest.raises(ValueError, match=f'would lose .*{words}'):
    convert.convert(source, tmp_path / 'theirs', 'huggingface')
  convert.convert(source, tmp_path / 'theirs', 'huggingface', True)


@pytest.mark.slow
@pytest.mark.parametrize('classes', [3, 0])
def test_their_model_computes_the_same(tmp_path, classes):
  """Logits of classes and of colours, given the start and all pixels but the last."""
  transformers, torch = peers.need('transformers'), peers.need('torch')
  source = written(tmp_path / 'ours', classes)
  convert.convert(source, tmp_path / 'theirs', 'huggingface')
  ours, images = predict.load(source), np.asarray(pictures())
  from vit_jax.convert.peers import row_of_colours

  row = torch.from_numpy(row_of_colours(ours, normalised(images)))
  kinds = {'colour_logits': 'ImageGPTForCausalImageModeling'}
  kinds |= {'logits': 'ImageGPTForImageClassification'} if classes else {}
  for name, kind in kinds.items():
    theirs, about = getattr(transformers, kind).from_pretrained(
      tmp_path / 'theirs', output_loading_info=True
    )
    assert not about['missing_keys']
    with torch.no_grad():
      given = theirs.eval()(row).logits.numpy()
    np.testing.assert_allclose(ours(images, (name,))[name], given, rtol=1e-3, atol=1e-3)
  if classes:
    assert convert.check_theirs(source, tmp_path / 'theirs', 'huggingface')[0]['difference'] < 1e-3


@pytest.mark.slow
def test_their_weights_are_read(tmp_path):
  """A model that transformers makes and writes, with its palette; OpenAI's file will do, too."""
  transformers, torch = peers.need('transformers'), peers.need('torch')
  config = transformers.ImageGPTConfig(
    vocab_size=8, n_positions=16, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0
  )
  torch.manual_seed(0)
  theirs = transformers.ImageGPTForCausalImageModeling(config).eval()
  with torch.no_grad():
    for name, x in theirs.named_parameters():
      if not name.endswith('bias'):
        x.normal_(0, 0.3)
  theirs.save_pretrained(tmp_path)
  with pytest.raises(ValueError, match=r"no palette: neither 'clusters' in prepro.*clusters\.npy"):
    predict.load(tmp_path)
  np.save(tmp_path / 'clusters.npy', np.array(some_palette(7), np.float32))
  ours, images = predict.load(tmp_path), np.asarray(pictures())
  assert ours.model.sizes()['num_heads'] == 4 and ours.model.num_classes == 0
  from vit_jax.convert.peers import row_of_colours

  with torch.no_grad():
    given = theirs(torch.from_numpy(row_of_colours(ours, normalised(images)))).logits.numpy()
  found = ours(images, ('colour_logits',))['colour_logits']
  np.testing.assert_allclose(found, given, rtol=1e-3, atol=1e-3)
  with torch.no_grad():
    theirs.transformer.h[1].mlp.c_fc.bias[2] = 0.1
  theirs.save_pretrained(tmp_path)
  with pytest.raises(ValueError, match=r'has biases that are not zero.*h.1.mlp.c_fc.bias'):
    predict.load(tmp_path)


def test_what_hugging_face_cannot_hold(tmp_path):
  source = written(tmp_path / 'ours', causal=False)
  with pytest.raises(ValueError, match='would lose causal=False: at huggingface a pixel sees'):
    convert.convert(source, tmp_path / 'theirs', 'huggingface')
  with pytest.raises(ValueError, match='timm has no igpt'):
    convert.convert(source, tmp_path / 'theirs', 'timm')


# Runs.


def config_of(**overrides):
  """Six steps of next-pixel prediction on the digits."""
  parts = {'model': 'igpt', 'objective': 'autoregressive', 'evaluators': ('pixels', 'linear')}
  parts |= {key.split('__')[0]: x for key, x in overrides.items() if key.endswith('__name')}
  parts |= {'evaluators': overrides.pop('evaluators', parts['evaluators'])}
  plain = {
    'model.variant': 'mu',
    'model.depth': 2,
    'model.clusters': 9,
    'optimizer.learning_rate': 1e-2,
  }
  small = small_config()
  small.model = {'name': 'igpt'}
  config = defaults.complete(small, parts)
  config.update_from_flattened_dict(plain)
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in overrides.items()})
  if 'linear' in config.evaluators:
    config.evaluation.linear.update(layers='all', strengths=(0.1,))
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of six steps."""
  workdir = tmp_path_factory.mktemp('igpt') / 'run'
  train.train(config_of(), workdir)
  return workdir


def lines(workdir):
  rows = metrics.read(workdir / 'metrics.jsonl')
  return [{key: x for key, x in row.items() if 'images_per_second' not in key} for row in rows]


def test_a_run_is_judged_and_carries_its_palette(run):
  """Numbers of pixels and of a probe; the inference file alone draws, predicts and tells bits."""
  row = lines(run)[-1]
  assert row['test/pixel_bits'] == pytest.approx(row['test/pixel_loss'] / math.log(2), rel=1e-5)
  assert 2 < row['test/pixel_baseline_bits'] < math.log2(9)
  assert row['test/pixel_bits'] < math.log2(9)
  report = train.evaluate(config_of(), run)
  assert report['pixels']['pixel_bits'] == pytest.approx(row['test/pixel_bits'], rel=1e-4)
  assert report['pixels']['n_examples'] == 360
  assert (run / 'reports/linear_by_block.png').exists()
  model = predict.load(run / 'model')
  colours = np.array(model.passport.model['colours'])
  assert colours.shape == (9, 1) and (np.diff(colours[:, 0]) > 0).all()
  assert not any('colours' in name for name in np.load(run / 'model/weights.npz').files)
  image = np.asarray(pictures(1, 8, 1))
  assert model(image, ('probabilities',))['probabilities'].shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['autoregressive', 'masked_pixels'])
def test_a_stopped_run_goes_on_exactly(name, tmp_path, monkeypatch):
  settings = dict(
    objective__name=name, model__causal=name == 'autoregressive', evaluators=('pixels',),
    data__validation_fraction=0.2, best='min:validation/pixel_loss', model__dropout=0.1,
  )  # fmt: skip
  train.train(config_of(**settings), tmp_path / 'whole')

  class Stops(interruption.Interruption):
    """An interruption that is asked for after three steps."""

    steps = 0

    def requested(self):
      self.steps += 1
      return self.steps == 3

  with monkeypatch.context() as patch:
    patch.setattr(train, 'Interruption', Stops)
    train.train(config_of(**settings), tmp_path / 'cut')
  assert lines(tmp_path / 'cut')[-1]['step'] == 3
  with monkeypatch.context() as patch:  # The palette is the checkpoint's, not made again.
    patch.setattr(palette, 'learn', lambda *_: pytest.fail('a second palette'))
    train.train(config_of(**settings), tmp_path / 'cut')
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')
  whole, cut = (weights.load(tmp_path / name) for name in ('whole', 'cut'))
  jax.tree.map(np.testing.assert_array_equal, whole[0], cut[0])
  assert whole[1].model['colours'] == cut[1].model['colours']


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
  """The same losses, the state whole or cut over the devices."""
  found = []
  for devices, fsdp in ((1, 1), (8, 8)):
    config = config_of(devices=devices, fsdp=fsdp, evaluators=('pixels',))
    exp = experiment.build(config, chosen=jax.devices()[:devices])
    state, advance = step.prepare(exp, step.state_shapes(exp), None)
    losses = []
    for _, batch in zip(range(4), train.training_batches(exp, 0), strict=False):
      state, values = advance(state, batch[1], exp.constants)
      losses.append(float(values['loss']))
    found.append(losses)
  np.testing.assert_allclose(*found, rtol=2e-3)


def test_fine_tuning_takes_the_palette_along(run, tmp_path):
  """What a run starts from decides colours, their number and causality; then labels are learnt."""
  settings = dict(init_from=str(run), model__variant=None, model__clusters=None)
  settings |= dict(evaluators=('classification', 'pixels'), objective__classification_weight=1.0)
  tuned = config_of(**settings, data__train_examples=50, total_steps=2, eval_every=2)
  train.train(tuned, tmp_path / 'w')
  old, new = weights.load(run)[1], weights.load(tmp_path / 'w')[1]
  assert old.model['colours'] == new.model['colours'] and new.model['causal'] is True
  assert np.any(weights.load(tmp_path / 'w')[0]['head']['kernel'])
  row = lines(tmp_path / 'w')[-1]
  assert {'test/accuracy', 'test/pixel_bits', 'train/accuracy'} <= row.keys()
  with pytest.raises(ValueError, match='have a palette of their own'):
    experiment.build(config_of(**settings, model__palette='other.npy'))
  with pytest.raises(ValueError, match=r'of 1 channels and images of 3; set config.data.channels'):
    experiment.build(config_of(**settings, data__channels=3))


def test_a_palette_from_a_file(tmp_path):
  """OpenAI's form; the run that was started with it is evaluated by the same config."""
  greys = np.linspace(-1, 1, 5).astype(np.float32)[:, None]
  np.save(tmp_path / 'clusters.npy', greys)
  settings = dict(model__palette=str(tmp_path / 'clusters.npy'), model__clusters=5)
  config = config_of(**settings, evaluators=('pixels',), total_steps=1)
  train.train(config, tmp_path / 'w')
  (tmp_path / 'clusters.npy').unlink()  # It is in the passport.
  assert train.evaluate(config, tmp_path / 'w')['colours'] == 5
  assert weights.load(tmp_path / 'w')[1].model['colours'] == tuple(map(tuple, greys.tolist()))


def test_a_bert_that_classifies_is_asked_under_five_masks(tmp_path):
  settings = dict(
    objective__name='masked_pixels', model__causal=False, objective__classification_weight=1.0,
    evaluators=('pixels',), total_steps=2, eval_every=2,
  )  # fmt: skip
  config = config_of(**settings)
  train.train(config, tmp_path)
  row = lines(tmp_path)[-1]
  report = train.evaluate(config, tmp_path)
  assert report['masks'] == 5 and report['modal_accuracy'] == pytest.approx(
    row['test/modal_accuracy']
  )
  with pytest.raises(SystemExit, match='error: the model was trained as BERT'):
    interpret_command.main(['sample', str(tmp_path), f'--out={tmp_path}'])


def test_the_vote_of_masks_by_hand():
  """Of five answers the most frequent one counts; of equal ones the first class."""
  objective, params = masked(masking=0.5, classification_weight=1.0)
  images, answers = pictures(20), []
  for mask in range(5):
    keys = [jax.random.fold_in(jax.random.key(3 + mask), i) for i in range(20)]
    given = {'params': {'model': params}}
    _, logits = objective.apply(given, images, jnp.stack(keys), method='judge')
    answers.append(np.asarray(logits).argmax(-1))
  votes = [np.bincount(column, minlength=10).argmax() for column in np.array(answers).T]
  assert (votes != answers[0]).any()  # One mask is not enough.
  subject = Subject(
    objective.model, print, passport_of(objective.model, objective.model.palette),
    dataset_of(np.asarray(images), labels=np.array(votes, np.int32)),
    sharding.make_mesh(1, jax.devices()[:1]), 8, objective=objective,
  )  # fmt: skip
  found = pixels_evaluator.Pixels(subject, seed=3, masks=5).evaluate(params, 'test')
  assert found.right is not None and found.right.all()


def test_the_baseline_is_the_entropy_of_colours():
  counts = np.array([[2, 1, 0], [0, 1, 0]])
  found = pixels_evaluator.Result(np.array([1.0, 2.0]), counts)
  assert found.baseline == pytest.approx(1.0)
  assert found.scores()['pixel_bits'] == pytest.approx(1.5 / math.log(2))


def test_pictures_of_what_a_run_draws(run, tmp_path):
  """The given half stays; numbers, arrays and a picture; the same for the same seed."""
  words = ['sample', str(run), f'--out={tmp_path}', '--count=3', '--samples=4', '--half=0.25']
  interpret_command.main([*words, '--temperature=0.7'])
  content = json.loads((tmp_path / 'sample.json').read_text())
  assert (content['rows_given'], content['colours'], content['temperature']) == (2, 9, 0.7)
  assert len(content['bits_per_pixel']) == 3
  assert Image.open(tmp_path / 'sample.png').width > 300
  assert (tmp_path / 'sample.svg').exists()
  arrays = dict(np.load(tmp_path / 'sample.npz'))
  assert arrays['samples'].shape == (4, 8, 8, 1)
  for i in (1, 2):
    np.testing.assert_array_equal(arrays[f'completion_{i}'][:, :2], arrays['images'][:, :2])
  assert (arrays['completion_1'] != arrays['completion_2']).any()
  assert (arrays['given'][:, 2:] == 128).all()
  model = predict.load(run)
  again = interpret.measure('sample', model, arrays['images'], temperature=0.7, half=0.25)
  np.testing.assert_array_equal(again[0].arrays['completion_2'], arrays['completion_2'])
  interpret_command.main(['sample', str(run), f'--out={tmp_path}/none', '--count=1', '--samples=0'])
  assert dict(np.load(tmp_path / 'none/sample.npz'))['samples'].shape == (0, 8, 8, 1)
  with pytest.raises(ValueError, match=r'--half=2.0 must be in 0..1'):
    interpret.measure('sample', model, arrays['images'], half=2.0)


def test_attention_and_the_lab_see_it(run):
  """What every family offers: maps over pixels that see no later one, and tokens of each block."""
  model, image = predict.load(run), np.asarray(pictures(1, 8, 1))
  found = model(image, ('block_0/attention_weights', 'block_0/tokens', 'tokens'))
  weights_of = model.model.attention_map(found, 0)
  assert weights_of.shape == (1, 2, 64, 64) and not np.triu(weights_of, 1).any()
  np.testing.assert_allclose(weights_of.sum(-1), 1, rtol=1e-5)
  assert interpret.measure('attention', model, image)
  places = model.model.position_embeddings(model.params)
  assert places.shape == (64, 32)


# Recipes.


def test_the_sweep_compares_objectives_over_checkpoints():
  from vit_jax import recipe
  from vit_jax.explore import against, runs

  address = f'{ROOT}/configs/compare_igpt.py'
  module, _ = recipe.open_recipe(address)
  config = defaults.complete(recipe.load_recipe(address), {})
  planned = {run.shown['label']: run for run in runs.plan(config, module.sweep(), ROOT)}
  for kind in ('AR', 'AR, smaller', 'BERT'):
    tuned, scratch = planned[f'{kind}, fine-tuned'], planned[f'{kind}, from scratch']
    assert tuned.config.init_from == str(planned[kind].workdir)
    assert tuned.config.objective.classification_weight == 1.0
    with scratch.config.unlocked():
      scratch.config.init_from = tuned.config.init_from
    assert scratch.config == tuned.config
  assert all(map(against.is_over_checkpoints, module.PICTURES))


@pytest.mark.parametrize('how', ['ar', 'bert'])
def test_the_recipe_that_fine_tunes(run, how):
  """It takes sizes, palette and data from the run; a BERT is no start of an AR, nor the reverse."""
  from vit_jax import recipe

  config = defaults.complete(recipe.load_recipe(f'{ROOT}/configs/igpt.py:finetune,{how}'), {})
  config.init_from = str(run)
  if how == 'bert':
    config.model.causal = None  # As the weights are.
    with pytest.raises(ValueError, match=r'see each other; set config.model.causal=False'):
      experiment.build(config)
    return
  built = experiment.build(config)
  assert built.model.sizes()['width'] == 32 and built.model.clusters == 9
  assert built.data.image_shape == (8, 8, 1) and built.objective.trains_head


def test_every_evaluation_of_a_run_is_a_point(tmp_path):
  from vit_jax.explore import against

  rows = [{'step': i, 'test/pixel_bits': 3 - i, 'test/linear': i / 2} for i in (0, 1)]
  text = '\n'.join(map(json.dumps, [*rows, {'step': 1, 'train/loss': 1.0}]))
  (tmp_path / 'metrics.jsonl').write_text(text)
  record = {'overrides': {'model.causal': True}, 'workdir': str(tmp_path)}
  found = against.gather([record], ('test/pixel_bits', 'test/linear'), lambda _: 'AR')
  assert [*found['AR'].values()] == [[(3.0, 0.0)], [(2.0, 0.5)]]
