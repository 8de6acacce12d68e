"""AxialResNet: a BiT ResNet whose 3 x 3 convolutions are attention along columns, then rows.

The ViT paper's appendix D.6 compares one, built on Axial-DeepLab (arXiv:2003.07853): attention that
sees positions in queries, keys and values. As in Scenic's, group norm and standardised 1 x 1
convolutions take the place of batch norm, and a stride is an average pool after the attention.
Axial-DeepLab's norm of the logits is left out, and queries and keys are as wide as values.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import arithmetic, bit, resnet
from vit_jax.models.attention import from_offsets

VARIANTS = ['R8x1', 'R26x1', 'R50x1']
OFFICIAL = bit.OFFICIAL


class LineAttention(nn.Module):
  """Position-sensitive self-attention along the third axis (arXiv:2003.07853, equation 4).

  Logits are q k + q r_q + k r_k, values v + r_v; the three r are learned for each offset and shared
  by the heads.
  """

  num_heads: int
  standardise: str
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B n t D']) -> Float[Array, 'B n t D']:
    *batch, length, width = x.shape
    convolve = resnet.StandardisedConv(
      3 * width, 1, 1, 'SAME', self.standardise, self.dtype, name='qkv'
    )
    qkv = convolve(x).reshape(*batch, length, 3, self.num_heads, width // self.num_heads)
    query, key, value = (part.swapaxes(2, 3) for part in jnp.moveaxis(qkv, 3, 0))  # B n h t d
    by_query, by_key, by_value = (
      self.offsets(name, length, query.shape[-1]) for name in ('query', 'key', 'value')
    )
    # How a product of few channels grows with their number is for the norm after it to mend.
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum('bnhtd,bnhsd->bnhts', query, key)
    logits += from_offsets(jnp.einsum('bnhtd,rd->bnhtr', query, by_query))
    logits += from_offsets(jnp.einsum('bnhtd,rd->bnhtr', key, by_key)).swapaxes(-1, -2)
    weights = jax.nn.softmax(scale * logits.astype(jnp.float32)).astype(x.dtype)
    y = jnp.einsum('bnhts,bnhsd->bnhtd', weights, value)
    y += jnp.einsum('bnhts,tsd->bnhtd', weights, pairs(by_value))
    return y.swapaxes(2, 3).reshape(x.shape)

  def offsets(self, name: str, length: int, width: int) -> Float[Array, 'R d']:
    """A learned vector for each offset, from -(t - 1) to t - 1."""
    init = nn.initializers.normal(width**-0.5)
    return self.param(f'relative_{name}', init, (2 * length - 1, width)).astype(self.dtype)


def pairs(x: Float[Array, 'R d']) -> Float[Array, 't t d']:
  """The vector of each pair of places: y[t, s] = x[s - t + T - 1]."""
  length = (x.shape[0] + 1) // 2
  places = jnp.arange(length)
  return x[places[None] - places[:, None] + length - 1]


class AxialUnit(nn.Module):
  """A bottleneck with attention along columns and rows in its middle."""

  width: int
  stride: int
  standardise: str
  epsilon: float
  dtype: str
  num_heads: int = 8

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    settings = (self.standardise, self.epsilon, self.dtype)
    out = 4 * self.width
    projected = x.shape[-1] != out or self.stride > 1
    shortcut = out if projected else None
    y, pre = bit.NormConv(self.width, 1, 1, *settings, shortcut, self.stride, name='a')(x)
    names = ('gamma', 'beta')
    y = nn.relu(resnet.GroupNorm(self.epsilon, names, name='group_norm')(y))
    y = self.attend('columns')(y.swapaxes(1, 2)).swapaxes(1, 2)
    y = self.attend('rows')(y)
    if self.stride > 1:  # As Scenic's: beyond an odd side zeros count, so its end is weaker.
      y = nn.avg_pool(y, (2, 2), (2, 2), padding='SAME')
    y, _ = bit.NormConv(out, 1, 1, *settings, name='c')(y)
    return y + (pre if projected else x)

  def attend(self, name: str) -> LineAttention:
    return LineAttention(self.num_heads, self.standardise, self.dtype, name=name)


class AxialResNet(bit.BigTransfer):
  """A ResNet whose units see their whole column and row."""

  num_heads: int = 8

  @property
  def unit(self) -> Any:
    """What makes a unit."""
    return functools.partial(AxialUnit, num_heads=self.num_heads)

  @property
  def middle(self) -> Any:
    """The arithmetic of a unit's middle."""
    return arithmetic.of_lines


def build(*, variant: str, **section) -> AxialResNet:
  """An AxialResNet such as 'R50x1'; the other arguments are those of `bit.build`.

  Raises:
    ValueError: no such variant or value, or heads that do not divide the narrowest units.
  """
  model = bit.assemble(AxialResNet, variant, section)
  if section['num_heads'] < 1 or 64 * model.width_factor % section['num_heads']:
    raise ValueError(
      f'config.model.num_heads={section["num_heads"]} must divide {64 * model.width_factor}, the '
      'width of the first units'
    )
  return model
