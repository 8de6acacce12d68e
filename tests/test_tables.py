"""Every row of every table, through the commands: train, die, resume, evaluate, predict, convert.

The rows are those of the tables themselves: a new one is tested by being there. What it needs
beside its name stands in `SETTINGS`.
"""

import functools
import json

from conftest import make_folder, real_data
import numpy as np
from PIL import Image
import prepared
import pytest

from vit_jax import data, evaluation, models, objectives, optim
from vit_jax.convert import TARGETS
from vit_jax.models import readout

# Published pools differ in a module alone, which test_probes.py and test_models.py know.
POOLS = {name for name in readout.READOUTS if readout.class_of(name).published}
READOUTS = [name for name in readout.READOUTS if name not in POOLS - {'class_of_4_and_mean'}]
READOUTS += ['ep+all+after']
TABLES = {
  'model.name': models.MODELS,
  'objective.name': objectives.OBJECTIVES,
  'model.readout': READOUTS,
  'evaluators': evaluation.EVALUATORS,
  'optimizer.name': optim.OPTIMIZERS,
  'data.name': data.DATASETS,
}
SMALL = {
  'model.name': 'vit',
  'objective.name': 'classification',
  'model.readout': 'class_token',
  'evaluators': ('classification',),
  'optimizer.name': 'adamw',
  'data.name': 'digits',
  'model.variant': 'mu/4',
  'data.image_size': (8, 8),
  'data.channels': 1,
  'data.validation_fraction': 0.2,  # So that the best checkpoint is chosen.
  'optimizer.learning_rate': 0.01,
  'total_steps': 2,
  'batch_size': 16,
  'log_every': 1,
  'eval_every': 0,
  'checkpoint_every': 1,
  'evaluation.batch_size': 64,
}
DISTILLED = {'model.name': 'deit', 'model.variant': 'mu/4-distilled'}
PIXELS = {'model.name': 'igpt', 'model.variant': 'mu', 'model.readout': None, 'model.clusters': 9}
MASKED = {'objective.name': 'masked_patches', 'evaluators': ('masked_patches',)}
PICTURES = {'data.image_size': (32, 32), 'data.channels': 3, 'batch_size': 4}
RESNET = PICTURES | {
  'model.readout': None, 'data.test_fraction': 0.05, 'data.validation_fraction': 0.05,
}  # fmt: skip
SETTINGS = {
  ('model.name', 'deit'): DISTILLED | {'model.readout': None},
  ('model.readout', 'class_of_4_and_mean'): {'model.depth': 4},
  ('model.readout', 'distillation_token'): DISTILLED,
  ('model.readout', 'class_and_distillation'): DISTILLED,
  ('evaluators', 'similarity'): DISTILLED,
  ('evaluators', 'masked_patches'): MASKED,
  ('objective.name', 'masked_patches'): MASKED,
  ('evaluators', 'fewshot'): {'best': 'max:validation/fewshot_5'},
  ('evaluators', 'linear'): {'evaluation.linear.strengths': (0.01, 0.1)},
  ('model.name', 'hybrid'): PICTURES | {'model.variant': 'R5+digits/4'},
  ('model.name', 'bit'): RESNET | {'model.variant': 'R8x1'},
  ('model.name', 'igpt'): PIXELS,
  ('objective.name', 'autoregressive'): PIXELS | {'evaluators': ('pixels',)},
  ('objective.name', 'masked_pixels'): PIXELS | {
    'model.causal': False, 'evaluators': ('pixels',)
  },
  ('evaluators', 'pixels'): PIXELS | {'objective.name': 'autoregressive'},
  ('model.name', 'axial'): {'model.readout': None},
  ('model.name', 'swin'): {
    'model.readout': None, 'model.variant': 'digits/2', 'data.image_size': (9, 10),
    'model.window': 2,
  },
  ('model.name', 'sasa'): {
    'model.readout': None, 'model.variant': 'digits', 'data.image_size': (16, 16),
    'model.kernel': 3,
  },
  ('model.name', 'cordonnier'): {'model.readout': None, 'model.variant': 'digits/2'},
  ('model.name', 'axial_resnet'): RESNET | {'model.variant': 'R8x1'},
  ('data.name', 'tfds'): {
    'data.dataset': 'cifar10', 'data.test_split': 'test[:50]', 'data.train_split': 'train[:100]',
    'data.channels': 3,
  },
  ('data.name', 'vtab'): {
    'data.task': 'cifar100', 'data.channels': 3, 'data.examples': '800',
    'data.validation_fraction': None,
  },
}  # fmt: skip
# One row of each table is in the fast part; all others run with the slow tests.
FAST = {
  ('model.name', 'vit'), ('objective.name', 'classification'), ('model.readout', 'attention_pool'),
  ('model.readout', 'none'), ('evaluators', 'classification'), ('evaluators', 'multi_label'),
  ('optimizer.name', 'sgd'), ('data.name', 'folder'),
}  # fmt: skip
# Every family resumes exactly as users' programs do; what another row adds to a ViT only has to be
# saved and restored, which takes half the time without optimisation.
OPTIMISED = FAST | {('model.name', name) for name in models.MODELS}
# A head that nobody trains, and what needs several labels a picture: the digits have one.
REFUSED = {('model.readout', 'none'): 'readout', ('evaluators', 'multi_label'): 'several labels'}


def words_of(table, name, folder, train):
  """The overrides that choose a row: its name, its settings, and where its data lie."""
  chosen = {table: (name,) if table == 'evaluators' else name}
  settings = SMALL | chosen | SETTINGS.get((table, name), {})
  settings = {key: value for key, value in settings.items() if value is not None}
  if chosen == {'data.name': 'folder'}:
    counts = {f'{split}/{kind}': 6 for split in ('train', 'test') for kind in 'abc'}
    settings['data.path'] = str(make_folder(folder / 'pictures', counts))
  if chosen == {'objective.name': 'distillation'}:
    teacher, _ = train(words_of('model.name', 'vit', folder, train), True)
    settings['objective.teacher'] = str(teacher / 'whole')
  if name == 'real':
    (folder / 'real.json').write_text(json.dumps({str(k): [str(k), '3'] for k in range(10)}))
    settings['evaluation.real.labels'] = str(folder / 'real.json')
  if chosen == {'data.name': 'vtab'}:
    prepared.write_cifar100(folder / 'sets')
    settings['data.data_dir'] = str(folder / 'sets')
  if chosen == {'data.name': 'tfds'}:
    settings['data.data_dir'] = str(real_data('tfds'))
  return tuple(f'--config.{key}={value}' for key, value in settings.items())


def weights_of(workdir):
  with np.load(workdir / 'model/weights.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def train(quick, tmp_path_factory):
  """A function that trains a row twice: at once, and killed and resumed."""

  @functools.cache  # Rows that are the defaults are one run.
  def both(words, optimised):
    folder = tmp_path_factory.mktemp('row')
    run = functools.partial(quick, optimised=optimised)
    common = ('--config=configs/vit_digits.py', '--config.ema_decay=0.0', *words)
    done = run(*common, f'--workdir={folder / "whole"}')
    assert done.returncode == 0, done.stderr
    done = run(*common, f'--workdir={folder / "killed"}', kill=True)
    assert done.returncode == -9, done.stderr
    assert (folder / 'killed/checkpoints/1').is_dir()
    assert not (folder / 'killed/model').exists()
    done = run(*common, f'--workdir={folder / "killed"}')
    assert done.returncode == 0, done.stderr
    assert 'step 2/2' in done.stderr and 'step 1/2' not in done.stderr
    return folder, common

  return both


ROWS = [
  pytest.param(table, name, marks=[] if (table, name) in FAST else [pytest.mark.slow])
  for table, names in TABLES.items()
  for name in names
]


@pytest.mark.parametrize(('table', 'name'), ROWS)
def test_a_row(table, name, train, quick, tmp_path):
  words, optimised = words_of(table, name, tmp_path, train), (table, name) in OPTIMISED
  quick = functools.partial(quick, optimised=optimised)
  if (table, name) in REFUSED:
    refused(quick, words, tmp_path / 'w', REFUSED[table, name])
    return
  folder, common = train(words, optimised)
  whole, resumed = weights_of(folder / 'whole'), weights_of(folder / 'killed')
  assert whole.keys() == resumed.keys()
  for key, value in whole.items():
    np.testing.assert_array_equal(value, resumed[key], err_msg=key)
  evaluated(quick, common, folder / 'whole')
  predicted(quick, folder / 'whole', tmp_path)
  converted(quick, folder / 'whole', tmp_path, whole)


def refused(quick, words, workdir, reason):
  done = quick('--config=configs/vit_digits.py', *words, f'--workdir={workdir}')
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and reason in done.stderr
  assert not workdir.exists()


def evaluated(quick, common, workdir):
  done = quick(*common, f'--workdir={workdir}', '--mode=evaluate')
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report['step'] in (1, 2)
  assert any(workdir.glob('reports/*'))


def predicted(quick, workdir, folder):
  """A picture of another size and kind than the model's."""
  rows = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  Image.fromarray(rows).save(folder / 'one.png')
  done = quick(workdir, folder / 'one.png', '--json', '--top=100', module='vit_jax.predict')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)['predictions']
  classes = json.loads((workdir / 'model/model.json').read_text())['class_names']
  assert {row['class'] for row in found} == {*classes}
  assert all(0 <= row['probability'] <= 1 for row in found)


def converted(quick, workdir, folder, weights):
  """What it says of itself, and a copy that says and predicts the same."""
  run = functools.partial(quick, module='vit_jax.convert')
  done = run('--inspect', workdir, '--json')
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout)
  assert said['parameters'] == sum(value.size for value in weights.values())
  target = 'vit_jax' if 'vit_jax' in TARGETS else 'stablehlo'
  done = run(workdir, folder / 'copy', f'--to={target}', '--check', '--json')
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert rows and all(row['difference'] < 1e-4 for row in rows), rows
