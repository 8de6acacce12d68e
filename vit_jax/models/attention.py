"""Multi-head self-attention: the plain form, which can show its weights, and a fused kernel.

Letters in annotations as in `layers.py`. Parameters carry the names and shapes of the published
`.npz` files; query, key and value are one product, and heads go before tokens.
"""

import math
from typing import Literal

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from vit_jax.models.initialisers import INITIALISERS
from vit_jax.runtime.choices import check_choice

ATTENTION = ('auto', 'plain', 'cudnn')


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


def fused_attention(
  qkv: Float[Array, 'B T 3 h d'], scale: float, implementation: Literal['cudnn', 'xla']
) -> Float[Array, 'B T h d']:
  """Attention in one kernel, which writes no scores to memory.

  JAX lets cuDNN's kernel train on even numbers of tokens alone ("Unsupported sequence length Q 197"
  otherwise, jax 0.10.2): an odd one gets a token more, which the lengths mask.

  Args:
    implementation: of `jax.nn.dot_product_attention`: 'cudnn', or 'xla' to see the same elsewhere.
  """
  batch, length = qkv.shape[:2]
  lengths = None
  if length % 2:
    qkv = jnp.pad(qkv, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    lengths = jnp.full(batch, length, jnp.int32)
  query, key, value = (qkv[:, :, i] for i in range(3))
  y = jax.nn.dot_product_attention(
    query, key, value, scale=scale, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    implementation=implementation,
  )  # fmt: skip
  return y[:, :length]


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
    if fused and not self.is_initializing():  # JAX cannot vmap the kernel, as `Encoder` would.
      y = fused_attention(qkv, scale, 'cudnn')
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
