"""What people and files may rely on: flags of every command, config keys, names, the passport.

  python tests/interface.py > tests/fixtures/interface_VERSION.json

`test_upgrade.py` keeps that nothing of such a file is gone from a later version.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import re
import sys

from absl import flags

from vit_jax import convert, defaults, interpret, models, weights
from vit_jax.models import readout

COMMANDS = (
  'vit_jax.convert', 'vit_jax.models', 'vit_jax.predict', 'vit_jax.explore.compute',
  'vit_jax.explore.duplicates', 'vit_jax.explore.results', 'vit_jax.explore.vtab',
)  # fmt: skip
PAGES = ('atlas', 'batch', 'masked', 'serve')


def interface() -> dict[str, list[str]]:
  """Names by what has them, such as 'config.model (vit)'; each sorted."""
  importlib.import_module('vit_jax.main')  # Its flags.
  names = {
    'python -m vit_jax.main': [
      flag.name for flag in flags.FLAGS.flags_by_module_dict()['vit_jax.main']
    ],
    'config': list(defaults.get_config()),
    'config.evaluation': list(defaults.evaluation(())),
    'may change': list(defaults.MAY_CHANGE),
    'passport': ['format', 'vit_jax', *(x.name for x in dataclasses.fields(weights.Passport))],
    'passport: preprocess': [x.name for x in dataclasses.fields(weights.Preprocess)],
    'readouts': list(readout.READOUTS),
    'convert --to': list(convert.TARGETS),
    'pictures': [*interpret.PICTURES, *PAGES, 'compare'],
  }
  names |= {f'variants of {name}': list(family.VARIANTS) for name, family in models.MODELS.items()}
  for section, parts in defaults.PARTS.items():
    names |= {f'config.{section} ({name})': list(keys) for name, keys in parts.items()}
  names |= {f'python -m {name}': options(name) for name in COMMANDS}
  names |= {
    f'python -m vit_jax.interpret {name}': options('vit_jax.interpret', name)
    for name in (*interpret.PICTURES, *PAGES)
  }
  return {key: sorted(values) for key, values in sorted(names.items())}


def options(module: str, *words: str) -> list[str]:
  """The options that a command's --help shows."""
  try:
    run = importlib.import_module(f'{module}.__main__').main
  except ModuleNotFoundError:
    run = importlib.import_module(module).main
  shown = io.StringIO()
  with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
    run([*words, '--help'])
  return sorted(set(re.findall(r'--(\w+)', shown.getvalue().partition('options:')[2])))


if __name__ == '__main__':
  json.dump(interface(), sys.stdout, indent=1)
  print()
