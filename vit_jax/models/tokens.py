"""Layers and tokens of a model, by what a person writes."""

import re
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np


def layer_names(output_names: list[str], layers: str, key: str = '--layers') -> tuple[str, ...]:
  """Outputs of tokens by what a person writes: 'last', 'all', or numbers of blocks from 1.

  A model that names no blocks has the last layer alone.

  Args:
    key: what the person wrote it for, named in the error.

  Raises:
    ValueError: no such block.
  """
  blocks = block_names(output_names)
  if layers == 'last' or (layers == 'all' and not blocks):
    return ('tokens',)
  if layers == 'all':
    return blocks
  wanted = list(dict.fromkeys(layers.split(',')))
  if not blocks:
    raise ValueError(f'{key}={layers}: this model names no blocks; give last')
  if any(not w.isdigit() or not 1 <= int(w) <= len(blocks) for w in wanted):
    raise ValueError(
      f"{key}={layers}: give last, all, or blocks from 1 to {len(blocks)}, such as '1,2'"
    )
  return tuple(f'block_{int(w) - 1}/tokens' for w in wanted)


def block_names(output_names: list[str]) -> tuple[str, ...]:
  """The outputs that hold the tokens after each block."""
  return tuple(name for name in output_names if re.fullmatch(r'block_\d+/tokens', name))


def rows(x: Any) -> Any:
  """Tokens `... T D` as they are; a map `B h w C`, row by row, as `B N C`."""
  return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 4 else x


def is_tokens(layer: str) -> bool:
  """Whether an output holds tokens or a map of them."""
  return layer.rpartition('/')[2] == 'tokens'


def read_layer(named: dict[str, Any], layer: str) -> Any:
  """An output in float32; tokens as `B T D`, of inner blocks normalised without learned scale.

  The last layer passes the encoder's norm; without one, the growing residual stream of the blocks
  would be compared at other scales.
  """
  x = named[layer].astype(jnp.float32)
  if not is_tokens(layer):
    return x
  x = rows(x)
  if layer == 'tokens':
    return x
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def choose(model: Any, x: Any, wanted: str) -> Any:
  """Some of the tokens `B T D` (or of a map `B h w C`).

  Args:
    model: has `prefix` and `grid`.
    x: a numpy or a JAX array.
    wanted: 'all', 'class' (or another token of the prefix), 'patches', 'mean' (of patches), or
      numbers of patches from 1.

  Raises:
    ValueError: no such token.
  """
  x, first = rows(x), len(model.prefix)
  patches = x[:, first:]
  named = {name.removesuffix('_token'): x[:, i : i + 1] for i, name in enumerate(model.prefix)}
  kinds = named | {'all': x, 'patches': patches, 'mean': patches.mean(1, keepdims=True)}
  if wanted in kinds:
    return kinds[wanted]
  numbers, count = wanted.split(','), patches.shape[1]
  if any(not n.isdigit() or not 1 <= int(n) <= count for n in numbers):
    height, width = model.grid or (1, count)
    raise ValueError(
      f'--tokens={wanted}: give {", ".join(kinds)}, or patches of the grid of {height} x {width} '
      f'from 1 (top left) to {count}, row by row'
    )
  return patches[:, np.array([int(n) - 1 for n in numbers])]


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
  """The distance of each patch from the centre, row by row, in patches: `N`."""
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
