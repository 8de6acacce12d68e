"""Positions of the tokens before the patches: our table has one for each, others leave some out.

Registers have none at Hugging Face and in DINOv2's own files; at timm, where there are registers,
no token before the patches has one. What is missing is 0 here. On the way out a token's position
is added to the token itself, which is the same function.
"""

import math

import numpy as np

from vit_jax.formats.files import Arrays, Entry
from vit_jax.formats.weights import POSITION


def place(arrays: Arrays, class_alone: bool, grid: tuple[int, int] | None) -> Arrays:
  """Arrays under our names whose table has a position for each token, 0 where the file has none.

  Args:
    class_alone: whether of the tokens before the patches the class token alone has a position;
      else either all of them have one or none, as the number of patches tells.
    grid: patches as (height, width); None: a square.
  """
  if POSITION not in arrays:
    return arrays
  entry = arrays[POSITION]
  registers = arrays['reg'].shape[1] if 'reg' in arrays else 0
  others = ('cls' in arrays) + ('dist' in arrays)
  options = (others,) if class_alone else ((others, 0), (0, others + registers))[bool(registers)]
  fitting = (n for n in options if fills(entry.shape[1] - n, grid))
  kept = next(fitting, others + registers)
  missing = others + registers - kept
  if not missing:
    return arrays
  one, count, width = entry.shape

  def load() -> np.ndarray:
    zeros = np.zeros((1, missing, width), entry.dtype)
    return np.concatenate([entry.load()[:, :kept], zeros, entry.load()[:, kept:]], axis=1)

  return arrays | {POSITION: Entry((one, count + missing, width), entry.dtype, load)}


def fills(count: int, grid: tuple[int, int] | None) -> bool:
  """Whether so many patches fill the grid, or some square where it is not known."""
  if grid is not None:
    return count == grid[0] * grid[1]
  return count > 0 and math.isqrt(count) ** 2 == count


def fold(arrays: Arrays, class_kept: bool) -> Arrays:
  """Arrays of a model with registers, whose positions are added to them; others as they are.

  Args:
    class_kept: whether the class token keeps a position of its own; else it is added too.
  """
  if 'reg' not in arrays:
    return arrays
  table, made = arrays[POSITION], dict(arrays)
  others = int('cls' in arrays)
  registers = arrays['reg'].shape[1]
  kept = others * class_kept
  made['reg'] = added(arrays['reg'], table, others)
  if others and not class_kept:
    made['cls'] = added(arrays['cls'], table, 0)

  def load() -> np.ndarray:
    x = table.load()
    return np.concatenate([x[:, :kept], x[:, others + registers :]], axis=1)

  shape = (1, table.shape[1] - others - registers + kept, table.shape[2])
  return made | {POSITION: Entry(shape, table.dtype, load)}


def added(tokens: Entry, table: Entry, first: int) -> Entry:
  """Tokens `1 n D` and their positions, which begin at `first`, in one."""
  rows = slice(first, first + tokens.shape[1])
  return Entry(tokens.shape, tokens.dtype, lambda: tokens.load() + table.load()[:, rows])
