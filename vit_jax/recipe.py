"""The config that a command line names: a recipe, the parts it chooses, the keys it overrides."""

import importlib.util
import pathlib
import re
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from vit_jax import defaults
from vit_jax.defaults import Config


def shipped() -> pathlib.Path:
  """The folder `configs` that came with the package: in it, or beside it in a clone."""
  package = pathlib.Path(__file__).parent
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def split_address(address: str) -> tuple[pathlib.Path, list[str]]:
  """The path of a recipe, and what stands behind its colon: `path.py:text`.

  A path may hold '.py' or a colon elsewhere: the shortest one that is a file counts. It is looked
  for from the current directory; `configs/...` that is not there is the shipped recipe.
  """
  ends = [match.end() for match in re.finditer(r'\.py(?=:|$)', address)]
  for folder in (pathlib.Path(), shipped().parent):
    for end in ends:
      if (folder / address[:end]).is_file():
        return folder / address[:end], [address[end + 1 :]] if address[end:] else []
  names = ', '.join(sorted(path.name for path in shipped().glob('*.py')))
  raise ValueError(f'--config={address}: no such recipe; configs/ has {names}')


def open_recipe(address: str) -> tuple[ModuleType, list[str]]:
  """The module of a recipe, and the arguments of its functions.

  Raises:
    ValueError: no such file, or no `get_config` in it.
  """
  path, arguments = split_address(address)
  spec = importlib.util.spec_from_file_location('recipe', path)
  assert spec is not None and spec.loader is not None  # Never for a path that ends in .py.
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ValueError(f'--config={address}: it defines no get_config()')
  return module, arguments


def load_recipe(address: str) -> Config:
  """The config that `get_config` of a recipe returns."""
  module, arguments = open_recipe(address)
  return module.get_config(*arguments)


def sort_words(argv: list[str]) -> tuple[str | None, list[str], list[tuple[str, str]]]:
  """The recipe, the words without it, and the (key, value) pairs that override it.

  A value may stand behind an equals sign or in a word of its own.
  """
  recipe, rest, given = None, [], []
  words = iter(argv)
  for word in words:
    key, equals, value = re.sub('^--?', '--', word).partition('=')
    if key != '--config' and not key.startswith('--config.'):
      rest.append(word)
      continue
    if not equals:
      value = next(words, '')
    if key == '--config':
      recipe = value
    else:
      rest.append(f'{key}={value}')
      given.append((key.removeprefix('--config.'), value))
  return recipe, rest, given


def chosen_parts(given: list[tuple[str, str]]) -> dict[str, Any]:
  """The parts that overrides choose: {'optimizer': 'sgd', 'evaluators': ('classification',)}."""
  names: dict[str, Any] = {
    key.removesuffix('.name'): value for key, value in given if re.fullmatch(r'\w+\.name', key)
  }
  for key, value in given:
    if key == 'evaluators':
      names[key] = tuple(re.findall(r'\w+', value))
  return names


def define(argv: list[str], values: flags.FlagValues, base: Config | None = None) -> list[str]:
  """Defines the flag `config` of a command line and parses it; returns the words that are left.

  Args:
    base: a config that stands in for a recipe's.

  Raises:
    ValueError: an unknown key or part, or a value of the wrong type.
  """
  address, rest, given = sort_words(argv)
  if address is None and base is None:
    return values(rest)
  if address is not None and base is not None:
    raise ValueError(f'--config={address}: this command takes no recipe, only --config.KEY=VALUE')
  start = load_recipe(str(address)) if base is None else base
  config = defaults.complete(start, chosen_parts(given))
  for key, _ in given:
    defaults.check_key(config, key)
  config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=rest)
  return values(rest)


def read(words: list[str], base: Config | None = None) -> Config:
  """The config of `--config=RECIPE --config.KEY=VALUE ...`, for commands without flags of absl.

  Args:
    base: a config that stands in for a recipe's.

  Raises:
    ValueError: no recipe, an unknown key, a value of the wrong type, or words that are no keys.
  """
  values = flags.FlagValues()
  try:
    left = define(['', *words], values, base)
  except flags.Error as error:
    raise ValueError(str(error)) from None
  if 'config' not in values:
    raise ValueError('--config is missing: a recipe such as --config=configs/vit_digits.py')
  if len(left) > 1:
    raise ValueError(f'unexpected {left[1:]}; options look like --config.total_steps=100')
  return values.config
