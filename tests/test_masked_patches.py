"""Masked patch prediction: what is hidden, what is predicted, and what is left for fine-tuning."""

import functools
import json
import math

from conftest import ROOT, real_data, small_config
import jax
from jax import numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from vit_jax import defaults, experiment, metrics, models, objectives, step, train, weights
from vit_jax.data.preprocess import Preprocess
from vit_jax.evaluation import masked_patches as evaluator
from vit_jax.interpret import __main__ as interpret_command
from vit_jax.objectives import masked_patches, patch_targets
from vit_jax.runtime import interruption

TARGETS = [*patch_targets.TARGETS]


def make(target='mean_colour', corruption=0.5, size=16, channels=3, family='vit', **section):
  known = defaults.part('model', family).to_dict() | {'variant': 'mu/4'} | section
  model = models.build(
    **known, image_size=(size, size), channels=channels, num_classes=10
  )  # fmt: skip
  normalise = Preprocess((size, size), channels).normalise
  return objectives.build(
    'masked_patches', model=model, normalise=normalise, target=target, corruption=corruption
  )


def init(objective):
  shape = (*objective.model.image_size, objective.model.channels)
  return jax.jit(lambda key: step.init_params(objective, shape, key, {}))(jax.random.key(0))


def randomised(params, seed=0):
  """Parameters without zeros, so that nothing hides behind a head that starts at zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), params)


def pictures(count=6, size=16, channels=3, seed=0):
  """Smooth patterns, so that a patch tells of its neighbours."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, 4, 4, channels))
  side = size // 4
  return jnp.asarray(coarse.repeat(side, 1).repeat(side, 2).astype(np.uint8))


def keys_of(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def judge(objective, params, images, keys):
  values, targets = jax.jit(functools.partial(objective.apply, method='judge'))(
    {'params': params}, images, keys
  )
  return {name: float(x.mean()) for name, x in values.items()}, np.asarray(targets)


@pytest.mark.parametrize('target', ['mean_colour', 'colours'])
def test_the_first_loss_is_that_of_no_idea(target):
  objective = make(target)
  values, _ = judge(objective, init(objective), pictures(), keys_of(6))
  assert values['loss'] == pytest.approx(math.log(512), rel=0.02)


@pytest.mark.parametrize(
  ('target', 'outputs'), [('mean_colour', 512), ('colours', 16 * 512), ('pixels', 4 * 4 * 3)]
)
def test_parameters_by_formula(target, outputs):
  """A vector and a linear map beside a model that is an ordinary one, its head included."""
  objective, width = make(target), 32
  params = init(objective)
  model = params.pop('model')
  assert sum(x.size for x in jax.tree.leaves(params)) == width + width * outputs + outputs
  plain = jax.eval_shape(lambda key: models.init(objective.model, key), jax.random.key(0))
  assert jax.tree.map(jnp.shape, model) == jax.tree.map(jnp.shape, plain)
  assert weights.has_zero_head(model)


def test_the_model_begins_as_without_the_objective():
  """The same seed draws the same model, so that runs can be compared."""
  objective = make()
  plain = objectives.build(
    'classification', model=objective.model, normalise=objective.normalise,
    **{k: v for k, v in defaults.part('objective', 'classification').items() if k != 'name'},
  )  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, init(objective)['model'], init(plain)['model'])


def test_heads_that_nobody_trains_are_zero():
  params = init(make(family='deit', variant='mu/4-distilled'))['model']
  for name in ('head', 'head_dist'):
    assert not any(np.any(x) for x in jax.tree.leaves(params[name]))


def numpys(image, side, parts):
  """The classes of each part of each patch, pixel by pixel as the definition says."""
  size, found = side // parts, []
  for top in range(0, image.shape[0], side):
    for left in range(0, image.shape[1], side):
      row = []
      for i in range(parts):
        for j in range(parts):
          y, x = top + i * size, left + j * size
          mean = image[y : y + size, x : x + size].astype(np.float64).mean((0, 1))
          bins = np.minimum(np.floor(mean / 32), 7).astype(int)
          row.append(int(sum(b * 8 ** (len(bins) - 1 - k) for k, b in enumerate(bins))))
      found.append(row)
  return np.array(found)


@pytest.mark.parametrize(('target', 'parts'), [('mean_colour', 1), ('colours', 4)])
@pytest.mark.parametrize('channels', [1, 3])
def test_colours_of_photos_are_numpys(target, parts, channels):
  folder = real_data('imagenet_samples')
  see = Preprocess((64, 64), channels)
  images = np.stack([see(path) for path in sorted(folder.glob('*.JPEG'))[:24]])
  kind = make(target, size=64, channels=channels, variant='mu/8').kind
  given = np.asarray(kind.targets(jnp.asarray(images)))
  np.testing.assert_array_equal(given, [numpys(image, 8, parts) for image in images])
  counts = np.bincount(given.ravel(), minlength=kind.classes)
  assert counts.max() < 0.5 * counts.sum()
  assert (counts > 0).sum() >= (60 if channels == 3 else 8)
  blind = kind.baseline(given.astype(np.int16))
  assert 0.3 * math.log(kind.classes) < blind < 0.95 * math.log(kind.classes)


def test_bins_at_their_edges():
  kind = make(size=4, variant='mu/2').kind
  values = {0: 0, 31: 0, 32: 1, 223: 6, 224: 7, 255: 7}
  for value, level in values.items():
    image = jnp.full((1, 4, 4, 3), value, jnp.uint8)
    assert np.unique(kind.targets(image)).tolist() == [level * (64 + 8 + 1)]
  red = jnp.zeros((1, 4, 4, 3), jnp.uint8).at[..., 0].set(255)
  assert np.unique(kind.targets(red)).tolist() == [7 * 64]
  nearly = jnp.full((1, 4, 4, 3), 32, jnp.uint8).at[:, ::2, ::2].set(31)  # 31.75, and no rounding.
  assert np.unique(kind.targets(nearly)).tolist() == [0]


@pytest.mark.parametrize('target', TARGETS)
def test_what_is_painted_is_what_was_to_be_predicted(target):
  kind, images = make(target).kind, pictures()
  patches = np.asarray(patch_targets.cut(images, 4))
  painted = np.asarray(kind.paint(kind.targets(images)))
  assert painted.shape == patches.shape
  most = 0 if target == 'pixels' else 16  # The middle of a bin; patches of one colour.
  assert np.abs(painted.astype(int) - patches).max() <= most
  blocks = np.arange(256).reshape(1, 16, 16, 1).repeat(3, -1).astype(np.uint8)
  assert kind.paint(kind.targets(jnp.asarray(blocks))).dtype == np.uint8


@pytest.mark.parametrize(('corruption', 'count'), [(0.5, 32), (0.15, 10), (1.0, 64), (0.001, 1)])
def test_how_much_is_corrupted_and_how(corruption, count):
  """An exact number a picture; 80 % masked, 10 % another patch, 10 % as they are."""
  objective = make(corruption=corruption, size=32)
  assert objective.num_corrupted == count
  draw = jax.jit(jax.vmap(lambda key: masked_patches.draw(key, 64, count)))
  drawn = jax.tree.map(np.asarray, draw(keys_of(4000)))
  assert drawn.places.shape == (4000, count)
  assert all(len(np.unique(row)) == count for row in drawn.places[:200])
  frequency = np.bincount(drawn.places.ravel(), minlength=64) / 4000
  np.testing.assert_allclose(frequency, count / 64, atol=5 * (0.25 / 4000) ** 0.5)
  moved = drawn.sources != drawn.places
  kept = ~moved & ~drawn.masked
  assert not (moved & drawn.masked).any()
  noise = 5 * (0.25 / moved.size) ** 0.5
  for found, share in ((drawn.masked, 0.8), (moved, 0.1), (kept, 0.1)):
    assert abs(found.mean() - share) < noise
  assert drawn.sources.min() >= 0 and drawn.sources.max() == 63
  shifts = (drawn.sources - drawn.places)[moved] % 64
  if len(shifts) > 5000:  # Any of the 63 other patches, alike.
    np.testing.assert_allclose(np.bincount(shifts)[1:] / len(shifts), 1 / 63, rtol=0.2)


def test_corruption_by_hand():
  drawn = masked_patches.Corruption(
    jnp.array([[3, 0, 2], [1, 2, 0]]), jnp.array([[3, 1, 2], [1, 0, 0]]),
    jnp.array([[True, False, False], [False, False, True]]),
  )  # fmt: skip
  patches = jnp.arange(2 * 4 * 2.0).reshape(2, 4, 2)
  mask = jnp.array([-1.0, -2.0])
  given = np.asarray(masked_patches.hide(patches, mask, drawn))
  expected = np.array(patches)
  expected[0, 3], expected[0, 0] = mask, patches[0, 1]  # 2 stays.
  expected[1, 2], expected[1, 0] = patches[1, 0], mask  # The uncorrupted embedding of patch 0.
  np.testing.assert_array_equal(given, expected)


def outputs_of(objective, params, keys):
  def outputs(images):
    drawn, found = objective.apply({'params': params}, images, keys, method='predict_patches')
    return (found**2).sum(), drawn

  return outputs


@pytest.mark.parametrize('target', TARGETS)
def test_hidden_pixels_do_not_matter(target):
  """No gradient reaches the pixels of a masked patch, unless its embedding stands elsewhere."""
  objective = make(target)
  params, images = randomised(init(objective)), pictures().astype(jnp.float32)
  differentiate = jax.jit(jax.grad(outputs_of(objective, params, keys_of(6)), has_aux=True))
  gradient, drawn = differentiate(images)
  reached = np.asarray(jnp.abs(patch_targets.cut(gradient, 4)).sum((2, 3, 4))) > 0
  expected = np.ones_like(reached)
  for row in range(len(reached)):
    places, sources, masked = (np.asarray(x[row]) for x in drawn)
    expected[row, places] = False
    expected[row, sources[~masked]] = True
  np.testing.assert_array_equal(reached, expected)
  assert (~expected).sum() > 20


def test_only_corrupted_patches_are_in_the_loss(monkeypatch):
  objective = make()
  params, images, keys = randomised(init(objective)), pictures(), keys_of(6)
  before, targets = judge(objective, params, images, keys)
  drawn, outputs = objective.apply({'params': params}, images, keys, method='predict_patches')
  by_hand = optax.softmax_cross_entropy_with_integer_labels(outputs, targets[..., 0])
  assert before['loss'] == pytest.approx(float(by_hand.mean()), rel=1e-5)
  whole = patch_targets.Colours.targets
  corrupted = np.zeros((6, 16), bool)
  np.put_along_axis(corrupted, np.asarray(drawn.places), True, axis=1)

  def change(where):
    wrong = lambda self, images: jnp.where(where[..., None], 5, whole(self, images))  # noqa: E731
    monkeypatch.setattr(patch_targets.Colours, 'targets', wrong)
    return judge(objective, params, images, keys)[0]

  assert change(~corrupted) == before
  assert change(corrupted)['loss'] != before['loss']


def test_the_class_token_and_positions_are_left_alone():
  """With every patch masked the outputs depend on the positions alone, and differ by them."""
  objective = make(corruption=1.0)
  params = randomised(init(objective))
  hidden = jax.tree.map(lambda x: x, masked_patches.Corruption(*(x[None] for x in (
    jnp.arange(16), jnp.arange(16), jnp.ones(16, bool)))))  # fmt: skip
  patches = masked_patches.hide(jnp.ones((1, 16, 32)), params['mask_token'], hidden)
  assert (patches == params['mask_token']).all()
  tokens, _ = objective.model.apply({'params': params['model']}, patches, method='encode')
  assert tokens.shape == (1, 17, 32)
  assert len(np.unique(np.asarray(tokens[0, 1:]).round(4), axis=0)) == 16


def learn(objective, images, steps, rate=3e-3):
  """The values of a batch before and after it was learnt, its corruption always the same."""
  keys, optimizer = keys_of(len(images)), optax.adam(rate)
  params = init(objective)

  def loss(params):
    values, _ = objective.apply({'params': params}, images, keys, method='judge')
    return values['loss'].mean()

  @jax.jit
  def advance(state, _):
    params, moments = state
    updates, moments = optimizer.update(jax.grad(loss)(params), moments)
    return (optax.apply_updates(params, updates), moments), None

  (after, _), _ = jax.lax.scan(advance, (params, optimizer.init(params)), None, steps)
  return float(loss(params)), float(loss(after))


@pytest.mark.parametrize(
  'target', ['mean_colour', 'pixels', pytest.param('colours', marks=pytest.mark.slow)]
)
def test_a_batch_can_be_learnt_by_heart(target):
  before, after = learn(make(target), pictures(8), 400)
  assert after < 0.1 * before, (before, after)


def config_of(**overrides):
  """Six steps of the objective on the digits."""
  config = defaults.complete(
    small_config(), {'objective': 'masked_patches', 'evaluators': ('masked_patches',)}
  )
  config.update_from_flattened_dict({'model.variant': 'mu/2'})
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in overrides.items()})
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of six steps."""
  workdir = tmp_path_factory.mktemp('masked') / 'run'
  train.train(config_of(), workdir)
  return workdir


def lines(workdir):
  rows = metrics.read(workdir / 'metrics.jsonl')
  return [{key: x for key, x in row.items() if 'images_per_second' not in key} for row in rows]


@pytest.mark.parametrize('target', ['mean_colour', pytest.param('pixels', marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_exactly(target, tmp_path, monkeypatch):
  settings = dict(objective__target=target, ema_decay=0.9, accumulation_steps=2)
  settings |= dict(data__validation_fraction=0.2, best='min:validation/masked_loss')
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
  train.train(config_of(**settings), tmp_path / 'cut')
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')
  whole, cut = (np.load(tmp_path / f'{name}/model/weights.npz') for name in ('whole', 'cut'))
  assert not any(name.startswith(('mask', 'predict')) for name in whole.files)
  for name in whole.files:
    np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)
  params = step.load_params(
    tmp_path / 'cut', experiment.build(config_of(**settings)).objective, (8, 8, 1)
  )
  assert {*params} == {'model', 'mask_token', 'predict'}
  assert np.any(params['predict']['kernel'])


@pytest.mark.parametrize(
  ('fsdp', 'scan'),
  [(1, False), *(pytest.param(*row, marks=pytest.mark.slow) for row in [(8, False), (1, True)])],
)
def test_any_number_of_devices_and_blocks_in_a_loop(fsdp, scan):
  """The same losses, whatever computes them."""
  found = []
  for devices, more in ((1, {}), (8, {'fsdp': fsdp, 'model.scan': scan})):
    config = config_of(model__depth=2, model__dropout=0.0, model__drop_path=0.0)
    config.update_from_flattened_dict({'devices': devices, 'optimizer.warmup_steps': 0, **more})
    exp = experiment.build(config, chosen=jax.devices()[:devices])
    shapes = step.state_shapes(exp)
    state, advance = step.prepare(exp, shapes, None)
    losses = []
    for _, batch in zip(range(4), train.training_batches(exp, 0), strict=False):
      state, values = advance(state, batch[1], exp.constants)
      losses.append(float(values['loss']))
    found.append(losses)
  np.testing.assert_allclose(*found, rtol=2e-4)
  assert found[0][0] == pytest.approx(math.log(8), rel=0.02) and found[0][3] < found[0][0]


def test_the_evaluator_counts_every_picture_once(run):
  """Against a pass by hand; it does not depend on how pictures are batched."""
  config = config_of()
  exp = experiment.build(config)
  params = step.load_params(run, exp.objective, (8, 8, 1))
  source = exp.data.splits['test']
  images = jnp.stack([exp.data.picture('test', i) for i in range(len(source))])
  keys = jnp.stack([jax.random.fold_in(jax.random.key(0), i) for i in range(len(source))])
  values, targets = judge(exp.objective, params, images, keys)
  shares = np.bincount(targets.ravel()) / targets.size
  entropy = -sum(p * math.log(p) for p in shares if p)
  expected = {'loss': values['loss'], 'accuracy': values['accuracy'], 'baseline': entropy}
  last = lines(run)[-1]
  for batch_size in (64, 100):
    config.evaluation.batch_size = batch_size
    report = train.evaluate(config, run)
    for name, value in expected.items():
      assert report[f'masked_{name}'] == pytest.approx(value, rel=1e-4)
      assert last[f'test/masked_{name}'] == pytest.approx(value, rel=1e-4)
  assert report['n_examples'] == 360 and report['n_patches'] == 16 and report['n_corrupted'] == 8
  assert json.loads((run / 'reports/masked_patches.json').read_text()) == report


def test_the_blind_guess_of_pixels_is_their_variance():
  objective = make('pixels')
  targets = np.random.default_rng(0).normal(3, 2, (50, 8, 48)).astype(np.float32)
  kept = np.asarray(objective.kind.summarise(jnp.asarray(targets)))
  expected = targets.reshape(-1, 48).var(0).mean()
  assert objective.kind.baseline(kept) == pytest.approx(expected, rel=1e-4)


def test_it_sees_more_than_a_blind_guess(tmp_path):
  """The digits: 150 steps of the smallest ViT."""
  config = config_of(
    total_steps=150, batch_size=128, eval_every=150, checkpoint_every=0, model__dropout=0.0,
    optimizer__learning_rate=3e-3, model__drop_path=0.0, data__rotate=0.0,
  )  # fmt: skip
  train.train(config, tmp_path)
  last = lines(tmp_path)[-1]
  assert last['test/masked_loss'] < 0.9 * last['test/masked_baseline']


@pytest.mark.slow
def test_it_sees_more_than_a_blind_guess_of_photos(tmp_path):
  """CIFAR-10, 2,000 pictures and 512 colours, where a histogram alone is worth 1.4 nats."""
  config = defaults.complete(config_of(), {'data': 'tfds', 'evaluators': ('masked_patches',)})
  config.update_from_flattened_dict({
    'data.dataset': 'cifar10', 'data.data_dir': str(real_data('tfds')), 'data.image_size': (32, 32),
    'data.train_examples': 2000, 'data.test_split': 'test[:1000]', 'data.crop': 'none',
    'model.variant': 'digits/4', 'model.dropout': 0.0, 'model.drop_path': 0.0, 'total_steps': 200,
    'batch_size': 64, 'eval_every': 200, 'checkpoint_every': 0, 'optimizer.learning_rate': 2e-3,
  })  # fmt: skip
  train.train(config, tmp_path)
  last = lines(tmp_path)[-1]
  assert last['test/masked_loss'] < 0.9 * last['test/masked_baseline'] < 0.9 * math.log(512)


def test_fine_tuning_starts_from_it(run, quick, tmp_path):
  """By the command, at another size too; the head is new, the rest is what was learnt."""
  words = ['--config=configs/vit_digits.py', f'--config.init_from={run}', '--config.total_steps=2']
  words += ['--config.model.variant=mu/2', '--config.batch_size=16', '--config.eval_every=2']
  done = quick(*words, f'--workdir={tmp_path / "tuned"}')
  assert done.returncode == 0, done.stderr
  assert f'from {run}:' in done.stderr and 'test/accuracy' in done.stderr
  done = quick(*words, '--config.data.image_size=(16,16)', f'--workdir={tmp_path / "larger"}')
  assert done.returncode == 0, done.stderr
  assert 'positions: 4 x 4 to 8 x 8' in done.stderr
  exp = experiment.build(small_config(init_from=str(run), model__variant=None))
  params = step.initial_state(exp, step.state_shapes(exp)).params
  assert {*params} == {'model'} and weights.has_zero_head(params['model'])
  learnt, _ = weights.load(run)
  jax.tree.map(np.testing.assert_array_equal, params['model'], learnt)


def test_an_untrained_head_is_not_judged(run, quick, tmp_path):
  """Neither while it trains, nor afterwards by any config."""
  done = quick('--config=configs/evaluate.py', f'--config.init_from={run}', '--mode=evaluate',
               f'--workdir={tmp_path / "a"}')  # fmt: skip
  assert done.returncode == 1 and 'the head is all zero' in done.stderr
  done = quick('--config=configs/vit_digits.py', '--config.objective.name=masked_patches',
               f'--workdir={tmp_path / "b"}')  # fmt: skip
  assert done.returncode == 1
  assert 'classification judges the head' in done.stderr and "('masked_patches',)" in done.stderr
  assert not (tmp_path / 'b').exists()
  config = config_of()
  with config.unlocked():
    config.evaluators = ('fewshot',)
    config.evaluation = defaults.evaluation(('fewshot',))
  report = train.evaluate(config, run)
  assert report['n_test'] == 360 and report['layers'][0]['fewshot_5'] > 0.1


def test_starting_from_trained_weights_leaves_their_head(trained):
  """Pre-training that starts from a classifier does not keep a head that no longer fits."""
  config = config_of(init_from=str(trained), model__variant='mu/4')
  exp = experiment.build(config)
  params = step.initial_state(exp, step.state_shapes(exp)).params
  assert weights.has_zero_head(params['model']) and not weights.has_zero_head(
    weights.load(trained)[0]
  )


def test_the_picture_of_predictions(run, tmp_path, trained):
  draw = interpret_command.main
  draw(['masked', str(run), f'--out={tmp_path}', '--count=2', '--seed=3'])
  assert Image.open(tmp_path / 'masked_test_1.png').width > 900
  found = json.loads((tmp_path / 'masked_test_0.json').read_text())
  assert found['masked'] + found['moved'] + found['unchanged'] == 8 and found['patches'] == 16
  assert found['loss'] > 0 and 0 <= found['accuracy'] <= 1
  Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / 'black.png')
  draw(['masked', str(run), str(tmp_path / 'black.png'), f'--out={tmp_path}'])
  assert (tmp_path / 'masked_black.png').exists()
  for wrong, message in (
    (run / 'model', 'has no config.json: give the folder of a run'),
    (trained, 'name=classification, which hides no patches'),
  ):
    with pytest.raises(SystemExit, match=message):
      draw(['masked', str(wrong), f'--out={tmp_path}'])


def test_what_is_missing_is_said(run, tmp_path):
  """The inference file alone, or the parameters of another target."""
  objective = experiment.build(config_of()).objective
  with pytest.raises(ValueError, match=r'holds no checkpoints/.*give the folder of a run'):
    step.load_params(run / 'model', objective, (8, 8, 1))
  other = experiment.build(config_of(objective__target='pixels')).objective
  with pytest.raises(ValueError, match=r'predict/kernel: \(32, 8\) in the file, \(32, 4\) asked'):
    step.load_params(run, other, (8, 8, 1))


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (dict(target='colour'), "did you mean 'colours'"),
    (dict(corruption=0.0), r'corruption=0.0 must be in \(0, 1\]'),
    (dict(corruption=1.5), 'corruption=1.5'),
    (dict(target='colours', variant='mu/2'), 'do not divide its side of 2 px.*4, 8, 16'),
    (dict(channels=5), r'8 \*\* 5 classes.*target=pixels'),
    (dict(variant='mu/16'), 'at least two patches'),
    (dict(family='bit', variant='R50x1', size=32), 'a BigTransfer has none.*config.model.name=vit'),
  ],
)
def test_refusals(section, message):
  with pytest.raises(ValueError, match=message):
    make(**section)


def test_evaluators_refuse_other_objectives():
  config = defaults.complete(small_config(), {'evaluators': ('masked_patches',)})
  with pytest.raises(ValueError, match='set that, or leave the evaluator out'):
    experiment.build(config)
  assert evaluator.MaskedPatches.reads_objective


def test_a_family_without_stages_says_so():
  model = models.build('bit', variant='R50x1', image_size=(32, 32), channels=3, num_classes=2,
                       head='zero', remat='none', dtype='float32')  # fmt: skip
  assert not model.has_stages
  for stage in ('embed', 'encode', 'read'):
    with pytest.raises(ValueError, match=f"has no stage '{stage}'"):
      model.apply({}, jnp.zeros((1, 32, 32, 3)), method=stage)
  hybrid = make(family='hybrid', variant='R+Ti/16', size=64)
  assert hybrid.model.has_stages and hybrid.num_patches == 4


def test_the_sweep_compares_what_is_fine_tuned():
  from vit_jax import recipe
  from vit_jax.explore import runs

  address = f'{ROOT}/configs/masked_patches.py'
  module, _ = recipe.open_recipe(address)
  config = defaults.complete(recipe.load_recipe(address), {})
  planned = runs.plan(config, module.sweep(), ROOT)
  by_label = {(run.shown['label'], run.shown['seed']): run for run in planned}
  assert len(planned) == 12
  for seed in range(3):
    tuned, source = by_label['fine-tuned', seed], by_label['pre-trained', seed]
    assert tuned.config.init_from == str(source.workdir)
    scratch = by_label['from scratch', seed].config.to_dict()
    assert {k: v for k, v in tuned.config.to_dict().items() if scratch[k] != v} == {
      'init_from': str(source.workdir)
    }
    whole = by_label['from scratch, twice as long', seed].config.total_steps
    assert whole == source.config.total_steps + tuned.config.total_steps
  with pytest.raises(ValueError, match='evaluators needs classification'):
    runs.plan(config, [{'label': 'pre-trained'}], ROOT)
