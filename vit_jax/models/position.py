"""Where a token stands, as the ViT paper compares it (appendix D.4, table 8).

What is added to the tokens is a part of the encoder: at the input, at the input of every block, or
one for all of them. Relative positions add to the logits of attention instead and live there
(`attention.py`).
"""

from typing import Any, ClassVar

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax.models.initialisers import INITIALISERS
from vit_jax.runtime.choices import check_choice

PLACES = ('input', 'every', 'shared')


class Position(nn.Module):
  """A vector for each token, `1 T D`; calling it with tokens `B T D` gives what is added to them.

  Attributes:
    prefix: how many tokens stand before the grid.
    grid: (height, width) of the patches.
    tables: parameters that follow the grid, and how: see `Model.resampled`.
  """

  tables: ClassVar[dict[str, str]] = {}
  prefix: int
  grid: tuple[int, int]
  initialisers: str = 'official'

  def draw(self, name: str, length: int, width: int) -> Float[Array, '1 n d']:
    """A learned table of vectors."""
    initial = INITIALISERS[self.initialisers]('position', width)
    return self.param(name, initial, (1, length, width))


class Learned(Position):
  """A learned vector for each token, the class token's first (table 8, '1-D')."""

  tables: ClassVar[dict[str, str]] = {'pos_embedding': 'tokens'}

  @nn.compact
  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, '1 T D']:
    return self.draw('pos_embedding', *x.shape[1:])


class Learned2D(Position):
  """Half of the width says the column (X), half the row (Y), learned apart (table 8, '2-D').

  Tokens of the prefix have whole vectors of their own; the paper does not say what they have.
  """

  tables: ClassVar[dict[str, str]] = {'rows': 'rows', 'columns': 'columns'}

  @nn.compact
  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, '1 T D']:
    (height, width), size = self.grid, x.shape[-1]
    columns = self.draw('columns', width, size // 2)
    rows = self.draw('rows', height, size - size // 2)
    shape = (1, height, width)
    both = jnp.concatenate(
      [
        jnp.broadcast_to(columns[:, None], (*shape, columns.shape[-1])),
        jnp.broadcast_to(rows[:, :, None], (*shape, rows.shape[-1])),
      ],
      axis=-1,
    )
    table = both.reshape(1, height * width, size)
    if not self.prefix:
      return table
    return jnp.concatenate([self.draw('pos_embedding', self.prefix, size), table], axis=1)


class Sinusoidal(Position):
  """Fixed waves over the number of a token, from 0 (arXiv:1706.03762, section 3.5)."""

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, '1 T D']:
    length, width = x.shape[1:]
    return jnp.asarray(waves(np.arange(length), width // 2, 2 / width)[None], jnp.float32)


class Sinusoidal2D(Position):
  """Fixed waves over column and row, each half of the width (big_vision's `sincos2d`).

  Frequencies are 10,000 ** -(j / (D / 4 - 1)); tokens of the prefix get nothing.
  """

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, '1 T D']:
    width, (y, column) = x.shape[-1], np.mgrid[: self.grid[0], : self.grid[1]]
    step = 1 / max(1, width // 4 - 1)
    both = [waves(places.reshape(-1), width // 4, step) for places in (column, y)]
    table = np.concatenate([np.zeros((self.prefix, width)), np.concatenate(both, axis=1)])
    return jnp.asarray(table[None], jnp.float32)


def waves(places: np.ndarray, count: int, step: float) -> np.ndarray:
  """Sines, then cosines, of places `n` at `count` frequencies 10,000 ** (-step j): `n 2count`."""
  angles = places[:, None] * 10_000.0 ** -(step * np.arange(count))
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class Nothing(Position):
  """No positions: the encoder sees a set of tokens."""

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, '1 T D']:
    return jnp.zeros((1, *x.shape[1:]), jnp.float32)


POSITIONS: dict[str, Any] = {
  'learned': Learned,
  'learned_2d': Learned2D,
  'sinusoidal': Sinusoidal,
  'sinusoidal_2d': Sinusoidal2D,
  'relative': Nothing,  # Blocks have them.
  'none': Nothing,
}


def check(section: dict[str, Any]) -> None:
  """Raises a ValueError for kinds, places and widths that do not go together."""
  kind, place = section['positions'], section['position_at']
  check_choice('config.model.positions', kind, POSITIONS)
  check_choice('config.model.position_at', place, PLACES)
  if place != 'input' and kind in ('relative', 'none'):
    raise ValueError(
      f'config.model.position_at={place}: positions={kind!r} adds nothing to tokens; choose '
      'position_at=input, or positions that are added, such as learned'
    )
  divisor = {'sinusoidal': 2, 'learned_2d': 2, 'sinusoidal_2d': 4}.get(kind, 1)
  if section['width'] % divisor:
    raise ValueError(
      f'config.model.positions={kind} needs a width that {divisor} divides, not {section["width"]}'
    )
