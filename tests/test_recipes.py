"""Every shipped recipe, each variety, shrunk, through the commands: train and evaluate."""

import functools
import json

from conftest import ROOT, make_folder, real_data
import pytest

CONFIGS = ROOT / 'configs'
SMALL = {
  'total_steps': 2,
  'batch_size': 16,
  'log_every': 1,
  'eval_every': 2,
  'evaluation.batch_size': 32,
}
TINY = {'data.image_size': (32, 32), 'model.variant': 'mu/16'}
BIT = {
  'data.image_size': (32, 32),
  'data.crop_from': (40, 40),
  'model.variant': 'R8x1',
  'batch_size': 8,
  'accumulation_steps': 4,
}
SWIN = {'data.image_size': (32, 32), 'model.variant': 'digits/4'}
SASA = {'data.image_size': (32, 32), 'model.variant': 'digits', 'model.kernel': 3}
HYBRID = {'data.image_size': (16, 16), 'model.depth': 1, 'model.dtype': 'float32', 'batch_size': 4}
OFFSETS = {'model.variant': 'digits/8'}
TUNE = {'data.image_size': (16, 16), 'data.channels': 3}
SEQUENCE = {
  'data.image_size': (8, 8), 'data.train_examples': 50, 'model.variant': 'mu', 'model.clusters': 8,
}  # fmt: skip
LONG = {'model.width': 48, 'model.depth': 1, 'model.mlp_dim': 48, 'model.num_heads': 6}
# The one prepared set that stands for all: their names and splits are not what is tested here.
TFDS = {
  'data.dataset': 'cifar10', 'data.train_split': 'train[:100]', 'data.test_split': 'test[:50]'
}  # fmt: skip
SETS = ('cifar10', 'cifar100', 'pets', 'flowers', 'imagenet')
# (recipe, what stands behind its colon): data, overrides.
TRAINED = {
  ('vit_digits', ''): ('digits', {}),
  ('vit_folder', ''): ('folder', TINY),
  ('vit_folder', 'small'): ('folder', {}),
  ('vit_study', ''): ('folder', TINY),
  ('vit_study', 'small'): ('folder', {}),
  ('vit_tfds', 'cifar10'): ('tfds', {}),
  ('vit_tfds', 'cifar10_long'): ('tfds', LONG),
  ('vit_tfds', 'cifar100_long'): ('tfds', LONG),
  ('vit_tfds', 'cifar10_r20'): ('tfds', HYBRID),
  ('vit_tfds', 'cifar10_5000'): ('tfds', {'data.train_examples': 50}),
  ('vit_tfds', 'fashion_mnist'): ('tfds', {}),
  ('deit', 'S'): ('tfds', TINY),
  ('deit', 'B_384'): ('tfds', TINY),
  ('vit_augreg', 'L/16'): ('tfds', TINY),
  ('swin', 'digits'): ('digits', {}),
  ('swin', 'cifar10'): ('tfds', {}),
  ('swin', 'T'): ('tfds', SWIN),
  ('swin', 'B_384'): ('tfds', SWIN),
  ('swin', 'L_22k'): ('tfds', SWIN),
  ('sasa', 'digits'): ('digits', {}),
  ('sasa', 'cifar10'): ('tfds', {}),
  ('sasa', 'R50'): ('tfds', SASA),
  ('cordonnier', 'digits'): ('digits', {}),
  ('cordonnier', 'cifar10_small'): ('tfds', {}),
  ('cordonnier', 'cifar10'): ('tfds', OFFSETS),
  ('vit_s16', '90'): ('tfds', TINY),
  ('masked_patches', 'digits'): ('digits', {}),
  ('masked_patches', 'cifar10'): (
    'tfds',
    {'data.train_examples': 50, 'evaluation.fewshot.shots': (1,)},
  ),
  ('masked_patches', 'folder'): ('folder', TINY),
  ('masked_patches', 'paper'): ('tfds', TINY),
  ('igpt', 'digits'): ('digits', {'model.variant': 'mu'}),
  ('igpt', 'digits,bert'): ('digits', {'model.variant': 'mu'}),
  ('igpt', 'cifar10_small'): ('tfds', SEQUENCE),
  ('igpt', 'cifar10'): ('tfds', SEQUENCE),
  **{
    ('igpt', size): ('tfds', SEQUENCE | {'data.resize_small': 8}) for size in ('s', 'm', 'l', 'xl')
  },
  ('vit_paper', 'imagenet,B/16'): ('tfds', TINY),
  ('vit_paper', 'jft,R50x1'): ('tfds', BIT),
  ('bit_hyperrule', '2040'): ('folder', BIT),
  # Its other words choose numbers of the same table.
  ('bit_hyperrule', 'imagenet'): ('tfds', BIT),
  ('finetune', 'digits'): ('digits', TUNE),
  ('finetune', 'folder'): ('folder', TUNE),
  **{('finetune', name): ('tfds', TUNE) for name in SETS},
  ('finetune', 'imagenet_512'): ('tfds', TUNE),
  ('finetune', 'imagenet_518'): ('tfds', TUNE),
}
PLANTED = [('explore_planted', '')]
EXPLORED = [('explore_readouts', 'fair'), ('explore_readouts', 'study')]
EXPLORED += [('explore_readouts', 'dinov3_linear,theirs')]
SWEPT = [('sweep_readouts', 'few'), ('sweep_readouts', 'all'), ('finetune', 'digits')]
SWEPT += [('ablate_distillation', ''), ('masked_patches', 'digits')]
# The paper's experiments, and how many runs they are.
PAPERS = {
  ('ablate_positions', 'digits'): 30, ('scale_shape', 'digits'): 45, ('ablate_heads', 'digits'): 48,
  ('pretraining_size', 'digits'): 48, ('compare_axial', 'digits'): 18,
  ('ablate_sasa', 'stages'): 12, ('ablate_sasa', 'kernel'): 9, ('ablate_sasa', 'positions'): 12,
  ('ablate_sasa', 'stem'): 9,
  ('compare_igpt', ''): 9, ('ablate_cordonnier', 'digits'): 18,
  ('compare_families', 'parameters'): 81, ('compare_families', 'compute'): 81,
  ('compare_hybrids', 'models'): 12, ('compare_hybrids', 'optimizers'): 12,
}  # fmt: skip
SWEPT += [*PAPERS]
JUDGED = [('evaluate', 'head'), ('evaluate', 'frozen'), ('explore_readouts', 'knn')]
COUNTS = {
  ('sweep_readouts', 'few'): 30, ('sweep_readouts', 'all'): 135, ('finetune', 'digits'): 4,
  ('ablate_distillation', ''): 20, ('masked_patches', 'digits'): 12, **PAPERS,
}  # fmt: skip
# One of each kind of run is in the fast part; all others run with the slow tests.
FAST = {
  ('vit_folder', 'small'), ('finetune', 'digits'), ('explore_readouts', 'fair'),
  ('sweep_readouts', 'few'),
}  # fmt: skip


def rows(table):
  return [
    pytest.param(*row, marks=[] if row in FAST else [pytest.mark.slow], id='-'.join(row))
    for row in table
  ]


def overrides(settings):
  return [f'--config.{key}={value}' for key, value in settings.items()]


def test_no_recipe_is_left_out():
  names = {name for name, _ in [*TRAINED, *EXPLORED, *PLANTED, *SWEPT, *JUDGED]}
  assert names == {path.stem for path in CONFIGS.glob('*.py')}


def test_every_recipe_has_a_row_with_its_cost_and_result():
  page = (CONFIGS / 'README.md').read_text()
  rows = [line.split(' | ') for line in page.splitlines() if line.startswith('| `')]
  told = {row[0].partition('.py')[0].removeprefix('| `') for row in rows if len(row) == 4}
  assert {path.stem for path in CONFIGS.glob('*.py')} <= told


@pytest.fixture(scope='module')
def quick(quick):
  """Commands that are compiled hastily: here they only have to run."""
  return functools.partial(quick, optimised=False)


@pytest.fixture(scope='module')
def weights(quick, tmp_path_factory):
  """A run of two steps to start from, of coloured digits."""
  workdir = tmp_path_factory.mktemp('weights') / 'w'
  settings = SMALL | {
    'model.variant': 'mu/4', 'data.channels': 3, 'optimizer.learning_rate': 0.01,
    'optimizer.warmup_steps': 0,
  }  # fmt: skip
  done = quick(f'--config={CONFIGS}/vit_digits.py', *overrides(settings), f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  return workdir


def place(kind, folder):
  """Overrides that name the data."""
  if kind == 'tfds':
    return TFDS | {'data.data_dir': real_data('tfds')}
  if kind == 'folder':
    counts = {f'{split}/{name}': 20 for split in ('train', 'test') for name in 'abc'}
    return {'data.path': make_folder(folder / 'pictures', counts)}
  return {}


@pytest.mark.parametrize(('recipe', 'variety'), rows(TRAINED))
def test_it_trains_and_evaluates(recipe, variety, quick, weights, tmp_path):
  kind, settings = TRAINED[recipe, variety]
  settings = SMALL | place(kind, tmp_path) | settings
  if recipe == 'finetune':
    settings['init_from'] = weights
  address = f'{CONFIGS}/{recipe}.py' + (f':{variety}' if variety else '')
  words = (f'--config={address}', *overrides(settings), f'--workdir={tmp_path / "w"}')
  done = quick(*words)
  assert done.returncode == 0, done.stderr
  assert 'finished at step 2 of 2' in done.stderr
  done = quick(*words, '--mode=evaluate')
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  report = report.get('masked_patches', report.get('pixels', report))  # Of several evaluators.
  assert report['n_examples'] == {'digits': 360, 'folder': 60, 'tfds': 50}[kind]
  assert report['step'] == 2


@pytest.mark.parametrize(('recipe', 'variety'), rows(EXPLORED))
def test_it_explores(recipe, variety, quick, weights, tmp_path):
  settings = {
    'init_from': weights, 'explore.readouts': ('class_token', 'mean'), 'explore.epochs': 1,
    'explore.seeds': 1,
  }  # fmt: skip
  address = f'--config={CONFIGS}/{recipe}.py:{variety}'
  done = quick(address, *overrides(settings), f'--workdir={tmp_path / "w"}')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'w/reports/readouts.html').stat().st_size > 1000


@pytest.mark.parametrize(('recipe', 'variety'), rows(PLANTED))
def test_it_plants(recipe, variety, quick, weights, tmp_path):
  """Pictures are read by a model of 2 x 2 patches, codes as they are."""
  settings = {
    'init_from': weights, 'explore.draws': 1, 'explore.epochs': 1, 'explore.train_examples': 64,
    'explore.test_examples': 32, 'explore.kinds': ('code', 'digit_on_noise'),
  }  # fmt: skip
  done = quick(f'--config={CONFIGS}/{recipe}.py', *overrides(settings), f'--workdir={tmp_path}')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'reports/planted.html').stat().st_size > 1000


@pytest.mark.parametrize(('recipe', 'variety'), rows(JUDGED))
def test_it_judges(recipe, variety, quick, weights, tmp_path):
  address = f'--config={CONFIGS}/{recipe}.py:{variety}'
  done = quick(address, f'--config.init_from={weights}', f'--workdir={tmp_path}', '--mode=evaluate')
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout) and any((tmp_path / 'reports').iterdir())


# The same recipe with two of its runs.
CUT = """
import importlib.util

spec = importlib.util.spec_from_file_location('whole', {path!r})
whole = importlib.util.module_from_spec(spec)
spec.loader.exec_module(whole)
get_config = whole.get_config


def sweep(*arguments):
  # No long teachers; what is fine-tuned takes as few steps as all others; a lighter ResNet.
  runs = [run for run in whole.sweep(*arguments)
          if not isinstance(run.get('total_steps'), int) or 'init_from' in run]
  return [{{key: 'R8x1' if value == 'R26x1' else value for key, value in run.items()
           if key != 'total_steps'}} for run in (runs[0], runs[-1])]
"""


@pytest.mark.parametrize(('recipe', 'variety'), rows(SWEPT))
def test_it_sweeps(recipe, variety, quick, weights, tmp_path):
  path = CONFIGS / f'{recipe}.py'
  (tmp_path / 'cut.py').write_text(CUT.format(path=str(path)))
  settings = SMALL | {'run': 'sweep'}
  if recipe == 'finetune':
    settings |= TUNE | {'init_from': weights}
  common = (*overrides(settings), f'--workdir={tmp_path / "w"}')
  address = f'{path}:{variety}' if variety else str(path)
  done = quick(f'--config={address}', *common, '--mode=list')
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == COUNTS[recipe, variety]
  address = str(tmp_path / 'cut.py') + f':{variety}' * bool(variety)
  done = quick(f'--config={address}', *common)
  assert done.returncode == 0, done.stderr
  assert len([*(tmp_path / 'w').rglob('model/weights.npz')]) == 2
