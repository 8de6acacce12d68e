"""The benchmarks run: one small round each, and their lines are JSON. Times are not looked at."""

import importlib.util
import json
import os
import subprocess
import sys

from commands import UNOPTIMISED
from conftest import ROOT
import numpy as np
import peers
from PIL import Image
import pytest

SMALL = ['--variants=mu/16', '--image_size=32']
STEP = ['step.py', *SMALL, '--batch_size=2', '--rounds=1', '--peak_side=64']
# Benchmarks of steps, of which nobody here looks at the speed.
HASTY = {'step.py', 'scaling.py', 'startup.py', 'readouts.py'}
COMPILE = ['compile.py', *SMALL, '--batch_size=2']
ABOUT = {'variant', 'batch_size', 'image_size', 'dtype', 'machine'}
STEP_KEYS = ABOUT | {
  'images_per_second',
  'share_of_peak',
  'peak_gflops',
  'gflop_a_step',
  'memory_gb',
}
FACTS = {
  'target', 'devices', 'compile_seconds', 'temporary_gb', 'state_gb', 'total_gb', 'fits',
  'traffic_gb', 'collectives', 'attention', 'machine',
}  # fmt: skip


def lines(name, *words, fails=False):
  """The JSON lines that a benchmark prints; all its times, rates and sizes are positive."""
  given = os.environ | {'XLA_FLAGS': UNOPTIMISED if name in HASTY else ''}
  command = [sys.executable, ROOT / 'benchmarks' / name, *words]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=600, check=False, env=given
  )
  assert (done.returncode != 0) == fails, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  for row in rows:
    assert all(value >= 0 for value in row.values() if isinstance(value, float)), row
  return rows if not fails else (rows, done.stderr)


def need_compiler(module, extra):
  """Skips a test where a compiler for devices that are not here is not installed."""
  if not importlib.util.find_spec(module):
    pytest.skip(f"{module} is not installed: pip install -e '.[{extra}]'")


@pytest.mark.slow
def test_step():
  named = 'ours,ours_one_device,plain_linen,plain_kept,official'
  first, *rows = lines(*STEP, f'--cases={named}')
  assert (first['case'], first['name']) == ('left_out', 'official')
  assert [row['case'] for row in rows] == ['inference', 'training']
  for row in rows:
    assert row.keys() >= STEP_KEYS | {'ours_over'}
    assert set(row['images_per_second']) == {*named.split(',')} - {'official'}
    assert set(row['share_of_peak']) == set(row['images_per_second'])
    assert all(rate > 0 for rate in row['images_per_second'].values())
    assert set(row['ours_over']) == set(row['images_per_second']) - {'ours'}


@pytest.mark.slow
@pytest.mark.parametrize('library', ['timm', 'transformers'])
def test_step_of_peers(library):
  peers.need(library)
  also = {'timm': 'timm', 'transformers': 'transformers,transformers_sdpa'}[library]
  rows = lines(*STEP, f'--cases=ours,{also}')
  assert [row['case'] for row in rows] == ['inference', 'training']
  for row in rows:
    assert row.keys() >= STEP_KEYS
    assert set(row['ours_over']) == {*also.split(',')}
    assert set(row['peak_gflops']) == {'jax', 'torch'}


@pytest.mark.slow
def test_step_says_what_it_leaves_out(tmp_path):
  rows = lines(*STEP, '--kinds=inference', '--cases=plain_linen,official', f'--official={tmp_path}')
  assert [row['case'] for row in rows] == ['left_out', 'inference']
  assert 'models_resnet.py' in rows[0]['why']


@pytest.mark.slow
def test_compile_here():
  rows = lines(*COMPILE, '--targets=here', '--rows=ours,plain_linen,official,scan')
  assert [row['case'] for row in rows] == ['ours', 'plain_linen', 'left_out', 'scan']
  for row in rows[:2]:
    assert row.keys() >= FACTS
    assert (row['attention'], row['fits']) == ('plain', True)
  assert rows[3].keys() >= {'compile_seconds', 'compile_seconds_unrolled', 'ratio', 'machine'}


@pytest.mark.slow
def test_compile_for_gpus():
  need_compiler('jax_cuda12_plugin', 'cuda12')
  ours, plain = lines(*COMPILE, '--targets=h100:2', '--rows=ours,ours_plain')
  assert (ours['attention'], plain['attention']) == ('cudnn', 'plain')
  assert ours['devices'] == 2
  assert ours['collectives']


@pytest.mark.slow
def test_compile_for_tpus():
  need_compiler('libtpu', 'tpu')
  rows = lines(*COMPILE, '--targets=v5e:2x2', '--rows=ours,plain_linen')
  assert [row['case'] for row in rows] == ['ours', 'plain_linen']
  assert all(row['traffic_gb'] >= 0 and row['devices'] == 4 for row in rows)


@pytest.mark.slow
def test_a_broken_promise_fails():
  """The check of promises can fail: a figure above its limit is named."""
  code = 'import compile; found = {"x": 3.0}; print(compile.expect("p", found, x=(None, 2.0)))'
  words = [sys.executable, '-c', code]
  done = subprocess.run(
    words, capture_output=True, text=True, cwd=ROOT / 'benchmarks', timeout=100, check=True
  )
  line, broken = done.stdout.splitlines()
  assert json.loads(line)['kept'] is False
  assert 'x is 3.0' in broken


@pytest.mark.slow
def test_scaling():
  rows = lines(
    'scaling.py', '--models=vit:mu/16,vit:nothing/16', '--image_size=32,64', '--devices=1,2',
    '--batch_size=2', '--rounds=1', '--kinds=training',
  )  # fmt: skip
  assert [row['case'] for row in rows] == ['training'] * 4 + ['left_out'] * 4
  for row in rows[:4]:
    assert row.keys() >= {'model', 'images_per_second', 'memory_gb', 'compiled_gb', 'devices'}
  assert [(row['image_size'], row['devices']) for row in rows[:4]] == [
    (32, 1), (32, 2), (64, 1), (64, 2),
  ]  # fmt: skip


@pytest.mark.slow
def test_startup():
  digits, *rows = lines('startup.py', '--variant=mu/16', '--batch_size=2', '--rounds=1')
  cases = ('ours_cold', 'ours_warm', 'plain', 'plain_cached')
  assert digits.keys() >= {f'{case}_seconds' for case in cases}
  assert digits.keys() >= {'ours_cold_over_plain', 'ours_warm_over_plain', 'machine'}
  assert digits['compiled_files_kept'] > 0
  assert [row['case'] for row in rows] == ['ours', 'plain', 'ratio']
  assert {'import', 'init', 'compile', 'step', 'total'} <= rows[0].keys()


@pytest.mark.slow
def test_input(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(4):
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / f'{i}.jpg')
  words = ['input.py', f'--pictures={tmp_path}', '--at_least=64', '--batch_size=4', '--batches=2']
  for recipe in ('plain', 'deit'):
    (row,) = lines(*words, '--rounds=1', '--cases=ours', f'--recipe={recipe}')
    assert row.keys() >= {'case', 'images_per_second', 'rounds', 'machine'}
    assert row['recipe'] == recipe


@pytest.mark.slow
def test_augment():
  rows = lines('augment.py', '--count=2', '--rounds=1')
  assert {row['case'] for row in rows} >= {'crop, linear', 'all of DeiT', 'operation Rotate'}
  assert all(row['milliseconds_a_picture'] > 0 and row['machine'] for row in rows)


@pytest.mark.slow
def test_readouts():
  rows = lines('readouts.py', '--epochs=1', '--seeds=2', '--readouts=class_token,patch_3,patch_4')
  assert rows
  assert all(row['largest_difference_of_accuracy'] < 0.01 and row['machine'] for row in rows)
