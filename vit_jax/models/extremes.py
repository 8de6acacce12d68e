"""Maxima and minima over tokens whose gradient is always a number.

JAX finds who is the maximum by comparing floats. Where a compiler computes the tokens twice, once
for the maximum and once for the comparison, and rounds them in two ways, none is equal, and the
gradient is 0 / 0 (seen on a CPU with XLA's optimisations off, for tokens of a layer norm).
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def largest(x: Float[Array, 'B N D']) -> Float[Array, 'B D']:
  """The maximum over axis 1, as `x.max(1)`; those that are equally large share its gradient."""
  return x.max(1)


@largest.defjvp
def _(primals, tangents):
  (x,), (tangent,) = primals, tangents
  found = x.max(1)
  place = x.argmax(1)[:, None]  # A whole number: one token has it, however x is rounded.
  chosen = (x == found[:, None]) | (jnp.arange(x.shape[1])[:, None] == place)
  shares = chosen / chosen.sum(1, keepdims=True)
  return found, (tangent * shares.astype(tangent.dtype)).sum(1)


def smallest(x: Float[Array, 'B N D']) -> Float[Array, 'B D']:
  """The minimum over axis 1, as `x.min(1)`, with a gradient like that of `largest`."""
  return -largest(-x)
