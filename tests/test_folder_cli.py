"""Runs on folders through the commands: train, evaluate, predict; what is wrong with a folder."""

import json

from conftest import ROOT, make_folder, real_data
import pytest

from vit_jax import metrics

FOLDER = f'--config={ROOT}/configs/vit_folder.py:small'
STUDY = f'--config={ROOT}/configs/vit_study.py:small'
SHORT = (
  '--config.total_steps=2', '--config.data.image_size=(16,16)', '--config.model.variant=mu/8',
  '--config.batch_size=4', '--config.optimizer.warmup_steps=0',
)  # fmt: skip


def test_train_evaluate_and_predict(quick, tmp_path):
  """Relative paths, spaces, letters beyond ASCII; class names come back from the saved model."""
  counts = {'train/crème brûlée': 5, 'train/b': 6, 'test/crème brûlée': 2, 'test/b': 1}
  make_folder(tmp_path / 'my pictures', counts)
  words = [FOLDER, '--config.data.path=my pictures', '--workdir=w', *SHORT]
  done = quick(*words, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'train 11' in done.stderr
  done = quick(*words, '--mode=evaluate', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'w/reports/evaluation.json').read_text())
  assert report['n_examples'] == 3
  assert [row['class'] for row in report['per_class']] == ['b', 'crème brûlée']
  done = quick('w', 'my pictures/test', '--json', module='vit_jax.predict', cwd=tmp_path)
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert [row['path'] for row in rows] == [
    'my pictures/test/b/0.png',
    'my pictures/test/crème brûlée/0.png',
    'my pictures/test/crème brûlée/1.png',
  ]
  assert {p['class'] for p in rows[0]['predictions']} == {'b', 'crème brûlée'}


def test_resumed_on_a_folder_equals_uninterrupted(quick, tmp_path):
  """Bit for bit, crops and flips included, with another number of threads."""
  make_folder(tmp_path / 'data', {f'{split}/{c}': 7 for split in ('train', 'test') for c in 'ab'})
  common = (FOLDER, f'--config.data.path={tmp_path / "data"}', *SHORT, '--config.log_every=1')
  for workdir, stops in (('whole', (6,)), ('parts', (3, 6))):
    for stop in stops:
      words = (f'--workdir={tmp_path / workdir}', f'--config.total_steps={stop}')
      schedule = ('--config.optimizer.schedule=constant', '--config.checkpoint_every=1')
      done = quick(*common, *words, *schedule)
      assert done.returncode == 0, done.stderr
  whole, parts = (metrics.read(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'parts'))
  losses = [[row.get('train/loss') for row in rows] for rows in (whole, parts)]
  assert losses[0] == losses[1]
  assert len(losses[0]) == 6


@pytest.mark.parametrize('recipe', [STUDY, pytest.param(FOLDER, marks=pytest.mark.slow)])
def test_the_studys_pictures(quick, tmp_path, recipe):
  """225 in batches of 32 are 8 batches an epoch, the last of 1; exactly 75 are evaluated."""
  path = real_data('pizza_steak_sushi')
  words = (recipe, f'--config.data.path={path}', f'--workdir={tmp_path / "w"}')
  done = quick(*words, '--config.total_steps=9', '--config.log_every=1')
  assert done.returncode == 0, done.stderr
  assert 'train 225' in done.stderr
  done = quick(*words, '--config.total_steps=9', '--mode=evaluate')
  report = json.loads((tmp_path / 'w/reports/evaluation.json').read_text())
  assert report['n_examples'] == 75
  assert {row['class']: row['n_examples'] for row in report['per_class']} == {
    'pizza': 25, 'steak': 19, 'sushi': 31
  }  # fmt: skip
  if recipe == STUDY:
    rows = metrics.read(tmp_path / 'w/metrics.jsonl')
    assert rows[7]['train/accuracy'] in (0.0, 1.0)  # The batch of one.


@pytest.mark.parametrize(
  ('counts', 'words'),
  [
    ({}, ['holds no', 'pictures']),
    ({'train/a': 3, 'test/a': 1}, ['one class', 'a']),
    ({'train/a': 3, 'train/b': 3, 'test/a': 1, 'test/c': 1}, ['c', 'train']),
  ],
)
def test_impossible_folders(quick, tmp_path, counts, words):
  (tmp_path / 'data').mkdir()
  make_folder(tmp_path / 'data', counts)
  done = quick(FOLDER, f'--config.data.path={tmp_path / "data"}', f'--workdir={tmp_path / "w"}')
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  for word in words:
    assert word in done.stderr, done.stderr
  assert not (tmp_path / 'w/checkpoints').exists()


def test_a_broken_picture_stops_before_step_1(quick, tmp_path):
  make_folder(tmp_path / 'data', {'train/a': 3, 'train/b': 3})
  (tmp_path / 'data/train/b/broken one.jpg').write_bytes(b'no picture')
  words = (FOLDER, f'--config.data.path={tmp_path / "data"}', f'--workdir={tmp_path / "w"}', *SHORT)
  done = quick(*words)
  assert done.returncode == 1
  assert 'train/b/broken one.jpg' in done.stderr
  assert 'on_error=skip' in done.stderr.replace("'", '')
  done = quick(*words, '--config.data.on_error=skip')
  assert done.returncode == 0, done.stderr
  assert '1 ' in done.stderr
  assert 'broken one.jpg' in done.stderr
