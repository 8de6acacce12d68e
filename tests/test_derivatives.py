"""Derivatives that are written by hand: of GELU, and of a bias that is added in turn."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention
from vit_jax.models.activations import GELU

NUMBERS = np.linspace(-8, 8, 4001, dtype=np.float32)


@pytest.mark.parametrize(('name', 'approximate'), [('exact', False), ('tanh', True)])
def test_gelu_is_jax_s_to_the_last_bit_and_its_derivative_the_compiler_s(name, approximate):
  peer = jax.jit(lambda x: jax.nn.gelu(x, approximate=approximate))
  np.testing.assert_array_equal(jax.jit(GELU[name])(NUMBERS), peer(NUMBERS))
  with jax.enable_x64(True):
    x = jnp.asarray(NUMBERS, jnp.float64)
    expected = jax.vmap(jax.grad(peer))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(GELU[name]))(x), expected, rtol=0, atol=1e-12)
    _, forward = jax.jvp(GELU[name], (x,), (jnp.full_like(x, 2.0),))
    np.testing.assert_allclose(forward, 2 * expected, rtol=0, atol=1e-12)
  found = jax.vmap(jax.grad(GELU[name]))(jnp.asarray(NUMBERS))
  np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_gelu_of_bfloat16_keeps_its_dtype_in_both_directions():
  x = jnp.asarray(NUMBERS, jnp.bfloat16)
  for function in GELU.values():
    y, back = jax.vjp(function, x)
    assert y.dtype == back(y)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize('heads', [1, 3])
def test_a_bias_in_turn_has_the_gradient_of_the_sum_that_it_is(heads):
  rng = np.random.default_rng(0)
  scores, weigh = rng.normal(size=(2, 6, 3, 5, 5)).astype(np.float32)
  bias = rng.normal(size=(2, heads, 5, 5)).astype(np.float32)

  def told(add, scores, bias):
    return (jnp.sin(add(scores, bias)) * weigh).sum()

  def plainly(scores, bias):
    return scores + jnp.tile(bias, (3, 1, 1, 1))

  found, expected = (
    jax.jit(jax.value_and_grad(lambda *x, add=add: told(add, *x), (0, 1)))(scores, bias)
    for add in (attention.add_in_turn, plainly)
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, expected)
