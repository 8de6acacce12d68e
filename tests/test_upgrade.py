"""What version 0.1.0 left behind goes on: its runs, passports and config files."""

import json
import pathlib
import shutil

from conftest import ROOT
import interface
import numpy as np
import pytest

import vit_jax
from vit_jax import checkpoint, defaults, metrics

RUN = ROOT / 'tests/fixtures/run_0.1.0.zip'
# What the run was made with; it stopped at step 4, and beside it lies what 6 steps gave then.
WORDS = (
  f'--config={ROOT}/configs/vit_digits.py', '--config.model.variant=mu/4',
  '--config.model.width=8', '--config.model.mlp_dim=16', '--config.model.num_heads=2',
  '--config.model.dropout=0.1', '--config.batch_size=16', '--config.log_every=1',
  '--config.eval_every=2', '--config.checkpoint_every=2',
  '--config.data.validation_fraction=0.2', '--config.optimizer.schedule=constant',
)  # fmt: skip


@pytest.fixture
def old(tmp_path):
  shutil.unpack_archive(RUN, tmp_path)
  return tmp_path


def test_a_run_of_0_1_0_is_resumed_and_evaluated(quick, old):
  """Its two last steps equal those of 0.1.0, up to the arithmetic of another CPU."""
  workdir = old / 'stopped'
  done = quick(*WORDS, f'--workdir={workdir}', '--config.total_steps=6')
  assert done.returncode == 0, done.stderr
  now, then = (metrics.read(old / name / 'metrics.jsonl') for name in ('stopped', 'whole'))
  assert [row['step'] for row in now] == [1, 2, 3, 4, 5, 6]
  for a, b in zip(now, then, strict=True):
    assert a.keys() == b.keys()
    timeless = [key for key in a if 'images_per_second' not in key]
    np.testing.assert_allclose([a[k] for k in timeless], [b[k] for k in timeless], rtol=1e-4)
  ours, theirs = np.load(workdir / 'model/weights.npz'), np.load(old / 'whole/weights.npz')
  assert set(ours) == set(theirs)
  for name in ours:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
  done = quick(*WORDS, f'--workdir={workdir}', '--config.total_steps=6', '--mode=evaluate')
  assert done.returncode == 0, done.stderr
  expected = json.loads((old / 'whole/evaluation.json').read_text())
  found = json.loads((workdir / 'reports/evaluation.json').read_text())
  assert found['accuracy'] == pytest.approx(expected['accuracy'], abs=2 / 360)
  assert found.keys() - {'calibration_error'} == expected.keys()  # New in 0.5.0.


def test_its_best_checkpoint_and_its_passport_are_read(old):
  model = vit_jax.load(old / 'stopped')
  scores = {
    row['step']: row['validation/accuracy']
    for row in metrics.read(old / 'stopped/metrics.jsonl') if 'validation/accuracy' in row
  }  # fmt: skip
  assert scores[model.passport.step] == max(scores[2], scores[4])
  shutil.rmtree(old / 'stopped/model')
  again = vit_jax.load(old / 'stopped')
  assert again.passport.step == model.passport.step
  assert again.passport.readout == 'class_token'
  assert again.passport.predictions == 'softmax'


def test_its_config_is_compared_key_by_key(old):
  workdir = old / 'stopped'
  there = json.loads((workdir / 'config.json').read_text())
  now = defaults.upgrade(there)
  checkpoint.check_owner(workdir, now)
  with pytest.raises(ValueError, match=r"model.readout: 'class_token' there, 'mean' now"):
    checkpoint.check_owner(workdir, now | {'model': now['model'] | {'readout': 'mean'}})
  with pytest.raises(ValueError, match='best: None there'):
    checkpoint.check_owner(workdir, now | {'best': 'min:validation/loss'})


def test_a_config_of_a_later_version_is_named(old):
  workdir = old / 'stopped'
  path = pathlib.Path(workdir / 'config.json')
  there = json.loads(path.read_text())
  path.write_text(json.dumps(there | {'tomorrow': 1}))
  with pytest.raises(ValueError, match=r"config\.json.*'tomorrow'"):
    checkpoint.check_owner(workdir, defaults.upgrade(there))


def gone(promised, now):
  """Names of an earlier version that this one lacks."""
  return [
    f'{key}: {name}' for key, names in promised.items() for name in names
    if name not in now.get(key, ())
  ]  # fmt: skip


PROMISED = sorted((ROOT / 'tests/fixtures').glob('interface_*.json'))


@pytest.mark.parametrize('path', PROMISED, ids=lambda path: path.stem)
def test_nothing_that_a_version_promised_is_gone(path):
  """Flags, config keys and names; an old one that is renamed must still be understood."""
  promised, now = json.loads(path.read_text()), interface.interface()
  assert gone(promised, now) == []
  assert sum(map(len, promised.values())) > 800
  flags, keys = 'python -m vit_jax.main', 'config.optimizer (adamw)'
  less = now | {flags: now[flags][1:], keys: [key for key in now[keys] if key != 'decay']}
  assert gone(promised, less) == [f'{keys}: decay', f'{flags}: {now[flags][0]}']
