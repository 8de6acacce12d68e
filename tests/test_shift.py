"""Pictures moved and shuffled, and how far units reach: closed forms, invariance, the command."""

import json
import types

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import defaults, interpret, models, predict
from vit_jax.data.preprocess import Preprocess
from vit_jax.interpret import __main__ as command
from vit_jax.interpret import images, reach, shift


def pictures(count=3, sides=(8, 12), channels=2):
  return np.random.default_rng(0).integers(0, 256, (count, *sides, channels), np.uint8)


def test_pictures_move_in_four_directions_and_repeat_their_edge():
  x = pictures()
  down, up, right, left = shift.moved(x, 2)
  np.testing.assert_array_equal(down[:, 2:], x[:, :-2])
  np.testing.assert_array_equal(down[:, :2], np.repeat(x[:, :1], 2, 1))
  np.testing.assert_array_equal(up[:, :-2], x[:, 2:])
  np.testing.assert_array_equal(right[:, :, 2:], x[:, :, :-2])
  np.testing.assert_array_equal(left[:, :, :-2], x[:, :, 2:])
  assert len(shift.moved(x, 0)) == 1
  assert shift.distances(8) == [0, 1, 2, 4, 8] and shift.distances(5) == [0, 1, 2, 4, 5]
  assert shift.counts((8, 12)) == [1, 2, 4] and shift.counts((7, 8)) == [1]


def test_cells_change_places_each_picture_its_own_way():
  x = pictures()
  y = shift.shuffled(x, 2, seed=0)
  for before, after in zip(x, y, strict=True):
    cells = [{image[i : i + 4, j : j + 6].tobytes() for i in (0, 4) for j in (0, 6)}
             for image in (before, after)]  # fmt: skip
    assert cells[0] == cells[1]
  assert (y != x).any()
  same = shift.shuffled(np.repeat(x[:1], 9, 0), 2, seed=0)
  assert len({image.tobytes() for image in same}) > 1
  np.testing.assert_array_equal(shift.shuffled(x, 1, seed=0), x)


def test_a_bag_of_patches_minds_no_order():
  """A ViT without positions, shuffled in cells that are its patches."""
  section = defaults.part('model', 'vit').to_dict() | dict(
    variant='mu/4', positions='none', readout='mean', class_token=False
  )
  model = models.build(**section, image_size=(8, 8), channels=2, num_classes=3)
  shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes)
  apply = jax.jit(lambda x: model.apply({'params': params}, x / 255.0)[0])
  x = pictures(sides=(8, 8))
  np.testing.assert_allclose(apply(shift.shuffled(x, 2, 1)), apply(x), atol=1e-4)
  assert np.abs(apply(shift.shuffled(x, 4, 1)) - apply(x)).max() > 1e-3


def box(x, times):
  """Sums over 3 x 3 pixels, so many times."""
  for _ in range(times):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = sum(padded[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(3) for j in range(3))
  return x


class Sums(predict.Predictor):
  """A model of sums: over 3 x 3 pixels once and twice, over patches of 3 x 3; and of nothing."""

  def __init__(self):
    self.params, self.preprocess = {}, Preprocess((9, 9), 1)
    self._shapes = {f'block_{i}/tokens': None for i in range(4)}  # What names its outputs.
    self.model = types.SimpleNamespace(image_size=(9, 9), channels=1, grid=(3, 3), prefix=())

  def forward(self, params, x):
    del params
    outputs = {'block_0/tokens': box(x, 1), 'block_1/tokens': box(x, 2)}
    outputs['block_2/tokens'] = x.reshape(len(x), 3, 3, 3, 3).sum((2, 4)).reshape(len(x), 9, 1)
    return None, outputs | {'block_3/tokens': jnp.zeros((len(x), 9, 2))}

  def stream(self, images, program, batch_size=8):
    del batch_size
    return jax.jit(program)({}, jnp.asarray(images))


def test_the_reach_of_sums_over_neighbours():
  """Of 3 x 3 equal weights: sqrt(12 / 9) pixels."""
  found = reach.of_blocks(Sums(), pictures(2, (9, 9), 1), 0)
  weights = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) ** 2
  y, x = np.mgrid[-2:3, -2:3]
  twice = np.sqrt((weights * (y**2 + x**2)).sum() / weights.sum())
  np.testing.assert_allclose(found[:3], [np.sqrt(12 / 9), twice, np.sqrt(12 / 9)], rtol=1e-5)
  assert found[3] is None


def test_the_command(trained, tmp_path):
  words = ['shift', str(trained), f'--out={tmp_path}', '--pictures=24', '--most=3']
  command.main(words)
  found = json.loads((tmp_path / 'shift.json').read_text())
  assert found['translation']['pixels'] == [0, 1, 2, 3] and found['pictures'] == 24
  assert found['shuffling']['cells_a_side'] == [1, 2, 4, 8]
  model = predict.load(trained)
  seen, labels = images.labelled(model, 24, 'shift')
  right = model(seen, ('logits',))['logits'].argmax(-1) == labels
  assert found['translation']['accuracy'][0] == pytest.approx(right.mean(), abs=1e-5)
  assert found['shuffling']['accuracy'][0] == found['translation']['accuracy'][0]
  assert 0 < found['reach']['trained'][0] < 8 and 0 < found['reach']['fresh'][0] < 8
  assert (tmp_path / 'shift.png').stat().st_size > 10_000


@pytest.mark.parametrize(
  ('word', 'message'), [('--pictures=0', 'at least 1'), ('--most=8', 'below 8, the side')]
)
def test_numbers_that_cannot_be(trained, tmp_path, word, message):
  with pytest.raises(SystemExit, match=message):
    command.main(['shift', str(trained), f'--out={tmp_path}', word])


def test_a_sweep_stands_for_what_it_chose(trained, tmp_path):
  """A run of each chosen setting, all in the same axes, by the names of the settings."""
  (tmp_path / 'w/runs').mkdir(parents=True)
  (tmp_path / 'w/reports').mkdir()
  rows = [
    {'run': f'{name}{seed}', 'setting': name, 'chosen': name != 'c', 'test/accuracy': 0.5}
    for name in 'abc' for seed in (0, 1)
  ]  # fmt: skip
  for row in rows:
    (tmp_path / 'w/runs' / row['run']).symlink_to(trained, target_is_directory=True)
  (tmp_path / 'w/reports/sweep.json').write_text(json.dumps(rows))
  words = ['compare', 'shift', str(tmp_path / 'w'), '--pictures=8', f'--out={tmp_path / "out"}']
  command.main(words)
  found = json.loads((tmp_path / 'out/compare_shift.json').read_text())
  assert found['labels'] == ['a', 'b']
  paths = [one['checkpoint'] for one in found['checkpoints']]
  assert paths == [str(tmp_path / 'w/runs' / name) for name in ('a0', 'b0')]
  predictor = predict.load(trained)
  measured = interpret.measure('shift', predictor, pictures=8)
  figure = interpret.draw('shift', measured * 2, ['a', 'b'])
  assert [len(axis.lines) for axis in figure.axes] == [2, 2, 4]
  for row in rows:
    del row['chosen']
  (tmp_path / 'w/reports/sweep.json').write_text(json.dumps(rows))
  with pytest.raises(SystemExit, match='run the sweep again'):
    command.main(words)
