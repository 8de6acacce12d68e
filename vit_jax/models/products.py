"""Products with gradients written for train steps on a CPU: with a kernel, and of attention.

JAX computes the gradient by the second factor transposed and turns it round afterwards. A CPU's
compiler has a slow kernel for that in attention (of 49 keys by 32 numbers it reaches a fifth of the
speed of `a @ b`), and cannot join the two where the gradient of a kernel is summed over devices in
between. Here each gradient is computed as it lies in memory. They serve what runs within a mesh, as
the train step does, in reverse mode alone; elsewhere the products are JAX's, with forward mode too.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from vit_jax.runtime import sharding

hold = jax.lax.optimization_barrier  # Else the compiler leaves a transpose to the product.


def with_kernel(x: Float[Array, 'R I'], kernel: Float[Array, 'I O']) -> Float[Array, 'R O']:
  """A matrix product whose kernel may be cut over devices (`config.fsdp`)."""
  if sharding.is_cut():
    return sharding.product_of_cut(x, kernel)
  return kernel_in_order(x, kernel) if sharding.in_mesh_of_cpu() else x @ kernel


def scores(
  query: Float[Array, 'B h T d'], key: Float[Array, 'B h S d']
) -> Float32[Array, 'B h T S']:
  """The product of every query with every key of its head."""
  return (scores_in_order if is_ours(key) else plain_scores)(query, key)


def mix(
  weights: Float[Array, 'B h T S'], value: Float[Array, 'B h S d']
) -> Float32[Array, 'B h T d']:
  """The sum of the values of a head, by the weights of each query."""
  return (mix_in_order if is_ours(value) else plain_mix)(weights, value)


def is_ours(tokens: Array) -> bool:
  """Whether gradients by these are written here: in float32, within a mesh of a CPU."""
  return tokens.dtype == jnp.float32 and sharding.in_mesh_of_cpu()


def plain_product(x, kernel):
  """`with_kernel` with the gradients that JAX finds."""
  return x @ kernel


def plain_scores(query, key):
  """`scores` with the gradients that JAX finds."""
  return jnp.einsum('bhtd,bhsd->bhts', query, key, preferred_element_type=jnp.float32)


def plain_mix(weights, value):
  """`mix` with the gradients that JAX finds."""
  return jnp.matmul(weights, value, preferred_element_type=jnp.float32)


def written(product, gradients):
  """A product with gradients by both factors, `gradients(first, second, gradient of it)`."""
  made = jax.custom_vjp(product)
  made.defvjp(
    lambda first, second: (product(first, second), (first, second)),
    lambda factors, gradient: gradients(*factors, gradient),
  )
  return made


def turned(x: Float[Array, 'B h T S']) -> Float[Array, 'B h S T']:
  """The transpose of each matrix, written down."""
  return hold(x.swapaxes(-1, -2))


kernel_in_order = written(plain_product, lambda x, kernel, g: (g @ kernel.T, x.T @ g))
scores_in_order = written(plain_scores, lambda query, key, g: (g @ key, turned(g) @ query))
mix_in_order = written(
  plain_mix, lambda weights, value, g: (plain_scores(g, value), turned(weights) @ g)
)
