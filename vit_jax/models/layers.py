"""Parts of a Transformer encoder in the fast form: patch embedding, attention, MLP, block.

Letters in annotations: `B` batch, `H W` height and width, `C` channels, `P` patch side, `N`
patches, `T` tokens (patches and class token), `D` width, `M` MLP width, `h` heads, `d` width
of a head.

Parameters carry the names and shapes of the published `.npz` files (arXiv:2010.11929); how they are
multiplied is ours: one product for query, key and value, heads before tokens, two-dimensional
matrix products. `benchmarks/step.py` measures what that buys over plain linen.
"""

from collections.abc import Callable
import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from vit_jax.models.initialisers import INITIALISERS
from vit_jax.runtime.choices import check_choice

GELU: dict[str, Callable] = {
  'tanh': lambda x: jax.nn.gelu(x, approximate=True),  # Flax, official code, big_vision
  'exact': lambda x: jax.nn.gelu(x, approximate=False),  # timm, torchvision, transformers
  'quick': lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI
}
ATTENTION = ('auto', 'plain', 'cudnn')
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
    y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)
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
    tokens = patches.astype(self.dtype) @ kernel.reshape(-1, self.width).astype(self.dtype)
    return (tokens + bias.astype(self.dtype)).reshape(batch, grid[0] * grid[1], self.width)


class HeadProjection(nn.Module):
  """The kernel and bias of a projection into heads (`D h d`) or out of them (`h d D`).

  The first `inputs` axes of `shape` are summed over. Xavier counts its fans on the matrix that is
  multiplied, `D x D`, as linen's DenseGeneral does.
  """

  shape: tuple[int, int, int]
  inputs: int
  use_bias: bool = True
  initialisers: str = 'official'

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    flat = (math.prod(self.shape[: self.inputs]), math.prod(self.shape[self.inputs :]))
    role = 'projection' if self.inputs == 1 else 'output'
    initial = INITIALISERS[self.initialisers]
    draw = initial(role, flat[0])
    kernel = self.param('kernel', lambda key: draw(key, flat).reshape(self.shape))
    if not self.use_bias:
      return kernel, jnp.zeros(self.shape[self.inputs :])
    bias = initial(f'{role}_bias', flat[0])
    return kernel, self.param('bias', bias, self.shape[self.inputs :])


def uses_cudnn(implementation: str, dtype: str, head_dim: int, dropout: float) -> bool:
  """Whether attention runs in cuDNN's fused kernel; `auto` takes it wherever it is exact.

  Raises:
    ValueError: `implementation` is 'cudnn' where that kernel cannot run.
  """
  reasons = {
    'the backend is no GPU': jax.default_backend() != 'gpu',
    'dtype is not bfloat16 or float16': dtype not in ('bfloat16', 'float16'),
    f'the heads are {head_dim} wide, not a multiple of 8 up to 128': head_dim % 8 or head_dim > 128,
    'attention dropout needs the weights': dropout > 0,
  }
  obstacles = [reason for reason, holds in reasons.items() if holds]
  if implementation == 'cudnn' and obstacles:
    raise ValueError(f"attention='cudnn' cannot run here: {'; '.join(obstacles)}; use 'auto'")
  return implementation != 'plain' and not obstacles


class Attention(nn.Module):
  """Multi-head self-attention, softmax(q k^T / sqrt(d)) v (arXiv:2010.11929, appendix A).

  Attributes:
    qk_scale: what q k^T is multiplied by; None: d ** -0.5.
    attention_dropout: of the attention weights.
    attention: plain, cudnn (GPU, bfloat16), or auto: cudnn wherever it is exact.
  """

  num_heads: int
  qkv_bias: bool = True
  qk_scale: float | None = None
  attention_dropout: float = 0.0
  attention: str = 'auto'
  dtype: str = 'float32'
  initialisers: str = 'official'

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.model.attention', self.attention, ATTENTION)

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], Float32[Array, 'B h T T']]:
    batch, length, width = x.shape
    heads, head_dim = self.num_heads, width // self.num_heads
    qkv = self.project(x).reshape(batch, length, 3, heads, head_dim)
    scale = head_dim**-0.5 if self.qk_scale is None else self.qk_scale
    dropout = self.attention_dropout if train else 0.0
    fused = uses_cudnn(self.attention, self.dtype, head_dim, dropout)
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum('bhtd,bhsd->bhts', query * scale, key, preferred_element_type=jnp.float32)
    exponents = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = exponents.sum(-1, keepdims=True)
    weights = exponents / total  # Pruned by jit unless somebody asks for it.
    if fused:
      y = jax.nn.dot_product_attention(
        *(qkv[:, :, i] for i in range(3)), scale=scale, implementation='cudnn'
      )
    else:
      exponents = nn.Dropout(self.attention_dropout)(exponents, deterministic=not train)
      # Dividing d columns after the product is cheaper than dividing T columns before it.
      y = jnp.matmul(exponents.astype(self.dtype), value, preferred_element_type=jnp.float32)
      y = (y / total).astype(self.dtype).transpose(0, 2, 1, 3)
    out = HeadProjection((heads, head_dim, width), 2, True, self.initialisers, name='out')
    kernel, bias = out()
    y = y.reshape(-1, width) @ kernel.reshape(-1, width).astype(self.dtype)
    return (y + bias.astype(self.dtype)).reshape(x.shape), weights

  def project(self, x: Float[Array, 'B T D']) -> Float[Array, 'BT DDD']:
    """Query, key and value of every head in one product."""
    width = x.shape[-1]
    shape = (width, self.num_heads, width // self.num_heads)
    parts = [
      HeadProjection(shape, 1, self.qkv_bias, self.initialisers, name=name)()
      for name in ('query', 'key', 'value')
    ]
    kernel = jnp.concatenate([kernel.reshape(width, width) for kernel, _ in parts], axis=1)
    y = x.reshape(-1, width) @ kernel.astype(self.dtype)
    if self.qkv_bias:
      y += jnp.concatenate([bias.reshape(width) for _, bias in parts]).astype(self.dtype)
    return y


class MlpBlock(nn.Module):
  """Dense -> GELU -> dropout -> Dense -> dropout."""

  mlp_dim: int
  dropout: float = 0.0
  gelu: str = 'tanh'
  dtype: str = 'float32'
  initialisers: str = 'official'

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.model.gelu', self.gelu, GELU)

  @nn.compact
  def __call__(self, x: Float[Array, '... D'], train: bool) -> Float[Array, '... D']:
    y = self.dense(self.mlp_dim, x.shape[-1], 'Dense_0')(x)
    y = nn.Dropout(self.dropout)(GELU[self.gelu](y), deterministic=not train)
    y = self.dense(x.shape[-1], self.mlp_dim, 'Dense_1')(y)
    return nn.Dropout(self.dropout)(y, deterministic=not train)

  def dense(self, features: int, fan_in: int, name: str) -> Dense:
    initial = INITIALISERS[self.initialisers]
    kernel, bias = initial('mlp', fan_in), initial('mlp_bias', fan_in)
    return Dense(features, dtype=self.dtype, kernel_init=kernel, bias_init=bias, name=name)


class DropPath(nn.Module):
  """Stochastic depth: drops a residual branch for whole examples (arXiv:1603.09382)."""

  rate: float

  @nn.compact
  def __call__(self, x: Float[Array, 'B ...'], train: bool) -> Float[Array, 'B ...']:
    return nn.Dropout(self.rate, broadcast_dims=tuple(range(1, x.ndim)))(x, deterministic=not train)


class Block(nn.Module):
  """Pre-norm Transformer block: x + attention(norm(x)), then x + MLP(norm(x)) (equations 2 and 3).

  Its parts are given: `attention(x, train) -> (y, weights)`, `mlp(x, train) -> y` and `norm`, of
  which it makes two. Returns the tokens and, by name, what was computed on the way.

  Attributes:
    projection_dropout: of the output of attention.
    drop_path: of both branches, for whole examples.
  """

  attention: nn.Module
  mlp: nn.Module
  norm: nn.Module
  projection_dropout: float = 0.0
  drop_path: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    y = self.norm.copy(name='LayerNorm_0')(x)
    y, weights = self.attention.copy(name='MultiHeadDotProductAttention_1')(y, train)
    attended = nn.Dropout(self.projection_dropout)(y, deterministic=not train)
    x = x + DropPath(self.drop_path)(attended, train)
    y = self.norm.copy(name='LayerNorm_2')(x)
    y = self.mlp.copy(name='MlpBlock_3')(y, train)
    x = x + DropPath(self.drop_path)(y, train)
    return x, {'attention_weights': weights, 'attention': attended, 'mlp': y, 'tokens': x}
