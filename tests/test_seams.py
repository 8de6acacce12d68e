"""The house has room: a family, an objective, an evaluator from outside; no change inside."""

import json
import pathlib
import shutil
import types

from conftest import small_config
from flax import linen as nn
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from vit_jax import (
  defaults,
  evaluation,
  experiment,
  main,
  models,
  objectives,
  recipe,
  step,
  train,
  weights,
)
from vit_jax.convert import convert, inspect
from vit_jax.explore import readouts as lab
from vit_jax.models.protocol import Model
from vit_jax.objectives.protocol import Objective


class Mixer(Model):
  """An MLP-Mixer of a few lines: tokens of a grid, no prefix, no attention."""

  patch_size: int
  width: int
  depth: int

  @property
  def grid(self):
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  def layer_groups(self):
    return '.*', *(f'block_{i}_.*' for i in range(self.depth)), 'head/.*'

  @nn.compact
  def __call__(self, images, *, train=False):
    side = self.patch_size
    x = nn.Conv(self.width, (side, side), (side, side), name='embedding')(images)
    x, outputs = x.reshape(x.shape[0], -1, self.width), {}
    for i in range(self.depth):
      mixed = nn.Dense(x.shape[1], name=f'block_{i}_mix')(x.swapaxes(1, 2))
      x = x + nn.gelu(mixed).swapaxes(1, 2)
      x = outputs[f'block_{i}/tokens'] = x + nn.Dense(self.width, name=f'block_{i}_mlp')(x)
    features = x.mean(1)
    logits = nn.Dense(self.num_classes, name='head')(features)
    return logits, outputs | {'tokens': x, 'features': features, 'logits': logits}


@pytest.fixture
def mixer(monkeypatch):
  """A family: its module, its line in MODELS, its section."""
  family = types.SimpleNamespace(VARIANTS=['tiny'], OFFICIAL={'variant': 'tiny'}, build=build_mixer)
  monkeypatch.setitem(models.MODELS, 'mixer', family)
  section = dict(variant=str, patch_size=2, width=16, depth=2)
  monkeypatch.setitem(defaults.PARTS['model'], 'mixer', section)


def build_mixer(*, variant, **section):
  return Mixer(**section)


def mixer_config(**overrides):
  config = defaults.complete(defaults.get_config(), {'model': 'mixer'})
  small = dict(batch_size=16, total_steps=4, eval_every=2, checkpoint_every=2, log_every=1)
  config.update_from_flattened_dict(small | overrides)
  return config


def arrays(workdir):
  return dict(np.load(workdir / 'model/weights.npz'))


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)


def test_a_family_from_outside_lives_here(mixer, tmp_path, capsys):
  """Trains, resumes, evaluates, predicts, is inspected, converted, started from, and explored."""
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train.train(mixer_config(**{'optimizer.schedule': 'constant'}), whole)
  train.train(mixer_config(**{'optimizer.schedule': 'constant', 'total_steps': 2}), cut)
  train.train(mixer_config(**{'optimizer.schedule': 'constant'}), cut)
  assert_equal(arrays(whole), arrays(cut))
  report = train.evaluate(mixer_config(**{'optimizer.schedule': 'constant'}), whole)
  assert report['n_examples'] == 360
  model = vit_jax.load(whole)
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  found = model(images, ('probabilities', 'tokens', 'block_1/tokens'))
  np.testing.assert_allclose(found['probabilities'].sum(1), 1, rtol=1e-5)
  assert found['tokens'].shape == (3, 16, 16)
  assert inspect(str(whole))['grid'] == [4, 4]
  convert(str(whole), tmp_path / 'copy', 'vit_jax', False)
  copied = vit_jax.load(tmp_path / 'copy')(images, ('logits',))['logits']
  np.testing.assert_array_equal(copied, model(images, ('logits',))['logits'])
  tuned = {'init_from': str(tmp_path / 'copy'), 'optimizer.train': 'last:1', 'total_steps': 2}
  train.train(mixer_config(**tuned), tmp_path / 'tuned')
  assert_equal_but(arrays(whole), arrays(tmp_path / 'tuned'), ('head/', 'block_1'))
  explored = defaults.complete(defaults.get_config(), {'data': 'checkpoint'})
  explored.update_from_flattened_dict({
    'run': 'explore', 'init_from': str(whole), 'explore.readouts': ('mean', 'patch_3'),
    'explore.epochs': 1, 'explore.seeds': 2, 'explore.learning_rates': (1e-3,),
    'evaluation.batch_size': 64,
  })  # fmt: skip
  lab.explore(explored, tmp_path / 'lab')
  records = json.loads((tmp_path / 'lab/reports/readouts.json').read_text())
  assert {record['readout'] for record in records} == {'mean', 'patch_3'}


def assert_equal_but(a, b, moved):
  for name in a:
    differs = not np.array_equal(a[name], b[name])
    assert differs == name.startswith(moved), name


class Distilled(Objective):
  """Follows a teacher whose parameters are constants, and draws noise from a stream of its own."""

  teacher: str = ''
  streams = ('dropout', 'noise')
  metrics = ('distance',)

  @property
  def sources(self):
    return {'teacher': self.teacher}

  @nn.compact
  def __call__(self, batch, constants, *, train):
    images = self.normalise(batch['image'])
    if train:
      images += 1e-3 * jax.random.normal(self.make_rng('noise'), images.shape)
    logits, _ = self.model(images, train=train)
    wanted, _ = self.forwards['teacher'](constants['teacher'], batch['image'])
    scale = self.param('scale', nn.initializers.ones, ())
    distance = ((scale * logits - wanted) ** 2).mean(-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']) + distance
    return (loss * batch['weight']).mean(), {'distance': distance.mean()}


@pytest.fixture
def distilled(monkeypatch):
  monkeypatch.setitem(objectives.OBJECTIVES, 'distilled', Distilled)
  monkeypatch.setitem(defaults.PARTS['objective'], 'distilled', dict(teacher=str))


@pytest.mark.parametrize('fsdp', [1, 8])
def test_an_objective_with_a_teacher(trained, distilled, tmp_path, fsdp):
  """Its constants are an argument of the step, sharded, not donated, and stay as they are."""
  config = small_config(objective__name='distilled', data__validation_fraction=0.2, fsdp=fsdp)
  config.objective.teacher = str(trained)
  exp = experiment.build(config)
  before = jax.device_get(exp.constants)
  compiled = step.compile_step(exp, step.state_shapes(exp))
  given = jax.tree.leaves(compiled.args_info[0][2])
  assert len(given) == len(jax.tree.leaves(before))  # Not compiled in.
  assert not any(x.donated for x in given)
  kernel = traverse_util.flatten_dict(exp.constants['teacher'], sep='/')[
    'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel'
  ]
  assert kernel.addressable_shards[0].data.size * fsdp == kernel.size
  train.train(config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(exp.constants))
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert all(np.isfinite(row['train/distance']) for row in rows)
  assert vit_jax.load(tmp_path).passport.step  # The ordinary model is exported.


def test_an_objective_returns_the_metrics_that_it_names(distilled, trained, monkeypatch):
  monkeypatch.setattr(Distilled, 'metrics', ('distances',))
  config = small_config(objective__name='distilled', data__validation_fraction=0.2)
  config.objective.teacher = str(trained)
  exp = experiment.build(config)
  with pytest.raises(ValueError, match=r"names the metrics \('distances',\) and returns"):
    step.compile_step(exp, step.state_shapes(exp))


def test_how_to_compute_is_spelt_right(trained):
  assert vit_jax.load(trained, dtype='bfloat16').model.dtype == 'bfloat16'
  with pytest.raises(ValueError, match=r"'dytpe'.*did you mean 'dtype'"):
    vit_jax.load(trained, dytpe='bfloat16')


class Spread:
  """An evaluator: how far the logits of some test images lie apart."""

  metrics = ('spread/logits', 'spread/features')

  def __init__(self, subject, *, count):
    self._forward, self._count = subject.forward, count
    self._images = jnp.stack([subject.data.picture('test', i) for i in range(count)])

  def run(self, params, groups):
    logits, outputs = self._forward(params, self._images)
    return {
      'spread/logits': float(logits.std()), 'spread/features': float(outputs['features'].std())
    }  # fmt: skip

  def report(self, params, folder, about):
    return about | self.run(params, ('spread',))


@pytest.fixture
def spread(monkeypatch):
  monkeypatch.setitem(evaluation.EVALUATORS, 'spread', Spread)
  monkeypatch.setitem(defaults.PARTS['evaluators'], 'spread', dict(count=4))


def spread_config(**overrides):
  config = defaults.complete(small_config(), {'evaluators': ('classification', 'spread')})
  config.update_from_flattened_dict(overrides)
  return config


@pytest.mark.parametrize('mode', ['max', 'min'])
def test_evaluators_are_a_list_and_any_number_chooses(spread, tmp_path, mode):
  config = spread_config(best=f'{mode}:spread/logits', **{'evaluation.spread.count': 3})
  train.train(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  found = {row['step']: row['spread/logits'] for row in rows if 'spread/logits' in row}
  assert {2, 4, 6} <= found.keys()  # With every checkpoint, as it chooses among them.
  assert any('test/accuracy' in row for row in rows)
  scores = {at: found[at] for at in (2, 4, 6)}
  best = {'max': max, 'min': min}[mode](scores, key=lambda at: scores[at])
  assert weights.load(tmp_path)[1].step == best
  assert (tmp_path / 'checkpoints' / str(best)).is_dir()
  report = train.evaluate(config, tmp_path)
  assert report.keys() == {'classification', 'spread'}
  assert report['spread']['spread/logits'] == pytest.approx(scores[best], rel=1e-5)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (dict(best='max:validation/f1'), 'compute none of that name'),
    (dict(best='max:validation/accuracy'), 'test/accuracy'),  # There is no validation split.
    (dict(best='test/accuracy'), 'must be max:NAME or min:NAME'),
    (dict(evaluators=('clasification',)), "did you mean 'classification'"),
    (dict(evaluators=()), 'config.evaluators is empty'),
  ],
)
def test_what_nothing_computes_is_refused(overrides, message, tmp_path):
  config = small_config()
  with config.unlocked():
    config.update(overrides)
  with pytest.raises(ValueError, match=message):
    train.train(config, tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


def test_a_failed_start_leaves_the_workdir_free(trained, tmp_path, monkeypatch):
  """Weights that do not fit, then a lack of memory: the corrected command goes through."""
  workdir = tmp_path / 'w'
  with pytest.raises(ValueError, match='does not fit'):
    train.train(small_config(init_from=str(trained), model__variant='mu/2'), workdir)
  assert not workdir.exists()

  def refuse(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

  with monkeypatch.context() as patch:
    patch.setattr(train, 'prepare', refuse)
    with pytest.raises(RuntimeError, match='RESOURCE'):
      train.train(small_config(batch_size=32), workdir)
  assert not workdir.exists()
  workdir.mkdir()  # A start that died between its claim and its first checkpoint left this.
  other = small_config(model__variant='mu/2')
  (workdir / 'config.json').write_text(json.dumps(other.to_dict()))
  train.train(small_config(init_from=str(trained), total_steps=2), workdir)
  assert (workdir / 'config.json').exists()
  remedies = small_config(
    init_from=str(trained), total_steps=4, model__dtype='bfloat16', accumulation_steps=2,
    model__remat='blocks',
  )  # fmt: skip
  train.train(remedies, workdir)  # How it is computed may change later too.
  with pytest.raises(ValueError, match='batch_size: 16 there, 32 now'):
    train.train(small_config(init_from=str(trained), batch_size=32), workdir)


def test_out_of_memory_is_one_line_with_remedies(monkeypatch, tmp_path):
  def refuse(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED: 40 GB asked')

  monkeypatch.setattr(main, 'run', refuse)
  monkeypatch.setattr(main, 'parse', lambda argv: argv)
  with pytest.raises(SystemExit, match=r'(?s)too little memory.*dtype=bfloat16.*40 GB asked'):
    main.main(['main'])


def test_a_run_needs_its_source_no_more(trained, tmp_path):
  """Fine-tune, move the source away: the run resumes, and is evaluated, by its own passport."""
  source, workdir = tmp_path / 'source', tmp_path / 'tuned'
  shutil.copytree(trained, source)
  settings = dict(init_from=str(source), model__variant=None, data__name='checkpoint')
  train.train(small_config(**settings, total_steps=2), workdir)
  shutil.rmtree(source)
  config = small_config(**settings, total_steps=4)
  train.train(config, workdir)
  assert train.evaluate(config, workdir)['n_examples'] == 360
  with pytest.raises(FileNotFoundError, match='does not exist'):
    train.train(config, tmp_path / 'another')


TRAVELS = dict(
  qk_scale=0.2, readout='weighted_add', readout_weights='softmax', qkv_bias=False,
  embedding_norm=True, gelu='exact', epsilon=1e-5,
)  # fmt: skip


def test_what_weights_need_travels_with_them(tmp_path):
  """The settings of a function, not how it is computed, come along with `init_from`."""
  config = small_config(total_steps=2, model__dtype='bfloat16', model__attention='plain')
  config.update_from_flattened_dict({f'model.{key}': value for key, value in TRAVELS.items()})
  train.train(config, tmp_path)
  exp = experiment.build(small_config(init_from=str(tmp_path), model__variant=None))
  assert {key: exp.passport.model[key] for key in TRAVELS} == TRAVELS
  assert exp.model.dtype == 'float32'
  passport = json.loads((tmp_path / 'model/model.json').read_text())
  assert not {'dtype', 'attention', 'remat'} & passport['model'].keys()
  mixed = exp.model.readout
  assert (mixed.readout_weights, mixed.join) == ('softmax', 'add')
  # On a machine without the kernel that an older passport names, the weights load all the same.
  passport['model'] |= {'attention': 'cudnn', 'dtype': 'bfloat16', 'remat': 'blocks'}
  (tmp_path / 'model/model.json').write_text(json.dumps(passport))
  assert vit_jax.load(tmp_path / 'model').model.dtype == 'float32'


def test_sigmoid_heads_predict_with_sigmoids(tmp_path):
  train.train(small_config(total_steps=2, objective__loss='sigmoid'), tmp_path)
  model = vit_jax.load(tmp_path)
  image = np.full((1, 8, 8, 1), 99, np.uint8)
  found = model(image, ('logits', 'probabilities'))
  np.testing.assert_allclose(found['probabilities'], jax.nn.sigmoid(found['logits']), rtol=1e-5)


def test_images_per_second_leave_evaluation_out(monkeypatch):
  from vit_jax import metrics

  now = [0.0]
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: now[0])
  progress = metrics.Progress(0, 10, batch_size=100)
  now[0] = 1.0
  with progress.paused():
    now[0] = 50.0  # An evaluation.
  now[0] = 51.0
  assert progress.rate(4) == pytest.approx(400 / 2)


@pytest.mark.parametrize(
  ('platform', 'environment', 'devices', 'expected'),
  [
    (None, 'cpu', ['/dev/nvidia0'], True),
    ('gpu', None, [], False),
    (None, None, [], True),
    (None, None, ['/dev/nvidia0'], False),
  ],
)
def test_memory_is_kept_on_cpus_only(monkeypatch, platform, environment, devices, expected):
  from vit_jax.runtime import memory

  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  if environment:
    monkeypatch.setenv('JAX_PLATFORMS', environment)
  monkeypatch.setattr(memory.glob, 'glob', lambda pattern: devices)
  monkeypatch.setattr(memory.util, 'find_spec', lambda name: name == 'jax_plugins')
  assert memory.on_cpu(platform) == expected


@pytest.mark.parametrize('place', ['a.python/x.py', 'a.py/x.py', 'b:c/x.py', 'x.py.py'])
def test_a_recipe_may_lie_anywhere(tmp_path, place):
  path = tmp_path / place
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('')
  assert recipe.split_address(str(path)) == (path, [])
  assert recipe.split_address(f'{path}:small.py') == (path, ['small.py'])
  with pytest.raises(ValueError, match='no such recipe'):
    recipe.split_address(str(path.parent / 'none.py'))


def test_an_option_may_be_followed_by_its_value():
  path = str(pathlib.Path(__file__).parent.parent / 'configs/vit_digits.py')
  words = ['main', '--config', path, '--config.optimizer.name', 'sgd', '--workdir', 'w']
  found, rest, given = recipe.sort_words(words)
  assert (found, given) == (path, [('optimizer.name', 'sgd')])
  assert rest == ['main', '--config.optimizer.name=sgd', '--workdir', 'w']
  assert recipe.chosen_parts(given) == {'optimizer': 'sgd'}
  assert recipe.chosen_parts([('evaluators', "('a', 'b')")]) == {'evaluators': ('a', 'b')}


def test_depth_by_layer_groups_of_any_family(mixer):
  """The head and the last block have 1, each block below another factor; all or nothing else."""
  from vit_jax import optim

  model = experiment.build(mixer_config()).model
  multipliers = optim.by_depth('all', 0.5, model.layer_groups())
  names = ('head/kernel', 'block_1_mlp/kernel', 'block_0_mix/bias', 'embedding/kernel')
  assert [optim.multiplier(name, multipliers) for name in names] == [1.0, 1.0, 0.5, 0.25]
  frozen = optim.by_depth('last:1', 1.0, model.layer_groups())
  assert [optim.multiplier(name, frozen) for name in names] == [1.0, 1.0, 0.0, 0.0]
  with pytest.raises(ValueError, match='does nothing with train=head'):
    optim.by_depth('head', 0.5, model.layer_groups())
  with pytest.raises(ValueError, match='the model has 2 blocks'):
    optim.by_depth('last:3', 1.0, model.layer_groups())
