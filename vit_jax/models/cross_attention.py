"""Attention of few queries to many tokens, whose keys and values are never made.

Of tokens X with keys X K and values X V, softmax(q (X K)^T) (X V) = (softmax((q K^T) X^T) X) V: a
query is brought to the width of the tokens, and what it gathers to that of the values, where the
usual order brings each token to both. For an image of `N` tokens of width `D`, one query and `H`
heads these are 2 H N D multiply-adds instead of 2 N D^2; and nothing as large as the tokens is made
but the tokens, which probes of many learning rates share. A bias of the keys adds the same to all
scores of a query: softmax takes it out again, so that it is never added.

Letters in annotations: `B` batch, `Q` queries, `h d` heads and width of each, `N` tokens, `D`
their width. A learned query is the same for every image, and has no `B`.
"""

from collections.abc import Sequence
import math
from typing import ClassVar, NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import layers
from vit_jax.models.attention import HeadProjection
from vit_jax.models.initialisers import INITIALISERS, Initialiser
from vit_jax.models.plain_readouts import Readout

NORMAL = nn.initializers.normal(0.02)  # What timm's `trunc_normal_` of 0.02 draws: it cuts at 2.


class Linear(NamedTuple):
  """A linear map that is not applied yet: `x @ kernel + bias`."""

  kernel: Float[Array, 'I O']
  bias: Float[Array, 'O']

  def __call__(self, x: Float[Array, '... I']) -> Float[Array, '... O']:
    return x @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype)


class DenseParameters(nn.Module):
  """The parameters of a square `layers.Dense`, for products in another order than its own."""

  use_bias: bool
  kernel_init: Initialiser
  bias_init: Initialiser

  @nn.compact
  def __call__(self, width: int) -> Linear:
    kernel = self.param('kernel', self.kernel_init, (width, width))
    if not self.use_bias:
      return Linear(kernel, jnp.zeros(width))
    return Linear(kernel, self.param('bias', self.bias_init, (width,)))


class HeadParameters(nn.Module):
  """The linear maps of linen's `MultiHeadDotProductAttention`, under its names, none applied."""

  num_heads: int

  @nn.compact
  def __call__(self, width: int) -> dict[str, Linear]:
    into = (width, self.num_heads, width // self.num_heads)
    pairs = {name: HeadProjection(into, 1, name=name)() for name in ('query', 'key', 'value')}
    pairs['out'] = HeadProjection((*into[1:], width), 2, name='out')()
    return {
      name: Linear(kernel.reshape(width, width), bias.reshape(width))
      for name, (kernel, bias) in pairs.items()
    }


class Affine(NamedTuple):
  """Scale and bias of a layer norm that are not applied yet."""

  scale: Float[Array, 'D']
  bias: Float[Array, 'D']

  def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
    return x * self.scale.astype(x.dtype) + self.bias.astype(x.dtype)


class NormParameters(nn.Module):
  """The parameters of linen's `LayerNorm`, whose other half is `tokens.standardise`."""

  @nn.compact
  def __call__(self, width: int) -> Affine:
    scale = self.param('scale', nn.initializers.ones, (width,))
    return Affine(scale, self.param('bias', nn.initializers.zeros, (width,)))


def ask(
  query: Float[Array, '*B Q F'], key: Linear, num_heads: int, dtype: str
) -> Float[Array, '*B Q h D']:
  """Each head's query, as what it multiplies tokens with rather than their keys."""
  kernel = key.kernel.reshape(len(key.kernel), num_heads, -1).astype(dtype)
  heads = query.reshape(*query.shape[:-1], num_heads, -1).astype(dtype)
  return jnp.einsum('...qhd,ihd->...qhi', heads, kernel)


def weigh(
  asked: Float[Array, '*B Q h D'], parts: Sequence[Float[Array, 'B _ D']], size: int
) -> Float[Array, 'B Q h N']:
  """The weights of the tokens, in float32, that are given in parts, as if one array.

  Args:
    size: the width of a head, by whose root scores are divided.
  """
  batch = 'b' * (asked.ndim == 4)
  scores = [
    jnp.einsum(f'{batch}qhi,bni->bqhn', asked, part, preferred_element_type=jnp.float32)
    for part in parts
  ]
  return jax.nn.softmax(jnp.concatenate(scores, -1) * size**-0.5)


def gather(
  weights: Float[Array, 'B Q h N'], parts: Sequence[Float[Array, 'B _ D']]
) -> Float[Array, 'B Q h D']:
  """The mix of the tokens by the weights of each head."""
  mixed, start = [], 0
  for part in parts:
    end = start + part.shape[1]
    own = weights[..., start:end].astype(part.dtype)
    mixed.append(jnp.einsum('bqhn,bni->bqhi', own, part))
    start = end
  return sum(mixed[1:], start=mixed[0])


def values(mixed: Float[Array, 'B Q h D'], value: Linear) -> Float[Array, 'B Q F']:
  """What mixed values would be: each head's mix of the tokens, brought to its part of the width.

  The weights of a head sum to 1, so that the bias is added once.
  """
  heads = mixed.shape[2]
  kernel = value.kernel.reshape(len(value.kernel), heads, -1).astype(mixed.dtype)
  y = jnp.einsum('bqhi,ihd->bqhd', mixed, kernel)
  return y.reshape(*y.shape[:2], -1) + value.bias.astype(mixed.dtype)


def attend(
  query: Float[Array, 'B Q D'],
  key: Float[Array, 'B N D'],
  value: Float[Array, 'B N F'],
  num_heads: int = 1,
) -> Float[Array, 'B Q F']:
  """Multi-head attention of queries that are projected already: softmax(q k^T / sqrt(d)) v."""
  query, key, value = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
  scores = jnp.einsum('bqhd,bnhd->bhqn', query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5).astype(value.dtype)
  y = jnp.einsum('bhqn,bnhd->bqhd', weights, value)
  return y.reshape(*y.shape[:2], -1)


def divisor(width: int, most: int) -> int:
  """The largest number up to `most` that divides `width`."""
  return next(n for n in range(max(1, min(width, most)), 0, -1) if width % n == 0)


def heads_of(width: int, size: int) -> int:
  """The number of heads of `size` numbers each, or of fewer and larger ones that divide `width`."""
  return divisor(width, width // size)


def of_reading(grid: tuple[int, int], width: int, num_heads: int = 1) -> int:
  """Multiply-adds of one query that weighs the tokens of a grid, and of mixing them."""
  return 2 * math.prod(grid) * num_heads * width


class AttentiveReadout(Readout):
  """What readouts that weigh patches by attention share: their projections, and that they pool."""

  pools: ClassVar[bool] = True
  published: ClassVar[bool] = True

  @property
  def is_map(self) -> bool:
    """Whether the intermediate `attention`, `B Q h N`, is of exactly the patches as they are."""
    return True

  def project(
    self,
    x: Float[Array, '... I'],
    features: int,
    name: str,
    use_bias: bool = True,
    initialisers: str = 'deit',
  ) -> Float[Array, '... O']:
    """A linear map of the last axis, in the dtype of `x`."""
    initial = INITIALISERS[initialisers]
    kernel, bias = (initial(role, x.shape[-1]) for role in ('output', 'projection_bias'))
    return layers.Dense(features, use_bias, x.dtype.name, kernel, bias, name=name)(x)

  def linear(
    self, width: int, name: str, use_bias: bool = True, initialisers: str = 'deit'
  ) -> Linear:
    """The linear map that `project` applies to `width` features of as many, not applied."""
    initial = INITIALISERS[initialisers]
    kernel, bias = (initial(role, width) for role in ('output', 'projection_bias'))
    return DenseParameters(use_bias, kernel, bias, name=name)(width)

  def weigh(self, *given) -> Float[Array, 'B Q h N']:
    """The weights of `cross_attention.weigh`, which are the intermediate `attention` too."""
    weights = weigh(*given)
    self.sow('intermediates', 'attention', weights)
    return weights

  def queries(self, width: int, count: int = 1) -> Float[Array, 'Q D']:
    """Learned queries, `query`, the same for each image."""
    return self.param('query', NORMAL, (1, count, width))[0]

  def read(
    self,
    query: Float[Array, '*B Q F'],
    parts: Sequence[Float[Array, 'B _ D']],
    key: Linear,
    value: Linear | None,
    num_heads: int = 1,
    affine: Affine | None = None,
  ) -> Float[Array, 'B Q F']:
    """Attention of projected queries to tokens in parts; its weights are sown as `attention`.

    Args:
      value: None: the tokens themselves.
      affine: what the tokens are scaled and moved by, for the query and what it gathers instead.
    """
    asked = ask(query, key, num_heads, parts[0].dtype.name)
    asked = asked if affine is None else asked * affine.scale.astype(asked.dtype)
    weights = self.weigh(asked, parts, query.shape[-1] // num_heads)
    mixed = gather(weights, parts)
    mixed = mixed if affine is None else affine(mixed)
    return mixed.reshape(*mixed.shape[:2], -1) if value is None else values(mixed, value)
