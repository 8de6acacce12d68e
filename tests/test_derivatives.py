"""Derivatives written by hand: of GELU, of a bias that is added in turn, of extremes."""

from functools import partial

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention, extremes
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


@pytest.mark.parametrize('ours', [extremes.largest, extremes.smallest])
def test_extremes_have_the_gradient_of_jax(ours):
  """Tokens that are equal share it."""
  plain = jnp.max if ours is extremes.largest else jnp.min
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 3)).astype(np.float32)
  x[:, 3] = x[:, 1] = x.max() + np.float32([0, -9, 0])  # Maxima twice, minima once.
  weigh = rng.normal(size=(2, 3)).astype(np.float32)

  def told(reduce, x):
    return (reduce(x) * weigh).sum()

  found, expected = (
    jax.jit(jax.value_and_grad(lambda x, reduce=reduce: told(reduce, x)))(x)
    for reduce in (ours, lambda x: plain(x, axis=1))
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
  _, forward = jax.jvp(ours, (x,), (jnp.ones_like(x),))
  np.testing.assert_allclose(forward, 1, rtol=1e-6)


def test_a_maximum_has_a_gradient_where_the_compiler_computes_tokens_twice():
  """Without optimisation a CPU with FMA rounds the two apart: that of `x.max(1)` is infinite."""
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(1, 25, 16)), rng.normal(size=(16, 16))
  norm = {'scale': 1 + 0.1 * rng.normal(size=16), 'bias': 0.1 * rng.normal(size=16)}

  def program(reduce, x, kernel, norm):
    tokens = nn.LayerNorm().apply({'params': norm}, x @ kernel)
    return jax.grad(lambda tokens: reduce(tokens).sum())(tokens)

  given = jax.tree.map(lambda x: x.astype(np.float32), (x, kernel, norm))
  options = {'xla_backend_optimization_level': 0}
  found = jax.jit(partial(program, extremes.largest)).lower(*given).compile(options)(*given)
  np.testing.assert_allclose(found.sum((0, 1)), 1, rtol=1e-6)
