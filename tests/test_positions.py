"""Positions as parts, and axial models: counts, formulas, reach by gradient, other grids."""

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import defaults, models, train, weights
from vit_jax.models import attention, axial, axial_resnet, position
from vit_jax.runtime import stacked

SMALL = dict(width=32, depth=3, mlp_dim=64, num_heads=2, variant='mu/4')
ADDED = ('learned', 'learned_2d', 'sinusoidal', 'sinusoidal_2d')


def build(name='vit', image_size=(12, 20), **section):
  section = defaults.part('model', name).to_dict() | SMALL | section
  return models.build(**section, image_size=image_size, channels=3, num_classes=5)


def drawn(model, seed=0):
  """Parameters that are nowhere zero."""
  leaves, tree = jax.tree.flatten(models.init(model, jax.random.key(seed)))
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return jax.tree.unflatten(
    tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  )


def run(model, params, images):
  return model.apply({'params': params}, images)


def pictures(model, count=2):
  return jax.random.normal(jax.random.key(5), (count, *model.image_size, model.channels))


def count(model):
  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(
    lambda key: models.init(model, key), jax.random.key(0))))  # fmt: skip


@pytest.mark.parametrize(
  ('kind', 'place', 'expected'),
  [
    ('none', 'input', 0),
    ('learned', 'input', 16 * 32),  # 3 x 5 patches and the class token
    ('learned', 'every', 3 * 16 * 32),
    ('learned', 'shared', 16 * 32),
    ('learned_2d', 'input', (3 + 5) * 16 + 32),
    ('learned_2d', 'every', 3 * ((3 + 5) * 16 + 32)),
    ('sinusoidal', 'shared', 0),
    ('sinusoidal_2d', 'input', 0),
    ('relative', 'input', 3 * 31 * 32),  # in each block, for each of 2 * 16 - 1 offsets
  ],
)
def test_parameters_of_positions(kind, place, expected):
  rest = count(build(positions='none'))
  assert count(build(positions=kind, position_at=place)) - rest == expected


def test_waves_are_the_papers():
  """Vaswani's, sines and cosines side by side; big_vision's over columns and rows."""
  x = jnp.zeros((1, 7, 12))
  table = np.asarray(position.Sinusoidal(1, (2, 3)).apply({}, x))[0]
  for place in range(7):
    for j in range(6):
      angle = place / 10_000 ** (2 * j / 12)
      np.testing.assert_allclose(
        table[place, [j, 6 + j]], [np.sin(angle), np.cos(angle)], atol=1e-6
      )
  table = np.asarray(position.Sinusoidal2D(1, (2, 3)).apply({}, x))[0]
  assert not table[0].any()  # The class token has none.
  omega = 1 / 10_000 ** (np.arange(3) / 2)
  for row in range(2):
    for column in range(3):
      expected = [f(place * omega) for place in (column, row) for f in (np.sin, np.cos)]
      np.testing.assert_allclose(table[1 + 3 * row + column], np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize('kind', [*ADDED, 'relative', 'none'])
@pytest.mark.parametrize('place', position.PLACES)
def test_what_is_added_can_be_looked_at(kind, place):
  """The difference that it makes to the tokens before the first block's norm."""
  if kind not in ADDED and place != 'input':
    pytest.skip('it adds nothing')
  model = build(positions=kind, position_at=place)
  params = drawn(model)
  found = model.position_embeddings(params)
  if kind not in ADDED:
    assert found is None
    return
  outputs = run(model, params, pictures(model, 1))[1]
  bare = run(build(positions='none'), params, pictures(model, 1))[1]['embedded']
  before = outputs['embedded'][0]
  if place == 'every':  # The block adds it, so that its output tells.
    first = model.Transformer.blocks[0].copy(position=None)
    own = params['Transformer']['encoderblock_0']
    after = first.apply({'params': own}, (bare[0] + found)[None], False)[0]
    np.testing.assert_allclose(outputs['block_0/tokens'], after, atol=1e-5)
    return
  np.testing.assert_allclose(before - bare[0], found, atol=1e-5)


def test_columns_and_rows_are_learned_apart():
  model = build(positions='learned_2d')
  params = drawn(model)['Transformer']['posembed_input']
  table = position.Learned2D(1, (3, 5)).apply({'params': params}, jnp.zeros((1, 16, 32)))[0]
  np.testing.assert_array_equal(table[:1], params['pos_embedding'][0])
  cells = table[1:].reshape(3, 5, 32)
  np.testing.assert_array_equal(cells[2, 3, :16], params['columns'][0, 3])
  np.testing.assert_array_equal(cells[2, 3, 16:], params['rows'][0, 2])


@pytest.mark.parametrize('kind', [*ADDED, 'relative', 'none'])
def test_only_positions_tell_an_order(kind):
  """Patches in another order give the same mean where nothing says where they stand."""
  model = build(positions=kind, readout='mean')
  params, x = drawn(model), pictures(model)
  patches = model.apply({'params': params}, x, method='embed')
  order = np.random.default_rng(0).permutation(15)

  def answer(patches):
    tokens, _ = model.apply({'params': params}, patches, method='encode')
    return model.apply({'params': params}, tokens, method='read')[0]

  difference = np.abs(answer(patches) - answer(patches[:, order])).max()
  assert (difference < 1e-4) == (kind == 'none'), difference


@pytest.mark.parametrize('kind', ADDED)
def test_shared_positions_are_added_before_each_block(kind):
  """Each block, applied by hand to its input and the one table."""
  model = build(positions=kind, position_at='shared')
  params = drawn(model)
  logits, outputs = run(model, params, pictures(model))
  encoder = model.Transformer
  own = params['Transformer'].get('posembed_input', {})
  table = encoder.position.apply({'params': own}, outputs['embedded'])
  x = outputs['embedded']
  for i, block in enumerate(encoder.blocks):
    x = x + (table if i else 0)
    x, _ = block.apply({'params': params['Transformer'][f'encoderblock_{i}']}, x, False)
    np.testing.assert_allclose(outputs[f'block_{i}/tokens'], x, atol=1e-5)
  assert np.abs(logits - run(build(positions=kind), params, pictures(model))[0]).max() > 1e-3


@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    ('vit', dict(positions='learned', position_at='every')),
    ('vit', dict(positions='learned_2d', position_at='shared')),
    ('vit', dict(positions='relative')),
    ('axial', dict(positions='learned', position_at='every')),
  ],
)
def test_a_loop_over_blocks_is_the_same(name, settings):
  model, looped = build(name, **settings), build(name, scan=True, **settings)
  params, x = drawn(model), pictures(model)
  np.testing.assert_allclose(run(looped, params, x)[0], run(model, params, x)[0], atol=1e-4)
  own = jax.eval_shape(lambda key: models.init(looped, key), jax.random.key(0))
  shapes = jax.tree.map(lambda a: a.shape, stacked.unstack_shapes(own))
  assert shapes == jax.tree.map(lambda a: a.shape, params)


def test_offsets_lie_on_diagonals():
  x = np.random.default_rng(0).normal(size=(2, 3, 5, 9)).astype(np.float32)
  found = np.asarray(attention.from_offsets(jnp.asarray(x)))
  for t in range(5):
    for s in range(5):
      np.testing.assert_array_equal(found[:, :, t, s], x[:, :, t, s - t + 4])


def test_relative_logits_by_hand():
  layer = attention.Attention(num_heads=2, relative=True)
  x = jax.random.normal(jax.random.key(0), (1, 4, 8))
  params = layer.init(jax.random.key(1), x, False)['params']
  y, weights = layer.apply({'params': params}, x, False)
  qkv = {n: np.einsum('td,dhe->the', x[0], params[n]['kernel']) for n in ('query', 'key', 'value')}
  scores = np.zeros((2, 4, 4))
  for t in range(4):
    for s in range(4):
      keys = qkv['key'][s] + np.asarray(params['relative_embedding'])[s - t + 3]
      scores[:, t, s] = (qkv['query'][t] * keys).sum(-1) / 2
  expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  np.testing.assert_allclose(weights[0], expected, atol=1e-5)
  mixed = np.einsum('hts,she->the', expected, qkv['value'])
  np.testing.assert_allclose(
    y[0], np.einsum('the,hed->td', mixed, params['out']['kernel']), atol=1e-5
  )


@pytest.mark.parametrize(
  ('section', 'words'),
  [
    (dict(positions='learnt'), "did you mean 'learned'"),
    (dict(position_at='all'), 'position_at'),
    (dict(positions='relative', position_at='every'), 'adds nothing to tokens'),
    (dict(positions='none', position_at='shared'), 'adds nothing to tokens'),
    (dict(positions='sinusoidal_2d', width=30, num_heads=2), 'a width that 4 divides'),
    (dict(positions='relative', attention='cudnn'), 'relative positions add to the scores'),
  ],
)
def test_positions_that_cannot_be(section, words):
  with pytest.raises(ValueError, match=words):
    build(**section)


def test_positions_follow_another_grid(tmp_path):
  """Rows and columns are resampled; relative ones, which know one length, are refused."""
  small = dict(data__image_size=(8, 8), total_steps=1, eval_every=0)
  config = small_config(model__positions='learned_2d', model__position_at='every', **small)
  train.train(config, tmp_path / 'a')
  tuned = small_config(init_from=str(tmp_path / 'a'), data__image_size=(16, 12),
                       total_steps=1, eval_every=0)  # fmt: skip
  train.train(tuned, tmp_path / 'b')
  _, passport = weights.load(tmp_path / 'b')
  assert passport.model['positions'] == 'learned_2d' and passport.model['position_at'] == 'every'
  params, _ = weights.load(tmp_path / 'b')
  rows = params['Transformer']['encoderblock_0']['posembed']
  assert rows['rows'].shape == (1, 4, 16) and rows['columns'].shape == (1, 3, 16)
  train.train(small_config(model__positions='relative', **small), tmp_path / 'c')
  with pytest.raises(ValueError, match='relative_embedding'):
    train.train(
      small_config(init_from=str(tmp_path / 'c'), data__image_size=(16, 12)), tmp_path / 'd'
    )


def test_axial_parameters_are_those_of_twice_the_blocks():
  """And no class token: the paper's 'extra MLP' per block."""
  block = 4 * 32 * 32 + 2 * 32 * 64 + 9 * 32 + 64
  plain = count(build(class_token=False, readout='mean'))
  assert count(build('axial')) == plain + 3 * block


def reach(function, x, place):
  """Which tokens `B T D` the output token at `place` depends on."""
  gradient = jax.grad(lambda x: (function(x)[0, place] * jnp.arange(1.0, x.shape[-1] + 1)).sum())(x)
  return np.abs(np.asarray(gradient[0])).max(-1) > 1e-9


@pytest.mark.parametrize('axis', ['row', 'column'])
def test_axial_attention_sees_its_line_and_nothing_else(axis):
  layer = axial.AxialAttention(num_heads=2, axis=axis, grid=(3, 5))
  x = jax.random.normal(jax.random.key(0), (2, 15, 8))
  params = layer.init(jax.random.key(1), x, False)['params']
  found = reach(lambda x: layer.apply({'params': params}, x, False)[0], x, 5 + 3).reshape(3, 5)
  expected = np.zeros((3, 5), bool)
  expected[(1, slice(None)) if axis == 'row' else (slice(None), 3)] = True
  np.testing.assert_array_equal(found, expected)
  y, weights = layer.apply({'params': params}, x, False)
  lines = x.reshape(2, 3, 5, 8) if axis == 'row' else x.reshape(2, 3, 5, 8).swapaxes(1, 2)
  plain = attention.Attention(num_heads=2)
  alone, own = plain.apply({'params': params}, lines[1], False)
  together = y.reshape(2, 3, 5, 8) if axis == 'row' else y.reshape(2, 3, 5, 8).swapaxes(1, 2)
  np.testing.assert_allclose(together[1], alone, atol=1e-5)
  np.testing.assert_allclose(weights[1], own, atol=1e-5)


def test_an_axial_block_sees_its_row_then_everything():
  model = build('axial')
  params = drawn(model)['Transformer']['encoderblock_0']
  block = model.Transformer.blocks[0]
  x = jax.random.normal(jax.random.key(0), (1, 15, 32))
  both = reach(lambda x: block.apply({'params': params}, x, False)[0], x, 8)
  row = reach(
    lambda x: block.along_row.apply({'params': params['row']}, x, False)[0], x, 8
  ).reshape(3, 5)
  assert both.all() and row[1].all() and row.sum() == 5


def test_rows_and_columns_become_one_map():
  model = build('axial')
  params = drawn(model)
  _, outputs = run(model, params, pictures(model, 1))
  found = np.asarray(model.attention_map(outputs, 1))[0]
  rows = np.asarray(outputs['block_1/row/attention_weights'])[0]  # H h W W
  columns = np.asarray(outputs['block_1/column/attention_weights'])[0]  # W h H H
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
  for r, c, s, d in [(0, 0, 0, 0), (2, 3, 1, 4), (1, 4, 2, 0)]:
    expected = columns[c, :, r, s] * rows[s, :, c, d].mean()
    np.testing.assert_allclose(found[:, 5 * r + c, 5 * s + d], expected, rtol=1e-5)


def test_the_numbers_of_row_heads_mean_nothing():
  """Heads of the rows in another order compute the same, and are shown the same."""
  model = build('axial')
  params = drawn(model)
  turned = jax.tree.map(lambda x: x, params)
  heads = turned['Transformer']['encoderblock_1']['row']['MultiHeadDotProductAttention_1']
  for name, part in heads.items():
    kernel_axis, bias_axis = (0, None) if name == 'out' else (1, 0)
    part['kernel'] = jnp.flip(part['kernel'], kernel_axis)
    part['bias'] = part['bias'] if bias_axis is None else jnp.flip(part['bias'], bias_axis)
  seen = pictures(model, 1)
  (logits, one), (same, other) = (run(model, x, seen) for x in (params, turned))
  np.testing.assert_allclose(logits, same, rtol=1e-4, atol=1e-5)
  maps = [np.asarray(model.attention_map(x, 1)) for x in (one, other)]
  assert np.abs(maps[0][0, 0] - maps[0][0, 1]).max() > 1e-3  # Heads differ.
  np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-6)


def test_an_axial_model_trains_resumes_and_is_judged(tmp_path):
  options = dict(
    optimizer__schedule='constant',
    model__name='axial',
    model__variant='mu/2',
    data__validation_fraction=0.2,
  )
  train.train(small_config(**options), tmp_path / 'whole')
  train.train(small_config(**options, total_steps=2), tmp_path / 'cut')
  train.train(small_config(**options), tmp_path / 'cut')
  a, b = (weights.open_source(tmp_path / name).flat() for name in ('whole', 'cut'))
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
  assert train.evaluate(small_config(**options), tmp_path / 'whole')['n_examples'] == 360
  with pytest.raises(ValueError, match='stands in no row'):
    build('axial', class_token=True)


def test_attention_along_a_line_by_hand():
  """Axial-DeepLab's equation 4, with loops."""
  layer = axial_resnet.LineAttention(2, 'bit', 'float32')
  x = jax.random.normal(jax.random.key(0), (1, 2, 4, 8))
  params = layer.init(jax.random.key(1), x)['params']
  y = np.asarray(layer.apply({'params': params}, x))
  kernel = np.asarray(params['qkv']['kernel'][0, 0])
  kernel = (kernel - kernel.mean(0)) / np.sqrt(kernel.std(0) ** 2 + 1e-10)
  r = {name: np.asarray(params[f'relative_{name}']) for name in ('query', 'key', 'value')}
  for line in range(2):
    q, k, v = np.moveaxis((np.asarray(x)[0, line] @ kernel).reshape(4, 3, 2, 4), 1, 0)
    for head in range(2):
      for t in range(4):
        logits = [
          (q[t, head] @ k[s, head] + q[t, head] @ r['query'][s - t + 3]
           + k[s, head] @ r['key'][t - s + 3]) / 2 for s in range(4)
        ]  # fmt: skip
        share = np.exp(logits) / np.exp(logits).sum()
        expected = sum(share[s] * (v[s, head] + r['value'][s - t + 3]) for s in range(4))
        np.testing.assert_allclose(y[0, line, t, 4 * head : 4 * head + 4], expected, atol=1e-4)


def test_an_axial_resnet_counts_and_reaches():
  """3 x 3 kernels, 9 w^2, become two projections of 3 w^2 each, and tables of 2 t - 1 offsets."""
  section = dict(image_size=(64, 64), channels=3, num_classes=5, variant='R26x1')
  normal = {name: defaults.part('model', name).to_dict() for name in ('bit', 'axial_resnet')}
  conv, model = (models.build(**part | section) for part in normal.values())
  difference = 0
  for i, units in enumerate((2, 2, 2, 2)):
    width = 64 * 2**i
    for unit in range(units):
      side = 64 // 4 // 2**i * (2 if i and not unit else 1)
      tables = 2 * 3 * (2 * side - 1) * width // 8
      difference += 6 * width**2 + tables - 9 * width**2
  assert count(model) - count(conv) == difference
  with pytest.raises(ValueError, match='must divide 64'):
    models.build(**normal['axial_resnet'] | section | {'num_heads': 5})
  answer, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  assert answer[0].shape == (1, 5)
