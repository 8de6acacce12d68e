"""Layers and tokens of a model, by what a person writes."""

import re
from typing import Any

import numpy as np


def layer_names(output_names: list[str], layers: str) -> tuple[str, ...]:
  """Outputs of tokens by what a person writes: 'last', 'all', or numbers of blocks from 1.

  Raises:
    ValueError: no such block.
  """
  blocks = [name for name in output_names if re.fullmatch(r'block_\d+/tokens', name)]
  if layers == 'last':
    return ('tokens',)
  if layers == 'all':
    return tuple(blocks)
  wanted = layers.split(',')
  if not blocks or any(not w.isdigit() or not 1 <= int(w) <= len(blocks) for w in wanted):
    raise ValueError(
      f"--layers={layers}: give last, all, or blocks from 1 to {len(blocks)}, such as '1,2'"
    )
  return tuple(f'block_{int(w) - 1}/tokens' for w in wanted)


def choose(model: Any, tokens: np.ndarray, wanted: str) -> np.ndarray:
  """Some of the tokens `T D`: 'all', 'class', 'patches', 'mean' (of patches), or patches from 1.

  Raises:
    ValueError: no such token.
  """
  first = int(getattr(model, 'class_token', False))
  grid = getattr(model, 'grid', (0, 0))
  patches = tokens[first:]
  if wanted == 'class' and first:
    return tokens[:1]
  if wanted in ('all', 'patches', 'mean'):
    kinds = {'all': tokens, 'patches': patches, 'mean': patches.mean(0, keepdims=True)}
    return kinds[wanted]
  numbers = wanted.split(',')
  if any(not n.isdigit() or not 1 <= int(n) <= len(patches) for n in numbers):
    raise ValueError(
      f'--tokens={wanted}: give all, patches, mean{", class" * first}, or patches of the grid of '
      f'{grid[0]} x {grid[1]} from 1 (top left) to {len(patches)}, row by row'
    )
  return patches[[int(n) - 1 for n in numbers]]


def check_patch(name: str, grid: tuple[int, int]) -> None:
  """Raises a ValueError that shows the grid, for a patch outside of it."""
  number = name.removeprefix('patch_')
  if number == name or not number.lstrip('-').isdigit():
    return
  height, width = grid
  if not 1 <= int(number) <= height * width:
    last = height * width
    raise ValueError(
      f'{name} lies outside the grid of {height} x {width} patches, which are numbered from 1, '
      f'row by row:\n  {1:>4} ... {width:>4}\n   ...\n  {last - width + 1:>4} ... {last:>4}'
    )


def distance_from_centre(grid: tuple[int, int]) -> np.ndarray:
  """Of each patch, row by row, in patches: `N`."""
  y, x = np.mgrid[: grid[0], : grid[1]]
  return np.hypot(y - (grid[0] - 1) / 2, x - (grid[1] - 1) / 2).reshape(-1)


def corners(grid: tuple[int, int]) -> list[int]:
  """Numbers of the patches in the corners, from 1."""
  height, width = grid
  return sorted({1, width, (height - 1) * width + 1, height * width})


def centre(grid: tuple[int, int]) -> list[int]:
  """Numbers of the one, two or four patches in the middle, from 1."""
  distance = distance_from_centre(grid)
  return (np.flatnonzero(distance <= distance.min() + 1e-9) + 1).tolist()
