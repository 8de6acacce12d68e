"""Attention that is a convolution: counts, the theorem, centres of heads, pruning, runs."""

import json

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import defaults, interpret, models, predict, train, weights
from vit_jax.convert import pruning
from vit_jax.interpret import __main__ as command
from vit_jax.models import layers, spatial_attention

# The authors' code at 32 x 32 pixels and ten classes, by arithmetic; published: 12.1, 12.3, 29.5 M.
COUNTS = {
  ('isotropic', False): 12_086_844, ('general', False): 12_087_006,
  ('learned', False): 12_278_682, ('learned', True): 29_558_682,
}  # fmt: skip
SHIFTS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def build(image_size=(5, 6), num_classes=5, channels=3, **section):
  small = dict(variant='digits/1', width=8, depth=2, mlp_dim=16, num_heads=3)
  normal = defaults.part('model', 'cordonnier').to_dict() | small
  shape = dict(image_size=image_size, channels=channels, num_classes=num_classes)
  return models.build(**normal | section | shape)


def shapes(model):
  return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


def drawn(model, seed=0):
  """Parameters of any kind, as NumPy arrays; spreads around 1."""
  leaves, tree = jax.tree.flatten(shapes(model))
  rng = np.random.default_rng(seed)
  drawn = [rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
  params = jax.tree.unflatten(tree, drawn)
  for block in params['Transformer'].values():
    if 'spreads' in block['spatial']['offsets']:
      spreads = block['spatial']['offsets']['spreads']
      spreads[...] = np.eye(2) if spreads.ndim == 3 else 1.0
  return params


@pytest.mark.parametrize('key', COUNTS)
def test_the_counts_of_the_authors(key):
  encoding, content = key
  own = dict.fromkeys(('width', 'depth', 'mlp_dim', 'num_heads'))
  model = build((32, 32), 10, **own, variant='cifar/2', encoding=encoding, content=content)
  assert sum(x.size for x in jax.tree.leaves(shapes(model))) == COUNTS[key]


# The theorem.


def convolution(x, kernel, mode):
  """A 3 x 3 convolution (cross-correlation) of a map with a border of zeros or of its edge."""
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
  height, width = x.shape[:2]
  return sum(padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] @ kernel[i + 1, j + 1]
             for i, j in SHIFTS)  # fmt: skip


def as_convolution(kernel, bias, alpha, general):
  """The parameters of the proof: a head a shift, with logits -alpha |offset - shift|^2."""
  depth = kernel.shape[-1]
  spread = jnp.sqrt(2 * alpha)
  spreads = jnp.full(9, spread)
  return {
    'offsets': {
      'centres': jnp.asarray(SHIFTS, jnp.float32),
      'spreads': spreads[:, None, None] * jnp.eye(2) if general else spreads,
    },
    'value': {'kernel': kernel.reshape(9 * depth, depth), 'bias': bias},
    'out': {'kernel': jnp.eye(depth), 'bias': jnp.zeros(depth)},
  }


@pytest.mark.parametrize('general', [False, True])
def test_nine_heads_are_a_convolution(general):
  """With padding by the edge, nearer the larger alpha is; zeros at the border are another map."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 6, 4)).astype(np.float32)
  kernel, bias = rng.normal(size=(3, 3, 4, 4)).astype(np.float32), jnp.asarray(rng.normal(size=4))
  encoding = spatial_attention.Quadratic(9, (5, 6), general=general)
  layer = spatial_attention.SpatialAttention(encoding)

  @jax.jit
  def attend(alpha):
    params = as_convolution(jnp.asarray(kernel), bias, alpha, general)
    return layer.apply({'params': params}, jnp.asarray(x).reshape(1, 30, 4), False)[0]

  edge = convolution(x, kernel, 'edge') + np.asarray(bias)
  apart = [np.abs(attend(alpha).reshape(5, 6, 4) - edge).max() for alpha in (1.0, 4.0, 16.0, 64.0)]
  assert apart[0] > 0.1 and apart == sorted(apart, reverse=True) and apart[-1] < 1e-4
  zeros = convolution(x, kernel, 'constant') + np.asarray(bias)
  found = np.asarray(attend(64.0)).reshape(5, 6, 4)
  np.testing.assert_allclose(found[1:-1, 1:-1], zeros[1:-1, 1:-1], atol=1e-4)
  assert all(np.abs(found - zeros)[place].max() > 0.1 for place in (0, -1, (slice(None), 0)))


# The logits.


def test_quadratic_logits_by_hand():
  """The paper's five features of an offset times a head's vector, up to a constant."""
  encoding = spatial_attention.Quadratic(2, (3, 4), general=True)
  rng = np.random.default_rng(1)
  centres, spreads = rng.normal(size=(2, 2)), rng.normal(size=(2, 2, 2))
  params = {'centres': jnp.asarray(centres), 'spreads': jnp.asarray(spreads)}
  found = np.asarray(encoding.apply({'params': params}))
  assert found.shape == (2, 5, 7)
  for head in range(2):
    (a, b), (_, c) = spreads[head] @ spreads[head].T
    (m, n), logits = centres[head], np.zeros((5, 7))
    for i, j in np.ndindex(5, 7):
      y, x = i - 2, j - 3
      features = np.array([y, x, y * y, x * x, y * x])
      vector = np.array([-2 * (a * m + b * n), -2 * (c * n + b * m), a, c, 2 * b])
      logits[i, j] = -0.5 * features @ vector
    np.testing.assert_allclose(found[head] - found[head].max(), logits - logits.max(), atol=1e-4)


def test_learned_logits_and_pairs_by_hand():
  encoding = spatial_attention.LearnedOffsets(2, (3, 4), width=5)
  rng = np.random.default_rng(2)
  shape = {'rows': (5, 5), 'columns': (7, 5), 'rows_key': (5, 2), 'columns_key': (5, 2)}
  params = {name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in shape.items()}
  p = jax.tree.map(np.asarray, params)
  pairs = np.asarray(encoding.pairs(encoding.apply({'params': params})))
  assert pairs.shape == (2, 12, 12)
  for head, query, key in np.ndindex(2, 12, 12):
    (yq, xq), (yk, xk) = divmod(query, 4), divmod(key, 4)
    row = p['rows'][yk - yq + 2] @ p['rows_key'][:, head]
    column = p['columns'][xk - xq + 3] @ p['columns_key'][:, head]
    assert pairs[head, query, key] == pytest.approx(row + column, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(('encoding', 'content'), [('general', False), ('learned', True)])
def test_attention_by_hand(encoding, content):
  model = build(encoding=encoding, content=content, depth=1)
  params = jax.tree.map(jnp.asarray, drawn(model))
  x = jax.random.normal(jax.random.key(0), (2, 30, 8))
  attend = model.Transformer.blocks[0].attention
  p = params['Transformer']['block_0']['spatial']
  y, given = jax.jit(lambda p, x: attend.apply({'params': p}, x, False))(p, x)
  own = attend.encoding
  logits = np.asarray(own.pairs(own.apply({'params': p['offsets']})))[None]
  if content:
    q, k = (np.asarray(x @ p[name]['kernel']).reshape(2, 30, 3, 8) for name in ('query', 'key'))
    logits = logits + np.einsum('bthd,bshd->bhts', q, k) / np.sqrt(8)
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  shares = np.broadcast_to(shares / shares.sum(-1, keepdims=True), (2, 3, 30, 30))
  np.testing.assert_allclose(given, shares, atol=1e-5)
  mixed = np.einsum('bhts,bsd->bthd', shares, x).reshape(2, 30, 24)
  value = mixed @ p['value']['kernel'] + p['value']['bias']
  np.testing.assert_allclose(y, value @ p['out']['kernel'] + p['out']['bias'], atol=1e-4)


def test_blocks_have_the_norm_behind():
  """Tokens of every block have mean 0 and deviation 1 at the start; the head reads their mean."""
  model = build(encoding='isotropic', attention_dropout=0.0)
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
  params = jax.jit(models.init, static_argnums=0)(model, jax.random.key(0))
  outputs = jax.jit(lambda p, x: model.apply({'params': p}, x)[1])(params, x)
  for i in range(2):
    tokens = np.asarray(outputs[f'block_{i}/tokens'])
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-2)
  np.testing.assert_allclose(outputs['features'], outputs['tokens'].mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('content', [False, True])
def test_half_precision_ends_in_whole(content):
  model = build(dtype='bfloat16', content=content)
  image = jax.ShapeDtypeStruct((1, 5, 6, 3), jnp.float32)
  found = jax.eval_shape(lambda p, x: model.apply({'params': p}, x), shapes(model), image)
  assert found[0].dtype == jnp.float32 and found[1]['tokens'].dtype == jnp.bfloat16
  assert found[1]['block_0/attention_weights'].dtype == jnp.float32


def test_gradients_reach_everything():
  model = build(encoding='general', content=True)
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))

  def loss(params):
    rngs = {'dropout': jax.random.key(1)}
    return (model.apply({'params': params}, x, train=True, rngs=rngs)[0] ** 2).sum()

  slopes = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, drawn(model)))
  for path, slope in jax.tree.leaves_with_path(slopes):
    assert np.abs(slope).max() > 0, path


# Centres, and what has none.


def with_spreads(model, spreads):
  """Parameters whose first block has these spreads."""
  params = drawn(model)
  offsets = params['Transformer']['block_0']['spatial']['offsets']
  offsets['spreads'] = np.asarray(spreads, np.float32)
  return params


LINE, NOWHERE = np.diag([40.0, 1.0]), np.diag([1.0, 0.001])


def test_degenerate_heads_are_those_of_the_authors():
  """A condition above 1,000, or an eigenvalue of the precision below 1e-5."""
  model = build(encoding='general')
  params = with_spreads(model, [np.eye(2), LINE, NOWHERE])
  assert model.degenerate_heads(params) == [[1, 2], []]
  isotropic = build()
  assert isotropic.degenerate_heads(with_spreads(isotropic, [1.0, 0.001, 3.0])) == [[1], []]


@pytest.mark.parametrize(('encoding', 'content'), [('general', False), ('learned', True)])
def test_without_heads_that_the_output_does_not_read(encoding, content):
  """What no value weight reads may go, and nothing changes; the section says how many are left."""
  model = build(encoding=encoding, content=content)
  params = drawn(model)
  kernel = params['Transformer']['block_1']['spatial']['value']['kernel']
  kernel.reshape(3, 8, 8)[1] = 0
  changes, fewer = model.without_heads(params, [[], [1]])
  assert changes == {'heads': '3,2'}
  pruned = build(encoding=encoding, content=content, **changes)
  assert jax.tree.map(np.shape, fewer) == jax.tree.map(lambda x: x.shape, shapes(pruned))
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
  a, b = (jax.jit(lambda p, m=m: m.apply({'params': p}, x)[0])(p)
          for m, p in ((model, params), (pruned, fewer)))  # fmt: skip
  np.testing.assert_allclose(a, b, atol=1e-5)
  with pytest.raises(ValueError, match='all 3 heads of block 1 are to go'):
    model.without_heads(params, [[0, 1, 2], []])


def test_centres_of_learned_tables_are_their_moments():
  encoding = spatial_attention.LearnedOffsets(1, (4, 4), width=1)
  rows = -1.0 * (np.arange(-3, 4) - 1.0) ** 2  # A Gaussian around 1 of variance 1 / 2.
  columns = -0.5 * (np.arange(-3, 4) + 0.0) ** 2
  params = {'rows': rows[:, None], 'columns': columns[:, None],
            'rows_key': np.ones((1, 1)), 'columns_key': np.ones((1, 1))}  # fmt: skip
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  centres, precision = encoding.gaussians(params)
  np.testing.assert_allclose(centres[0], [1, 0], atol=0.02)
  np.testing.assert_allclose(np.diag(precision[0]), [2, 1], rtol=0.06)


# Runs, the picture, pruning by command.


def run_config(**overrides):
  own = dict(
    model__name='cordonnier', model__variant='digits/2', model__width=16, model__depth=2,
    model__mlp_dim=16, model__num_heads=3, model__dropout=0.1, data__validation_fraction=0.2,
    optimizer__schedule='constant', total_steps=4, eval_every=4,
  )  # fmt: skip
  config = defaults.complete(small_config(), {'model': 'cordonnier'})
  for key, value in (own | overrides).items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  train.train(run_config(), workdir)
  return workdir


@pytest.mark.slow
def test_it_resumes_and_is_judged(run, tmp_path):
  train.train(run_config(total_steps=2), tmp_path)
  train.train(run_config(), tmp_path)
  a, b = (weights.open_source(folder).flat() for folder in (run, tmp_path))
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
  assert train.evaluate(run_config(), run)['n_examples'] == 360


@pytest.mark.slow
def test_the_picture_of_centres(run, tmp_path):
  command.main(['centres', str(run), f'--out={tmp_path}'])
  found = json.loads((tmp_path / 'centres.json').read_text())
  expected = weights.open_source(run).flat()
  centres = expected['Transformer/block_1/spatial/offsets/centres']
  np.testing.assert_allclose(found['centres'][1], centres, rtol=1e-4)
  spreads = expected['Transformer/block_1/spatial/offsets/spreads']
  np.testing.assert_allclose(np.array(found['radii'])[1, :, 0], 1 / np.abs(spreads), rtol=1e-4)
  assert (tmp_path / 'centres.png').stat().st_size > 10_000


def test_models_without_centres_say_so(trained):
  with pytest.raises(ValueError, match='has no attention by offset: take a model of that'):
    interpret.measure('centres', predict.load(trained))


@pytest.mark.slow
def test_pruning_by_command_then_fine_tuning(run, tmp_path):
  params, passport = weights.load(run)
  offsets = params['Transformer']['block_0']['spatial']['offsets']
  offsets['spreads'] = np.array([1.0, 0.001, 1.0], np.float32)
  weights.write_model(tmp_path / 'wide', params, passport)
  gone = pruning.prune(tmp_path / 'wide', tmp_path / 'pruned')
  assert gone == [[1], []]
  left = weights.open_source(tmp_path / 'pruned')
  assert left.passport.model['heads'] == '2,3'
  tuned = run_config(init_from=str(tmp_path / 'pruned'), total_steps=1, **dict.fromkeys(
    ('model__variant', 'model__width', 'model__depth', 'model__mlp_dim', 'model__num_heads')
  ))  # fmt: skip
  train.train(tuned, tmp_path / 'tuned')
  flat = weights.open_source(tmp_path / 'tuned').flat()
  assert flat['Transformer/block_0/spatial/offsets/centres'].shape == (2, 2)
  offsets['spreads'] = np.zeros(3, np.float32)
  weights.write_model(tmp_path / 'wide', params, passport)
  with pytest.raises(ValueError, match='all 3 heads of block 1'):
    pruning.prune(tmp_path / 'wide', tmp_path / 'nothing')
  assert not (tmp_path / 'nothing').exists()
  with pytest.raises(ValueError, match='no head of it is degenerate'):
    pruning.prune(run, tmp_path / 'nothing')


@pytest.mark.parametrize(
  ('section', 'words'),
  [
    (dict(variant='cifar'), "did you mean 'cifar/2'"),
    (dict(variant='digits/4'), 'patches of 4 x 4 do not divide images of 5 x 6'),
    (dict(encoding='isotrop'), "did you mean 'isotropic'"),
    (dict(num_heads=0), 'num_heads=0 must be at least 1'),
    (dict(heads='3,0'), 'heads=3,0: give at least one head for each of 2 blocks'),
    (dict(heads='3'), 'for each of 2 blocks'),
    (dict(dropout=1.0), r'dropout=1\.0'),
  ],
)
def test_what_cannot_be_is_refused(section, words):
  with pytest.raises(ValueError, match=words):
    build(**section)


def test_the_mlp_has_dropout_behind_it_alone():
  block = build(dropout=0.3).Transformer.blocks[0]
  assert (block.mlp.dropout, block.dropout) == (0.0, 0.3)
  assert isinstance(block.mlp, layers.MlpBlock)
