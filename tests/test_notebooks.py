"""The notebooks run from start to end at small settings, and are stored without outputs."""

import json
import os

from conftest import ROOT
import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path):
  cells = [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'code']
  assert not any(cell['outputs'] or cell['execution_count'] for cell in cells)
  assert len(cells) <= 15


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_NOTEBOOK_STEPS', '4')
  monkeypatch.setenv('VIT_JAX_NOTEBOOK_WORKDIR', str(tmp_path / 'run'))
  monkeypatch.setenv('XLA_FLAGS', '')
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=240, resources={'metadata': {'path': tmp_path}}
  ).execute()
  pictures = [
    output for cell in notebook.cells for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]  # fmt: skip
  assert len(pictures) == 3
  assert os.path.exists(tmp_path / 'run/reports/evaluation.json')
