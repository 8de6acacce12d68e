"""Axial-ViT: each token attends to its row, then to its column (arXiv:2010.11929, appendix D.6).

Every block of a ViT becomes two, row attention with an MLP and column attention with another, so
that it has about twice the parameters and costs H W (H + W) instead of (H W)^2 in attention. No
code of the paper's is public: that each of the four parts has a norm before it is assumed.
"""

import functools
from typing import Any, Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from vit_jax.models import arithmetic, attention, encoder, layers, vit, vit_sizes
from vit_jax.runtime.sections import fields_of

VARIANTS = ['digits/2', 'cifar/4']
VARIANTS += [f'{size}/{patch}' for size in ('Ti', 'S', 'B', 'L') for patch in (16, 32)]
OFFICIAL = vit.OFFICIAL | dict(variant='B/16', readout='mean', class_token=False, mlp='plain')


class AxialAttention(attention.Attention):
  """Self-attention of each token with those of its row, or of its column.

  Attributes:
    axis: row or column.
    grid: (height, width) of the tokens, which lie row by row.
  """

  axis: Literal['row', 'column'] = 'row'
  grid: tuple[int, int] = (1, 1)

  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], Float32[Array, 'B n h t t']]:
    batch, length, width = x.shape
    turned = self.lines(x.reshape(batch, *self.grid, width))
    y, weights = super().__call__(turned.reshape(-1, turned.shape[2], width), train)
    y = self.lines(y.reshape(turned.shape))
    return y.reshape(batch, length, width), weights.reshape(batch, -1, *weights.shape[1:])

  def lines(self, x: Float[Array, 'B H W D']) -> Float[Array, 'B n t D']:
    """The lines along which tokens attend: rows as they are, columns instead of them; or back."""
    return x if self.axis == 'row' else x.swapaxes(1, 2)


class AxialBlock(nn.Module):
  """A block whose attention follows the rows, and one that follows the columns.

  Attributes:
    along_row, along_column: blocks as `layers.Block`.
    drop_path: of both.
  """

  along_row: layers.Block
  along_column: layers.Block
  drop_path: Any = 0.0

  @property
  def attention(self) -> nn.Module:
    """The attention of the first of the two, whose settings both have."""
    return self.along_row.attention

  @property
  def mlp(self) -> nn.Module:
    """The MLP of the first of the two."""
    return self.along_row.mlp

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    outputs = {}
    for name in ('row', 'column'):
      block = getattr(self, f'along_{name}').copy(name=name, drop_path=self.drop_path)
      x, named = block(x, train)
      outputs |= {f'{name}/{key}': value for key, value in named.items() if key != 'tokens'}
    return x, outputs | {'tokens': x}


class AxialTransformer(vit.VisionTransformer):
  """A ViT of axial blocks: a grid of tokens, and none before it."""

  @staticmethod
  def prefix_of(class_token: bool, registers: int) -> tuple[str, ...]:
    """No tokens: a class token stands in no row and no column."""
    del class_token, registers
    return ()

  def attention_map(self, outputs: dict[str, Any], block: int) -> Float[Array, 'B h T T'] | None:
    """Row and column attention of a block in one: what reaches a token through its column.

    A token reads its column, each token of which has read its row; the MLP between is left out. A
    head is one of the columns, which reads what all heads of the rows have put together: their mean
    here, as their numbers mean nothing to those of the columns.
    """
    rows = outputs.get(f'block_{block}/row/attention_weights')
    columns = outputs.get(f'block_{block}/column/attention_weights')
    if rows is None or columns is None:
      return None
    both = jnp.einsum('bchrs,bscd->bhrcsd', columns, rows.mean(2))
    tokens = self.grid[0] * self.grid[1]
    return both.reshape(*both.shape[:2], tokens, tokens)

  def perturbation(self, block: int) -> str | None:
    """Nothing: a block has two attentions."""
    del block
    return None

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image, by part (`arithmetic.of_axial`)."""
    return arithmetic.of_axial(self)

  @staticmethod
  def encoder_of(section: dict[str, Any], prefix: int, grid: tuple[int, int]) -> encoder.Encoder:
    """A ViT's encoder with blocks of two."""
    plain = encoder.build(section, prefix, grid, max(grid))
    blocks = tuple(split(block, grid) for block in plain.blocks)
    return plain.copy(blocks=blocks)


def split(block: Any, grid: tuple[int, int]) -> AxialBlock:
  """A ViT's block as two that follow rows and columns; positions are added before the first."""
  fields = {key: getattr(block.attention, key) for key in fields_of(attention.Attention)}
  make = functools.partial(AxialAttention, **fields, grid=grid)
  row = block.copy(attention=make(axis='row'))
  column = block.copy(attention=make(axis='column'), position=None)
  return AxialBlock(row, column, block.drop_path)


def build(*, variant: str, image_size: tuple[int, int], **section) -> AxialTransformer:
  """An Axial-ViT such as 'B/32'; the other arguments are those of `vit.build`.

  Raises:
    ValueError: no such variant, a class token, registers, or a value that does not fit.
  """
  if section['class_token']:
    raise ValueError(
      'config.model.class_token=True: a class token stands in no row and no column of an axial '
      "model; leave it out and take a readout of patches, such as 'mean'"
    )
  if section['registers']:
    raise ValueError(
      f'config.model.registers={section["registers"]}: a register stands in no row and no column '
      'of an axial model; leave them out (registers=0), or take config.model.name=vit'
    )
  return vit.assemble(AxialTransformer, *vit_sizes.decode_variant(variant), image_size, section)
