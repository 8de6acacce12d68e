"""The commands of the lab: explorations, sweeps, pictures; from a checkpoint to reports."""

import base64
import copy
import csv
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import types

from conftest import ROOT, command, make_folder, small_config
from flax import linen as nn
import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax import checkpoint, defaults, models, predict, recipe, train, weights
from vit_jax.explore import compare, lab, lab_data, page, readouts, selection, sweep
from vit_jax.interpret import __main__ as interpret_command
from vit_jax.models import readout

RECIPE = ROOT / 'configs/explore_readouts.py'
NAMES = ('class_token', 'patches', 'sum_all', 'mean_all', 'weighted_add', 'shuffled_labels')


def exploration(trained, **overrides):
  """A config of a short exploration of the small run; '__' stands for '.'."""
  config = defaults.complete(recipe.load_recipe(str(RECIPE)), {})
  config.init_from = str(trained)
  config.explore.readouts = NAMES
  config.explore.learning_rates = (1e-3, 1e-2)
  config.explore.epochs = 2
  config.explore.seeds = 3
  config.explore.audit = False  # It has tests of its own.
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.fixture(scope='module')
def explored(trained, tmp_path_factory):
  """The folder of an exploration that the command made, of every block, from another folder."""
  folder = tmp_path_factory.mktemp('explored')
  done = command(
    f'--config={RECIPE}', f'--config.init_from={trained}', '--workdir=lab',
    f'--config.explore.readouts={NAMES}', '--config.explore.learning_rates=(0.001,0.01)',
    '--config.explore.epochs=3', '--config.explore.seeds=3', cwd=folder,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return folder / 'lab', done.stderr


@pytest.mark.slow
def test_records(explored):
  folder, log = explored
  assert 'best: ' in log
  records = json.loads((folder / 'reports/readouts.json').read_text())
  assert {r['readout'] for r in records} == {
    'class_token', 'patch_1', 'patch_2', 'patch_3', 'patch_4', 'sum_all', 'mean_all',
    'weighted_add', 'shuffled_labels',
  }  # fmt: skip
  for record in records:
    low, high = record['accuracy_interval']
    assert 0 <= low < record['accuracy'] < high <= 1
    assert record['accuracy'] == pytest.approx(np.mean(record['accuracy_by_seed']))
    assert (record['n_seeds'], record['n_examples']) == (3, 360)
    extra = 4 if record['readout'] == 'weighted_add' else 0
    assert record['parameters'] == 32 * 10 + 10 + extra
    assert record['learning_rate'] in (0.001, 0.01)
    assert 0 <= record['validation_accuracy'] <= 1
  assert [r['accuracy'] for r in records] == sorted((r['accuracy'] for r in records), reverse=True)
  patch = next(r for r in records if r['readout'] == 'patch_3')
  assert (patch['row'], patch['column']) == (1, 0)


@pytest.mark.slow
def test_tables_hold_the_same_numbers(explored):
  folder, _ = explored
  records = json.loads((folder / 'reports/readouts.json').read_text())
  with (folder / 'reports/readouts.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [float(row['accuracy']) for row in rows] == [r['accuracy'] for r in records]
  with (folder / 'reports/curves.csv').open() as file:
    curves = list(csv.DictReader(file))
  assert len(curves) == 9 * 3 * 3  # readouts, seeds, epochs
  last = [float(r['test_accuracy']) for r in curves
          if r['readout'] == 'sum_all' and r['epoch'] == '3']  # fmt: skip
  expected = next(r for r in records if r['readout'] == 'sum_all')['accuracy_by_seed']
  np.testing.assert_allclose(last, expected, rtol=1e-5)


@pytest.mark.slow
def test_pages(explored):
  folder, _ = explored
  page = (folder / 'reports/readouts.html').read_text()
  pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
  assert len(pictures) == 9
  assert all(base64.b64decode(picture)[:4] == b'\x89PNG' for picture in pictures)
  assert not re.search(r'(src|href)="(?!data:)', page)  # Nothing from elsewhere.
  text = (folder / 'reports/readouts.md').read_text()
  for path in re.findall(r'\]\((readouts/[^)]+)\)', text):
    assert Image.open(folder / 'reports' / path).width > 400
  titles = ['Ranking', 'Are the differences real?', 'Where in the picture', 'Curves']
  titles += ['The conclusions of the token-readout study', 'What the learned mixes weigh']
  titles += ['What choosing does to the numbers', 'Are the tokens healthy?']
  for title in titles:
    assert f'## {title}' in text
  about = json.loads((folder / 'reports/exploration.json').read_text())
  assert {claim['verdict'] for claim in about['claims']} <= {
    'holds', 'does not hold', 'cannot tell'
  }  # fmt: skip
  assert len(about['claims']) == 10  # On 2 x 2 the corners are the centre.
  assert len(about['comparisons']) == 3
  if any(c['verdict'] == 'cannot tell' for c in about['comparisons']):
    assert 'too few to tell' in text


@pytest.mark.slow
def test_a_finished_exploration_is_a_no_op(quick, explored, trained):
  folder, _ = explored
  before = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
  done = quick(
    f'--config={RECIPE}', f'--config.init_from={trained}', f'--workdir={folder}',
    f'--config.explore.readouts={NAMES}', '--config.explore.learning_rates=(0.001,0.01)',
    '--config.explore.epochs=3', '--config.explore.seeds=3',
  )  # fmt: skip
  assert 'is finished' in done.stderr
  after = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
  changed = {path for path in before if before[path] != after[path]}
  assert not changed


@pytest.mark.slow
def test_depth(trained, tmp_path):
  config = exploration(trained, explore__layers='all', explore__learning_rates=(1e-2,))
  readouts.explore(config, tmp_path)
  records = json.loads((tmp_path / 'reports/readouts.json').read_text())
  assert {record['layer'] for record in records} == {1}  # The small model has one block.
  assert {path.name for path in (tmp_path / 'probes').rglob('*.npz')} == {'tokens.npz'}


@pytest.mark.slow
def test_an_exploration_goes_on_from_what_is_there(trained, tmp_path, monkeypatch):
  """Killed after the probes, it does not train them again."""
  config = exploration(trained)
  with monkeypatch.context() as patch:
    patch.setattr(readouts.report, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      readouts.explore(config, tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(readouts, 'study', lambda *_: pytest.fail('trained again'))
    readouts.explore(config, tmp_path)
  assert (tmp_path / 'reports/readouts.html').exists()


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_noticed(trained, tmp_path):
  params, passport = weights.load(trained)
  weights.write_model(tmp_path / 'm/model', params, passport)
  config = exploration(tmp_path / 'm', explore__learning_rates=(1e-2,))
  readouts.explore(config, tmp_path / 'lab')
  params['cls'] = params['cls'] + 1
  weights.write_model(tmp_path / 'm/model', params, passport)
  with pytest.raises(ValueError, match='other weights or data'):
    readouts.explore(config, tmp_path / 'lab')


def test_the_studys_preset(trained, tmp_path):
  """Every example counts; batches are the study's; its metric stands beside the true accuracy."""
  config = defaults.complete(recipe.load_recipe(f'{RECIPE}:study'), {})
  assert tuple(config.explore.learning_rates) == (1e-3,)
  assert (config.explore.epochs, config.explore.batch_size) == (10, 32)
  assert (config.explore.schedule, config.explore.head) == ('constant', 'torch')
  correct = np.zeros((1, 75), bool)
  correct[:, 64:] = True  # 32 + 32 wrong, the last 11 right.
  assert compare.mean_of_batches(correct, 32) == pytest.approx(1 / 3)


def test_other_data_than_the_checkpoints(trained, tmp_path):
  """A folder of grey pictures of two classes; the model's preprocessing stays."""
  make_folder(tmp_path / 'data', {'train/a': 12, 'train/b': 12, 'test/a': 5, 'test/b': 7})
  config = exploration(trained, explore__learning_rates=(1e-2,))
  config = defaults.complete(config, {'data': 'folder'})
  config.data.path = str(tmp_path / 'data')
  readouts.explore(config, tmp_path / 'lab')
  records = json.loads((tmp_path / 'lab/reports/readouts.json').read_text())
  assert {r['n_examples'] for r in records} == {12}
  assert records[0]['parameters'] in (32 * 2 + 2, 32 * 2 + 2 + 4)


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'explore__readouts': ('patch_5',)}, r'2 x 2 patches.*\n +1 \.\.\. +2\n.*\n +3 \.\.\. +4'),
    ({'explore__readouts': ('meen',)}, "did you mean 'mean'"),
    ({'explore__readouts': ('mean, max',)}, r"""several are written "\('mean','max'\)\""""),
    ({'explore__layers': '2'}, 'blocks from 1 to 1'),
    ({'explore__cache_gb': 1e-6}, 'cache_gb'),
    ({'explore__cache_dtype': 'float16'}, 'bfloat16'),
    ({'explore__head': 'ones'}, 'zero, torch'),
    ({'explore__epochs': 0}, 'epochs=0'),
    ({'explore__seeds': 0}, 'seeds'),
    ({'explore__ridge': 0.0}, 'ridge=0.0 must be above 0'),
    ({'explore__learning_rates': ()}, 'learning_rates'),
    ({'explore__validation_fraction': 0.001}, 'validation_fraction=0.001'),
    ({'model__readout': 'mean'}, r'does not read config\.model'),
    ({'total_steps': 7}, r'does not read config\.total_steps'),
    ({'init_from': None}, 'needs --config.init_from'),
  ],
)
def test_what_cannot_work_is_refused(trained, tmp_path, overrides, words):
  with pytest.raises(ValueError, match=words):
    readouts.explore(exploration(trained, **overrides), tmp_path / 'lab')
  assert not list((tmp_path / 'lab').glob('*.json'))
  assert not (tmp_path / 'lab/reports').exists()


def test_test_examples_have_no_say(trained, tmp_path):
  """With other test labels the same learning rates are chosen, and the same probes predict."""
  found = lab.build(exploration(trained))
  passed = readouts.token_pass(found, tmp_path).run()
  store = {split: layers['tokens'] for split, layers in passed.items()}
  turned = dataclasses.replace(store['test'], labels=(store['test'].labels + 1) % 10)
  a, b = (readouts.study(found, store | {'test': x}, 'tokens') for x in (store['test'], turned))
  np.testing.assert_array_equal(a.rates, b.rates)
  np.testing.assert_array_equal(a.fitted.predictions, b.fitted.predictions)
  assert (a.fitted.test_accuracy != b.fitted.test_accuracy).any()


def test_a_lucky_learning_rate_is_not_chosen():
  accuracy = np.array([[0.70, 0.90, 0.91], [0.50, 0.60, 0.90]])
  loss = np.array([[0.1, 0.3, 8.0], [0.1, 0.2, 8.0]])
  assert selection.prefer(accuracy, loss, 100).tolist() == [1, 2]
  assert selection.prefer(accuracy, loss, 1_000_000).tolist() == [2, 2]


def test_classes_without_examples_are_refused(trained, tmp_path):
  make_folder(tmp_path / 'data', {'train/a': 4, 'train/b': 4, 'test/a': 2})
  config = defaults.complete(exploration(trained), {'data': 'folder'})
  config.data.path = str(tmp_path / 'data')
  with pytest.raises(ValueError, match='no test example of b'):
    readouts.explore(config, tmp_path / 'lab')
  with pytest.raises(ValueError, match='two classes'):
    lab_data.check_classes(('only',))


def test_a_weight_file_knows_no_data(trained, tmp_path):
  config = exploration(trained)
  params, passport = weights.load(trained)
  weights.write_model(tmp_path / 'model', params, dataclasses.replace(passport, origin={}))
  config.init_from = str(tmp_path)
  with pytest.raises(ValueError, match=r'does not say.*config\.data\.name=folder'):
    readouts.explore(config, tmp_path / 'lab')


def test_without_a_class_token(trained, tmp_path):
  params, passport = weights.load(trained)
  params.pop('cls')
  position = params['Transformer']['posembed_input']
  position['pos_embedding'] = position['pos_embedding'][:, 1:]
  section = passport.model | {'class_token': False, 'readout': 'mean'}
  passport = dataclasses.replace(passport, model=section)
  weights.write_model(tmp_path / 'model', params, passport)
  config = exploration(tmp_path, explore__readouts=('class_token',))
  with pytest.raises(ValueError, match='class token, which these weights lack'):
    readouts.explore(config, tmp_path / 'lab')
  config.explore.readouts = ('all',)
  found = lab.build(config)
  assert 'class_token' not in {candidate.name for candidate in found.candidates}
  assert len(found.candidates) == 4 + 3 + 1 + 2  # patches, sum mean max, attention, controls


SWEEP = """
from vit_jax import defaults

def get_config():
  config = defaults.get_config()
  config.run = 'sweep'
  config.data.validation_fraction = 0.2
  config.model.variant = 'mu/4'
  config.total_steps = 3
  config.batch_size = 16
  config.eval_every = 3
  config.checkpoint_every = 3
  return config

def sweep():
  return [
    {'model.readout': 'mean', 'optimizer.learning_rate': rate, 'seed': seed}
    for rate in (1e-3, 1e-2) for seed in (0, 1)
  ]
"""


# What a recipe says of its sweep.
RATES = types.SimpleNamespace(TUNED=('optimizer.learning_rate',))
NONE = types.SimpleNamespace(TUNED=())


def planned(folder, choices=None):
  (folder / 'recipe.py').write_text(SWEEP)
  module, _ = recipe.open_recipe(str(folder / 'recipe.py'))
  config = defaults.complete(module.get_config(), {})
  return sweep.plan(config, choices or module.sweep(), folder / 'W')


@pytest.mark.slow
def test_a_sweep_resumes_and_chooses_by_validation(tmp_path, monkeypatch):
  runs, steps = planned(tmp_path), []
  train_one = train.train

  def counted(config, workdir):
    if len(steps) == 2:
      raise KeyboardInterrupt
    steps.append(workdir)
    train_one(config, workdir)

  monkeypatch.setattr(train, 'train', counted)
  with pytest.raises(KeyboardInterrupt):
    sweep.sweep(runs, tmp_path / 'W', RATES)
  monkeypatch.setattr(train, 'train', lambda c, w: (steps.append(w), train_one(c, w)))
  sweep.sweep(runs, tmp_path / 'W', RATES)
  assert len(steps) == len(set(steps)) == 4  # Each run once, although stopped in between.
  records = json.loads((tmp_path / 'W/reports/sweep.json').read_text())
  with (tmp_path / 'W/reports/sweep.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2
  chosen = max(rows, key=lambda row: float(row['validation']))
  assert [row['chosen'] for row in rows].count('True') == 1
  assert chosen['chosen'] == 'True'
  rate = chosen['optimizer.learning_rate']
  of_run = [r['test/accuracy'] for r in records if str(r['optimizer.learning_rate']) == rate]
  assert float(chosen['accuracy']) == pytest.approx(np.mean(of_run))
  assert chosen['runs'] == '2'
  assert Image.open(tmp_path / 'W/reports/sweep.png').width > 500
  assert 'test examples had no say' in (tmp_path / 'W/reports/sweep.md').read_text()


def test_the_list_of_a_sweep_is_its_runs(quick, tmp_path):
  (tmp_path / 'recipe.py').write_text(SWEEP)
  words = ['--config', 'recipe.py', '--workdir', 'W', '--config.batch_size', '8', '-mode=list']
  done = quick(*words, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / 'W').exists()  # The list leaves nothing.
  lines = done.stdout.splitlines()
  assert len(lines) == 4
  first = shlex.split(lines[0])
  assert first[0] == 'python'
  ran = subprocess.run([sys.executable, *first[1:]], cwd=tmp_path, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
  (folder,) = (tmp_path / 'W/runs').iterdir()
  assert folder.name == 'readout=mean,learning_rate=0.001,seed=0'
  assert json.loads((folder / 'config.json').read_text())['batch_size'] == 8
  # The sweep takes it for its own.
  module, _ = recipe.open_recipe(str(tmp_path / 'recipe.py'))
  config = defaults.complete(module.get_config(), {})
  config.batch_size = 8
  run = sweep.plan(config, module.sweep(), tmp_path / 'W')[0]
  checkpoint.check_owner(run.workdir, run.config.to_dict())
  assert run.scores()['step'] == 3


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path, monkeypatch):
  choices = [{'seed': 0}, {'seed': 1}]
  runs, train_one = planned(tmp_path, choices), train.train

  def first_diverges(config, workdir):
    if config.seed == 0:
      raise FloatingPointError('step 1: loss not finite')
    train_one(config, workdir)

  monkeypatch.setattr(train, 'train', first_diverges)
  sweep.sweep(runs, tmp_path / 'W', NONE)
  records = json.loads((tmp_path / 'W/reports/sweep.json').read_text())
  assert [record['failed'] for record in records] == [True, False]
  assert checkpoint.belongs(runs[0].workdir)
  with pytest.raises(ValueError, match='another config'):  # Its failure is not taken for ours.
    sweep.sweep(other_batches(runs), tmp_path / 'W', NONE)
  assert '1, 1 failed' in (tmp_path / 'W/reports/sweep.md').read_text()


def other_batches(runs):
  """The same runs with a batch of another size."""
  changed = []
  for run in runs:
    config = copy.deepcopy(run.config)
    config.batch_size = 8
    changed.append(dataclasses.replace(run, config=config))
  return changed


def test_a_start_that_fails_leaves_the_folder_free(trained, tmp_path):
  """A lab or a run of a sweep that cannot start leaves no config behind."""
  with pytest.raises(ValueError, match='cache_gb'):
    readouts.explore(exploration(trained, explore__cache_gb=1e-6), tmp_path / 'lab')
  assert not (tmp_path / 'lab').exists()
  runs = planned(tmp_path, [{'init_from': str(tmp_path / 'nothing')}])
  with pytest.raises(FileNotFoundError):
    sweep.sweep(runs, tmp_path / 'W', NONE)
  assert not list(tmp_path.rglob('config.json'))


@pytest.mark.parametrize('key', ['batch_size', 'ema_decay', 'init_from'])
def test_keys_without_a_dot_are_compared(key):
  """Each value is a setting with a column of its own; only what is TUNED is chosen."""
  rate = 'optimizer.learning_rate'
  records = [
    {'run': 'x', 'failed': False, key: value, rate: step, 'seed': seed}
    | {'test/accuracy': 0.5 + 0.1 * seed, 'validation/accuracy': step + value}
    for value in (0.25, 0.5) for step in (0.1, 0.2) for seed in (0, 1)
  ]  # fmt: skip
  rows = sweep.choose(sweep.settings(records, [key, rate]), [key, rate], (rate,))
  assert [(row[key], row[rate], row['chosen']) for row in rows[:2]] == [
    (0.25, 0.2, True), (0.5, 0.2, True)
  ]  # fmt: skip
  assert not any(row['chosen'] for row in rows[2:])
  assert [row['setting'] for row in rows[:2]] == ['0.25', '0.5']
  assert sweep.table(rows, [key, rate]).header[:2] == [key, rate]
  assert {row['runs'] for row in rows} == {2}


def test_the_table_of_a_sweep_has_keys_without_a_dot(tmp_path):
  runs = planned(
    tmp_path, [{'batch_size': size, 'seed': seed} for size in (8, 16) for seed in (0, 1)]
  )
  for run in runs:
    run.workdir.mkdir(parents=True)
    score = {'step': run.config.total_steps, 'test/accuracy': run.config.batch_size / 32}
    (run.workdir / 'metrics.jsonl').write_text(json.dumps(score) + '\n')
  sweep.write(runs, tmp_path / 'reports', NONE)
  with (tmp_path / 'reports/sweep.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['batch_size'], row['runs'], row['accuracy']) for row in rows] == [
    ('16', '2', '0.5'), ('8', '2', '0.25')
  ]  # fmt: skip


def test_with_views_rates_are_chosen_on_pictures_as_evaluation_sees_them(
  trained, tmp_path, monkeypatch
):
  found = lab.build(exploration(trained, explore__views=1))
  passed, seen = readouts.token_pass(found, tmp_path).run(), []
  fit = readouts.fitting.fit

  def watched(part, train_tokens, rows, other, *rest):
    seen.append((train_tokens.values, other.values))
    return fit(part, train_tokens, rows, other, *rest)

  monkeypatch.setattr(readouts.fitting, 'fit', watched)
  readouts.study(found, {split: layers['tokens'] for split, layers in passed.items()}, 'tokens')
  changed, held = seen[0]
  predictor = predict.load(trained)
  images = np.stack([found.data.picture('train', i) for i in range(8)])
  np.testing.assert_allclose(held[0, :8], predictor(images, ('tokens',))['tokens'], atol=2e-5)
  assert np.abs(changed[0] - held[0]).max() > 0.1


def test_tables_fit_a_window():
  """What is too wide scrolls inside the page instead of widening it."""
  html = page.self_contained([page.Table(['a' * 30] * 20, [['b' * 30] * 20])], 'x')
  assert re.search(r'<div class="wide"><table>.*</table></div>', html)
  assert '.wide{overflow-x:auto}' in html
  assert 'nowrap' not in html


class Maps(models.Model):
  """A toy family: a map of 2 x 2 and nothing before it; `plain` names no tokens at all."""

  plain: bool = False

  @property
  def grid(self):
    return None if self.plain else (2, 2)

  @nn.compact
  def __call__(self, images, *, train=False):
    x = nn.Conv(12, (4, 4), (4, 4), name='stem')(images)
    outputs = {} if self.plain else {'block_0/tokens': x, 'tokens': nn.relu(x)}
    features = nn.relu(x).mean((1, 2))
    logits = nn.Dense(self.num_classes, name='head')(features)
    return logits, outputs | {'features': features}


@pytest.fixture
def maps(tmp_path, monkeypatch):
  """The toy family in its tables; the folder for its weights."""
  family = types.SimpleNamespace(
    VARIANTS=['x'], OFFICIAL={}, build=lambda **section: Maps(**section)
  )
  monkeypatch.setitem(models.MODELS, 'maps', family)
  monkeypatch.setitem(defaults.PARTS['model'], 'maps', dict(plain=False))
  return tmp_path / 'maps'


def write_maps(folder, trained, **section):
  """Weights of the toy family for the pictures of the small run."""
  known = weights.load(trained)[1]
  shape = dict(image_size=(8, 8), channels=1, num_classes=10)
  passport = dataclasses.replace(known, model=dict(name='maps', **shape, **section))
  params = models.init(passport.build(), jax.random.key(0))
  weights.write_model(folder, jax.tree.map(np.asarray, params), passport)
  return folder


def test_the_lab_reads_maps_of_any_family(maps, trained, tmp_path):
  config = exploration(
    write_maps(maps, trained, plain=False),
    explore__readouts=('patches', 'mean', 'attention_pool', 'shuffled_labels'),
    explore__learning_rates=(1e-2,), explore__layers='all',
  )  # fmt: skip
  readouts.explore(config, tmp_path / 'lab')
  records = json.loads((tmp_path / 'lab/reports/readouts.json').read_text())
  assert {r['readout'] for r in records} == {
    'patch_1', 'patch_2', 'patch_3', 'patch_4', 'mean', 'attention_pool', 'shuffled_labels'
  }  # fmt: skip
  mean = next(r for r in records if r['readout'] == 'mean')
  assert (mean['layer'], mean['parameters']) == (1, 12 * 10 + 10)


def test_what_other_families_lack_is_said(maps, trained, tmp_path):
  config = exploration(write_maps(maps, trained, plain=True))
  with pytest.raises(ValueError, match='holds a maps, which has no tokens on a grid'):
    readouts.explore(config, tmp_path / 'lab')
  for what in ('patches', 'flattening', 'feature_maps', 'readouts'):
    with pytest.raises(SystemExit, match='a maps has no patches to show'):
      interpret_command.main([what, str(maps), f'--out={tmp_path / "out"}'])
  assert not (tmp_path / 'out').exists()


class Extremes(readout.Readout):
  """A toy readout."""

  def __call__(self, x):
    return self.patches(x).max(1) - self.patches(x).min(1)


def test_a_new_readout_is_trained_and_reported(trained, tmp_path, monkeypatch):
  """One class and one line: the lab's table, curves and page hold it; the native one is named."""
  monkeypatch.setitem(readout.READOUTS, 'extremes', Extremes)
  config = exploration(trained, explore__readouts=('extremes', 'mean'))
  readouts.explore(config, tmp_path)
  records = json.loads((tmp_path / 'reports/readouts.json').read_text())
  assert {r['readout'] for r in records} == {'extremes', 'mean'}
  text = (tmp_path / 'reports/readouts.md').read_text()
  assert '| extremes |' in text
  assert 'trained to be read by class_token, which was not read here' in text


@pytest.mark.parametrize(
  ('choices', 'words'),
  [([{'model.reedout': 'mean'}], "did you mean 'model.readout'"), ([{'seed': 0}] * 2, 'twice'),
   ([{'eval_every': 0}], 'eval_every=0')],
)  # fmt: skip
def test_sweeps_that_cannot_work_are_refused(tmp_path, choices, words):
  with pytest.raises(ValueError, match=words):
    planned(tmp_path, choices)


def test_finetunings_grid_is_a_sweep():
  module, _ = recipe.open_recipe(str(ROOT / 'configs/finetune.py'))
  assert [run['optimizer.learning_rate'] for run in module.sweep('imagenet_512')] == [
    0.003, 0.01, 0.03, 0.06
  ]  # fmt: skip
  assert {run['data.validation_fraction'] for run in module.sweep('pets')} == {0.1}


def test_modes_that_a_run_does_not_have(quick, tmp_path):
  done = quick(f'--config={RECIPE}', '--mode=evaluate', f'--workdir={tmp_path}')
  assert done.returncode
  assert 'config.run=explore: choose train' in done.stderr


@pytest.mark.slow
def test_fine_tuning_on_the_data_of_the_checkpoint(trained, tmp_path):
  """Trains and evaluates on what the checkpoint was trained on, without naming it."""
  config = small_config()
  config = defaults.complete(config, {'data': 'checkpoint'})
  config.init_from = str(trained)
  config.model.variant = None
  train.train(config, tmp_path / 'again')
  report = train.evaluate(config, tmp_path / 'again')
  assert report['n_examples'] == 360
  about = weights.open_source(tmp_path / 'again').passport
  assert about.origin['data']['name'] == 'digits'
  assert about.class_names == list('0123456789')
