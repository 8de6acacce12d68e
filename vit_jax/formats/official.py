"""The official `.npz` layout: the parameter tree with '/' between names, float32.

Our tree has the same names (`vit_jax/models/vit.py`), so reading and writing need no table.
"""

import pathlib
from typing import Any
import zipfile

from flax import traverse_util
import numpy as np


def read(path: pathlib.Path) -> dict:
  """The tree of arrays in a file.

  Raises:
    ValueError: not an `.npz` file, or a damaged one.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      return traverse_util.unflatten_dict({name: file[name] for name in file.files}, sep='/')
  except (zipfile.BadZipFile, ValueError, EOFError) as error:
    raise ValueError(f'{path}: not a readable .npz file ({error})') from None


def write(path: pathlib.Path, params: dict) -> None:
  """Writes a tree of arrays, uncompressed: weights hardly shrink."""
  arrays: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
  np.savez(path, **arrays)
