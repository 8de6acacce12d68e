"""The TPU's attention kernel: its arithmetic on the CPU, its cut by devices, its compilation."""

import os
import subprocess
import sys

import jax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from vit_jax.models import tpu_attention


def plain(qkv, head_dim, scale):
  """Softmax attention in float32, head after head as in `attend`."""
  batch, length, width = qkv.shape
  split = qkv.astype(jnp.float32).reshape(batch, length, -1, 3, head_dim)
  query, key, value = (split[:, :, :, i] for i in range(3))
  weights = jax.nn.softmax(scale * jnp.einsum('bthd,bshd->bhts', query, key), -1)
  return jnp.einsum('bhts,bshd->bthd', weights, value).reshape(batch, length, width // 3)


def both(function, qkv, gradient):
  """The output of `function` and the gradient with respect to its input."""

  @jax.jit
  def run(qkv, gradient):
    y, pull = jax.vjp(function, qkv)
    return y, pull(gradient.astype(y.dtype))[0]

  return run(qkv, gradient)


def compare(length, head_dim, heads, dtype, tolerance, batch=2):
  """Output and gradient of the kernel against the plain form, relative to the largest number."""
  keys = jax.random.split(jax.random.key(length))
  qkv = jax.random.normal(keys[0], (batch, length, 3 * heads * head_dim), dtype)
  gradient = jax.random.normal(keys[1], (batch, length, heads * head_dim), dtype)
  scale = head_dim**-0.5
  ours = both(lambda x: tpu_attention.attend(x, head_dim, scale, True), qkv, gradient)
  wanted = both(lambda x: plain(x, head_dim, scale), qkv.astype(jnp.float32), gradient)
  for got, want in zip(ours, wanted, strict=True):
    assert got.dtype == dtype
    difference = jnp.abs(got.astype(jnp.float32) - want).max() / jnp.abs(want).max()
    assert difference < tolerance


@pytest.mark.parametrize(
  ('length', 'head_dim', 'heads'),
  [
    (5, 64, 4),  # Two groups of two heads.
    (16, 32, 4),  # No key is padded.
    (17, 64, 3),  # No whole group of lanes: all heads in one.
    (65, 80, 1),
    (197, 64, 2),  # Two passes of queries, the second one padded.
  ],
)
def test_output_and_gradient_equal_the_plain_form(length, head_dim, heads):
  compare(length, head_dim, heads, jnp.float32, 1e-5)


def test_bfloat16_rounds_no_worse_than_its_numbers(monkeypatch):
  def product(a, b, *axes, multiply=tpu_attention.product):
    return multiply(a.astype(jnp.float32), b.astype(jnp.float32), *axes)  # XLA:CPU lacks the other.

  monkeypatch.setattr(tpu_attention, 'product', product)
  compare(37, 64, 2, jnp.bfloat16, 0.02)


def test_the_last_program_may_hold_fewer_images(monkeypatch):
  image_bytes = 2 * 128 * (4 + 4 - 1) * 128 * 4  # of the backward pass
  monkeypatch.setattr(tpu_attention, 'BLOCK_BYTES', 2 * image_bytes)
  compare(9, 64, 2, jnp.float32, 1e-5, batch=3)


def test_each_device_keeps_its_own_images():
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2
  )
  rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  qkv = jax.random.normal(jax.random.key(0), (16, 9, 3 * 128))

  @jax.checkpoint
  def attend(x):
    return tpu_attention.attend(x, 64, 0.125, True)

  def loss(qkv):
    repeated = jax.lax.scan(lambda x, _: (x + jnp.tile(attend(x), 3), None), qkv, None, 2)[0]
    return (repeated**2).sum()

  alone = jax.jit(jax.grad(loss))(qkv)
  cut = jax.jit(jax.grad(loss)).lower(jax.device_put(qkv, rows)).compile()
  assert 'all-gather' not in cut.as_text()
  together = cut(jax.device_put(qkv, rows))
  assert together.sharding.shard_shape(together.shape)[0] == 2
  np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('head_dim', 'num_heads', 'size'),
  [(32, 12, 4), (64, 12, 2), (64, 3, 3), (80, 16, 8), (88, 16, 16), (128, 8, 1)],
)
def test_a_group_of_heads_fills_registers(head_dim, num_heads, size):
  assert tpu_attention.group_size(head_dim, num_heads) == size
  assert tpu_attention.obstacle(head_dim, num_heads, 257, 'bfloat16') is None


@pytest.mark.parametrize(
  ('head_dim', 'length', 'dtype', 'word'),
  [(64, 197, 'float16', 'dtype'), (12, 197, 'bfloat16', 'wide'), (64, 9000, 'bfloat16', 'tokens')],
)
def test_an_obstacle_is_named(head_dim, length, dtype, word):
  assert word in tpu_attention.obstacle(head_dim, 12, length, dtype)


COMPILE = """
import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
from vit_jax.models import tpu_attention
devices = topologies.get_topology_desc(topology_name='v5e:2x2', platform='tpu').devices
mesh = Mesh(np.array(devices).reshape(4, 1), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
qkv = jax.ShapeDtypeStruct((16, 197, 3 * 768), 'bfloat16', sharding=rows)
loss = lambda x: tpu_attention.attend(x, 64, 0.125).astype('float32').sum()
print(jax.jit(jax.value_and_grad(loss)).lower(qkv).compile().as_text())
"""


@pytest.mark.slow
def test_the_tpu_compiler_takes_it_and_gathers_nothing():
  pytest.importorskip('libtpu', reason='the TPU compiler comes with the extra `tpu`')
  environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}
  environment['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # Other processes may be compiling, too.
  done = subprocess.run(
    [sys.executable, '-c', COMPILE], capture_output=True, text=True, env=environment, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert 'vit_attention_forward' in done.stdout and 'vit_attention_backward' in done.stdout
  assert 'all-gather' not in done.stdout
