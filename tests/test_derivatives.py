"""Derivatives written by hand: GELU, layer norm, products, biases, extremes."""

from functools import partial

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention, extremes, layers, products
from vit_jax.models.activations import GELU
from vit_jax.models.normalisation import LayerNorm
from vit_jax.runtime import sharding

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
  # Optimised, as users have it: XLA's tanh without is 9e-6 away from -1.
  options = {'xla_backend_optimization_level': 3}
  gradient = jax.jit(jax.vmap(jax.grad(GELU[name])), compiler_options=options)
  found = gradient(jnp.asarray(NUMBERS))
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


def norm_and_peer(**settings):
  """Ours and linen's, as functions of (parameters, tokens)."""
  return [
    lambda p, x, m=make(**settings): m.apply({'params': p}, x) for make in (LayerNorm, nn.LayerNorm)
  ]


def tokens_and_parameters(dtype, width=12):
  rng = np.random.default_rng(0)
  x = jnp.asarray(3 * rng.normal(size=(4, 5, width)) + 1, dtype)
  kind = jnp.promote_types(dtype, jnp.float32)
  scale, bias = jnp.asarray(rng.normal(size=(2, width)), kind)
  return {'scale': scale, 'bias': bias}, x


@pytest.mark.parametrize('dtype', [None, 'float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('given', ['float32', 'bfloat16'])
def test_layer_norm_is_linen_s_to_the_last_bit(dtype, given):
  params, x = tokens_and_parameters(given)
  ours, peer = (jax.jit(f) for f in norm_and_peer(dtype=dtype, epsilon=1e-5))
  found, expected = ours(params, x), peer(params, x)
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)
  drawn, theirs = (m(dtype=dtype).init(jax.random.key(0), x) for m in (LayerNorm, nn.LayerNorm))
  jax.tree.map(np.testing.assert_array_equal, drawn, theirs)


@pytest.mark.parametrize(
  'settings', [{'use_bias': False}, {'use_scale': False}, {'reduction_axes': (1, 2)}]
)
def test_other_layer_norms_are_linen_s(settings):
  _, x = tokens_and_parameters('float32')
  found, expected = (
    make(**settings).init_with_output(jax.random.key(0), x) for make in (LayerNorm, nn.LayerNorm)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_layer_norm_has_linen_s_derivatives_in_every_direction():
  with jax.enable_x64(True):
    given = tokens_and_parameters(jnp.float64)
    other = jax.tree.map(lambda x: jnp.cos(3 * x), given)

    def told(f, params, x):
      return jnp.sin(f(params, x)).sum()

    def derivatives(f):
      gradient = jax.grad(partial(told, f), (0, 1))
      each = jax.vmap(lambda x: gradient(given[0], x))(jnp.stack([given[1], 2 * given[1]]))
      again = jax.jit(jax.checkpoint(gradient))(*given)
      return (
        gradient(*given), jax.jvp(f, given, other), jax.jvp(gradient, given, other), each, again
      )  # fmt: skip

    settings = dict(dtype='float64', param_dtype='float64')
    found, expected = (derivatives(f) for f in norm_and_peer(**settings))
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    jax.tree.map(close, found, expected)


def primitives(function, *given):
  """The names of all operations of a function, those within others too."""
  return str(jax.make_jaxpr(function)(*given))


def test_layer_norm_for_a_tpu_is_linen_s():
  """As `--mode=plan` traces it on a machine without one."""
  given = tokens_and_parameters('float32')
  gradients = [jax.grad(lambda p, x, f=f: f(p, x).sum()) for f in norm_and_peer()]
  device = jax.sharding.AbstractDevice(device_kind='TPU v5 lite', num_cores=1, platform='tpu')
  mesh = jax.sharding.AbstractMesh((1, 1), ('data', 'fsdp'), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert 'dot_general' not in primitives(gradients[0], *given)
  assert 'dot_general' in primitives(gradients[0], *given)
  assert 'dot_general' not in primitives(gradients[1], *given)


@pytest.mark.parametrize(
  ('ours', 'plain', 'shapes'),
  [
    (products.kernel_in_order, products.plain_product, [(6, 4), (4, 5)]),
    (products.scores_in_order, products.plain_scores, [(2, 3, 5, 4), (2, 3, 7, 4)]),
    (products.mix_in_order, products.plain_mix, [(2, 3, 5, 7), (2, 3, 7, 4)]),
  ],
  ids=['kernel', 'scores', 'mix'],
)
def test_products_of_a_cpu_have_jax_s_gradients(ours, plain, shapes):
  """The first and the second, of several at once, and computed again."""
  rng = np.random.default_rng(0)
  given = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

  def derivatives(product):
    gradient = jax.grad(lambda *x: jnp.sin(product(*x)).sum(), (0, 1))
    second = jax.grad(lambda *x: sum(jnp.sin(y).sum() for y in gradient(*x)), (0, 1))
    each = jax.vmap(gradient)(*(jnp.stack([x, 2 * x]) for x in given))
    return product(*given), gradient(*given), second(*given), each, jax.checkpoint(gradient)(*given)

  close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, derivatives(ours), derivatives(plain))


@pytest.fixture
def two_devices():
  return sharding.make_mesh(1, jax.devices()[:2])


def gradient_of(module):
  return jax.grad(lambda params, x: jnp.sin(module.apply(params, x)).sum(), (0, 1))


def dense_on(mesh, dtype='float32'):
  """A gradient through a Dense and its compiled program, rows cut over the devices of a mesh."""
  module, x = layers.Dense(24, dtype=dtype), jnp.cos(jnp.arange(64.0).reshape(4, 2, 8))
  params = module.init(jax.random.key(0), x)
  gradient = sharding.jit_on(mesh, gradient_of(module))
  params = jax.device_put(params, sharding.replicated(mesh))
  given = params, jax.device_put(x, sharding.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    text = jax.jit(gradient_of(module)).lower(*given).compile().as_text()
  return gradient(*given), text


@pytest.mark.parametrize(('dtype', 'close'), [('float32', 1e-6), ('bfloat16', 3e-2)])
def test_gradients_over_devices_of_a_cpu_are_those_of_one(two_devices, dtype, close):
  found, expected = (
    dense_on(mesh, dtype)[0] for mesh in (two_devices, sharding.make_mesh(1, jax.devices()[:1]))
  )
  compare = partial(np.testing.assert_allclose, rtol=close, atol=close)
  jax.tree.map(lambda x, y: compare(np.float32(x), np.float32(y)), found, expected)
  assert jax.tree.map(jnp.dtype, found) == jax.tree.map(jnp.dtype, expected)


def test_the_gradient_of_a_kernel_is_summed_as_the_kernel_lies(two_devices, monkeypatch):
  """Over the devices of a CPU; JAX sums it transposed and turns it round afterwards."""
  assert 'f32[24,8]' not in dense_on(two_devices)[1]
  monkeypatch.setattr(sharding, 'in_mesh_of_cpu', lambda: False)
  assert 'f32[24,8]' in dense_on(two_devices)[1]


@pytest.fixture
def h100s():
  device = jax.sharding.AbstractDevice(device_kind='NVIDIA H100', num_cores=None, platform='gpu')
  return jax.sharding.AbstractMesh((2, 1), ('data', 'fsdp'), abstract_device=device)


def products_of_attention(x):
  return products.mix(products.scores(x, x), x)


@pytest.mark.parametrize(
  ('function', 'given'),
  [
    (products.with_kernel, [(4, 8), (8, 24)]),
    (products_of_attention, [(2, 3, 5, 4)]),
  ],
)  # fmt: skip
def test_products_are_jax_s_but_in_the_steps_of_a_cpu(function, given, two_devices, h100s):
  """So that they have derivatives in every direction; elsewhere the compiler decides."""
  given = [jnp.ones(shape) for shape in given]

  def is_ours():
    return 'custom_vjp' in primitives(lambda *x: function(*x), *given)

  assert not is_ours()
  jax.jvp(function, given, given)
  for mesh in (two_devices, sharding.make_mesh(1, jax.devices()[:1])):
    with jax.set_mesh(mesh):
      assert is_ours()
  with jax.sharding.use_abstract_mesh(h100s):
    assert not is_ours()


def test_attention_in_bfloat16_is_jax_s(two_devices):
  with jax.set_mesh(two_devices):
    x = jnp.ones((2, 3, 5, 4), jnp.bfloat16)
    assert 'custom_vjp' not in primitives(products_of_attention, x)
