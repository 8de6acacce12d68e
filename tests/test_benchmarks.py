"""The benchmarks run: one small round each, and their lines are JSON. Times are not looked at."""

import json
import os
import subprocess
import sys

from conftest import ROOT
import pytest

CASES = {
  'readouts.py': ['--epochs=1', '--seeds=2', '--readouts=class_token,patch_3,patch_4'],
  'startup.py': ['--only=ours', '--variant=mu/16', '--batch_size=2'],
  'step.py': ['--variants=mu/16', '--batch_size=2', '--rounds=1', '--image_size=32'],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_runs(name):
  words = [sys.executable, ROOT / 'benchmarks' / name, *CASES[name]]
  one = os.environ | {'XLA_FLAGS': ''}
  done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False, env=one)
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert rows
  for row in rows:
    different = row.pop('largest_difference_of_accuracy', 0.0)
    assert different < 0.01
    assert all(value > 0 for value in row.values() if isinstance(value, float))
