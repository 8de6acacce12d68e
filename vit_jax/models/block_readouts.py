"""Readouts that are blocks of a Transformer themselves: V-JEPA's pooler, CaiT's class attention.

`D` is the width of the tokens; parameters are counted without the head.
"""

import math

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import attention, layers
from vit_jax.models.attentive_readouts import AttentiveReadout, attend, heads_of


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

  def multiply_adds(self, width: int) -> int:
    patches = math.prod(self.grid)
    block = patches * (12 * width**2 + 2 * patches * width)
    cross = (2 * patches + 1 + self.projection + 8) * width**2 + 2 * patches * width
    return self.self_attention * block + cross

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    x = self.patches(tokens)
    width = x.shape[-1]
    heads = self.num_heads or heads_of(width, 64)
    for i in range(self.self_attention):
      x, _ = self.block(width, heads, f'block_{i}')(x, False)
    start, keys = self.queries(tokens), nn.LayerNorm(self.epsilon, name='norm_tokens')(x)
    y = attend(
      self.project(start, width, 'query_projection'),
      self.project(keys, width, 'key'),
      self.project(keys, width, 'value'),
      heads,
    )
    query = start + (self.project(y, width, 'out') if self.projection else y)
    mlp = layers.MlpBlock(4 * width, gelu='exact', initialisers='deit', name='mlp')
    return (query + mlp(nn.LayerNorm(self.epsilon, name='norm_query')(query), False))[:, 0]

  def block(self, width: int, heads: int, name: str) -> layers.Block:
    """A block of self-attention, as a ViT's."""
    attending = attention.Attention(heads, initialisers='deit')
    mlp = layers.MlpBlock(4 * width, gelu='exact', initialisers='deit')
    return layers.Block(attending, mlp, nn.LayerNorm(self.epsilon), name=name)


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

  def multiply_adds(self, width: int) -> int:
    tokens = 1 + math.prod(self.grid)
    block = (2 * tokens + 2 + 8) * width**2 + 2 * tokens * width
    return self.depth * block

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches, own = self.patches(tokens), self.queries(tokens)
    for i in range(self.depth):
      own = self.read(own, patches, f'block_{i}')
    return nn.LayerNorm(self.epsilon, name='norm')(own)[:, 0]

  def read(
    self, own: Float[Array, 'B 1 D'], patches: Float[Array, 'B N D'], name: str
  ) -> Float[Array, 'B 1 D']:
    """One block: the token reads itself and the patches, then passes the MLP."""
    width = own.shape[-1]
    x = jnp.concatenate([own, patches], axis=1)
    x = nn.LayerNorm(self.epsilon, name=f'{name}_norm_1')(x)
    y = attend(
      self.project(x[:, :1], width, f'{name}_query'),
      self.project(x, width, f'{name}_key'),
      self.project(x, width, f'{name}_value'),
      heads_of(width, 48),
    )
    y = self.project(y, width, f'{name}_out')
    own = own + layers.LayerScale(self.scale, name=f'{name}_scale_1')(y)
    mlp = layers.MlpBlock(4 * width, gelu='exact', initialisers='deit', name=f'{name}_mlp')
    y = mlp(nn.LayerNorm(self.epsilon, name=f'{name}_norm_2')(own), False)
    return own + layers.LayerScale(self.scale, name=f'{name}_scale_2')(y)
