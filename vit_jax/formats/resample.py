"""Arrays that depend on the picture's shape, for another one: position embeddings, patch kernels.

Grids are (height, width). Sampling is separable: along each axis a matrix of weights.
"""

from collections.abc import Callable
import math

import numpy as np

Grid = tuple[int, int]


def corners(old: int, new: int) -> np.ndarray:
  """Linear, first and last place fixed, as `scipy.ndimage.zoom(order=1)`: the official rule."""
  places = np.arange(new) * ((old - 1) / (new - 1)) if new > 1 else np.zeros(1)
  return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))


def linear(old: int, new: int) -> np.ndarray:
  """Linear between the centres of cells, as torch's `interpolate(mode='bilinear')`."""
  places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
  return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))


def cubic(old: int, new: int) -> np.ndarray:
  """Cubic (a = -0.5), widened when it shrinks, as torch's `antialias=True` and timm."""
  stretch = max(1.0, old / new)
  places = (np.arange(new) + 0.5) * (old / new) - 0.5
  x = np.abs(places[:, None] - np.arange(old)) / stretch
  weights = keys(x, -0.5)
  return weights / weights.sum(1, keepdims=True)


def repeated(old: int, new: int) -> np.ndarray:
  """Cubic (a = -0.75), never widened, the border repeated, as torch's `mode='bicubic'`."""
  places = (np.arange(new) + 0.5) * (old / new) - 0.5
  taps = np.floor(places)[:, None].astype(int) + np.arange(-1, 3)
  weights, rows = np.zeros((new, old)), np.arange(new)[:, None]
  np.add.at(weights, (rows, taps.clip(0, old - 1)), keys(np.abs(places[:, None] - taps), -0.75))
  return weights


def keys(x: np.ndarray, a: float) -> np.ndarray:
  """The cubic kernel of Keys (1981) at distances from 0, in cells; `a` is its slope at 1."""
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0))


METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
  'official': corners,
  'bilinear': linear,
  'bicubic': cubic,
}


def grid(x: np.ndarray, old: Grid, new: Grid, method: str) -> np.ndarray:
  """`(1, N, D)` embeddings of a grid, row by row, for another grid.

  Raises:
    ValueError: they do not fill the old grid.
  """
  if x.shape[1] != old[0] * old[1]:
    raise ValueError(f'{x.shape[1]} positions do not fill a grid of {old[0]} x {old[1]}')
  if old == new:
    return x
  cells = x[0].reshape(*old, -1).astype(np.float64)
  rows, columns = METHODS[method](old[0], new[0]), METHODS[method](old[1], new[1])
  cells = np.einsum('ih,jw,hwd->ijd', rows, columns, cells, optimize=True)
  return cells.reshape(1, new[0] * new[1], -1).astype(x.dtype)


def line(x: np.ndarray, new: int, method: str) -> np.ndarray:
  """`(1, n, D)` embeddings of rows or columns for another number of them."""
  weights = METHODS[method](x.shape[1], new)
  return np.einsum('ij,bjd->bid', weights, x.astype(np.float64)).astype(x.dtype)


def offsets(table: np.ndarray, new: int) -> np.ndarray:
  """`(n^2, h)` numbers by offset in square windows, for other windows, as Swin's code has them.

  Raises:
    ValueError: a window that is no square.
  """
  old_side, new_side = math.isqrt(table.shape[0]), math.isqrt(new)
  if old_side**2 != table.shape[0] or new_side**2 != new:
    raise ValueError(f'tables of {table.shape[0]} and {new} offsets are not both of square windows')
  cells = table.reshape(old_side, old_side, -1).astype(np.float64)
  weights = repeated(old_side, new_side)
  cells = np.einsum('ih,jw,hwd->ijd', weights, weights, cells, optimize=True)
  return cells.reshape(new, -1).astype(table.dtype)


def channels(kernel: np.ndarray, new: int) -> np.ndarray:
  """A kernel `(P, P, C, D)` for another number of channels.

  One channel: the sum, so that a grey picture gives what its copy in every channel gave. Else: the
  channels in turn, times old / new, so that the sum stays where all are taken equally often.
  """
  old = kernel.shape[2]
  if new == old:
    return kernel
  if new == 1:
    return kernel.sum(2, keepdims=True)
  return kernel[:, :, np.arange(new) % old] * np.asarray(old / new, kernel.dtype)
