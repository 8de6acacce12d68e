"""Products whose gradients are written for a CPU: with a kernel, and those of plain attention.

A CPU's compiler has a fast kernel for `a @ b` and for `a @ b^T`, and a slow one for `a^T @ b`, as
the gradients of keys and values are: for 49 tokens of 32 numbers it took 4 times as long. For short
sequences what is transposed is written down first.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from vit_jax.runtime import sharding

# Tokens. Attention of Swin's windows of 49, forward and back, takes 0.86 of the time, of 64 0.95;
# with 65 and more, writing down costs what it saves.
SHORT = 64
hold = jax.lax.optimization_barrier  # Else the compiler leaves a transpose to the product.


def scores(
  query: Float[Array, 'B h T d'], key: Float[Array, 'B h S d']
) -> Float32[Array, 'B h T S']:
  """The product of every query with every key of its head."""
  return (short_scores if is_short(key) else plain_scores)(query, key)


def mix(
  weights: Float[Array, 'B h T S'], value: Float[Array, 'B h S d']
) -> Float32[Array, 'B h T d']:
  """The sum of the values of a head, by the weights of each query."""
  return (short_mix if is_short(value) else plain_mix)(weights, value)


def is_short(tokens: Float[Array, 'B h S d']) -> bool:
  """Whether gradients by so many tokens, in float32 on a CPU, are to be computed the other way."""
  return tokens.shape[2] <= SHORT and tokens.dtype == jnp.float32 and sharding.on_cpu()


def plain_scores(query, key):
  """`scores` with the gradients that JAX finds."""
  return jnp.einsum('bhtd,bhsd->bhts', query, key, preferred_element_type=jnp.float32)


def plain_mix(weights, value):
  """`mix` with the gradients that JAX finds."""
  return jnp.matmul(weights, value, preferred_element_type=jnp.float32)


@jax.custom_vjp
def product_in_order(x: Float[Array, 'R I'], kernel: Float[Array, 'I O']) -> Float[Array, 'R O']:
  """`x @ kernel`, whose gradient by the kernel is computed as the kernel lies in memory.

  JAX computes it transposed and turns it round after it was summed over the devices, where a
  compiler can no longer join the two: on two devices of a CPU a train step takes 3 to 5 % longer.
  """
  return x @ kernel


def _forward(x, kernel):
  return x @ kernel, (x, kernel)


def _backward(kept, gradient):
  x, kernel = kept
  return gradient @ kernel.T, x.T @ gradient


product_in_order.defvjp(_forward, _backward)
short_scores, short_mix = jax.custom_jvp(plain_scores), jax.custom_jvp(plain_mix)


@short_scores.defjvp
def _(primals, tangents):
  (query, key), (dquery, dkey) = primals, tangents
  # The transpose of this, the gradient by the keys, holds what is transposed.
  by_key = hold(plain_scores(dkey, query)).swapaxes(-1, -2)
  return short_scores(query, key), plain_scores(dquery, key) + by_key


@short_mix.defjvp
def _(primals, tangents):
  (weights, value), (dweights, dvalue) = primals, tangents
  by_key = hold(weights.swapaxes(-1, -2))
  mixed = jnp.einsum('bhst,bhsd->bhtd', by_key, dvalue, preferred_element_type=jnp.float32)
  return short_mix(weights, value), plain_mix(dweights, value) + mixed
