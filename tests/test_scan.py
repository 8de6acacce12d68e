"""Blocks in a loop: the same numbers, the same files, with every optimizer setting that can be."""

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import experiment, metrics, optim, step, train
from vit_jax.runtime import stacked

# Three blocks, so that layer decay and drop path differ from one to the next.
DEEP = dict(
  model__depth=3, model__drop_path=0.2, model__projection_dropout=0.1, optimizer__layer_decay=0.7,
  ema_decay=0.9, optimizer__schedule='constant',
)  # fmt: skip


def run(workdir, scan, **more):
  train.train(small_config(**DEEP | more, model__scan=scan), workdir)
  return workdir


def rows(workdir):
  keys = ('train/loss', 'train/gradient_norm', 'test/loss')
  return [[row[k] for k in keys if k in row] for row in metrics.read(workdir / 'metrics.jsonl')]


def weights_of(workdir):
  return dict(np.load(workdir / 'model/weights.npz'))


def assert_close(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.fixture(scope='module')
def apart(tmp_path_factory):
  return run(tmp_path_factory.mktemp('apart'), scan=False)


def test_losses_and_files_are_those_of_blocks_apart(apart, tmp_path):
  together = run(tmp_path, scan=True)
  for a, b in zip(rows(apart), rows(together), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)
  assert_close(weights_of(apart), weights_of(together))
  assert not any(stacked.STAR in name for name in weights_of(together))


@pytest.mark.parametrize('first', [False, True])
def test_a_run_goes_on_with_or_without_the_loop(apart, tmp_path, first):
  run(tmp_path, scan=first, total_steps=4)
  run(tmp_path, scan=not first)
  assert_close(weights_of(apart), weights_of(tmp_path))


def test_a_loop_starts_from_weights_apart(apart, tmp_path):
  """And in a loop over devices that each hold a part."""
  found = [
    run(tmp_path / str(scan), scan, init_from=str(apart), total_steps=2, fsdp=8, ema_decay=0.0)
    for scan in (False, True)
  ]
  assert_close(*map(weights_of, found))


def test_what_treats_blocks_differently_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'config\.model\.scan computes all blocks alike.*multipl'):
    run(tmp_path, scan=True, optimizer__train='last:1')
  with pytest.raises(ValueError, match=r'all blocks alike.*decay_pattern'):
    run(tmp_path, scan=True, optimizer__decay_pattern='Transformer/encoderblock_1/.*')
  assert not (tmp_path / 'config.json').exists()


def test_layer_decay_is_a_number_for_each_block():
  exp = experiment.build(small_config(**DEEP, model__scan=True))
  shapes = step.state_shapes(exp).params
  ones = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
  scaled = optim.scale_by_name(ones, exp.multipliers)['model']
  kernel = scaled['Transformer']['encoderblock_*']['MlpBlock_3']['Dense_0']['kernel']
  np.testing.assert_allclose(kernel[:, 0, 0], [0.49, 0.7, 1.0], rtol=1e-6)


def test_stacking_is_undone():
  tree = {'a': {'b_*': {'x': jnp.arange(6.0).reshape(3, 2)}, 'c': jnp.ones(2)}}
  pair = (tree, [tree['a']['c']])
  apart = stacked.unstack(pair)
  assert {*apart[0]['a']} == {'b_0', 'b_1', 'b_2', 'c'}
  np.testing.assert_array_equal(apart[0]['a']['b_1']['x'], [2.0, 3.0])
  again = stacked.stack_like(pair, apart)
  jax.tree.map(np.testing.assert_array_equal, pair, again)
