"""Attentive readouts: a query, learned or made of the tokens, weighs the patches in one product.

Published probes of frozen models, each also a model's own readout. `D` is the width of the tokens,
`N` their number; parameters are counted without the head. Scores are in float32 and divided by the
root of a head's width, as everywhere. Where few queries read the patches, their keys and values are
never made (`cross_attention.py`).
"""

import math
from typing import ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.cross_attention import (
  NORMAL,
  AttentiveReadout,
  NormParameters,
  ask,
  attend,
  divisor,
  gather,
  heads_of,
  of_reading,
  values,
)
from vit_jax.models.extremes import smallest
from vit_jax.models.plain_readouts import is_earlier
from vit_jax.models.tokens import standardise


class EfficientProbe(AttentiveReadout):
  """Q learned queries weigh the patches, each for its own slice of the values (EP).

  A_j = softmax_n(q_j x_n / sqrt(D)), keys are the tokens as they are; V = X W; the features are
  A_j V[:, slice j] side by side, slices of D / Q (billpsomas/efficient-probing, poolings/ep.py).
  The published probe has a batch norm after it: `ep+batch`. Parameters: D^2 + Q D.

  Attributes:
    num_queries: Q; where it does not divide the width, the largest number below that does.
  """

  num_queries: int = 32

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once: what the queries gather is of their number."""
    return True

  def multiply_adds(self, width: int) -> int:
    return of_reading(self.grid, width, divisor(width, self.num_queries)) + width**2

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    query = self.queries(width, divisor(width, self.num_queries)).astype(patches.dtype)
    weights = self.weigh(query[None], [patches], width)  # As heads, whose keys are the tokens.
    value = self.linear(width, 'value', False, 'torch')
    return values(gather(weights, [patches]), value)[:, 0]


class KeyValuePool(AttentiveReadout):
  """A learned query that is not projected attends to keys and values of the patches, in heads.

  AIM's probe (ml-aim, no biases, heads of 128 numbers, a batch norm before it: `aim+batch_before`):
  2 D^2 + D parameters. CAPI's (eval_classification.py, biases, heads of 64): 2 D^2 + 3 D.
  """

  head_width: int = 64
  use_bias: bool = True

  def multiply_adds(self, width: int) -> int:
    return of_reading(self.grid, width, heads_of(width, self.head_width)) + 2 * width**2

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    key, value = (self.linear(width, name, self.use_bias) for name in ('key', 'value'))
    heads = heads_of(width, self.head_width)
    return self.read(self.queries(width), [patches], key, value, heads)[:, 0]


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

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once: powers of tokens that are scaled by what is learned."""
    return bool(self.gamma)

  def multiply_adds(self, width: int) -> int:
    return of_reading(self.grid, width) + 2 * width**2

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    mean, patches = patches.mean(1, keepdims=True), standardise(patches, self.epsilon)
    affine = NormParameters(name='norm')(width)
    query, key = (self.linear(width, name, False) for name in ('query', 'key'))
    if not self.gamma:
      return self.read(query(mean), [patches], key, None, affine=affine)[:, 0]
    value = affine(patches)
    weights = self.weigh(ask(query(mean), key, 1, value.dtype.name), [value], width)
    positive = value - smallest(value)[:, None] + 1e-6
    return gather(weights, [positive**self.gamma])[:, 0, 0] ** (1 / self.gamma)


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

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once: hidden layers of all patches."""
    return self.hidden or self.mixing

  @property
  def is_map(self) -> bool:
    """Whether it weighs the patches as they are, and not what they have found in one another."""
    return not self.mixing

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
    self.sow('intermediates', 'attention', weights.swapaxes(1, 2)[:, None])
    return jnp.einsum('bnd,bno->bd', patches, weights.astype(patches.dtype))


class PositionedPool(AttentiveReadout):
  """The mean of the patches attends to itself and to them, with learned positions (CLIP's pool).

  S = [mean X; X] + positions; the output of its first row, projected (timm's AttentionPool2d; heads
  of 64 numbers). The one pool here that tells places apart. Parameters: (N + 1) D + 4 D^2 + 4 D.
  """

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once: patches with positions that are learned."""
    return True

  @property
  def is_map(self) -> bool:
    """No: it weighs their mean too."""
    return False

  def multiply_adds(self, width: int) -> int:
    return of_reading((1, 1 + math.prod(self.grid)), width, heads_of(width, 64)) + 4 * width**2

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    x = jnp.concatenate([patches.mean(1, keepdims=True), patches], axis=1)
    x += self.param('positions', NORMAL, x.shape[1:]).astype(x.dtype)
    width = x.shape[-1]
    query, key, value, out = (self.linear(width, name) for name in ('query', 'key', 'value', 'out'))
    return out(self.read(query(x[:, :1]), [x], key, value, heads_of(width, 64)))[:, 0]


class Refinement(AttentiveReadout):
  """The class token attends to all tokens, which are queries, keys and values as they are (prr).

  Without a class token the mean of what all of them find (timm's AttentionPoolPrr; 8 heads there,
  here the model's). No parameters.
  """

  num_heads: int | None = None
  pools: ClassVar[bool] = False  # The prefix is among the tokens already.

  @property
  def is_map(self) -> bool:
    """No: it weighs the prefix too."""
    return False

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
