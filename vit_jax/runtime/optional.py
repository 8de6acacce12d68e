"""Packages of the optional extras, loaded where they are used; their absence is one clear line."""

import importlib
from typing import Any


def load(module: str, extra: str) -> Any:
  """A module of an optional package.

  Raises:
    ValueError: it is not installed, or cannot be loaded, as a torchvision that was built for
      another torch; shows the command that installs it.
  """
  try:
    return importlib.import_module(module)
  except (ImportError, RuntimeError) as error:
    name, why = module.partition('.')[0], ' '.join(str(error).split())[:160]
    raise ValueError(
      f'this needs {name}, which cannot be loaded ({why}); in a copy of the repository: '
      f"pip install -e '.[{extra}]'"
    ) from None
