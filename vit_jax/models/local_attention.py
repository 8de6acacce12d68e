"""Self-attention of each place of a map with its neighbourhood (arXiv:1906.05909, section 3).

softmax_ab(q k_ab + q r_(a-i, b-j)) v_ab over the k x k places (a, b) around (i, j), without a
factor 1 / sqrt(d), as the paper writes it. A loop over the k * k offsets multiplies queries with
the map that is shifted by one of them, so that no more than logits, h k^2 numbers a place, lie in
memory: never k^2 copies of the features.

What the paper leaves open: places beyond the border do not take part. Every head has tables of its
own and sees both offsets, rows in one half of its channels and columns in the other. Projections
are whole matrices without bias, as the published counts want.
"""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Float32
import numpy as np

from vit_jax.models import layers, position

POSITIONS = ('relative', 'absolute', 'none')
LINEAR = nn.initializers.lecun_normal()


def places(kernel: int) -> np.ndarray:
  """(row, column) of each neighbour in the k x k window, row by row: `n 2`."""
  return np.stack(np.divmod(np.arange(kernel**2), kernel), -1)


def inside(grid: tuple[int, int], kernel: int) -> Bool[np.ndarray, 'n H W']:
  """Which neighbours of each place lie on the map."""
  rows, columns = (
    (np.arange(side)[None] + np.arange(kernel)[:, None] - kernel // 2) for side in grid
  )
  seen = [(axis >= 0) & (axis < side) for axis, side in zip((rows, columns), grid, strict=True)]
  both = seen[0][:, None, :, None] & seen[1][None, :, None, :]
  return both.reshape(kernel**2, *grid)


def bordered(x: Float[Array, 'B H W h d'], kernel: int) -> Float[Array, 'B I J h d']:
  """A map with a border of zeros, as wide as a neighbourhood reaches."""
  half = kernel // 2
  return jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0), (0, 0)))


def neighbours(
  padded: Float[Array, 'B I J h d'], place: Array, kernel: int
) -> Float[Array, 'B H W h d']:
  """The map of the one neighbour of each place that lies at `place` of the window."""
  batch, height, width, *rest = padded.shape
  start = (0, place[0], place[1], 0, 0)
  return jax.lax.dynamic_slice(
    padded, start, (batch, height - kernel + 1, width - kernel + 1, *rest)
  )


def products(
  query: Float[Array, 'B H W h d'],
  key: Float[Array, 'B H W h d'],
  offsets: Float[Array, 'n h d'],
  kernel: int,
) -> Float32[Array, 'n B H W h']:
  """Each query times the keys of its neighbourhood, q (k + r), one neighbour after another.

  Args:
    offsets: r, what is added to the keys of each neighbour.
  """
  padded = bordered(key, kernel)

  @jax.checkpoint  # Else the backward pass would keep the shifted map of every offset.
  def product(step):
    place, offset = step
    near = neighbours(padded, place, kernel) + offset
    return jnp.einsum('byxhd,byxhd->byxh', query, near, preferred_element_type=jnp.float32)

  return jax.lax.map(product, (jnp.asarray(places(kernel)), offsets))


def mixed(
  weights: Float[Array, 'n B H W h'], value: Float[Array, 'B H W h d'], kernel: int
) -> Float[Array, 'B H W h d']:
  """The values of each neighbourhood, weighted and summed, one neighbour after another."""
  padded = bordered(value, kernel)

  @jax.checkpoint
  def add(total, step):
    place, share = step
    near = neighbours(padded, place, kernel)
    # In float32: a sum of k^2 parts would lose half of bfloat16's digits.
    part = jnp.einsum('byxh,byxhd->byxhd', share, near, preferred_element_type=jnp.float32)
    return total + part, None

  steps = jnp.asarray(places(kernel)), weights
  found = jax.lax.scan(add, jnp.zeros(value.shape, jnp.float32), steps)[0]
  return found.astype(value.dtype)


class LocalAttention(nn.Module):
  """Multi-head self-attention of each place with the k x k places around it.

  Attributes:
    features: channels that come out.
    kernel: k, an odd number.
    positions: relative (learned, of rows and columns), absolute (waves of rows and columns, which
      are added to the input), or none.
    content: whether logits have q k; without, the positions alone decide.
  """

  features: int
  num_heads: int
  kernel: int
  positions: str = 'relative'
  content: bool = True
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B H W C']
  ) -> tuple[Float[Array, 'B H W D'], Float32[Array, 'B H W h n']]:
    """The new map, and the weights of each neighbour, row by row of the window."""
    batch, height, width, channels = x.shape
    if self.positions == 'absolute':
      waves = position.Sinusoidal2D(0, (height, width))(x.reshape(batch, -1, channels))
      x = x + waves.reshape(1, height, width, channels).astype(x.dtype)
    query = self.project('query', x)
    key = self.project('key', x) if self.content else jnp.zeros_like(query)
    logits = products(query, key, self.offsets(query.shape[-1]), self.kernel)
    seen = jnp.asarray(inside((height, width), self.kernel))[:, None, :, :, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=0)
    y = mixed(weights.astype(self.dtype), self.project('value', x), self.kernel)
    return y.reshape(batch, height, width, self.features), jnp.moveaxis(weights, 0, -1)

  def project(self, name: str, x: Float[Array, 'B H W C']) -> Float[Array, 'B H W h d']:
    """A 1 x 1 convolution, cut into heads."""
    y = layers.Dense(self.features, False, self.dtype, LINEAR, name=name)(x)
    return y.reshape(*x.shape[:-1], self.num_heads, -1)

  def offsets(self, depth: int) -> Float[Array, 'n h d']:
    """The vector of each neighbour: its row's in one half of a head, its column's in the other."""
    side, shape = self.kernel, (self.kernel, self.num_heads, depth // 2)
    if self.positions != 'relative':
      return jnp.zeros((side**2, self.num_heads, depth), self.dtype)
    init = nn.initializers.normal(depth**-0.5)
    rows, columns = (self.param(name, init, shape) for name in ('rows', 'columns'))
    both = [rows[:, None], columns[None]]
    whole = (side, side, *shape[1:])
    table = jnp.concatenate([jnp.broadcast_to(x, whole) for x in both], axis=-1)
    return table.reshape(side**2, self.num_heads, depth).astype(self.dtype)


def over_map(weights: Float[Array, 'B H W h n'], kernel: int) -> Float[Array, 'B h T T']:
  """Weights of neighbourhoods as weights over the whole map, 0 beyond the neighbourhood."""
  batch, height, width, heads, _ = weights.shape
  seen = inside((height, width), kernel)
  neighbour, row, column = np.nonzero(seen)
  down, right = (places(kernel)[neighbour] - kernel // 2).T
  query, key = row * width + column, (row + down) * width + column + right
  whole = jnp.zeros((batch, heads, height * width, height * width), weights.dtype)
  chosen = weights[:, row, column, :, neighbour]  # NumPy's rule: such an axis comes first.
  return whole.at[:, :, query, key].set(jnp.moveaxis(chosen, 0, -1))
