"""Windows on a map, and attention within them, for Swin (arXiv:2103.14030, section 3.2)."""

import dataclasses
from typing import Any

from jax import numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from vit_jax.models import attention
from vit_jax.models.initialisers import INITIALISERS

FAR = -100.0  # added to logits of tokens that are neighbours by the shift alone


@dataclasses.dataclass(frozen=True)
class Windows:
  """How a map is cut: sizes of the map and of a window, and by how much windows are shifted.

  An axis that is no longer than a window is one, and is not shifted.
  """

  grid: tuple[int, int]
  size: tuple[int, int]
  shift: tuple[int, int]

  @classmethod
  def of(cls, grid: tuple[int, int], window: int, shifted: bool) -> 'Windows':
    """Windows of `window` x `window` on a map, in every second block shifted by half of one."""
    size = (min(window, grid[0]), min(window, grid[1]))
    shift = [window // 2 if shifted and side > window else 0 for side in grid]
    return cls(grid, size, (shift[0], shift[1]))

  @property
  def filled(self) -> tuple[int, int]:
    """The map's sides, filled up to whole windows."""
    (height, width), (h, w) = self.grid, self.size
    return -(-height // h) * h, -(-width // w) * w

  @property
  def count(self) -> tuple[int, int]:
    """Windows along each axis."""
    return self.filled[0] // self.size[0], self.filled[1] // self.size[1]

  def cut(self, x: Any) -> Any:
    """A map `B H W D` as windows `Bn t D`, filled up with zeros and shifted."""
    (height, width), (h, w), (rows, columns) = self.filled, self.size, self.count
    batch, depth = x.shape[0], x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)))
    if any(self.shift):
      x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
    x = x.reshape(batch, rows, h, columns, w, depth).swapaxes(2, 3)
    return x.reshape(batch * rows * columns, h * w, depth)

  def join(self, x: Any) -> Any:
    """Windows `Bn t D` as the map `B H W D`: what `cut` did, undone."""
    (height, width), (h, w), (rows, columns) = self.filled, self.size, self.count
    x = x.reshape(-1, rows, columns, h, w, x.shape[-1]).swapaxes(2, 3)
    x = x.reshape(-1, height, width, x.shape[-1])
    if any(self.shift):
      x = jnp.roll(x, self.shift, (1, 2))
    return x[:, : self.grid[0], : self.grid[1]]

  def offsets(self) -> np.ndarray:
    """For each query and key of a window the row of the table of relative positions: `t t`."""
    h, w = self.size
    y, x = (axis.reshape(-1) for axis in np.mgrid[:h, :w])
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)

  def apart(self) -> np.ndarray | None:
    """Pairs that do not belong together: `n t t`; None where nothing is shifted.

    After the roll a window may hold regions of the map that lie far from each other.
    """
    if not any(self.shift):
      return None
    axes = []
    for side, size, shift in zip(self.filled, self.size, self.shift, strict=True):
      places = np.arange(side)
      axes.append((places >= side - size).astype(int) + (places >= side - shift) * bool(shift))
    region = axes[0][:, None] * 3 + axes[1]
    (h, w), (rows, columns) = self.size, self.count
    cells = region.reshape(rows, h, columns, w).swapaxes(1, 2).reshape(rows * columns, h * w)
    return cells[:, :, None] != cells[:, None]


class WindowAttention(attention.Attention):
  """Self-attention within windows, with a learned bias for each offset and head (equation 4)."""

  windows: Windows = dataclasses.field(default_factory=lambda: Windows((1, 1), (1, 1), (0, 0)))

  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], Float32[Array, 'B n h t t']]:
    batch, length, width = x.shape
    cut = self.windows.cut(x.reshape(batch, *self.windows.grid, width))
    y, weights = super().__call__(cut, train)
    y = self.windows.join(y).reshape(batch, length, width)
    return y, weights.reshape(batch, -1, *weights.shape[1:])

  def bias(self, length: int) -> Float[Array, 'n h t t']:
    """The bias of each pair, and what keeps apart those that the shift alone made neighbours."""
    del length  # The windows know.
    height, width = self.windows.size
    shape = ((2 * height - 1) * (2 * width - 1), self.num_heads)
    initial = INITIALISERS[self.initialisers]('position', shape[1])
    table = self.param('relative_position_bias_table', initial, shape)
    bias = table[self.windows.offsets()].transpose(2, 0, 1)[None]
    apart = self.windows.apart()
    return bias if apart is None else bias + jnp.where(apart, FAR, 0.0)[:, None]


def over_map(windows: Windows, weights: Float32[Array, 'B n h t t']) -> Float32[Array, 'B h T T']:
  """Weights within windows as weights over the whole map, 0 between windows.

  What went to the border that fills up a map is left out, so that a row sums to 1 again.
  """
  (height, width), batch, heads = windows.grid, weights.shape[0], weights.shape[2]
  tokens = height * width
  numbers = np.arange(1, tokens + 1).reshape(1, height, width, 1)  # 0 is the border.
  cells = windows.cut(numbers)[..., 0]
  whole = jnp.zeros((batch, heads, tokens + 1, tokens + 1))
  whole = whole.at[:, :, cells[:, :, None], cells[:, None]].set(weights.swapaxes(1, 2))
  seen = whole[:, :, 1:, 1:]
  return seen / seen.sum(-1, keepdims=True)
