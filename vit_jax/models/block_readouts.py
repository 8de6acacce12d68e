"""Readouts that are blocks of a Transformer: a MAP head, V-JEPA's pooler, CaiT's class attention.

`D` is the width of the tokens; parameters are counted without the head.
"""

import math
from typing import ClassVar

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import attention, layers
from vit_jax.models.cross_attention import (
  AttentiveReadout,
  HeadParameters,
  NormParameters,
  heads_of,
  of_reading,
)
from vit_jax.models.normalisation import LayerNorm
from vit_jax.models.tokens import standardise


class AttentionPool(AttentiveReadout):
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
  published: ClassVar[bool] = False

  def multiply_adds(self, width: int) -> int:
    heads, hidden = self.num_heads or heads_of(width, 64), self.mlp_dim or 4 * width
    return of_reading(self.grid, width, heads) + 4 * width**2 + 2 * width * hidden

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))[0]
    heads = self.num_heads or heads_of(width, 64)
    linear = HeadParameters(heads, name='MultiHeadDotProductAttention_0')(width)
    query, key, value, out = (linear[name] for name in ('query', 'key', 'value', 'out'))
    x = out(self.read(query(probe), [patches], key, value, heads))
    y = LayerNorm(self.epsilon, name='LayerNorm_0')(x)
    mlp = layers.MlpBlock(self.mlp_dim or 4 * width, gelu=self.gelu, name='MlpBlock_0')
    return (x + mlp(y, False))[:, 0]


class AttentivePooler(AttentiveReadout):
  """A learned query reads the patches in one block: V-JEPA's attentive pooler.

  q1 = q0 + attention(q0, LN X), q2 = q1 + MLP(LN q1); attention has biases and, but for `jepa`, no
  projection of its output; the MLP is four times as wide (src/models/attentive_pooler.py).
  Parameters: 11 D^2 + 13 D; the published code declares a projection of D^2 + D besides that it
  never calls, `jepa` (efficient-probing's) calls it: 12 D^2 + 14 D. V-JEPA 2 has three blocks of
  self-attention before it, 12 D^2 + 13 D each.

  Attributes:
    num_heads: None: of 64 numbers each, or fewer heads where that does not divide the width.
    projection: whether the output of attention is projected.
    self_attention: blocks of self-attention that the patches pass first.
  """

  num_heads: int | None = None
  projection: bool = False
  self_attention: int = 0
  epsilon: float = 1e-6

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once: blocks of self-attention are the model's own."""
    return self.self_attention > 0

  @property
  def is_map(self) -> bool:
    """Whether it weighs the patches as they are, and not what they have found in one another."""
    return not self.self_attention

  def multiply_adds(self, width: int) -> int:
    patches, heads = math.prod(self.grid), self.num_heads or heads_of(width, 64)
    block = patches * (12 * width**2 + 2 * patches * width)
    cross = of_reading(self.grid, width, heads) + (3 + self.projection + 8) * width**2
    return self.self_attention * block + cross

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    x = self.patches(tokens)
    width = x.shape[-1]
    heads = self.num_heads or heads_of(width, 64)
    for i in range(self.self_attention):
      x, _ = self.block(width, heads, f'block_{i}')(x, False)
    start, affine = self.queries(width), NormParameters(name='norm_tokens')(width)
    query, key, value = (self.linear(width, name) for name in ('query_projection', 'key', 'value'))
    x = standardise(x, self.epsilon)
    y = self.read(query(start), [x], key, value, heads, affine)
    query = start + (self.linear(width, 'out')(y) if self.projection else y)
    mlp = layers.MlpBlock(4 * width, gelu='exact', initialisers='deit', name='mlp')
    return (query + mlp(LayerNorm(self.epsilon, name='norm_query')(query), False))[:, 0]

  def block(self, width: int, heads: int, name: str) -> layers.Block:
    """A block of self-attention, as a ViT's."""
    attending = attention.Attention(heads, initialisers='deit')
    mlp = layers.MlpBlock(4 * width, gelu='exact', initialisers='deit')
    return layers.Block(attending, mlp, LayerNorm(self.epsilon), name=name)


class ClassAttention(AttentiveReadout):
  """A class token of its own that only reads, in blocks of class attention (CaiT, 2103.17239).

  With u = [c; X]: c += g1 CA(LN u), whose query is c's and whose output is projected; then c += g2
  MLP(LN c); after the last block LN c. Parameters: 12 D^2 + 15 D a block, and 3 D.

  Attributes:
    depth: blocks; 2 in the paper, 1 in efficient-probing.
    scale: first value of g1 and g2; 1e-5 gives nearly the same vector for every image at first.
  """

  depth: int = 2
  scale: float = 1e-4
  epsilon: float = 1e-6

  @property
  def is_map(self) -> bool:
    """No: the token weighs itself too."""
    return False

  def multiply_adds(self, width: int) -> int:
    reading = of_reading((1, 1 + math.prod(self.grid)), width, heads_of(width, 48))
    return self.depth * (reading + (4 + 8) * width**2)

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    width = patches.shape[-1]
    own = self.queries(width).astype(tokens.dtype)
    own = jnp.broadcast_to(own, (len(tokens), 1, width))
    patches = standardise(patches, self.epsilon)
    for i in range(self.depth):
      own = self.block(own, patches, f'block_{i}')
    return LayerNorm(self.epsilon, name='norm')(own)[:, 0]

  def block(
    self, own: Float[Array, 'B 1 D'], patches: Float[Array, 'B N D'], name: str
  ) -> Float[Array, 'B 1 D']:
    """One block: the token reads itself and the patches, which have no scale yet, then an MLP."""
    width = own.shape[-1]
    affine, seen = NormParameters(name=f'{name}_norm_1')(width), standardise(own, self.epsilon)
    query, key, value = (self.linear(width, f'{name}_{part}') for part in ('query', 'key', 'value'))
    heads = heads_of(width, 48)
    y = self.read(query(affine(seen)), [seen, patches], key, value, heads, affine)
    y = self.linear(width, f'{name}_out')(y)
    own = own + layers.LayerScale(self.scale, name=f'{name}_scale_1')(y)
    mlp = layers.MlpBlock(4 * width, gelu='exact', initialisers='deit', name=f'{name}_mlp')
    y = mlp(LayerNorm(self.epsilon, name=f'{name}_norm_2')(own), False)
    return own + layers.LayerScale(self.scale, name=f'{name}_scale_2')(y)
