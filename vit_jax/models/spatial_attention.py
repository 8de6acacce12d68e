"""Heads that attend by offset, as a convolution's kernel does (arXiv:1911.03584, section 3).

A head's logits are a function of the offset (rows down, columns right) from query to key: quadratic
around a centre, or learned tables of rows and columns. Every head reads whole tokens; what the
heads found lies side by side and is mapped to the width again, so that K^2 heads of which each
looks at one offset are a K x K convolution. At the border the nearest token of the map counts, so
it is one whose input is padded by its edge, not by zeros.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from vit_jax.models import layers
from vit_jax.models.dropout import Dropout
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.normalisation import LayerNorm

# Eigenvalues of a precision are taken to be no larger than this.
SHARPEST = 1e6


class Encoding(nn.Module):
  """Logits of each head by offset, `h R S`, with R = 2 H - 1 rows and S = 2 W - 1 columns.

  Attributes:
    num_heads: how many tables there are.
    grid: (height, width) of the tokens.
  """

  num_heads: int
  grid: tuple[int, int]

  def offsets(self) -> np.ndarray:
    """The (rows, columns) of each offset: `R S 2`."""
    height, width = self.grid
    steps = np.mgrid[1 - height : height, 1 - width : width]
    return np.moveaxis(steps, 0, -1).astype(np.float32)

  def multiply_adds(self) -> int:
    """Multiply-adds of the logits of one head."""
    return 0

  def pairs(self, by_offset: Float[Array, 'h R S']) -> Float[Array, 'h T T']:
    """The logit of each query and key, tokens row by row."""
    rows, columns = (axis.reshape(-1) for axis in np.indices(self.grid))
    steps = [axis[None] - axis[:, None] + side - 1
             for axis, side in zip((rows, columns), self.grid, strict=True)]  # fmt: skip
    return by_offset[:, steps[0], steps[1]]

  def gaussians(self, params: dict[str, Any]) -> tuple[Float[Array, 'h 2'], Float[Array, 'h 2 2']]:
    """The centre of each head's attention and its precision, the inverse of its covariance.

    They are moments over all offsets, as if a query stood where it sees them all.
    """
    by_offset: Any = self.apply({'params': params})
    shares = jax.nn.softmax(by_offset.reshape(self.num_heads, -1))
    offsets = self.offsets().reshape(-1, 2)
    centres = shares @ offsets
    apart = offsets - centres[:, None]
    covariance = jnp.einsum('hn,hnr,hns->hrs', shares, apart, apart)
    return centres, jnp.linalg.inv(covariance + jnp.eye(2) / SHARPEST)


class Quadratic(Encoding):
  """Logits -1/2 (d - centre)^T P (d - centre) of an offset d (equations 8 and 9).

  The precision P is spread^2 I where `general` is False, else S S^T of a 2 x 2 spread S. The term
  that no offset has part in, which the paper leaves out, is the same for all keys.
  """

  general: bool = False

  @nn.compact
  def __call__(self) -> Float32[Array, 'h R S']:
    centres = self.param('centres', nn.initializers.normal(2.0), (self.num_heads, 2))
    roots = self.root(self.param('spreads', self.draw))
    apart = self.offsets() - centres[:, None, None]
    return -0.5 * jnp.square(jnp.einsum('hrsi,hij->hrsj', apart, roots)).sum(-1)

  def draw(self, key: jax.Array) -> Float[Array, 'h *S']:
    """Spreads around 1, or around the unit matrix."""
    noise = 0.01 * jax.random.normal(key, (self.num_heads, *((2, 2) if self.general else ())))
    return noise + (jnp.eye(2) if self.general else 1.0)

  def multiply_adds(self) -> int:
    """Multiply-adds of the logits of one head: each offset times the root of a precision."""
    return 4 * self.offsets()[..., 0].size

  def root(self, spreads: Float[Array, 'h *S']) -> Float[Array, 'h 2 2']:
    """A root S of the precision S S^T."""
    return spreads if self.general else spreads[:, None, None] * jnp.eye(2)

  def gaussians(self, params: dict[str, Any]) -> tuple[Float[Array, 'h 2'], Float[Array, 'h 2 2']]:
    """The parameters themselves, however narrow or wide."""
    root = self.root(jnp.asarray(params['spreads']))
    return jnp.asarray(params['centres']), root @ root.swapaxes(-1, -2)


class LearnedOffsets(Encoding):
  """Logits of rows and of columns, added: learned vectors of offsets times a key of each head.

  Attributes:
    width: of those vectors.
  """

  width: int = 1

  def multiply_adds(self) -> int:
    """Multiply-adds of the logits of one head: each row and each column."""
    return sum(2 * side - 1 for side in self.grid) * self.width

  @nn.compact
  def __call__(self) -> Float32[Array, 'h R S']:
    found = []
    for name, side in zip(('rows', 'columns'), self.grid, strict=True):
      table = self.param(name, nn.initializers.normal(1.0), (2 * side - 1, self.width))
      keys = self.param(f'{name}_key', nn.initializers.normal(0.02), (self.width, self.num_heads))
      found.append((table @ keys).T)
    return found[0][:, :, None] + found[1][:, None]


class SpatialAttention(nn.Module):
  """Attention by offset, with or without content, of heads that each read whole tokens.

  Attributes:
    encoding: what gives the logits of offsets.
    content: whether q k / sqrt(d) is added, of queries and keys as wide as the tokens.
    attention_dropout: of the weights; without content one draw serves the whole batch, whose
      weights are the same.
  """

  encoding: Encoding
  content: bool = False
  attention_dropout: float = 0.0
  dtype: str = 'float32'
  initialisers: str = 'deit'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], Float32[Array, 'B h T T']]:
    batch, length, width = x.shape
    heads = self.encoding.num_heads
    encoding = self.encoding.copy(name='offsets')
    logits = encoding.pairs(encoding())[None]
    if self.content:
      query, key = (self.tokens_of(name, x, heads) for name in ('query', 'key'))
      compared = jnp.einsum('bthd,bshd->bhts', query, key, preferred_element_type=jnp.float32)
      logits = logits + compared * width**-0.5
    weights = jax.nn.softmax(logits)
    dropped = Dropout(self.attention_dropout)(weights, train).astype(self.dtype)
    y = (
      jnp.einsum('bhts,bsd->bthd', dropped, x)
      if self.content
      else jnp.einsum('hts,bsd->bthd', dropped[0], x)
    )
    y = self.dense('value', width, heads * width, True)(y.reshape(batch, length, -1))
    y = self.dense('out', width, width, True)(y)
    return y, jnp.broadcast_to(weights, (batch, *weights.shape[1:]))

  def tokens_of(self, name: str, x: Float[Array, 'B T D'], heads: int) -> Float[Array, 'B T h D']:
    """A query or key of each head, as wide as a token; without bias, as published counts want."""
    width = x.shape[-1]
    return self.dense(name, heads * width, width, False)(x).reshape(*x.shape[:2], heads, width)

  def dense(self, name: str, features: int, fan_in: int, use_bias: bool) -> layers.Dense:
    initial = INITIALISERS[self.initialisers]
    kernel, bias = initial('projection', fan_in), initial('projection_bias', fan_in)
    return layers.Dense(features, use_bias, self.dtype, kernel, bias, name=name)


class PostBlock(nn.Module):
  """Post-norm block: norm(x + attention(x)), then norm(x + MLP(x)), as BERT's.

  Attributes:
    norm: of which two are made.
    dropout: of what both branches add.
  """

  attention: SpatialAttention
  mlp: layers.MlpBlock
  norm: LayerNorm
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    attended, weights = self.attention.copy(name='spatial')(x, train)
    attended = Dropout(self.dropout, name='Dropout_0')(attended, train)
    x = self.norm.copy(name='LayerNorm_0')(x + attended)
    y = Dropout(self.dropout, name='Dropout_1')(self.mlp.copy(name='MlpBlock_3')(x, train), train)
    x = self.norm.copy(name='LayerNorm_2')(x + y)
    return x, {'attention_weights': weights, 'attention': attended, 'mlp': y, 'tokens': x}


class Stack(nn.Module):
  """Blocks, one after another."""

  blocks: tuple[PostBlock, ...]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    outputs = {}
    for i, block in enumerate(self.blocks):
      x, named = block.copy(name=f'block_{i}')(x, train)
      outputs |= {f'block_{i}/{key}': value for key, value in named.items()}
    return x, outputs | {'tokens': x}
