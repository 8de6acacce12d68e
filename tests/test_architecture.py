"""The house keeps its floors: imports run down only, heavy packages load where they are used."""

import ast
import subprocess
import sys

from conftest import ROOT
import pytest

FLOORS = [
  ['main'],
  ['explore', 'interpret', 'convert'],
  ['train', 'stablehlo', 'theirs'],
  ['step', 'predict', 'evaluation'],
  ['parts'],
  ['weights', 'tokens'],
  ['checkpoint'],
  ['models', 'objectives', 'data', 'formats', 'optim', 'sharding', 'metrics', 'figures']
  + ['interruption', 'memory'],
  ['defaults', 'fetch'],
  ['choices', 'distributed', 'progress'],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted((ROOT / 'vit_jax').rglob('*.py'))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    yield from (name.split('.')[1] for name in names if name.startswith('vit_jax.'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
  own = path.relative_to(ROOT / 'vit_jax').parts[0].removesuffix('.py')
  if own == '__init__' or path.name == '__main__.py':
    return  # Doors, not floors: the package's own, and the command of a part.
  for used in imports(path):
    assert used == own or FLOOR[used] > FLOOR[own], f'{path} imports {used}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is(path):
  assert ast.get_docstring(ast.parse(path.read_text()))


def test_heavy_packages_load_where_they_are_used():
  code = (
    'import sys, vit_jax.train; heavy = {"tensorflow", "torch", "sklearn", "matplotlib", "grain", '
    '"tensorflow_datasets", "tensorboardX"}; assert not heavy & set(sys.modules), sys.modules'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_the_train_loop_stays_short():
  tree = ast.parse((ROOT / 'vit_jax/train.py').read_text())
  loop = next(node for node in tree.body if getattr(node, 'name', '') == 'train')
  assert loop.end_lineno - loop.lineno < 80
