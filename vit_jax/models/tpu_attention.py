"""Attention of short sequences as one TPU kernel, which writes no scores to memory.

The scores of a whole head fit into the chip's vector memory (VMEM) at ViT's lengths, so that there
is no online softmax: a program of the kernel holds a few images and as many heads as fill whole
groups of 128 lanes. The backward pass computes the weights again from `qkv`, all that is kept.

Letters in annotations as in `layers.py`; `E` is `h 3 d`, query, key and value of one head side by
side: heads 64 wide then need neither a transposition nor padding to 128 lanes in memory.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import tpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

LANES = 128  # The last axis of a register.
ROWS = 16  # The axis before it, of two-byte numbers.
DTYPES = ('bfloat16', 'float32')
# Of the images that one program holds, twice: the next ones arrive meanwhile.
BLOCK_BYTES = 4 << 20
VMEM_BYTES = 16 << 20  # All that a v4 has, and what XLA gives a kernel elsewhere.


def obstacle(head_dim: int, num_heads: int, length: int, dtype: str) -> str | None:
  """Why the kernel cannot run, or None where it can."""
  if dtype not in DTYPES:
    return f'dtype is none of {", ".join(DTYPES)}'
  if head_dim % 8 or head_dim > LANES:
    return f'the heads are {head_dim} wide, not a multiple of 8 up to {LANES}'
  if not passes(length, head_dim, num_heads, jnp.dtype(dtype).itemsize):
    return f"{length} tokens need more than the {VMEM_BYTES >> 20} MB of a chip's vector memory"
  return None


def passes(length: int, head_dim: int, num_heads: int, itemsize: int) -> tuple[int, int] | None:
  """How many passes over the queries, and of how many each; None where no number of passes fits.

  As few as fit: with 577 tokens one pass takes half the cycles of five (static schedule for v5e).
  """
  width = 7 * group_size(head_dim, num_heads) * head_dim  # qkv and its gradient 3 each, output's 1.
  for count in range(1, pallas.cdiv(length, LANES) + 1):
    size = round_up(pallas.cdiv(length, count), LANES)
    # The compiler keeps up to 5 arrays of scores (v4, 577 tokens), and two sums from pass to pass.
    scores = round_up(length, ROWS) * (5.5 * size + 2 * LANES) * 4
    if block_bytes(count * size, width, itemsize) + scores <= VMEM_BYTES:
      return count, size
  return None


def block_bytes(rows: int, width: int, itemsize: int) -> int:
  """What one image takes in vector memory: its own block and the next one."""
  return 2 * rows * width * itemsize


def group_size(head_dim: int, num_heads: int) -> int:
  """The fewest heads whose columns fill whole groups of 128 lanes; all of them if none do."""
  sizes = (n for n in range(1, num_heads) if num_heads % n == 0)
  return next((n for n in sizes if n * head_dim % LANES == 0), num_heads)


def round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple


def product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
  """The matrix product that sums over one axis of each, in float32."""
  dimensions = (((axis_a,), (axis_b,)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def load(ref, image, start, size: int, columns: slice, length: int) -> Array:
  """Rows of one image, zero after its last token, where memory holds anything, NaN included."""
  x = ref[image, pallas.ds(start, size), columns]
  rows = start + lax.broadcasted_iota(jnp.int32, x.shape, 0)
  return jnp.where(rows < length, x.astype(jnp.float32), 0).astype(x.dtype)


def weigh(key: Array, query: Array, scale: float, length: int) -> tuple[Array, Array]:
  """Exponents of the scores, keys x queries, and their sum for each query.

  Keys come first, since sums over them are then sums of whole registers.
  """
  scores = scale * product(key, query, 1, 1)
  if len(key) > length:
    scores = jnp.where(lax.broadcasted_iota(jnp.int32, scores.shape, 0) < length, scores, -jnp.inf)
  exponents = jnp.exp(scores - scores.max(0, keepdims=True))
  return exponents, exponents.sum(0, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a program knows when it is compiled: its `heads`, `count` passes of `size` queries."""

  head_dim: int
  heads: int
  scale: float
  length: int
  count: int
  size: int

  @property
  def keys(self) -> int:
    return round_up(self.length, ROWS)

  def columns(self, head: int) -> list[slice]:
    """Where a group's block holds query, key and value of a head, and its output."""
    starts = (3 * head, 3 * head + 1, 3 * head + 2, head)
    return [slice(i * self.head_dim, (i + 1) * self.head_dim) for i in starts]


def kernel(*refs, one_head: Callable, plan: Plan) -> None:
  """`one_head(*refs, image, plan, where its columns are)` for all that a program holds."""

  def one_image(image, _):
    for head in range(plan.heads):
      one_head(*refs, image, plan, *plan.columns(head))
    return 0

  lax.fori_loop(0, len(refs[0]), one_image, 0)


def forward_head(qkv, out, image, plan: Plan, at_query, at_key, at_value, at_out) -> None:
  key = load(qkv, image, 0, plan.keys, at_key, plan.length)
  value = load(qkv, image, 0, plan.keys, at_value, plan.length).T

  def some_queries(i, _):
    start = pallas.multiple_of(i * plan.size, LANES)
    query = load(qkv, image, start, plan.size, at_query, plan.length)
    exponents, total = weigh(key, query, plan.scale, plan.length)
    # Dividing d rows after the product is cheaper than dividing T rows before it.
    y = product(value, exponents.astype(value.dtype), 1, 0) / total
    out[image, pallas.ds(start, plan.size), at_out] = y.T.astype(out.dtype)
    return 0

  lax.fori_loop(0, plan.count, some_queries, 0)


def backward_head(
  qkv, gradient, out, image, plan: Plan, at_query, at_key, at_value, at_out
) -> None:
  key = load(qkv, image, 0, plan.keys, at_key, plan.length)
  value = load(qkv, image, 0, plan.keys, at_value, plan.length)
  key_t = key.T

  def some_queries(i, sums):
    start = pallas.multiple_of(i * plan.size, LANES)
    query = load(qkv, image, start, plan.size, at_query, plan.length)
    dy = load(gradient, image, start, plan.size, at_out, plan.length)
    exponents, total = weigh(key, query, plan.scale, plan.length)
    weights = exponents / total
    d_value = product(weights.astype(dy.dtype), dy, 1, 0)
    d_weights = product(value, dy, 1, 1)
    d_scores = weights * (d_weights - (weights * d_weights).sum(0, keepdims=True))
    d_scores = (plan.scale * d_scores).astype(dy.dtype)
    d_query = product(key_t, d_scores, 1, 0)
    out[image, pallas.ds(start, plan.size), at_query] = d_query.T.astype(out.dtype)
    return sums[0] + product(d_scores, query, 1, 0), sums[1] + d_value

  zero = jnp.zeros((plan.keys, plan.head_dim), jnp.float32)
  d_key, d_value = lax.fori_loop(0, plan.count, some_queries, (zero, zero))
  out[image, pallas.ds(0, plan.keys), at_key] = d_key.astype(out.dtype)
  out[image, pallas.ds(0, plan.keys), at_value] = d_value.astype(out.dtype)


# What one head computes, in how many matrix products; columns of the result, in parts of qkv's.
DIRECTIONS = {'forward': (forward_head, 2, 1 / 3), 'backward': (backward_head, 5, 1)}


def call(direction: str, head_dim: int, scale: float, interpret: bool, *arrays: Array) -> Array:
  """Runs one direction over images and groups of heads, on one device.

  Raises:
    ValueError: there is an obstacle.
  """
  one_head, products, part = DIRECTIONS[direction]
  batch, length, width = arrays[0].shape
  dtype, heads = arrays[0].dtype, width // head_dim // 3
  reason = obstacle(head_dim, heads, length, dtype.name)
  fit = passes(length, head_dim, heads, dtype.itemsize)
  if reason or not fit:
    raise ValueError(f'the TPU kernel of attention cannot run: {reason}')
  plan = Plan(head_dim, group_size(head_dim, heads), scale, length, *fit)
  groups, rows = heads // plan.heads, plan.count * plan.size
  out_width = round(part * width)
  widths = [array.shape[-1] // groups for array in arrays] + [out_width // groups]
  images = BLOCK_BYTES // block_bytes(rows, sum(widths), dtype.itemsize)
  images = max(1, min(batch, images))
  specs = [pallas.BlockSpec((images, rows, width), lambda i, j: (i, 0, j)) for width in widths]
  return pallas.pallas_call(
    functools.partial(kernel, one_head=one_head, plan=plan),
    jax.ShapeDtypeStruct((batch, length, out_width), dtype),
    grid=(pallas.cdiv(batch, images), groups),
    in_specs=specs[:-1],
    out_specs=specs[-1],
    compiler_params=tpu.CompilerParams(dimension_semantics=('parallel', 'parallel')),
    cost_estimate=pallas.CostEstimate(
      flops=2 * products * batch * heads * length**2 * head_dim,
      transcendentals=batch * heads * length**2,
      bytes_accessed=batch * length * groups * sum(widths) * dtype.itemsize,
    ),
    interpret=interpret,
    name=f'vit_attention_{direction}',
  )(*arrays)


def on_own_images(function, *arrays: Array) -> Array:
  """`function(*arrays)`, on each device for its own images.

  The partitioner knows nothing of a kernel, and JAX refuses one that it would have to cut.
  """
  mesh = jax.typeof(arrays[0]).sharding.mesh
  mesh = mesh if mesh.axis_names else jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or mesh.are_all_axes_manual:
    return function(*arrays)
  divides = len(arrays[0]) % mesh.size == 0
  spec = PartitionSpec(mesh.axis_names if divides else None)
  # Inside, JAX does not follow which values differ between devices: pallas_call does not say.
  return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def attend(
  qkv: Float[Array, 'B T E'], head_dim: int, scale: float, interpret: bool = False
) -> Float[Array, 'B T D']:
  """softmax(scale * q k^T) v of every head, in one kernel.

  Args:
    qkv: for each head in turn its query, key and value, `head_dim` columns each.
    interpret: run the kernel's arithmetic on any device, slowly, for tests.
  """
  return on_own_images(functools.partial(call, 'forward', head_dim, scale, interpret), qkv)


def attend_forward(qkv, head_dim, scale, interpret):
  return attend(qkv, head_dim, scale, interpret), qkv


def attend_backward(head_dim, scale, interpret, qkv, gradient):
  backward = functools.partial(call, 'backward', head_dim, scale, interpret)
  return (on_own_images(backward, qkv, gradient),)


attend.defvjp(attend_forward, attend_backward)
