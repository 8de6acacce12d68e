"""A ResNet's stem of attention: 4 x 4 blocks of pixels, values that know their place, a pool.

arXiv:1906.05909, section 3.2: single pixels say little, so a value is made by a mixture of kernels
that its place within the block chooses, as edges are found. The ReLU between norm and pool, as in
a ResNet's stem, and embeddings of places that all heads share are how it is read here.
"""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax.models import layers, resnet
from vit_jax.models.local_attention import LINEAR
from vit_jax.models.windows import Windows

SIDE = 4  # of a block, and of the pool


class AttentionStem(nn.Module):
  """Attention within blocks of pixels, a norm and a max-pool that keeps one place a block.

  Attributes:
    features: channels that come out.
    mixtures: kernels that a value is a mixture of; 1: values that do not know their place.
  """

  features: int
  num_heads: int
  mixtures: int
  epsilon: float
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    windows = Windows.of((images.shape[1], images.shape[2]), SIDE, shifted=False)
    attend = BlockAttention(
      self.features, self.num_heads, self.mixtures, self.dtype, name='attention'
    )
    y = windows.join(attend(windows.cut(images.astype(self.dtype))))
    y = nn.relu(resnet.GroupNorm(self.epsilon, name='norm')(y))
    return nn.max_pool(y, (SIDE, SIDE), (SIDE, SIDE))


class BlockAttention(nn.Module):
  """Self-attention of the pixels of a block, each with all of them."""

  features: int
  num_heads: int
  mixtures: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, 'n t C']) -> Float[Array, 'n t D']:
    query, key = (
      layers.Dense(self.features, False, self.dtype, LINEAR, name=name)(x)
      .reshape(*x.shape[:2], self.num_heads, -1) for name in ('query', 'key')
    )  # fmt: skip
    logits = jnp.einsum('nthd,nshd->nhts', query, key, preferred_element_type=jnp.float32)
    by_offset = self.offsets(query.shape[-1] // 2)
    logits += jnp.einsum('nthd,tshd->nhts', query, by_offset, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits).astype(self.dtype)
    value = jnp.einsum('nsc,scd->nsd', x, self.value_kernels(x.shape[-1]))
    value = value.reshape(*x.shape[:2], self.num_heads, -1)
    return jnp.einsum('nhts,nshd->nthd', weights, value).reshape(*x.shape[:2], self.features)

  def offsets(self, depth: int) -> Float[Array, 't t h d']:
    """The learned vector of each pair of pixels: of its rows in one half, of its columns."""
    init = nn.initializers.normal((2 * depth) ** -0.5)
    shape = (2 * SIDE - 1, self.num_heads, depth)
    tables = [self.param(name, init, shape).astype(self.dtype) for name in ('rows', 'columns')]
    axes = np.divmod(np.arange(SIDE**2), SIDE)
    steps = [axis - axis[:, None] + SIDE - 1 for axis in axes]
    return jnp.concatenate([table[step] for table, step in zip(tables, steps, strict=True)], -1)

  def value_kernels(self, channels: int) -> Float[Array, 't C D']:
    """The kernel of each place of a block: sum_m p(a, b, m) W_m."""
    kernels = self.param('value', LINEAR, (channels, self.mixtures, self.features))
    shape, init = (SIDE, self.features), nn.initializers.normal(self.features**-0.5)
    rows, columns = (self.param(f'place_{name}', init, shape) for name in ('rows', 'columns'))
    choose = self.param('mixtures', nn.initializers.normal(1.0), (self.features, self.mixtures))
    places = (rows[:, None] + columns).reshape(SIDE**2, self.features)
    shares = jax.nn.softmax(places @ choose)
    return jnp.einsum('tm,cmd->tcd', shares, kernels).astype(self.dtype)
