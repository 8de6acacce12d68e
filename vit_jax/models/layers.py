"""Parts of a Transformer encoder in the fast form: patch embedding, MLP, drop path, block.

Letters in annotations: `B` batch, `H W` height and width, `C` channels, `P` patch side, `N`
patches, `T` tokens (patches and class token), `D` width, `M` MLP width, `h` heads, `d` width
of a head.

Parameters carry the names and shapes of the published `.npz` files (arXiv:2010.11929); how they are
multiplied is ours: one product for query, key and value, heads before tokens, two-dimensional
matrix products. `benchmarks/step.py` measures what that buys over plain linen.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import products
from vit_jax.models.activations import GELU
from vit_jax.models.dropout import Dropout, DropPath
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.runtime.choices import check_choice

DTYPES = ('float32', 'bfloat16', 'float16')


class Dense(nn.Module):
  """A linear map of the last axis, as one two-dimensional matrix product."""

  features: int
  use_bias: bool = True
  dtype: str = 'float32'
  kernel_init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Float[Array, '... I']) -> Float[Array, '... O']:
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
    y = products.with_kernel(
      x.reshape(-1, x.shape[-1]).astype(self.dtype), kernel.astype(self.dtype)
    )
    if self.use_bias:
      y += self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
    return y.reshape(*x.shape[:-1], self.features)


class PatchEmbedding(nn.Module):
  """Images -> one vector a patch, row by row: a strided convolution as one matrix product."""

  width: int
  patch_size: int
  dtype: str = 'float32'
  initialisers: str = 'official'

  @nn.compact
  def __call__(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B N D']:
    batch, height, width, channels = images.shape
    side = self.patch_size
    grid = (height // side, width // side)
    shape, fan_in = (side, side, channels, self.width), side * side * channels
    initial = INITIALISERS[self.initialisers]
    kernel = self.param('kernel', initial('embedding', fan_in), shape)
    bias = self.param('bias', initial('embedding_bias', fan_in), (self.width,))
    patches = images.reshape(batch, grid[0], side, grid[1], side, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * channels)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    tokens = products.with_kernel(patches.astype(self.dtype), kernel)
    return (tokens + bias.astype(self.dtype)).reshape(batch, grid[0] * grid[1], self.width)


class MlpBlock(nn.Module):
  """Dense -> GELU -> dropout -> Dense -> dropout.

  Attributes:
    elementwise_again: compute GELU again in the backward pass from its input alone. On a GPU the
      compiler keeps more else (ViT-B/16, 128 pictures on an H100: 8.4 instead of 10.1 GB of
      temporary memory); a TPU's does so by itself, and what is asked for costs it (78 instead of 74
      GB of traffic).
    mlp_bias: whether both products have one.
    products: how many matrices of `D x M` it multiplies with.
  """

  products: ClassVar[int] = 2
  mlp_dim: int
  dropout: float = 0.0
  gelu: str = 'tanh'
  elementwise_again: bool = False
  dtype: str = 'float32'
  initialisers: str = 'official'
  mlp_bias: bool = True

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.model.gelu', self.gelu, GELU)

  @nn.compact
  def __call__(self, x: Float[Array, '... D'], train: bool) -> Float[Array, '... D']:
    y = self.dense(self.mlp_dim, x.shape[-1], 'Dense_0')(x)
    gelu = jax.checkpoint(GELU[self.gelu]) if self.elementwise_again else GELU[self.gelu]
    y = Dropout(self.dropout)(gelu(y), train)
    y = self.dense(x.shape[-1], self.mlp_dim, 'Dense_1')(y)
    return Dropout(self.dropout)(y, train)

  def dense(self, features: int, fan_in: int, name: str) -> Dense:
    initial = INITIALISERS[self.initialisers]
    kernel, bias = initial('mlp', fan_in), initial('mlp_bias', fan_in)
    return Dense(features, self.mlp_bias, self.dtype, kernel, bias, name=name)


class SwiGLU(MlpBlock):
  """Dense -> silu(gate) * value -> dropout -> Dense -> dropout (arXiv:2002.05202), as in DINOv2-g.

  `Dense_0` has the gate and then the value side by side, `mlp_dim` numbers each; `gelu` says
  nothing here.
  """

  products: ClassVar[int] = 3

  @nn.compact
  def __call__(self, x: Float[Array, '... D'], train: bool) -> Float[Array, '... D']:
    both = self.dense(2 * self.mlp_dim, x.shape[-1], 'Dense_0')(x)
    gated = jax.checkpoint(gate) if self.elementwise_again else gate
    y = Dropout(self.dropout)(gated(both), train)
    y = self.dense(x.shape[-1], self.mlp_dim, 'Dense_1')(y)
    return Dropout(self.dropout)(y, train)


def gate(both: Float[Array, '... N']) -> Float[Array, '... M']:
  """The second half of the numbers, each times silu of its fellow in the first half."""
  first, second = jnp.split(both, 2, axis=-1)
  return jax.nn.silu(first) * second


MLPS: dict[str, type[MlpBlock]] = {'plain': MlpBlock, 'swiglu': SwiGLU}


class LayerScale(nn.Module):
  """A learned factor for each channel of a branch, small at first (CaiT, arXiv:2103.17239)."""

  initial: float

  @nn.compact
  def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
    start = nn.initializers.constant(self.initial)
    return x * self.param('scale', start, x.shape[-1:]).astype(x.dtype)


class Block(nn.Module):
  """Pre-norm Transformer block: x + attention(norm(x)), then x + MLP(norm(x)) (equations 2 and 3).

  Its parts are given: `attention(x, train) -> (y, weights)`, `mlp(x, train) -> y` and `norm`, of
  which it makes two. Returns the tokens and, by name, what was computed on the way.

  Attributes:
    projection_dropout: of the output of attention.
    layer_scale: first factor of both branches; 0: they have none.
    drop_path: of both branches, for whole examples.
    position: what is added to the tokens before all else; None: nothing.
  """

  attention: nn.Module
  mlp: nn.Module
  norm: nn.Module
  projection_dropout: float = 0.0
  layer_scale: float = 0.0
  drop_path: Any = 0.0
  position: nn.Module | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    if self.position is not None:
      x = x + self.position.copy(name='posembed')(x).astype(x.dtype)
    y = self.norm.copy(name='LayerNorm_0')(x)
    y, weights = self.attention.copy(name='MultiHeadDotProductAttention_1')(y, train)
    attended = self.scaled(1, Dropout(self.projection_dropout)(y, train))
    x = x + DropPath(self.drop_path)(attended, train)
    y = self.norm.copy(name='LayerNorm_2')(x)
    y = self.scaled(2, self.mlp.copy(name='MlpBlock_3')(y, train))
    x = x + DropPath(self.drop_path)(y, train)
    return x, {'attention_weights': weights, 'attention': attended, 'mlp': y, 'tokens': x}

  def scaled(self, branch: int, y: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """A branch, times its learned factors where it has some."""
    return LayerScale(self.layer_scale, name=f'LayerScale_{branch}')(y) if self.layer_scale else y
