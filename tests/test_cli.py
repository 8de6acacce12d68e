"""The commands themselves, as processes: train, resume after signals, evaluate, predict."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from conftest import ROOT, SMALL, command, small_config
import numpy as np
from PIL import Image
import pytest

import vit_jax
from vit_jax import experiment, metrics, recipe
from vit_jax.data import processes

RECIPE = f'--config={ROOT}/configs/vit_digits.py'


def refused(done, *words):
  assert done.returncode not in (0, None)
  assert 'Traceback' not in done.stderr, done.stderr
  for word in words:
    assert word in done.stderr, done.stderr


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run through the command, with a relative workdir in another current directory."""
  folder = tmp_path_factory.mktemp('elsewhere')
  done = command(RECIPE, '--workdir=runs/a', *SMALL, cwd=folder)
  assert done.returncode == 0, done.stderr
  return folder / 'runs/a', done


def test_train_writes_the_workdir_and_says_what_it_does(finished):
  workdir, done = finished
  for words in (
    'backend cpu',
    '2 x 2 patches of 4 px',
    'test 360',
    'memory: about',
    'ETA',
    'finished',
  ):
    assert words in done.stderr
  for name in (
    'config.json',
    'metrics.jsonl',
    'model/weights.npz',
    'model/model.json',
    'curves.png',
  ):
    assert (workdir / name).stat().st_size
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['2', '4', '6']
  assert list((workdir / 'tensorboard').iterdir())
  rows = metrics.read(workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert {'train/loss', 'test/accuracy'} <= set(rows[-1])
  assert done.stderr.count('\n') < 250
  (told,) = json.loads((workdir / 'commands.json').read_text())
  assert told['command'].startswith('python -m vit_jax.main --config=')
  assert told['version'] == vit_jax.__version__ and told['device'].endswith(' x cpu')
  assert 0 < told['seconds'] < 300 and {'jax', 'flax'} <= {*told['packages']}


def test_starting_a_finished_run_is_a_no_op(quick, finished):
  workdir, _ = finished
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  done = quick(RECIPE, f'--workdir={workdir}', *SMALL)
  assert done.returncode == 0
  assert 'is finished: step 6 of 6' in done.stderr
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


@pytest.mark.parametrize('batch_size', [7, 256])
def test_evaluate_counts_every_example_once(quick, finished, batch_size):
  workdir, _ = finished
  more = (f'--config.evaluation.batch_size={batch_size}', '--mode=evaluate')
  done = quick(RECIPE, f'--workdir={workdir}', *SMALL, *more)
  assert done.returncode == 0, done.stderr
  report = json.loads((workdir / 'reports/evaluation.json').read_text())
  assert report['n_examples'] == 360 == np.sum(report['confusion'])
  assert report['accuracy'] == pytest.approx(np.trace(report['confusion']) / 360)
  low, high = report['accuracy_interval']
  assert low < report['accuracy'] < high
  last = metrics.read(workdir / 'metrics.jsonl')[-1]
  assert report['accuracy'] == pytest.approx(last['test/accuracy'])
  assert report['loss'] == pytest.approx(last['test/loss'], rel=1e-5)
  assert report['weights'] == 'ema'
  assert report['step'] == 6
  assert len(report['per_class']) == 10
  assert 0 <= report['accuracy_top5'] <= 1
  for name in ('confusion.png', 'mistakes.png'):
    assert Image.open(workdir / 'reports' / name).size > (300, 300)


def test_evaluate_refuses_another_model(quick, finished):
  workdir, _ = finished
  other = ('--config.model.readout=mean', '--mode=evaluate')
  refused(quick(RECIPE, f'--workdir={workdir}', *SMALL, *other), "readout: 'class_token' there")


def test_evaluate_refuses_data_of_another_shape(quick, finished, tmp_path):
  """A folder that holds the model alone belongs to no config, so its passport decides."""
  shutil.copytree(finished[0] / 'model', tmp_path / 'model')
  words = ('--config.data.image_size=(16,16)', '--mode=evaluate')
  done = quick(RECIPE, f'--workdir={tmp_path}', *SMALL, *words)
  refused(done, 'image_size=(16, 16)', 'takes image_size=(8, 8)')


@pytest.mark.parametrize(
  ('images', 'words'),
  [(np.zeros((8, 8), np.uint8), 'not (8, 8)'), (np.zeros((1, 8, 8, 1), np.int64), 'not int64')],
)
def test_arrays_that_are_no_images_are_refused(finished, images, words):
  model = vit_jax.load(finished[0])
  with pytest.raises(ValueError, match=re.escape(words)):
    model(images, ('logits',))


def test_predict_files_and_folders(quick, finished, tmp_path):
  workdir, _ = finished
  (tmp_path / 'sub folder').mkdir()
  for name in ('a.png', 'sub folder/ü.JPG'):
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / name)
  (tmp_path / 'notes.txt').write_text('not a picture')
  done = quick(workdir, tmp_path, '--json', module='vit_jax.predict')
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert [row['path'] for row in rows] == [str(tmp_path / n) for n in ('a.png', 'sub folder/ü.JPG')]
  probabilities = [entry['probability'] for entry in rows[0]['predictions']]
  assert probabilities == sorted(probabilities, reverse=True)
  done = quick(workdir, tmp_path / 'a.png', '--top=10', module='vit_jax.predict')
  assert done.stdout.count('%') == 10


def test_features_of_any_layer_and_token(quick, finished, tmp_path):
  """As the model itself gives them; a token outside the grid is refused with the grid."""
  workdir, _ = finished
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
  for i, image in enumerate(pixels):
    Image.fromarray(image).save(tmp_path / f'{i}.png')
  words = (workdir, tmp_path / '0.png', tmp_path / '1.png', '--features')
  out = tmp_path / 'x.npz'
  done = quick(*words, '--layers=1', '--tokens=4,1', f'--out={out}', module='vit_jax.predict')
  assert done.returncode == 0, done.stderr
  outputs = vit_jax.load(workdir)(pixels[..., None], ('block_0/tokens',))['block_0/tokens']
  found = np.load(out)
  np.testing.assert_allclose(found['block_0/tokens'], outputs[:, [4, 1]], atol=1e-5)
  assert list(found['paths']) == [str(tmp_path / '0.png'), str(tmp_path / '1.png')]
  for extra, message in (
    ('--tokens=5', 'the grid of 2 x 2 from 1 (top left) to 4'),
    ('--layers=2', 'blocks from 1 to 1'),
  ):
    refused(quick(*words, extra, f'--out={out}', module='vit_jax.predict'), message)
  refused(quick(*words, module='vit_jax.predict'), '--features needs --out')


def test_predict_names_a_bad_picture_and_still_shows_the_good_one(quick, finished, tmp_path):
  workdir, _ = finished
  Image.new('L', (8, 8)).save(tmp_path / 'good.png')
  (tmp_path / 'bad.png').write_text('words')
  done = quick(workdir, tmp_path, '--json', module='vit_jax.predict')
  refused(done, 'bad.png')
  assert 'good.png' in done.stdout
  refused(quick(workdir, tmp_path / 'none.png', module='vit_jax.predict'), 'does not exist')
  refused(quick(tmp_path, tmp_path / 'good.png', module='vit_jax.predict'), 'no checkpoint')


LONG = (
  *SMALL,
  '--config.total_steps=4000',
  '--config.eval_every=0',
  '--config.checkpoint_every=20',
)


def start(workdir):
  return subprocess.Popen(
    [sys.executable, '-m', 'vit_jax.main', RECIPE, f'--workdir={workdir}', *LONG],
    env=os.environ | {'XLA_FLAGS': ''},
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for_step(workdir, step):
  deadline = time.time() + 120
  while time.time() < deadline:
    if any(row['step'] >= step for row in metrics.read(workdir / 'metrics.jsonl')):
      return
    time.sleep(0.1)
  raise TimeoutError(f'step {step} was not reached')


def test_kill_9_then_resume(quick, tmp_path):
  """The next start goes on from the last checkpoint, and no step is missing or double."""
  process = start(tmp_path)
  wait_for_step(tmp_path, 50)
  process.kill()
  process.wait()
  process.stderr.close()
  saved = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
  assert saved >= 20
  done = quick(RECIPE, f'--workdir={tmp_path}', *LONG, f'--config.total_steps={saved + 5}')
  assert done.returncode == 0, done.stderr
  steps = [row['step'] for row in metrics.read(tmp_path / 'metrics.jsonl')]
  assert steps == list(range(1, saved + 6))


def test_processes_that_make_pictures_change_nothing(quick, tmp_path, monkeypatch):
  """Said in the first lines of a run; by rule where nobody asks."""
  words = (RECIPE, *SMALL, '--config.checkpoint_every=6')
  for count in (0, 2):
    done = quick(*words, f'--workdir={tmp_path / str(count)}', f'--config.data.processes={count}')
    assert done.returncode == 0, done.stderr
    assert ('2 processes make training pictures' in done.stderr) == (count == 2)
  found = [dict(np.load(tmp_path / name / 'model/weights.npz')) for name in '02']
  for key, value in found[0].items():
    np.testing.assert_array_equal(value, found[1][key], err_msg=key)
  # Weights know which pictures they were trained on, and not who made them.
  same = (f'--config.init_from={tmp_path / "2"}', '--config.data.name=checkpoint')
  for name, more in (('threads', ()), ('processes', ('--config.data.processes=2',))):
    done = quick(RECIPE, *SMALL, *same, *more, f'--workdir={tmp_path / name}', optimised=False)
    assert done.returncode == 0, done.stderr
    assert ('2 processes make training pictures' in done.stderr) == bool(more), done.stderr
  monkeypatch.setattr(processes, 'choose', lambda *_: 5)
  assert experiment.build(small_config()).data.processes == 5


@pytest.mark.parametrize(
  'sign', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_exits_cleanly(tmp_path, sign):
  process = start(tmp_path)
  wait_for_step(tmp_path, 5)
  process.send_signal(sign)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert 'the same command goes on from here' in errors
  last = metrics.read(tmp_path / 'metrics.jsonl')[-1]['step']
  assert (tmp_path / 'checkpoints' / str(last)).is_dir()
  assert json.loads((tmp_path / 'model/model.json').read_text())['step'] == last


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    (('--config.totl_steps=3',), ("'totl_steps'", "did you mean 'total_steps'")),
    (('--config.model.variant=B16',), ("'B16'",)),
    (('--config.model.readout=men',), ("did you mean 'mean'",)),
    (('--config.optimizer.name=adamm',), ("did you mean 'adam'",)),
    (('--config.optimizer.name=sgd', '--config.optimizer.b1=0.5'), ("'optimizer.b1'",)),
    (('--config.total_steps=many',), ('total_steps',)),
    (('--config.total_steps=0',), ('config.total_steps=0 must be at least 1',)),
    (('--config.log_every=-1',), ('config.log_every=-1 must be at least 0',)),
    (('--config.ema_decay=1.5',), ('config.ema_decay=1.5 must be in [0, 1)',)),
    (('--config.seed=-1',), ('config.seed=-1 must be in 0..2**32 - 1',)),
    (('--config.resample=bicubc',), ("did you mean 'bicubic'",)),
    (
      ('--config.objective.mixup=0.2', '--config.accumulation_steps=16'),
      ('leaves no second picture to mix one with',),
    ),
    (('--config.model.readout=patch', '--config.model.patch_index=9'), ('2 x 2 patches',)),
    (('--config.model.variant=mu/3',), ('do not divide images of 8 x 8',)),
    (('--config.model.num_heads=5',), ('must divide width=32',)),
    (
      ('--config.batch_size=10', '--config.accumulation_steps=3'),
      ('batch_size=10', 'nearest: 9 or 12'),
    ),
    (('--config.platform=gpu',), ("'gpu' asked for", 'cuda12')),
    (('--config.fsdp=3',), ('fsdp=3',)),
    (('--config.init_from=nowhere',), ('nowhere does not exist',)),
    (('--mode=evaluate',), ('holds no checkpoint', 'train first', '--config.init_from=C')),
    (('--workdir=',), ('--workdir is empty',)),
    (('--mode=guess',), ('mode',)),
    (('stray',), ('stray',)),
  ],
  ids=lambda value: ' '.join(value) if value and value[0].startswith('--') else '',
)
def test_bad_input_gives_one_clear_error(quick, tmp_path, options, words):
  done = quick(RECIPE, f'--workdir={tmp_path / "w"}', *SMALL, *options)
  refused(done, 'error: ', *words)
  assert len(done.stderr.strip().splitlines()) < 12
  assert not (tmp_path / 'w/checkpoints').exists() or not list(
    (tmp_path / 'w/checkpoints').iterdir()
  )


def test_unwritable_workdir(quick, tmp_path):
  (tmp_path / 'file').write_text('')
  refused(quick(RECIPE, f'--workdir={tmp_path}/file/w', *SMALL), 'error: ', 'file')


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(quick, tmp_path):
  """A file size limit stands in for the full disk: the run stops with an error, nothing is lost."""
  assert quick(RECIPE, f'--workdir={tmp_path}', *SMALL).returncode == 0
  limited = f'ulimit -f 40; exec {sys.executable} -m vit_jax.main {RECIPE} --workdir={tmp_path} '
  limited += ' '.join((*SMALL, '--config.total_steps=12'))
  done = subprocess.run(
    ['bash', '-c', limited], capture_output=True, text=True, cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': ''}, timeout=200,
  )  # fmt: skip
  assert done.returncode != 0
  done = quick(RECIPE, f'--workdir={tmp_path}', *SMALL, '--config.total_steps=7')
  assert done.returncode == 0, done.stderr
  steps = [row['step'] for row in metrics.read(tmp_path / 'metrics.jsonl')]
  assert steps == [1, 2, 3, 4, 5, 6, 7]


def test_shipped_recipes_are_found_from_any_directory(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert recipe.load_recipe('configs/vit_tfds.py:cifar10_5000').data.train_examples == 5000
  own = tmp_path / 'configs/vit_tfds.py'  # One that is here goes before.
  own.parent.mkdir()
  own.write_text('def get_config(which):\n  return which\n')
  assert recipe.load_recipe('configs/vit_tfds.py:mine:too') == 'mine:too'


def test_missing_config_and_recipe(quick, tmp_path):
  refused(quick(f'--workdir={tmp_path}'), '--config')
  refused(quick(f'--workdir={tmp_path}', '--config=configs/none.py'), 'no such recipe')
  refused(quick(RECIPE), '--workdir')
