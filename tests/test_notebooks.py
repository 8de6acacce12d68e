"""The notebooks run from start to end at small settings, and are stored without outputs."""

import fnmatch
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess

from commands import UNOPTIMISED
from conftest import ROOT
import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


# Pictures that a notebook shows, and a report that it leaves.
EXPECTED = {
  '1_first_run': (3, 'run/reports/evaluation.json'),
  '2_finetune': (2, 'run/tuned/reports/evaluation.json'),
  '3_readouts': (5, 'run/lab/reports/readouts.json'),
  '4_look_inside': (9, 'run/pictures/compare_positions.json'),
  '5_neighbours': (3, 'run/igpt/reports/pixels.json'),
}
# Words of the pages and tables that a notebook shows.
SHOWN = {'3_readouts': ('<iframe srcdoc=', '## What choosing does to the numbers')}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path):
  cells = [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'code']
  assert not any(cell['outputs'] or cell['execution_count'] for cell in cells)
  assert len(cells) <= 15


@pytest.mark.parametrize(
  ('source', 'device', 'target'),
  [
    ('', '', '..'),  # Not '..[]', which pip refuses.
    ('', '/dev/vfio/vfio', '..'),  # Of any machine with virtual ones.
    ('', '/dev/accel0', '..[tpu]'),
    ('', '/dev/vfio/0', '..[tpu]'),
    ('', 'nvidia-smi', '..[cuda12]'),
    ('git+https://x.org/y', '', 'vit_jax @ git+https://x.org/y'),
    ('git+https://x.org/y', 'nvidia-smi', 'vit_jax[cuda12] @ git+https://x.org/y'),
  ],
)
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_the_package_is_installed_for_the_machine(path, source, device, target, monkeypatch):
  ran = []
  monkeypatch.chdir(path.parent)
  monkeypatch.delenv('VIT_JAX_SOURCE', raising=False)
  if source:
    monkeypatch.setenv('VIT_JAX_SOURCE', source)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(shutil, 'which', lambda name: name == device or None)
  monkeypatch.setattr(subprocess, 'run', lambda words, check: ran.append(words))
  monkeypatch.setattr(
    pathlib.Path, 'glob', lambda self, name: fnmatch.filter([device], f'{self}/{name}')
  )
  cells = json.loads(path.read_text())['cells']
  first = next(cell for cell in cells if cell['cell_type'] == 'code')
  exec(''.join(first['source']), {})
  assert [words[-1] for words in ran] == [target]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_NOTEBOOK_STEPS', '4')
  monkeypatch.setenv('VIT_JAX_NOTEBOOK_WORKDIR', str(tmp_path / 'run'))
  monkeypatch.setenv('XLA_FLAGS', UNOPTIMISED)
  notebook = nbformat.read(path, as_version=4)
  if importlib.util.find_spec('torch'):
    folder = str(ROOT / 'tests')
    mend = f'import sys; sys.path.append({folder!r}); import peers; peers.mend_torchvision()'
    notebook.cells.insert(0, nbformat.v4.new_code_cell(mend))
  nbclient.NotebookClient(
    notebook, timeout=240, resources={'metadata': {'path': tmp_path}}
  ).execute()
  outputs = [
    output.get('data', {}) for cell in notebook.cells for output in cell.get('outputs', [])
  ]
  count, report = EXPECTED[path.stem]
  assert sum('image/png' in output for output in outputs) == count
  pages = [output.get('text/html', '') + output.get('text/markdown', '') for output in outputs]
  assert all(any(words in page for page in pages) for words in SHOWN.get(path.stem, ()))
  assert os.path.exists(tmp_path / report)
