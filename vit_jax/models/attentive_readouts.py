"""Attentive readouts: a query, learned or made of the tokens, weighs the patches in one product.

Published probes of frozen models, each also a model's own readout. `D` is the width of the tokens,
`N` their number; parameters are counted without the head. Scores are in float32 and divided by the
root of a head's width, as everywhere.
"""

import math
from typing import ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import layers
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.plain_readouts import Readout, is_earlier

NORMAL = nn.initializers.normal(0.02)  # What timm's `trunc_normal_` of 0.02 draws: it cuts at 2.


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


class AttentiveReadout(Readout):
  """What readouts that weigh patches by attention share: their projections, and that they pool."""

  pools: ClassVar[bool] = True
  published: ClassVar[bool] = True
  heavy: ClassVar[bool] = True

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

  def queries(self, tokens: Float[Array, 'B T D'], count: int = 1) -> Float[Array, 'B Q D']:
    """Learned queries, `query`, the same for each image."""
    batch, _, width = tokens.shape
    query = self.param('query', NORMAL, (1, count, width)).astype(tokens.dtype)
    return jnp.broadcast_to(query, (batch, count, width))


class AttentionPool(Readout):
  """A learned query attends to the patches (MAP head: arXiv:1810.00825, big_vision's names).

  Parameters: 12 D^2 + 12 D, with an MLP of four times the width.

  Attributes:
    num_heads: None: of 64 numbers each, or fewer heads where that does not divide the width.
    mlp_dim: None: four times the width.
  """

  num_heads: int | None = None
  mlp_dim: int | None = None
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  heavy: ClassVar[bool] = True
  pools: ClassVar[bool] = True

  def multiply_adds(self, width: int) -> int:
    patches, hidden = math.prod(self.grid), self.mlp_dim or 4 * width
    # Query and output of one token; keys, values and both products of all patches; the MLP.
    return 2 * (1 + patches) * width**2 + 2 * patches * width + 2 * width * hidden

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    batch, _, width = patches.shape
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))
    attention = nn.MultiHeadDotProductAttention(
      self.num_heads or heads_of(width, 64),
      kernel_init=nn.initializers.xavier_uniform(),
      name='MultiHeadDotProductAttention_0',
    )
    x = attention(jnp.tile(probe.astype(tokens.dtype), (batch, 1, 1)), patches)
    y = nn.LayerNorm(self.epsilon, name='LayerNorm_0')(x)
    mlp = layers.MlpBlock(self.mlp_dim or 4 * width, gelu=self.gelu, name='MlpBlock_0')
    return (x + mlp(y, False))[:, 0]


class EfficientProbe(AttentiveReadout):
  """Q learned queries weigh the patches, each for its own slice of the values (EP).

  A_j = softmax_n(q_j x_n / sqrt(D)), keys are the tokens as they are; V = X W; the features are
  A_j V[:, slice j] side by side, slices of D / Q (billpsomas/efficient-probing, poolings/ep.py).
  The published probe has a batch norm after it: `ep+batch`. Parameters: D^2 + Q D.

  Attributes:
    num_queries: Q; where it does not divide the width, the largest number below that does.
  """

  num_queries: int = 32

  def multiply_adds(self, width: int) -> int:
    patches, count = math.prod(self.grid), divisor(width, self.num_queries)
    return patches * width * (width + count + 1)

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    batch, length, width = patches.shape
    count = divisor(width, self.num_queries)
    value = self.project(patches, width, 'value', False, 'torch')
    scores = jnp.einsum(
      'bqd,bnd->bqn', self.queries(tokens, count), patches, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores * width**-0.5).astype(value.dtype)
    slices = value.reshape(batch, length, count, -1)
    return jnp.einsum('bqn,bnqd->bqd', weights, slices).reshape(batch, width)


class KeyValuePool(AttentiveReadout):
  """A learned query that is not projected attends to keys and values of the patches, in heads.

  AIM's probe (ml-aim, no biases, heads of 128 numbers, a batch norm before it: `aim+batch_before`):
  2 D^2 + D parameters. CAPI's (eval_classification.py, biases, heads of 64): 2 D^2 + 3 D.
  """

  head_width: int = 64
  use_bias: bool = True

  def multiply_adds(self, width: int) -> int:
    return math.prod(self.grid) * 2 * width * (width + 1)

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    key = self.project(patches, width, 'key', self.use_bias)
    value = self.project(patches, width, 'value', self.use_bias)
    return attend(self.queries(tokens), key, value, heads_of(width, self.head_width))[:, 0]


class SimPool(AttentiveReadout):
  """The mean of the patches asks, one head answers: q = W_q mean X, K = W_k LN X, V = LN X.

  SimPool (arXiv:2309.06891). Parameters: 2 D^2 + 2 D.

  Attributes:
    gamma: the power mean of the values instead of their mean, (A (V - min V + 1e-6)^g)^(1/g); 0:
      none. The minimum is over the tokens of an image, as in timm; the paper's code takes the
      batch's, so that features would depend on what else is in it.
  """

  gamma: float = 0.0
  epsilon: float = 1e-6

  def multiply_adds(self, width: int) -> int:
    return width**2 + math.prod(self.grid) * width * (width + 2)

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    value = nn.LayerNorm(self.epsilon, name='norm')(patches)
    query = self.project(patches.mean(1, keepdims=True), width, 'query', False)
    key = self.project(value, width, 'key', False)
    if not self.gamma:
      return attend(query, key, value)[:, 0]
    positive = value - value.min(1, keepdims=True) + 1e-6
    return attend(query, key, positive**self.gamma)[:, 0] ** (1 / self.gamma)


class MultipleInstances(AttentiveReadout):
  """The sum of the patches by weights softmax_n f(x_n) (AbMILP, arXiv:1802.04712, 2412.03215).

  Parameters: of f = w x + b, D + 1; of f = Linear-tanh-Linear, D^2 + 2 D + 1; self-attention of one
  head before it, without a residual (efficient-probing's default), adds 4 D^2 + D.

  Attributes:
    hidden: whether f has a hidden layer.
    mixing: whether the patches first attend to one another.
  """

  hidden: bool = False
  mixing: bool = False

  def multiply_adds(self, width: int) -> int:
    patches = math.prod(self.grid)
    attention = 4 * width**2 + 2 * patches * width
    return patches * (2 * width + self.hidden * width**2 + self.mixing * attention)

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    if self.mixing:
      query, key, value = (
        self.project(patches, width, name, False) for name in ('query', 'key', 'value')
      )
      patches = self.project(attend(query, key, value), width, 'out')
    x = jnp.tanh(self.project(patches, width, 'hidden')) if self.hidden else patches
    weights = jax.nn.softmax(self.project(x, 1, 'score').astype(jnp.float32), axis=1)
    return jnp.einsum('bnd,bno->bd', patches, weights.astype(patches.dtype))


class PositionedPool(AttentiveReadout):
  """The mean of the patches attends to itself and to them, with learned positions (CLIP's pool).

  S = [mean X; X] + positions; the output of its first row, projected (timm's AttentionPool2d; heads
  of 64 numbers). The one pool here that tells places apart. Parameters: (N + 1) D + 4 D^2 + 4 D.
  """

  def multiply_adds(self, width: int) -> int:
    patches = math.prod(self.grid)
    return 2 * (patches + 2) * width**2 + 2 * (patches + 1) * width

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    x = jnp.concatenate([patches.mean(1, keepdims=True), patches], axis=1)
    x += self.param('positions', NORMAL, x.shape[1:]).astype(x.dtype)
    width = x.shape[-1]
    query = self.project(x[:, :1], width, 'query')
    key, value = self.project(x, width, 'key'), self.project(x, width, 'value')
    return self.project(attend(query, key, value, heads_of(width, 64)), width, 'out')[:, 0]


class Refinement(AttentiveReadout):
  """The class token attends to all tokens, which are queries, keys and values as they are (prr).

  Without a class token the mean of what all of them find (timm's AttentionPoolPrr; 8 heads there,
  here the model's). No parameters.
  """

  num_heads: int | None = None
  pools: ClassVar[bool] = False  # The prefix is among the tokens already.

  def multiply_adds(self, width: int) -> int:
    count = len(self.own) + math.prod(self.grid)
    return 2 * (1 if 'class_token' in self.prefix else count) * count * width

  @property
  def own(self) -> tuple[str, ...]:
    """The tokens before the patches that are of the last block."""
    return tuple(name for name in self.prefix if not is_earlier(name))

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    x = tokens[:, len(self.prefix) - len(self.own) :]
    place = self.own.index('class_token') if 'class_token' in self.own else None
    query = x if place is None else x[:, place : place + 1]
    return attend(query, x, x, self.num_heads or heads_of(x.shape[-1], 64)).mean(1)
