"""Dropout, of numbers or of whole examples, by keys that a loop over blocks draws alike.

linen folds the names on the way to a module into its key. In a loop over blocks the block's name is
not known while the loop is traced, only its number; a table then has what each name would give.
"""

import hashlib
from typing import Any

from flax import linen as nn
from flax.core.scope import LazyRng
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.runtime import stacked


def number_block(rng: LazyRng, stack: str, number: Array, count: int) -> LazyRng:
  """What block `number` of a stack of `count` draws from, traced; `Dropout` alone can.

  By its name a block draws from `LazyRng.create(rng, name)`, as linen has it.
  """
  pair: Any = (rng.rng, number)
  return LazyRng(pair, (*rng.suffix, stack, count))


def fold_of(names: tuple[str | int, ...]) -> int:
  """The number that linen folds into a key for names and counts: the head of their SHA-1 hash."""
  code = hashlib.sha1()
  for x in names:
    code.update(x.encode() if isinstance(x, str) else x.to_bytes((x.bit_length() + 7) // 8))
  return int.from_bytes(code.digest()[:4])


class Dropout(nn.Module):
  """Sets a share of all numbers to 0 and scales the rest, so that the mean stays.

  Attributes:
    rate: that share; it may be traced.
    whole: whether to drop whole examples.
  """

  rate: Any
  whole: bool = False

  def __call__(self, x: Float[Array, 'B ...'], train: bool) -> Float[Array, 'B ...']:
    return self.drop(x, self.key(train))

  def key(self, train: bool) -> Array | None:
    """The key of the next draw; None where nothing is dropped."""
    if not train or (isinstance(self.rate, float | int) and not self.rate):
      return None
    scope: Any = self.scope
    if not isinstance(scope.rngs['dropout'].rng, tuple):
      return self.make_rng('dropout')
    scope.rng_counters['dropout'] += 1
    (key, number), names = scope.rngs['dropout'].rng, scope.rngs['dropout'].suffix
    names = (*names, scope.rng_counters['dropout'])
    at = next(i for i, name in enumerate(names) if stacked.STAR in str(name))
    blocks = stacked.names(names[at], names[at + 1])
    folds = [fold_of((*names[:at], block, *names[at + 2 :])) for block in blocks]
    return jax.random.fold_in(key, jnp.array(folds, jnp.uint32)[number])

  def drop(self, x: Float[Array, 'B ...'], key: Array | None) -> Float[Array, 'B ...']:
    """`x`, of which `key` says what is dropped."""
    if key is None:
      return x
    keep = 1.0 - self.rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if self.whole else x.shape
    kept = jax.random.bernoulli(key, keep, shape)
    scaled = x / (keep if isinstance(keep, float) else keep.astype(x.dtype))
    return jnp.where(kept, scaled, jnp.zeros_like(x))


class DropPath(nn.Module):
  """Stochastic depth: drops a residual branch for whole examples (arXiv:1603.09382).

  Attributes:
    rate: the share of examples; it may be traced.
  """

  rate: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'B ...'], train: bool) -> Float[Array, 'B ...']:
    return Dropout(self.rate, whole=True)(x, train)
