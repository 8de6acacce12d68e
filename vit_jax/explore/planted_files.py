"""What was found of planted evidence, and its file, which knows of which weights it is."""

import dataclasses
import pathlib
from typing import Any

from absl import logging
import numpy as np

from vit_jax.runtime import atomic

IDENTITY = 'identity'  # the key of a file that says of which weights it is


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found of one kind of evidence in `d` draws.

  Attributes:
    evidence: `d N`, the patches that matter.
    maps: `d N` by the name of what finds: larger where it says that a patch matters.
    accuracy: `d` by readout.
    possible: `d`: what a reader of the planted codes would tell; not a number for pictures.
    example: a canvas of the first draw; empty for tokens.
  """

  grid: tuple[int, int]
  classes: int
  evidence: np.ndarray
  maps: dict[str, np.ndarray]
  accuracy: dict[str, np.ndarray]
  possible: np.ndarray
  example: np.ndarray


def check_same(path: pathlib.Path, identity: str) -> None:
  """Raises a ValueError where a file is there that was found with other weights.

  A file of an earlier version does not say with which: it is taken for these, with a warning.

  Args:
    identity: of the weights at hand; '' where patches are read as they are.
  """
  if not path.exists():
    return
  with np.load(path) as file:
    seen = str(file[IDENTITY]) if IDENTITY in file else None
  if seen is None and identity:
    logging.warning('%s does not say of which weights it is; taken for these', path)
  elif seen is not None and seen != identity:
    raise ValueError(
      f'{path} holds what was found with other weights, under the same name; choose another '
      '--workdir'
    )


def save(path: pathlib.Path, found: Found, identity: str) -> None:
  """Writes what was found of one kind into one file, and of which weights."""
  arrays: dict[str, Any] = {k: x for k, x in vars(found).items() if not isinstance(x, dict)}
  arrays[IDENTITY] = identity
  for group in ('maps', 'accuracy'):
    arrays |= {f'{group}/{name}': x for name, x in getattr(found, group).items()}
  with atomic.replacing(path) as partial, partial.open('wb') as file:
    np.savez(file, **arrays)


def restore(path: pathlib.Path) -> Found:
  """Reads what `save` wrote."""
  with np.load(path) as file:
    arrays = dict(file)
  arrays.pop(IDENTITY, None)
  own: dict[str, Any] = {key: x for key, x in arrays.items() if '/' not in key}
  for group in ('maps', 'accuracy'):
    named = [key for key in arrays if key.startswith(f'{group}/')]
    own[group] = {key.removeprefix(f'{group}/'): arrays[key] for key in named}
  return Found(**own | {'grid': tuple(own['grid'].tolist()), 'classes': int(own['classes'])})
