"""Multi-head self-attention in the plain form, which can show its weights, or in a fused kernel.

Letters in annotations as in `layers.py`. Parameters carry the names and shapes of the published
`.npz` files; query, key and value are one product, and heads go before tokens.
"""

import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from vit_jax.models import fused_attention, products
from vit_jax.models.dropout import Dropout
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.runtime.choices import check_choice


class HeadProjection(nn.Module):
  """The kernel and bias of a projection into heads (`D h d`) or out of them (`h d D`).

  The first `inputs` axes of `shape` are summed over. Xavier counts its fans on the matrix that is
  multiplied, `D x D`, as linen's DenseGeneral does. An initialiser sees `fan` times the fan-in.
  """

  shape: tuple[int, int, int]
  inputs: int
  use_bias: bool = True
  initialisers: str = 'official'
  fan: int = 1

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    flat = (math.prod(self.shape[: self.inputs]), math.prod(self.shape[self.inputs :]))
    role = 'projection' if self.inputs == 1 else 'output'
    initial = INITIALISERS[self.initialisers]
    draw = initial(role, flat[0] * self.fan)
    kernel = self.param('kernel', lambda key: draw(key, flat).reshape(self.shape))
    if not self.use_bias:
      return kernel, jnp.zeros(self.shape[self.inputs :])
    bias = initial(f'{role}_bias', flat[0])
    return kernel, self.param('bias', bias, self.shape[self.inputs :])


def by_head(qkv: Float[Array, 'B T 3 h d']) -> list[Float[Array, 'B h T d']]:
  """Query, key and value, heads before tokens.

  They are split at once: the gradient is then one concatenation, not a sum of padded parts.
  """
  return [part.squeeze(2).swapaxes(1, 2) for part in jax.lax.split(qkv, (1, 1, 1), 2)]


@jax.custom_vjp
def add_in_turn(
  scores: Float32[Array, 'B h T T'], bias: Float[Array, 'G #h T T']
) -> Float32[Array, 'B h T T']:
  """A bias for `G` sequences in turn added to scores, of whose batch `G` is a divisor.

  The gradient of the bias is a product with ones: a CPU's compiler sums slowly what lies far apart
  (Swin-T's first stage, 8 pictures, attention forward and back: 83 ms instead of 114).
  """
  return (scores.reshape(-1, len(bias), *scores.shape[1:]) + bias).reshape(scores.shape)


def add_backward(bias, gradient):
  """The gradients of `add_in_turn`: of the scores as it is, of the bias summed over the turns."""
  turns = gradient.reshape(-1, len(bias) * math.prod(gradient.shape[1:]))
  ones = jnp.ones((1, len(turns)), gradient.dtype)
  total = jnp.matmul(ones, turns, precision=jax.lax.Precision.HIGHEST)
  total = total.reshape(len(bias), *gradient.shape[1:])
  if bias.shape[1] == 1:  # One for all heads.
    total = total.sum(1, keepdims=True)
  return gradient, total.astype(bias.dtype)


add_in_turn.defvjp(lambda scores, bias: (add_in_turn(scores, bias), bias), add_backward)


def exponents_of(
  query: Float[Array, 'B h T d'],
  key: Float[Array, 'B h T d'],
  scale: float,
  relative: Float[Array, 'R h d'] | None = None,
  bias: Float[Array, 'G #h T T'] | None = None,
) -> tuple[Float32[Array, 'B h T T'], Float32[Array, 'B h T 1']]:
  """What softmax divides, and by what: exp(q k^T + bias - max) and its sums, in float32.

  Args:
    relative: further keys for each offset of key and query, `R = 2 T - 1`.
    bias: for `G` sequences in turn, of which the batch has a multiple.
  """
  scores = products.scores(query * scale, key)
  if relative is not None:
    by_offset = jnp.einsum(
      'bhtd,rhd->bhtr', query * scale, relative, preferred_element_type=jnp.float32
    )
    scores += from_offsets(by_offset)
  if bias is not None:
    scores = add_in_turn(scores, bias)
  exponents = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  return exponents, exponents.sum(-1, keepdims=True)


def from_offsets(x: Float[Array, '*B T R']) -> Float[Array, '*B T T']:
  """Numbers by query and offset, from -(T - 1), by query and key: y[t, s] = x[t, s - t + T - 1].

  A row more in front of each and the same memory in rows that are one shorter: nothing is gathered.
  """
  *batch, length, offsets = x.shape
  flat = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, 1),)).reshape(*batch, -1)
  flat = flat[..., length - 1 : length - 1 + length * offsets]
  return flat.reshape(*batch, length, offsets)[..., :length]


class Attention(nn.Module):
  """Multi-head self-attention, softmax(q k^T / sqrt(d)) v (arXiv:2010.11929, appendix A).

  Attributes:
    qk_scale: what q k^T is multiplied by; None: d ** -0.5.
    attention_dropout: of the attention weights.
    attention: the kernel, as `choose` says: plain, cudnn (GPU) or pallas (TPU). Where the
      collection 'perturbations' holds 'attention_weights', these are added to the weights: plain.
    remat: 'attention' computes the weights again in the backward pass instead of keeping them.
    relative: whether the query also meets a learned key for each offset of two tokens in the
      sequence; these logits are added (arXiv:2010.11929, D.4). Each head has keys of its own, which
      the paper leaves open.
    causal: whether a token sees itself and those before it alone.
    output_bias: whether the output projection has one; `output_fan` multiplies the fan-in that its
      initialiser sees.
  """

  num_heads: int
  qkv_bias: bool = True
  qk_scale: float | None = None
  attention_dropout: float = 0.0
  attention: str = 'plain'
  remat: str = 'none'
  dtype: str = 'float32'
  initialisers: str = 'official'
  relative: bool = False
  causal: bool = False
  output_bias: bool = True
  output_fan: int = 1

  def __post_init__(self):
    super().__post_init__()
    check_choice('kernel of attention', self.attention, ('plain', *fused_attention.FUSED))

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], Float32[Array, 'B h T T']]:
    batch, length, width = x.shape
    heads, head_dim = self.num_heads, width // self.num_heads
    scale = head_dim**-0.5 if self.qk_scale is None else self.qk_scale
    change = self.get_variable('perturbations', 'attention_weights')
    # JAX cannot vmap the kernels, as `Encoder` does to draw parameters; and they have no weights.
    apart = self.is_initializing() or change is not None
    kernel = 'plain' if apart else self.attention
    # On a TPU what belongs to a head lies side by side: no axis of 64 is then padded to 128 lanes.
    heads_first = kernel == 'pallas'
    qkv = self.project(x, heads_first).reshape(
      batch, length, *((heads, 3) if heads_first else (3, heads)), head_dim
    )
    qkv = qkv.swapaxes(2, 3) if heads_first else qkv
    if kernel == 'plain':
      added = self.offsets(length, head_dim), self.bias(length)
      y, weights = self.plain(qkv, scale, train, *added, change)
    else:
      y = (
        fused_attention.on_tpu(qkv, scale)
        if heads_first
        else fused_attention.on_gpu(qkv, scale, 'cudnn', self.causal)
      )
      query, key, _ = by_head(qkv)
      exponents, total = exponents_of(query, key, scale, None, self.bias(length))
      weights = exponents / total  # Pruned by jit unless somebody asks for it.
    return self.project_out(y), weights

  def project_out(self, y: Float[Array, 'B T *D']) -> Float[Array, 'B T D']:
    """The heads, one after another or each on an axis of its own, through the last projection."""
    width = math.prod(y.shape[2:])
    shape = (self.num_heads, width // self.num_heads, width)
    weight, bias = HeadProjection(
      shape, 2, self.output_bias, self.initialisers, self.output_fan, name='out'
    )()
    z = products.with_kernel(y.reshape(-1, width), weight.reshape(-1, width).astype(self.dtype))
    return (z + bias.astype(self.dtype)).reshape(*y.shape[:2], width)

  def offsets(self, length: int, head_dim: int) -> Float[Array, 'R h d'] | None:
    """The learned key of each offset and head; None without relative positions."""
    if not self.relative:
      return None
    initial = INITIALISERS[self.initialisers]('position', head_dim)
    shape = (2 * length - 1, self.num_heads, head_dim)
    return self.param('relative_embedding', initial, shape).astype(self.dtype)

  def bias(self, length: int) -> Float[Array, 'G #h T T'] | None:
    """What is added to the logits, as `exponents_of` takes it; None: nothing."""
    return (
      jnp.where(jnp.tri(length, dtype=bool), 0.0, -jnp.inf)[None, None] if self.causal else None
    )

  def plain(
    self,
    qkv: Float[Array, 'B T 3 h d'],
    scale: float,
    train: bool,
    relative: Float[Array, 'R h d'] | None = None,
    bias: Float[Array, 'G #h T T'] | None = None,
    change: Float[Array, 'B h T T'] | None = None,
  ) -> tuple[Float[Array, 'B T h d'], Float32[Array, 'B h T T']]:
    """Attention in the compiler's own operations, and its weights.

    Args:
      change: added to the weights, which are then on the way to the output; else exponents are.
    """
    dropout = Dropout(self.attention_dropout)
    key = dropout.key(train)

    def attend(qkv, key, change):
      query, keys, value = by_head(qkv)
      exponents, total = exponents_of(query, keys, scale, relative, bias)
      weights = exponents / total  # Pruned by jit unless somebody asks for it.
      if change is not None:
        exponents, total = weights + change, 1.0
        weights = exponents
      exponents = dropout.drop(exponents, key)
      # Dividing d columns after the product is cheaper than dividing T columns before it.
      y = products.mix(exponents.astype(self.dtype), value)
      return (y / total).astype(self.dtype).swapaxes(1, 2), weights

    return (jax.checkpoint(attend) if self.remat == 'attention' else attend)(qkv, key, change)

  def project(self, x: Float[Array, 'B T D'], heads_first: bool) -> Float[Array, 'BT DDD']:
    """Query, key and value of every head in one product; of one head after another, or apart."""
    width = x.shape[-1]
    shape = (width, self.num_heads, width // self.num_heads)
    parts = [
      HeadProjection(shape, 1, self.qkv_bias, self.initialisers, name=name)()
      for name in ('query', 'key', 'value')
    ]
    kernel = jnp.stack([kernel for kernel, _ in parts], 1 + heads_first).reshape(width, 3 * width)
    y = products.with_kernel(x.reshape(-1, width), kernel.astype(self.dtype))
    if self.qkv_bias:
      y += jnp.stack([bias for _, bias in parts], int(heads_first)).reshape(-1).astype(self.dtype)
    return y
