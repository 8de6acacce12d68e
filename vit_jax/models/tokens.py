"""Layers and tokens of a model, by what a person writes."""

import re
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

MEAN = r'mean_(\d+)/tokens'  # of the tokens of so many blocks, the last ones


def layer_names(
  output_names: list[str], layers: str, key: str = '--layers', means: bool = False
) -> tuple[str, ...]:
  """Outputs of tokens by what a person writes: 'last', 'all', or numbers of blocks from 1.

  Blocks come in the order of the model, each once, however they are written. A model that names
  no blocks has the last layer alone.

  Args:
    key: what the person wrote it for, named in the error.
    means: whether 'mean:N' may ask for the mean of the last N blocks, which `read_layer` makes.

  Raises:
    ValueError: no such block.
  """
  blocks = block_names(output_names)
  word, _, number = layers.partition(':')
  if means and word == 'mean' and number.isdecimal():
    if not 1 <= int(number) <= len(blocks):
      raise ValueError(
        f'{key}={layers} reads the last {number} blocks, and this model names {len(blocks)}; give '
        f'mean:N with N from 1 to {len(blocks)}, or last'
      )
    return (f'mean_{number}/tokens',)
  if layers == 'last' or (layers == 'all' and not blocks):
    return ('tokens',)
  if layers == 'all':
    return blocks
  wanted = layers.split(',')
  if not blocks:
    raise ValueError(f'{key}={layers}: this model names no blocks; give last')
  if any(not w.isdecimal() or not 1 <= int(w) <= len(blocks) for w in wanted):
    raise ValueError(
      f"{key}={layers}: give last, all, or blocks from 1 to {len(blocks)}, such as '1,2'"
    )
  return tuple(f'block_{number - 1}/tokens' for number in sorted({*map(int, wanted)}))


def block_names(output_names: list[str]) -> tuple[str, ...]:
  """The outputs that hold the tokens after each block."""
  return tuple(name for name in output_names if re.fullmatch(r'block_\d+/tokens', name))


def rows(x: Any) -> Any:
  """Tokens `... T D` as they are; a map `B h w C`, row by row, as `B N C`."""
  return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 4 else x


def is_tokens(layer: str) -> bool:
  """Whether an output holds tokens or a map of them."""
  return layer.rpartition('/')[2] == 'tokens'


def read_layer(named: dict[str, Any], layer: str, raw: bool = False) -> Any:
  """An output in float32; tokens as `B T D`, of inner blocks normalised without learned scale.

  The last layer passes the encoder's norm; without one, the growing residual stream of the blocks
  would be compared at other scales.

  Args:
    raw: tokens as the blocks leave them, without any norm.

  Raises:
    ValueError: the model names no blocks, whose tokens are asked for.
  """
  mean, blocks = re.fullmatch(MEAN, layer), block_names([*named])
  if (mean or (raw and layer == 'tokens')) and not blocks:
    raise ValueError(
      'config.explore: this model names no blocks; take token_norm=model and layers=last'
    )
  if mean:
    x = jnp.mean(jnp.stack([named[b].astype(jnp.float32) for b in blocks[-int(mean[1]) :]]), 0)
  else:
    x = named[blocks[-1] if raw and layer == 'tokens' else layer].astype(jnp.float32)
  if not is_tokens(layer):
    return x
  x = rows(x)
  return x if raw or layer == 'tokens' else standardise(x)


def earlier_class_tokens(
  model: Any, params: Any, named: dict[str, Any], count: int, raw: bool = False
) -> Any:
  """The class tokens of `count` blocks before the last, the oldest first: `B count D`.

  They pass the norm after the last block, as DINOv2 reads them, unless `raw`.
  """
  place = model.prefix.index('class_token')
  names = block_names([*named])[-1 - count : -1]
  x = jnp.concatenate([named[name][:, place : place + 1] for name in names], axis=1)
  return (x if raw else model.normalise(params, x)).astype(jnp.float32)


def standardise(x: Any, epsilon: float = 1e-6) -> Any:
  """Layer norm of the last axis without learned scale; computed in float32, where squares fit."""
  dtype, x = x.dtype, x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return (x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon)).astype(dtype)


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
  if any(not n.isdecimal() or not 1 <= int(n) <= count for n in numbers):
    height, width = model.grid or (1, count)
    raise ValueError(
      f'--tokens={wanted}: give {", ".join(kinds)}, or patches of the grid of {height} x {width} '
      f'from 1 (top left) to {count}, row by row'
    )
  return patches[:, np.array([int(n) - 1 for n in numbers])]


def check_patch(name: str, grid: tuple[int, int]) -> None:
  """Raises a ValueError that shows the grid, for a patch outside of it."""
  number = name.removeprefix('patch_')
  if number == name or not number.removeprefix('-').isdecimal():
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
