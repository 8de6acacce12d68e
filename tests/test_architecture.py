"""The house keeps its floors: imports run down only, heavy packages load where they are used."""

import ast
import fnmatch
import re
import subprocess
import sys

from conftest import ROOT
import pytest

FLOORS = [
  ['main'],
  ['explore', 'interpret', 'convert'],
  ['train'],
  ['step'],
  ['experiment'],
  ['predict', 'evaluation'],
  ['weights'],
  ['checkpoint', 'recipe'],
  ['models', 'objectives', 'data', 'formats', 'optim', 'metrics', 'figures', 'defaults'],
  ['runtime'],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ROOMS = {'models', 'objectives', 'data', 'evaluation', 'explore', 'interpret', 'convert', 'formats'}
ROOMS |= {'optim', 'runtime'}
# Strangers of one floor, but for a protocol and the type of a config.
ALLOWED = {('objectives', 'models.protocol'), ('metrics', 'defaults.Config')}
PACKAGE = ROOT / 'vit_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
each_file = pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def imports(path):
  """Whole names of all that a file imports, inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_eleven_files_and_ten_folders():
  files = {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'}
  folders = {path.name for path in PACKAGE.iterdir() if any(path.glob('*.py'))}
  assert folders == ROOMS and len(folders) == 10
  assert files == FLOOR.keys() - ROOMS and len(files) == 11


@each_file
def test_imports_run_downwards(path):
  own = room(path)
  if own == '__init__' or path == PACKAGE / 'models/__main__.py':
    return  # Doors, not floors: the package's own, and the command that lists the models.
  for name in imports(path):
    words = name.split('.')
    if words[0] != 'vit_jax' or len(words) == 1 or words[1] == own:
      continue
    below = FLOOR.get(words[1], -1) > FLOOR[own]
    assert below or (own, '.'.join(words[1:3])) in ALLOWED, f'{path} imports {name}'


@each_file
def test_every_file_is_short_and_says_what_it_is(path):
  assert ast.get_docstring(ast.parse(path.read_text()))
  if path.name != 'defaults.py':  # One table, with every key in it.
    assert len(path.read_text().splitlines()) < 300
  assert path.stem not in ('utils', 'helpers', 'common', 'misc')


def documented(body, prefix=''):
  """(name, docstring) of public functions, classes and methods."""
  for node in body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
      yield prefix + node.name, ast.get_docstring(node) or ''
      if isinstance(node, ast.ClassDef):
        yield from documented(node.body, f'{node.name}.')


@each_file
def test_docstrings_stand_alone(path):
  """Who hovers over a name sees nothing else: 'Of the learning rate.' says nothing."""
  for name, text in documented(ast.parse(path.read_text()).body):
    assert not re.match(r'(Of|With|Whose)\b', text), f'{path}: {name}: {text.splitlines()[0]}'


@each_file
def test_a_model_needs_jax_and_flax_alone(path):
  if room(path) != 'models' or path.stem == '__main__':
    return
  known = {'jax', 'flax', 'jaxtyping', 'numpy'} | sys.stdlib_module_names
  for name in imports(path):
    words = name.split('.')
    ours = words[0] == 'vit_jax' and words[1] in ('models', 'runtime')
    assert ours or words[0] in known, f'{path} imports {name}'


@each_file
def test_nobody_asks_a_model_for_its_inside(path):
  """What callers may know stands in models/protocol.py."""
  if room(path) in ('models', 'formats', 'defaults'):
    return
  for node in ast.walk(ast.parse(path.read_text())):
    inside = isinstance(node, ast.Attribute) and node.attr
    assert inside not in ('class_token', 'Transformer', 'num_tokens'), f'{path}:{node.lineno}'


def test_heavy_packages_load_where_they_are_used():
  code = (
    'import sys, vit_jax.train, vit_jax.predict; heavy = {"tensorflow", "torch", "sklearn", '
    '"matplotlib", "grain", "tensorflow_datasets", "tensorboardX", "transformers", "timm", '
    '"huggingface_hub", "orbax.checkpoint"}; found = heavy & {*sys.modules}; '
    'assert not found, found'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_a_start_loads_neither_torch_nor_scikit_learn(tmp_path):
  """Where torch is installed, TensorBoard's writer would import it: seconds, for no scalar."""
  code = (
    'import pathlib, sys\n'
    'from vit_jax import data, defaults, metrics\n'
    'config = defaults.get_config()\n'
    'config.data.validation_fraction = 0.1\n'
    'data.build(**config.data)\n'
    'writer = metrics.events(pathlib.Path(sys.argv[1]), 1)\n'
    'writer.add_scalar("a", 1.0, 1)\n'
    'writer.close()\n'
    'found = {"torch", "sklearn", "tensorflow"} & {*sys.modules}\n'
    'assert not found, found\n'
  )
  done = subprocess.run([sys.executable, '-c', code, tmp_path], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert [path.stat().st_size > 50 for path in tmp_path.glob('events*')] == [True]


def test_the_train_loop_stays_short():
  tree = ast.parse((PACKAGE / 'train.py').read_text())
  loop = next(node for node in tree.body if getattr(node, 'name', '') == 'train')
  assert loop.end_lineno - loop.lineno < 80


@pytest.mark.parametrize(
  'folder',
  ['tests', 'tests/fixtures', 'notebooks', 'benchmarks', 'configs', 'configs/results'],
)
def test_the_source_archive_has_what_its_tests_need(folder):
  lines = [line.split() for line in (ROOT / 'MANIFEST.in').read_text().splitlines()]
  wanted = {name: patterns for command, name, *patterns in lines if command == 'recursive-include'}
  files = [path.name for path in (ROOT / folder).iterdir() if path.is_file()]
  patterns = wanted[folder.partition('/')[0]]
  left = {name for name in files if not any(fnmatch.fnmatch(name, x) for x in patterns)}
  assert files and not {name for name in left if not name.startswith('.')}
