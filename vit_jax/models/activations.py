"""GELU in its three published forms, with derivatives in closed form.

Derived by JAX, the error function and tanh are computed more often than is needed: on a CPU an MLP
of Swin-T's or ViT-S's width then takes up to half as long again, forward and back (float32).
"""

from collections.abc import Callable
import math

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float


def with_derivative(
  function: Callable[[Array], Array], derivative: Callable[[Array], Array]
) -> Callable[[Array], Array]:
  """A function of numbers whose tangents and gradients are computed by `derivative`."""
  made = jax.custom_jvp(function)
  made.defjvps(lambda tangent, _, x: tangent * derivative(x))
  return made


def exact_derivative(x: Float[Array, '*B']) -> Float[Array, '*B']:
  """The derivative of x Phi(x): Phi(x) + x phi(x), Phi the normal distribution, phi its density."""
  density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
  return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))) + x * density


def tanh_derivative(x: Float[Array, '*B']) -> Float[Array, '*B']:
  """The derivative of 0.5 x (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
  scale, square = math.sqrt(2 / math.pi), x * x
  t = jnp.tanh(scale * x * (1 + 0.044715 * square))
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * square)


GELU: dict[str, Callable] = {
  # Flax, official code, big_vision.
  'tanh': with_derivative(lambda x: jax.nn.gelu(x, approximate=True), tanh_derivative),
  # timm, torchvision, transformers.
  'exact': with_derivative(lambda x: jax.nn.gelu(x, approximate=False), exact_derivative),
  'quick': lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI
}
