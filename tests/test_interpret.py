"""Looking inside: closed-form truths, gradients, memory, every family, the commands."""

import dataclasses
import json
import types

from conftest import small_config
from flax import linen as nn
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
from peers import need
from PIL import Image
import pytest

from vit_jax import defaults, figures, interpret, models, predict, train, weights
from vit_jax.data.preprocess import Preprocess
from vit_jax.interpret import __main__ as command
from vit_jax.interpret import (
  attention,
  distance,
  filters,
  gradients,
  images,
  overlay,
  patches,
  positions,
  query,
  rollout,
)
from vit_jax.models import fused_attention
from vit_jax.runtime import compiled

# Each with a grid that is not square.
FAMILIES = {
  'vit': dict(image_size=(24, 16), variant='mu/4', depth=3),
  'mean': dict(image_size=(8, 16), variant='mu/4', depth=2, class_token=False, readout='mean'),
  'deit': dict(image_size=(48, 32), variant='Ti/16-distilled', width=32, depth=2, num_heads=2),
  'hybrid': dict(image_size=(16, 32), variant='R5+digits/4', depth=2),
  'bit': dict(image_size=(32, 64), variant='R8x1'),
  'swin': dict(image_size=(12, 16), variant='digits/2', window=2),
  'sasa': dict(image_size=(32, 64), variant='digits', kernel=3),
  'cordonnier': dict(image_size=(8, 12), variant='digits/2', width=32, depth=2),
  'axial': dict(image_size=(8, 12), variant='digits/2', width=32, depth=2, num_heads=2),
  'igpt': dict(image_size=(4, 6), variant='mu', clusters=9, depth=2),
}
NAMES = {'mean': 'vit'}
CLASSES = ['cat', 'dog', 'emu']


def write(folder, name, image_size, **section):
  """A random model of a family, no weight of it 0, as a checkpoint without data."""
  section = defaults.part('model', name).to_dict() | section
  shape = dict(image_size=image_size, channels=3, num_classes=len(CLASSES))
  model = models.complete({'name': name} | section | shape)
  model = {key: value for key, value in model.items() if key not in models.EXECUTION}
  passport = weights.Passport(model, Preprocess(image_size, 3), CLASSES)
  rng = np.random.default_rng(0)

  def draw(x):
    spread = 0.2 if x.ndim < 2 else 1 / np.sqrt(np.prod(x.shape[:-1]))
    return rng.normal(0, spread, x.shape).astype(np.float32)

  flat = {key: draw(x) for key, x in models.shapes_of(passport.build()).items()}
  weights.write_model(folder, traverse_util.unflatten_dict(flat, sep='/'), passport)
  return folder


@pytest.fixture(scope='module')
def families(tmp_path_factory):
  """The folder of a random model, by the name of its family."""
  root, made = tmp_path_factory.mktemp('families'), {}

  def family(name):
    if name not in made:
      made[name] = write(root / name, NAMES.get(name, name), **FAMILIES[name])
    return made[name]

  return family


def pixels(model, count=2):
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (count, *model.model.image_size, 3), np.uint8)


def softmax(shape, seed=0):
  return np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(seed), shape) * 2))


# Closed forms.


def uniform(batch, heads, tokens):
  return np.full((batch, heads, tokens, tokens), 1 / tokens, np.float32)


@pytest.mark.parametrize(('first', 'renormalise'), [(0, False), (1, False), (2, True)])
def test_uniform_attention_is_as_far_as_the_grid(first, renormalise):
  """The mean over all pairs of patches; the tokens before them take their share as distance 0."""
  grid, size = (3, 5), (12, 40)  # Patches of 4 x 8 pixels.
  places = [(4 * r, 8 * c) for r in range(3) for c in range(5)]
  mean = np.mean([np.hypot(a - c, b - d) for a, b in places for c, d in places])
  table = distance.distances(grid, size)
  found = distance.mean_distance(uniform(2, 3, 15 + first), table, renormalise)
  expected = mean if renormalise else mean * 15 / (15 + first)
  np.testing.assert_allclose(found, np.full((2, 3), expected), rtol=1e-5)
  model = types.SimpleNamespace(prefix=first * ('token',), is_causal=False, by_source=lambda x: x)
  assert distance.of_uniform(model, table, renormalise) == pytest.approx(expected)


def test_attention_to_oneself_has_distance_0():
  identity = np.broadcast_to(np.eye(13, dtype=np.float32), (1, 2, 13, 13))
  table = distance.distances((3, 4), (48, 64))
  assert np.all(np.asarray(distance.mean_distance(identity, table, False)) == 0)


def test_attention_to_one_patch_has_its_mean_distance():
  one = np.zeros((1, 1, 6, 6), np.float32)
  one[..., 4] = 1  # Row 1, column 1 of 2 x 3.
  table = distance.distances((2, 3), (16, 24))  # Patches of 8 pixels.
  expected = 8 * np.mean([np.sqrt(2), 1, np.sqrt(2), 1, 0, 1])
  np.testing.assert_allclose(distance.mean_distance(one, table, False), [[expected]], rtol=1e-6)


def products(layers, residual=0.5):
  product, found = None, []
  for one in layers:
    product = rollout.layer(jnp.asarray(one), residual, product)
    found.append(np.asarray(product))
  return found


def test_rollout_of_identity_is_identity():
  identity = np.eye(7, dtype=np.float32)[None]
  np.testing.assert_array_equal(products([identity] * 4)[-1], identity)


def test_rollout_of_uniform_attention():
  """0.5 I + 0.5 U with U U = U, multiplied L times, is 0.5 ** L I + (1 - 0.5 ** L) U."""
  flat = np.full((1, 5, 5), 0.2, np.float32)
  for depth, found in enumerate(products([flat] * 6), 1):
    expected = 0.5**depth * np.eye(5) + (1 - 0.5**depth) * 0.2
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize('residual', [0.0, 0.3, 0.5])
def test_rollout_multiplies_from_the_input_on_and_rows_sum_to_1(residual):
  layers = [softmax((2, 6, 6), seed) for seed in range(4)]
  found = products(layers, residual)
  for product in found:
    np.testing.assert_allclose(product.sum(-1), 1, rtol=1e-5)
  first, second = ((1 - residual) * x + residual * np.eye(6) for x in layers[:2])
  np.testing.assert_allclose(found[1], second @ first, rtol=1e-4, atol=1e-6)


def sincos(grid, width):
  """big_vision's: sines and cosines of the column, then of the row."""
  y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
  rates = 1e-4 ** (np.arange(width // 4) / (width // 4 - 1))
  parts = [f(axis[:, None] * rates) for axis in (x, y) for f in (np.sin, np.cos)]
  return np.concatenate(parts, 1)


def test_similarity_of_sincos_positions_depends_on_the_offset_alone(families):
  model = predict.load(families('vit'))
  grid = model.model.grid
  assert grid == (6, 4)
  embedding = np.concatenate([np.full((1, 32), 9.0), sincos(grid, 32)])[None]
  changed = jax.tree.map(np.array, model.params)
  changed['Transformer']['posembed_input']['pos_embedding'] = embedding.astype(np.float32)
  model = predict.Predictor(changed, model.passport)
  (found,) = interpret.measure('positions', model)
  cosines = found.arrays['similarity'][1:, 1:].reshape(*grid, *grid)
  by_offset = {}
  for r, c, i, j in np.ndindex(*grid, *grid):
    by_offset.setdefault((r - i, c - j), []).append(cosines[r, c, i, j])
  assert max(np.ptp(values) for values in by_offset.values()) < 1e-5
  assert by_offset[0, 0] == pytest.approx([1.0] * 24)
  assert np.array(found.numbers['prefix_with_patches']['class_token']).shape == grid
  assert found.numbers['mean_of_neighbours']['row'] == pytest.approx(by_offset[0, 1][0], abs=1e-5)


def test_tiles_lie_where_their_patches_are():
  grid = (2, 3)
  x = np.arange(36.0).reshape(6, 6)
  canvas = positions.tiled(x, grid)
  assert canvas.shape == (2 * 2 + 1, 3 * 3 + 2)
  np.testing.assert_array_equal(canvas[3:5, 4:7], x[4].reshape(grid))  # Row 1, column 1.
  assert np.isnan(canvas[2]).all() and np.isnan(canvas[:, 3]).all()


def test_filters_are_the_principal_components_of_numpys_svd():
  kernel = np.random.default_rng(0).normal(size=(4, 6, 3, 40)).astype(np.float32)
  kernel[0] *= 5
  parts, variance = filters.components(kernel, 28)
  assert parts.shape == (28, 4, 6, 3)
  rows = kernel.reshape(72, 40).T.astype(np.float64)
  covariance = np.cov(rows, rowvar=False)
  values = np.sort(np.linalg.eigvalsh(covariance))[::-1]
  np.testing.assert_allclose(variance[:28], values[:28], rtol=1e-6)
  _, _, expected = np.linalg.svd(rows - rows.mean(0))
  same = np.abs((parts.reshape(28, -1) * expected[:28]).sum(1))
  np.testing.assert_allclose(same, 1, rtol=1e-6)
  largest = [part.flat[np.abs(part).argmax()] for part in parts]
  assert min(largest) > 0  # The sign, which says nothing, is always the same.


def test_there_are_no_more_components_than_the_kernel_has():
  kernel = np.random.default_rng(0).normal(size=(2, 2, 1, 64))
  parts, variance = filters.components(kernel, 28)
  assert len(parts) == 4 and len(variance) == 4
  few = np.random.default_rng(0).normal(size=(4, 4, 3, 6))  # Six filters less their mean.
  assert len(filters.components(few, 28)[0]) == 5
  with pytest.raises(ValueError, match='all alike'):
    filters.components(np.ones((2, 2, 3, 8)), 28)


def test_maps_lie_over_the_pixels_of_their_patches():
  """A value a patch, kept at the centre of its pixels; the mean stays."""
  values = np.zeros((2, 4))
  values[1, 2] = 1
  spread = overlay.upsample(values, (6, 12))  # Patches of 3 x 3.
  assert np.unravel_index(spread.argmax(), spread.shape) == (4, 7)
  assert spread[4, 7] == 1 and spread[1, 7] == 0
  flat = overlay.upsample(np.full((2, 4), 0.3), (6, 12))
  np.testing.assert_allclose(flat, 0.3)


# What is measured is what the model computes, and measuring changes nothing.


def reference(model, seen):
  """Attention of every block, straight from the named outputs: L of `B h T T`."""
  names = [name for name in model.output_names if name.endswith('attention_weights')]
  outputs = model(seen, (*names, 'logits'))
  return [outputs[name] for name in names], outputs['logits']


@pytest.mark.parametrize('name', ['vit', 'deit', 'mean'])
def test_measures_are_those_of_the_named_outputs(families, name):
  model = predict.load(families(name))
  before = jax.tree.map(np.array, model.params)
  seen = pixels(model, 5)
  layers, logits = reference(model, seen)
  first, (height, width) = len(model.model.prefix), model.model.grid

  eye, product = np.eye(layers[0].shape[-1]), np.eye(layers[0].shape[-1])
  for one in layers:
    product = (0.5 * one.mean(1) + 0.5 * eye) @ product
  rows = product[:, 0] if first else product.mean(1)
  found = interpret.measure('rollout', model, seen)
  for one, row in zip(found, rows, strict=True):
    assert one.arrays['by_layer'].shape == (len(layers), height, width)
    np.testing.assert_allclose(one.arrays['map'].ravel(), row[first:], rtol=1e-4, atol=1e-6)
    on_prefix = list(one.numbers['on_prefix'].values())
    assert sum(on_prefix) + one.arrays['map'].sum() == pytest.approx(1, abs=1e-4)

  found = interpret.measure('attention', model, seen, query='3', layers='2', heads='2')
  for i, one in enumerate(found):
    expected = layers[1][i, 1, first + 2, first:].reshape(height, width)
    np.testing.assert_allclose(one.arrays['layer_2'], expected[None], atol=1e-6)
  mean = interpret.measure('attention', model, seen[:1], query='mean', heads='mean')[0]
  expected = layers[0][0, :, first:, first:].mean((0, 1)).reshape(height, width)
  np.testing.assert_allclose(mean.arrays['layer_1'][0], expected, atol=1e-6)

  (found,) = interpret.measure('distance', model, seen)
  places = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2) * (
    np.array(model.model.image_size) / (height, width)
  )
  apart = np.linalg.norm(places[:, None] - places, axis=-1)
  for row, one in zip(found.numbers['distance'], layers, strict=True):
    expected = (one[..., first:, first:] * apart).sum(-1).mean((0, 2))
    np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)

  jax.tree.map(np.testing.assert_array_equal, before, model.params)
  np.testing.assert_array_equal(reference(model, seen)[1], logits)


def test_batches_do_not_matter(families):
  model = predict.load(families('vit'))
  seen = pixels(model, 7)

  def small(outputs):
    return {'sum': outputs['block_1/attention_weights'].sum((1, 2)), 'logits': outputs['logits']}

  whole = model.measure(seen, small, batch_size=7)
  assert whole['sum'].shape == (7, 25)
  for size in (2, 3, 100):
    cut = model.measure(seen, small, batch_size=size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)
  np.testing.assert_allclose(whole['logits'], model(seen, ('logits',))['logits'], rtol=1e-5)
  with pytest.raises(ValueError, match='no images'):
    model.measure(seen[:0], small)


def test_a_fused_kernel_shows_the_same(families, monkeypatch):
  """JAX's own form of the kernel in the place of cuDNN's: measured apart, the weights are equal."""
  plain = predict.load(families('vit'))
  fused = fused_attention.on_gpu
  monkeypatch.setattr(
    fused_attention, 'on_gpu', lambda qkv, scale, _, causal: fused(qkv, scale, 'xla', causal)
  )
  monkeypatch.setattr(fused_attention, 'choose', lambda *_: 'cudnn')
  other, seen = predict.load(families('vit')), pixels(plain)
  assert 'cudnn' in repr(other.model)
  np.testing.assert_allclose(reference(other, seen)[1], reference(plain, seen)[1], rtol=1e-4)
  for what, options in (
    ('attention', {}),
    ('rollout', {}),
    ('rollout', {'weighted': 'gradient', 'target_class': 'dog'}),
  ):
    found = [interpret.measure(what, model, seen, **options) for model in (plain, other)]
    for a, b in zip(*found, strict=True):
      for key, values in a.arrays.items():
        np.testing.assert_allclose(b.arrays[key], values, rtol=2e-3, atol=1e-6)


# Gradients of attention weights.


def changes_of(model, added):
  """The collection that adds arrays to the weights of blocks: by block."""
  flat = {model.model.perturbation(block): x for block, x in added.items()}
  return traverse_util.unflatten_dict(flat, sep='/')


def test_nothing_added_changes_nothing(families):
  model = predict.load(families('vit'))
  seen = pixels(model)
  forward = jax.jit(model.forward)
  plain, named = forward(model.params, seen)
  zeros = {i: jnp.zeros_like(named[f'block_{i}/attention_weights']) for i in range(3)}
  same, _ = forward(model.params, seen, perturbations=changes_of(model, zeros))
  np.testing.assert_allclose(same, plain, rtol=1e-5, atol=1e-6)
  moved = zeros | {1: zeros[1] + 0.1}
  other, _ = forward(model.params, seen, perturbations=changes_of(model, moved))
  assert np.abs(np.asarray(other - plain)).max() > 1e-3


def test_without_the_collection_nothing_is_added(families):
  """No operation more than where nobody asks; and of several blocks only those that are named."""
  model = predict.load(families('vit'))
  seen = pixels(model)

  def operations(**more):
    return str(jax.make_jaxpr(lambda *given: model.forward(*given, **more))(model.params, seen))

  assert operations() == operations(perturbations={})
  assert operations() != operations(perturbations=changes_of(model, {1: jnp.zeros((2, 2, 25, 25))}))


def test_gradients_are_finite_differences(families):
  """Every weight of every head of a block, moved by itself: one image a weight."""
  model = predict.load(families('mean'))
  seen, step, forward = pixels(model, 1), 2e-2, jax.jit(model.forward)
  _, named = forward(model.params, seen)
  (blocks, target), logits = (query.attending(model), 2), []
  given = jax.jit(gradients.program(model, blocks, target))(model.params, seen)
  for block in (0, 1):
    weights_ = np.asarray(named[f'block_{block}/attention_weights'])
    count = weights_.size
    single = step * jnp.eye(count).reshape(count, *weights_.shape[1:])
    logits = [
      forward(
        model.params, np.repeat(seen, count, 0),
        perturbations=changes_of(model, {block: sign * single}),
      )[0][:, target]
      for sign in (1, -1)
    ]  # fmt: skip
    slopes = np.asarray(logits[0] - logits[1]).reshape(weights_.shape) / (2 * step)
    expected = np.maximum(weights_ * slopes, 0).mean(1)
    assert expected.max() > 1e-4
    np.testing.assert_allclose(given[block], expected, atol=2e-3 * expected.max())


@pytest.mark.parametrize('name', ['vit', 'mean'])
def test_gradient_weighted_rollout_is_chefers(families, name, monkeypatch):
  """R = R + A R from the identity, whichever layers are computed together."""
  model = predict.load(families(name))
  seen = pixels(model, 3)
  blocks = query.attending(model)
  options = dict(weighted='gradient', target_class='emu')
  found = interpret.measure('rollout', model, seen, **options)
  maps = jax.jit(gradients.program(model, blocks, 2))(model.params, seen)
  eye = np.eye(maps[0].shape[-1])
  product = eye
  for one in blocks:
    product = product + np.asarray(maps[one.block]) @ product
  product = (product - eye) / 2 ** len(blocks)
  first = len(model.model.prefix)
  rows = product[:, 0] if first else product.mean(1)
  for one, row in zip(found, rows, strict=True):
    np.testing.assert_allclose(one.arrays['map'].ravel(), row[first:], rtol=1e-3, atol=1e-9)
    assert (one.numbers['target_class'], one.numbers['weighted']) == ('emu', 'gradient')
  monkeypatch.setattr(gradients, 'BUDGET', 1)  # One layer at a time, and one image.
  monkeypatch.setattr(gradients, 'KEPT', 1)
  again = interpret.measure('rollout', model, seen, **options)
  for a, b in zip(found, again, strict=True):
    np.testing.assert_allclose(a.arrays['map'], b.arrays['map'], rtol=1e-3, atol=1e-9)


def test_the_class_that_is_predicted_is_explained(families):
  model = predict.load(families('vit'))
  seen = pixels(model, 4)
  best = model(seen, ('logits',))['logits'].argmax(-1)
  free = interpret.measure('rollout', model, seen, weighted='gradient')
  for i, one in enumerate(free):
    name = CLASSES[best[i]]
    assert one.numbers['predicted'] == one.numbers['target_class'] == name
    told = interpret.measure(
      'rollout', model, seen[i : i + 1], weighted='gradient', target_class=name
    )[0]
    np.testing.assert_allclose(told.arrays['map'], one.arrays['map'], rtol=1e-3, atol=1e-9)


def test_a_loop_of_blocks_adds_too(families):
  seen = pixels(predict.load(families('vit')))
  found = [
    interpret.measure(
      'rollout', predict.load(families('vit'), scan=scan), seen, weighted='gradient'
    )
    for scan in (False, True)
  ]
  for a, b in zip(*found, strict=True):
    np.testing.assert_allclose(a.arrays['map'], b.arrays['map'], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize('what', ['rollout', 'distance'])
def test_memory_does_not_grow_with_depth(tmp_path, what, monkeypatch):
  """577 tokens: of the weights of all blocks a few are in memory at once, compiled and not run."""
  section = dict(image_size=(384, 384), variant='mu/16', width=32, mlp_dim=32, num_heads=4)
  found = {}
  for depth in (2, 8):
    model = predict.load(write(tmp_path / f'{what}{depth}', 'vit', depth=depth, **section))

    def compile_only(images, function, batch_size=8, model=model, depth=depth):
      given = jax.ShapeDtypeStruct((2, 384, 384, 3), jnp.uint8)
      program = jax.jit(model.program(function)).lower(model.params, given).compile()
      found[depth] = compiled.memory_of(program).temporary
      raise ValueError('compiled')

    monkeypatch.setattr(model, 'measure', compile_only)
    with pytest.raises(ValueError, match='compiled'):
      interpret.measure(what, model, pixels(model, 2))
  block = 2 * 4 * 577 * 577 * 4  # All heads; rollout keeps the mean over heads of each block.
  assert found[8] - found[2] <= 6 * block / 4 * 1.1
  assert found[8] < 4 * block


# Families.


class Windows(models.Model):
  """A toy family whose only block sees windows of 2 x 2 patches of 4 x 4 pixels."""

  @property
  def grid(self):
    return self.image_size[0] // 4, self.image_size[1] // 4

  def attention_map(self, outputs, block):
    x = outputs[f'block_{block}/attention_weights']  # (B windows) h 4 4
    rows, columns = self.grid[0] // 2, self.grid[1] // 2
    x = x.reshape(-1, rows, columns, x.shape[1], 2, 2, 2, 2)
    y = jnp.zeros((len(x), x.shape[3], *self.grid, *self.grid))
    for r, c in np.ndindex(rows, columns):
      place = (slice(2 * r, 2 * r + 2), slice(2 * c, 2 * c + 2))
      y = y.at[:, :, *place, *place].set(x[:, r, c])
    return y.reshape(*y.shape[:2], x.shape[1] * x.shape[2] * 4, -1)

  @nn.compact
  def __call__(self, images, *, train=False):
    x = nn.Conv(8, (4, 4), (4, 4), name='stem')(images)
    height, width = self.grid
    cut = x.reshape(-1, height // 2, 2, width // 2, 2, 8).swapaxes(2, 3).reshape(-1, 1, 4, 8)
    seen = jax.nn.softmax(cut @ cut.swapaxes(-1, -2), -1)
    logits = nn.Dense(self.num_classes, name='head')(x.mean((1, 2)))
    return logits, {'block_0/tokens': x, 'block_0/attention_weights': seen, 'tokens': x}


def test_windows_are_put_together_by_their_family(tmp_path, monkeypatch):
  family = types.SimpleNamespace(
    VARIANTS=['x'], OFFICIAL={}, build=lambda **section: Windows(**section)
  )
  monkeypatch.setitem(models.MODELS, 'windows', family)
  monkeypatch.setitem(defaults.PARTS['model'], 'windows', {})
  model = predict.load(write(tmp_path, 'windows', (16, 24)))
  seen = pixels(model)
  one = interpret.measure('attention', model, seen, query='9')[0]  # Row 1, column 2.
  shown = one.arrays['layer_1'][0]
  assert (shown > 0).sum() == 4 and shown[:2, 2:4].sum() == pytest.approx(1, abs=1e-5)
  (far,) = interpret.measure('distance', model, seen)
  assert 0 < far.numbers['distance'][0][0] < 4 * np.sqrt(2)
  assert interpret.measure('rollout', model, seen)[0].arrays['map'].sum() == pytest.approx(1)
  with pytest.raises(ValueError, match='a windows offers no gradient'):
    interpret.measure('rollout', model, seen, weighted='gradient')
  with pytest.raises(ValueError, match='a windows has no position embeddings'):
    interpret.measure('positions', model)


def test_a_causal_model_reads_each_pixel_one_place_later(families):
  """Another first pixel shows at the first patch, where the rest keeps its proportions."""
  model = predict.load(families('igpt'))
  seen = pixels(model, 1)
  seen[0, 0, 0] = 0
  other = seen.copy()
  other[0, 0, 0] = 255
  options = dict(query='24', layers='1')
  found = [interpret.measure('attention', model, x, **options)[0] for x in (seen, other)]
  before, after = (one.arrays['layer_1'].reshape(2, 24) for one in found)
  ratio = after[:, :-1] / before[:, :-1]
  changed = np.abs(ratio / np.median(ratio, 1, keepdims=True) - 1) > 1e-3
  np.testing.assert_array_equal(changed, np.arange(23) == [[0], [0]])
  assert not before[:, -1].any()  # The last pixel is fed to no place.
  assert found[0].numbers['rows_sum_to_1_over'] == ['start', 'patches']
  start = found[0].numbers['on_prefix']['layer_1']['start']
  np.testing.assert_allclose(start + before.sum(1), 1, rtol=1e-4)

  layers, _ = reference(model, seen)
  row = np.eye(24)[[23]]
  for one in reversed(layers):
    row = row @ (0.5 * one[0].mean(0) + 0.5 * np.eye(24))
  (rolled,) = interpret.measure('rollout', model, seen, query='24')
  np.testing.assert_allclose(rolled.arrays['map'].ravel(), [*row[0, 1:], 0], atol=1e-6)
  assert rolled.numbers['on_prefix'] == {'start': pytest.approx(row[0, 0], abs=1e-5)}

  (far,) = interpret.measure('distance', model, seen)
  places = np.stack(np.mgrid[:4, :6], -1).reshape(-1, 2)
  apart = np.linalg.norm(places[:, None] - places, axis=-1)[:, :-1]
  expected = (layers[0][0, :, :, 1:] * apart).sum(-1).mean(-1)
  np.testing.assert_allclose(far.numbers['distance'][0], expected, rtol=1e-4)
  assert far.numbers['dropped'] == ['start']
  alike = (np.tri(24)[:, 1:] * apart).sum(-1) / np.arange(1, 25)
  assert far.numbers['uniform_attention'][0] == pytest.approx(alike.mean(), rel=1e-4)


LACKING = {
  'bit': ('patches', 'flattening', 'readouts', 'positions', 'attention', 'rollout', 'distance',
          'tokens', 'lens', 'knockouts'),
  'swin': ('patches', 'flattening', 'readouts', 'positions', 'rollout', 'tokens', 'lens',
           'knockouts'),
  'sasa': ('patches', 'flattening', 'readouts', 'filters', 'positions', 'tokens', 'lens',
           'knockouts'),
  'cordonnier': ('positions', 'tokens', 'lens', 'knockouts'),
  'deit': ('lens',),
  'igpt': ('filters', 'knockouts'),
}  # fmt: skip
WHY = (
  r'error: (a \w+ has no|\w+ needs test data|rollout multiplies blocks of one grid'
  r'|a logit lens needs one head, and these weights have two)'
)


@pytest.mark.parametrize('name', [name for name in FAMILIES if name not in NAMES])
def test_every_picture_of_every_family(families, tmp_path, name):
  """PNG, SVG and JSON of files; what a family has not is said in a line."""
  folder, out = families(name), tmp_path / 'out'
  for stem, pixel in zip('ab', pixels(predict.load(folder), 2), strict=True):
    Image.fromarray(pixel).save(tmp_path / f'{stem}.png')
  for what, picture in interpret.PICTURES.items():
    words = [what, str(folder), f'--out={out}']
    words += [str(tmp_path / 'a.png')] * (picture.sees in ('image', 'images'))
    words += [str(tmp_path / 'b.png')] * (picture.sees == 'images')
    lacking = (*LACKING.get(name, ()), *('centres',) * (name != 'cordonnier'))
    lacking += ('sample',) * (name != 'igpt')
    if what in ('confusion', 'shift', 'token_probes', *lacking):
      with pytest.raises(SystemExit, match=WHY):
        command.main(words)
      assert not list(out.glob(f'{what}*'))
      continue
    command.main(words)
    stem = f'{what}_a' if picture.sees == 'image' else what
    assert Image.open(out / f'{stem}.png').width > 300
    assert (out / f'{stem}.svg').read_text().startswith('<?xml')
    content = json.loads((out / f'{stem}.json').read_text())
    assert content['checkpoint'] == str(folder)


def test_maps_of_a_resnet(families):
  model = predict.load(families('bit'))
  seen = pixels(model)
  found = interpret.measure('feature_maps', model, seen)[1].numbers['layers']
  assert [x['grid'] for x in found.values()] == [[8, 16], [4, 8]]
  one = interpret.measure('feature_maps', model, seen, layers='2', channels=[7])[1].numbers
  expected = model(seen, ('block_1/tokens',))['block_1/tokens'][1, ..., 7]
  np.testing.assert_allclose(one['maps']['7'], expected, rtol=1e-4, atol=1e-4)
  assert (one['layer'], one['channels']) == ('block_1/tokens', [7])


def test_maps_of_inner_blocks(families):
  model = predict.load(families('deit'))
  seen = pixels(model, 1)
  found = interpret.measure('feature_maps', model, seen, layers='all')[0].numbers['layers']
  tokens = model(seen, ('block_1/tokens',))['block_1/tokens']
  channel = found['block_1/tokens']['channels'][0]
  shown = found['block_1/tokens']['maps'][str(channel)]
  np.testing.assert_allclose(shown, tokens[0, 2:, channel].reshape(3, 2), atol=1e-5)


# The command.


def run(*words):
  command.main([str(word) for word in words])


IMAGE_PICTURES = [what for what, picture in interpret.PICTURES.items() if picture.sees == 'image']


@pytest.mark.parametrize('what', IMAGE_PICTURES)
def test_pictures_of_test_images_and_of_files(trained, tmp_path, what):
  Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / 'a.png')
  run(what, trained, f'--out={tmp_path / "out"}', '--count=2')
  run(what, trained, f'--out={tmp_path / "out"}', tmp_path / 'a.png')
  suffixes = ['.png', '.svg', '.json'] + ['.npz'] * (what in ('attention', 'rollout', 'lens'))
  names = {f'{what}_{name}{suffix}' for name in ('test_0', 'test_1', 'a') for suffix in suffixes}
  assert {path.name for path in (tmp_path / 'out').iterdir()} == names
  numbers = json.loads((tmp_path / 'out' / f'{what}_a.json').read_text())
  assert numbers['grid'] == [2, 2]
  assert numbers['image'] == 'a'
  if what == 'flattening':
    assert numbers['values_per_patch'] == 16
    expected = np.arange(64).reshape(8, 8)[:4, 4:].mean()
    assert numbers['mean_of_patches'][1] == pytest.approx(expected)


def test_a_picture_and_its_numbers_are_replaced_together(tmp_path):
  """A picture that cannot be written leaves what was there, whole."""
  path, figure = tmp_path / 'new' / 'a.b.png', figures.blank(2.0, 2.0)
  command.save(figure, {'first': 1}, {'x': np.arange(3)}, path)
  there = {one.name: one.read_bytes() for one in path.parent.iterdir()}
  assert there.keys() == {f'a.b.{kind}' for kind in ('png', 'svg', 'json', 'npz')}
  assert Image.open(path).size == (240, 240) and there['a.b.svg'].startswith(b'<?xml')
  np.testing.assert_array_equal(np.load(path.with_suffix('.npz'))['x'], np.arange(3))
  with pytest.raises(TypeError):
    command.save(figures.blank(3.0, 3.0), {'first': object()}, {'x': np.arange(4)}, path)
  assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == there


def test_pictures_without_images(trained, tmp_path):
  for what in ('filters', 'positions', 'distance', 'confusion'):
    run(what, trained, f'--out={tmp_path}')
  numbers = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob('*.json')}
  assert numbers['distance']['images'] == 128
  assert np.shape(numbers['distance']['distance']) == (1, 2)
  assert not numbers['distance']['renormalised'] and numbers['distance']['dropped'] == [
    'class_token'
  ]
  assert sum(numbers['filters']['explained_variance_share']) == pytest.approx(1, abs=1e-5)
  assert np.load(tmp_path / 'positions.npz')['similarity'].shape == (5, 5)
  report = train.evaluate(small_config(data__validation_fraction=0.2), trained)
  for key in ('confusion', 'accuracy', 'n_examples', 'per_class'):
    assert numbers['confusion'][key] == report[key]


@pytest.mark.parametrize(
  'what', ['filters', 'positions', 'attention', 'rollout', 'distance', 'confusion', 'patches']
)
def test_checkpoints_beside_one_another(trained, tmp_path, what):
  params, passport = weights.load(trained)
  scaled = jax.tree.map(lambda x: 2 * x, params)
  weights.write_model(tmp_path / 'other', scaled, passport)
  more = ['--count=1'] if interpret.PICTURES[what].sees == 'image' else []
  run('compare', what, trained, tmp_path / 'other', f'--out={tmp_path}', *more)
  (path,) = tmp_path.glob(f'compare_{what}*.json')
  content = json.loads(path.read_text())
  assert content['labels'] == [trained.name, 'other']
  first, second = content['checkpoints']
  assert first.keys() == second.keys()
  alone = tmp_path / 'alone'
  run(what, trained, f'--out={alone}', *more)
  single = json.loads(next(alone.glob('*.json')).read_text())
  assert first | {'image': single.get('image')} == single | {'image': single.get('image')}
  for suffix in ('.png', '.svg'):
    assert path.with_suffix(suffix).exists()
  assert Image.open(path.with_suffix('.png')).width > Image.open(next(alone.glob('*.png'))).width


def test_parts_of_a_figure_share_their_scale(families):
  found = {what: [] for what in ('attention', 'rollout', 'distance')}
  for name in ('vit', 'deit', 'mean'):
    model = predict.load(families(name))
    for what, row in found.items():
      row += interpret.measure(what, model, pixels(model, 1))
  for what, row in found.items():
    picture = interpret.PICTURES[what]
    shared = picture.scale(row)
    assert shared[1] == pytest.approx(max(picture.scale([one])[1] for one in row), rel=0.3)
    figure = interpret.draw(what, row, ['a', 'b', 'c'])
    if what == 'distance':
      ends = {axis.get_ylim() + axis.get_xlim() for axis in figure.axes}
      assert len(ends) == 1
    else:
      bars = [axis for axis in figure.axes if axis.get_label() == '<colorbar>']
      assert len(bars) == 3 and {bar.get_ylim() for bar in bars} == {shared}


def test_images_of_two_folders_may_have_one_name():
  found = images.by_name([('a', 'x/a.png'), ('b', 'x/b.png'), ('a', 'y/a.png')])
  assert [name for name, _ in found] == ['a', 'b', 'a_2']
  for order in ('a a_2 a', 'a a a_1', 'a a_2 a a a_3'):
    found = images.by_name([(name, name) for name in order.split()])
    assert len({name for name, _ in found}) == len(found)
    assert all(name.startswith(path) for name, path in found)
    first = dict(reversed([(path, name) for name, path in found]))
    assert all(name == path for path, name in first.items())  # What has a name of its own keeps it.


def test_many_test_pictures_are_spread_over_the_split():
  assert images.indices(360, 2, spread=False) == [0, 1]
  assert images.indices(101, 5, spread=True) == [0, 25, 50, 75, 100]
  assert images.indices(3, 128, spread=True) == [0, 1, 2]


def test_feature_maps_are_the_patch_convolution(trained, tmp_path):
  seen = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(seen).save(tmp_path / 'a.png')
  run('feature_maps', trained, tmp_path / 'a.png', f'--out={tmp_path}', '--channels=3,0')
  found = json.loads((tmp_path / 'feature_maps_a.json').read_text())
  assert found['channels'] == [3, 0]
  params = predict.load(trained).params['embedding']
  image = (seen / 255 - 0.5) / 0.5
  for channel in (3, 0):
    kernel = params['kernel'][:, :, 0, channel]
    cells = image.reshape(2, 4, 2, 4).swapaxes(1, 2)
    expected = (cells * kernel).sum((2, 3)) + params['bias'][channel]
    np.testing.assert_allclose(found['maps'][str(channel)], expected, atol=1e-4)


def test_without_data_pictures_must_be_given(trained, tmp_path):
  params, passport = weights.load(trained)
  weights.write_model(tmp_path / 'model', params, dataclasses.replace(passport, origin={}))
  with pytest.raises(SystemExit, match='give IMAGES'):
    run('patches', tmp_path, f'--out={tmp_path}')


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['readouts', '--tokens=5'], '2 x 2 patches'),
    (['feature_maps', '--channels=99'], '0 to 31'),
    (['feature_maps', '--layers=2'], 'blocks from 1 to 1'),
    (['attention', '--query=5'], '--query=5: give class, mean, or a patch of the grid of 2 x 2'),
    (['attention', '--layers=2'], 'blocks from 1 to 1'),
    (['attention', '--heads=3'], 'heads from 1 to 2'),
    (['rollout', '--residual=1'], r'--residual=1.0 must be in \[0, 1\)'),
    (['rollout', '--weighted=gradients'], "did you mean 'gradient'"),
    (['rollout', '--target_class=3'], 'belongs to --weighted=gradient'),
    (['rollout', '--weighted=gradient', '--target_class=ten'], "unknown --target_class 'ten'"),
    (['filters', '--components=0'], '--components=0 must be at least 1'),
    (['distance', '--count=0'], '--count=0 must be at least 1'),
    (['tokens', '--factor=1'], '--factor=1 must be above 1'),
    (['tokens', '--factor=nan'], '--factor=nan must be above 1'),
    (['lens', '--target_class=ten'], "unknown --target_class 'ten'"),
    (['knockouts', '--block=2'], '--block=2: give a block from 1 to 1'),
    (['knockouts', '--patches=3'], '--patches=3: give 1 to 2'),
    (['knockouts', '--count=1'], 'give two or more'),
    (['token_probes', '--examples=1'], '--examples=1 must be at least 2'),
    (['rolout'], "did you mean 'rollout'"),
  ],
)
def test_pictures_that_cannot_be_are_refused(trained, tmp_path, words, message):
  with pytest.raises(SystemExit, match=message):
    run(words[0], trained, f'--out={tmp_path / "out"}', *words[1:])
  assert not (tmp_path / 'out').exists()


def test_words_that_no_picture_takes_are_refused(trained, tmp_path, capsys):
  for words in (['filters', trained, 'a.png'], ['rollout', trained, '--heads=1']):
    with pytest.raises(SystemExit):
      run(*words, f'--out={tmp_path}')
    assert 'unrecognized arguments' in capsys.readouterr().err
  with pytest.raises(SystemExit, match='two checkpoints or more'):
    run('compare', 'filters', trained, f'--out={tmp_path}')
  with pytest.raises(ValueError, match=r"unknown option 'heeds'.*query, layers, heads"):
    interpret.measure('attention', predict.load(trained), [tmp_path], heeds=1)
  with pytest.raises(ValueError, match='positions is no picture of images'):
    interpret.measure('positions', predict.load(trained), [tmp_path])


def test_the_help_lists_every_picture(capsys):
  with pytest.raises(SystemExit) as done:
    run('--help')
  text = capsys.readouterr().out
  assert done.value.code == 0
  assert all(f'  {what} ' in text for what in interpret.PICTURES)
  with pytest.raises(SystemExit, match='say what to look at'):
    run()


def test_the_numbers_of_a_224_pixel_image():
  """224 / 16 gives 14 x 14 = 196 patches of 768 values."""
  image = np.zeros((224, 224, 3), np.uint8)
  image[16:32, 208:] = 7  # Row 1, last column: patch 28.
  cells = patches.cut(image, 16)
  assert cells.shape == (196, 16, 16, 3)
  assert np.flatnonzero(cells.any((1, 2, 3))).tolist() == [27]


# Others' models.


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['ViT', 'DeiT'])
def test_transformers_shows_the_same_attention(tmp_path, kind):
  """Its `output_attentions` and their rollout, of the same random weights."""
  transformers = need('transformers')
  import torch

  sizes = dict(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
    image_size=64, patch_size=16, num_labels=5, attn_implementation='eager',
  )  # fmt: skip
  made = {'ViT': 'ViTForImageClassification', 'DeiT': 'DeiTForImageClassificationWithTeacher'}
  theirs = getattr(transformers, made[kind])(getattr(transformers, f'{kind}Config')(**sizes))
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
  theirs.eval().save_pretrained(tmp_path)
  ours = predict.load(tmp_path)
  seen = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
  with torch.no_grad():
    answer = theirs(torch.from_numpy(seen).permute(0, 3, 1, 2), output_attentions=True)
  expected = [x.numpy() for x in answer.attentions]
  assert len(expected) == 3 and expected[0].std() > 0.01
  layers, _ = reference(ours, seen)
  for a, b in zip(layers, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  first = len(ours.model.prefix)
  product = np.eye(expected[0].shape[-1])
  for one in expected:
    mixed = one.mean(1) + np.eye(one.shape[-1])  # attention_flow's own form.
    product = mixed / mixed.sum(-1, keepdims=True) @ product
  blocks = query.attending(ours)
  asked = query.query_of(ours.model, None, ours.model.grid)
  rows = rollout.plain(ours, seen, blocks, asked, 0.5)
  np.testing.assert_allclose(rows[:, -1, first:], product[:, 0, first:], atol=1e-6)


def test_panels_are_as_many_as_heads_and_layers(families):
  """On a grid that is not square, at the places that the axes name."""
  model = predict.load(families('vit'))
  (found,) = interpret.measure('attention', model, pixels(model, 1))
  assert {key: x.shape for key, x in found.arrays.items()} == {
    f'layer_{i}': (2, 6, 4) for i in (1, 2, 3)
  }
  figure = interpret.draw('attention', [found])
  shown = figure.axes[1]
  assert [text.get_text() for text in shown.get_yticklabels()] == ['1', '2', '3']
  assert [text.get_text() for text in shown.get_xticklabels()] == ['1', '2']
  size = overlay.fitting(found.pixels, attention.PANEL)
  height, width = shown.images[0].get_array().shape[:2]
  gap = attention.PANEL // 16
  assert (height, width) == (3 * (size[0] + gap) - gap, 2 * (size[1] + gap) - gap)
