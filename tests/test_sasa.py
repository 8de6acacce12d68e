"""Stand-alone self-attention: published counts, a NumPy version, memory, reach, runs."""

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import defaults, models, train, weights
from vit_jax.models import arithmetic, attention_stem, local_attention

# arXiv:1906.05909: millions of parameters and 10^9 FLOPs (two to a multiply-add) of table 1, of
# attention with both stems; then of ResNet-50 by the stages that attend (with convolution's stem).
TABLE_1 = {
  ('R26', 'none', 'convolution'): (13.7, 4.7), ('R38', 'none', 'convolution'): (19.6, 6.5),
  ('R50', 'none', 'convolution'): (25.6, 8.2), ('R26', 'all', 'convolution'): (10.3, 4.5),
  ('R38', 'all', 'convolution'): (14.1, 5.7), ('R50', 'all', 'convolution'): (18.0, 7.0),
  ('R26', 'all', 'attention'): (10.3, 4.7), ('R38', 'all', 'attention'): (14.1, 6.0),
  ('R50', 'all', 'attention'): (18.0, 7.2),
  ('R50', '2,3,4', 'convolution'): (18.1, 7.3), ('R50', '3,4', 'convolution'): (18.5, 7.5),
  ('R50', '4', 'convolution'): (20.8, 8.0), ('R50', '1', 'convolution'): (25.5, 7.9),
  ('R50', '1,2', 'convolution'): (25.0, 7.8), ('R50', '1,2,3', 'convolution'): (22.7, 7.2),
}  # fmt: skip


def build(image_size=(32, 24), num_classes=5, **section):
  normal = defaults.part('model', 'sasa').to_dict() | {'variant': 'digits', 'kernel': 3}
  shape = dict(image_size=image_size, channels=3, num_classes=num_classes)
  return models.build(**normal | section | shape)


def drawn(tree, seed=0):
  """Parameters that are nowhere zero, in the shapes of a tree."""
  leaves, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  spread = [0.3 if x.ndim < 2 else np.prod(x.shape[:-1]) ** -0.5 for x in leaves]
  return jax.tree.unflatten(structure, [
    jnp.asarray(rng.normal(0, s, x.shape), jnp.float32) for x, s in zip(leaves, spread, strict=True)
  ])  # fmt: skip


def shapes(model):
  return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


def of_layer(layer, x):
  """The shapes of a layer's parameters."""
  return jax.eval_shape(lambda x: layer.init(jax.random.key(0), x)['params'], x)


@pytest.mark.parametrize('key', TABLE_1)
def test_published_counts(key):
  """Parameters within 1 %; FLOPs within 6 %: the paper's also count what is no product."""
  variant, attending, stem = key
  model = build((224, 224), 1000, variant=variant, attention_stages=attending, stem=stem, kernel=7)
  millions, billions = TABLE_1[key]
  count = sum(x.size for x in jax.tree.leaves(shapes(model)))
  assert count / 1e6 == pytest.approx(millions, rel=0.01)
  assert 2 * arithmetic.total(model) / 1e9 == pytest.approx(billions, rel=0.06)


@pytest.mark.parametrize('kernel', [3, 9, 11])
def test_the_size_of_a_neighbourhood_costs_few_parameters(kernel):
  """Tables of offsets alone grow: each layer's by two channels in each of a row's places."""
  seven, other = (
    sum(x.size for x in jax.tree.leaves(shapes(build((224, 224), variant='R50', kernel=k))))
    for k in (7, kernel)
  )
  widths = sum(64 * 2**i * count for i, count in enumerate((3, 4, 6, 3)))
  assert other - seven == (kernel - 7) * widths


def by_hand(x, p, heads, kernel, content=True, relative=True):
  """Local attention in NumPy, one place and head at a time."""
  q, k, v = (np.asarray(x @ p[n]['kernel']).reshape(*x.shape[:2], heads, -1)
             for n in ('query', 'key', 'value'))  # fmt: skip
  out, half, d = np.zeros_like(v), kernel // 2, q.shape[-1] // 2
  for i, j, h in np.ndindex(q.shape[:3]):
    seen = [(a, b) for a in range(max(0, i - half), min(len(x), i + half + 1))
            for b in range(max(0, j - half), min(x.shape[1], j + half + 1))]  # fmt: skip
    r = [np.concatenate([p['rows'][a - i + half, h], p['columns'][b - j + half, h]])
         for a, b in seen]  # fmt: skip
    s = np.array([q[i, j, h] @ (content * k[ab][h] + relative * o) for ab, o in zip(seen, r)])
    out[i, j, h] = (np.exp(s) / np.exp(s).sum()) @ np.stack([v[ab][h] for ab in seen])
  return out.reshape(*x.shape[:2], 2 * d * heads)


@pytest.mark.parametrize(('kernel', 'content'), [(3, True), (5, True), (5, False)])
def test_local_attention_by_hand(kernel, content):
  layer = local_attention.LocalAttention(8, 2, kernel, content=content)
  x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
  full = local_attention.LocalAttention(8, 2, kernel)
  params = drawn(of_layer(full, x))
  own = params if content else {key: value for key, value in params.items() if key != 'key'}
  y, weights = jax.jit(lambda p, x: layer.apply({'params': p}, x))(own, x)
  for i in range(2):
    np.testing.assert_allclose(
      y[i],
      by_hand(np.asarray(x[i]), jax.tree.map(np.asarray, params), 2, kernel, content),
      atol=1e-5,
    )
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_positions_are_relative_absolute_or_none():
  """Without any, a map of one content attends evenly; waves are what is added to the input."""
  x = jnp.ones((1, 5, 5, 8))
  params = drawn(of_layer(local_attention.LocalAttention(8, 2, 3), x))
  bare = {key: params[key] for key in ('query', 'key', 'value')}
  found = {}
  for kind in local_attention.POSITIONS:
    layer = local_attention.LocalAttention(8, 2, 3, kind)
    own = params if kind == 'relative' else bare
    found[kind] = layer.apply({'params': own}, x)[1][0, 2, 2]
  np.testing.assert_allclose(found['none'], 1 / 9, rtol=1e-5)
  assert found['relative'].std() > 0.01 and found['absolute'].std() > 0.01
  waves = local_attention.position.Sinusoidal2D(0, (5, 5))(x.reshape(1, 25, 8))
  none = local_attention.LocalAttention(8, 2, 3, 'none')
  seen = none.apply({'params': bare}, x + waves.reshape(x.shape))[1][0, 2, 2]
  np.testing.assert_allclose(found['absolute'], seen, rtol=1e-5)


def test_a_place_sees_its_neighbourhood_alone():
  """By gradient; the same neighbours are those with weight on the whole map."""
  layer = local_attention.LocalAttention(8, 2, 5)
  x = jax.random.normal(jax.random.key(1), (1, 7, 6, 8))
  params = drawn(of_layer(layer, x))
  apply = jax.jit(lambda x: layer.apply({'params': params}, x))
  slope = jax.jit(jax.grad(lambda x: (apply(x)[0][0, 1, 5] ** 2).sum()))(x)
  expected = np.zeros((7, 6), bool)
  expected[:4, 3:] = True
  np.testing.assert_array_equal(np.abs(slope[0]).max(-1) > 0, expected)
  weights = apply(x)[1]
  whole = np.asarray(local_attention.over_map(weights, 5))[0]
  assert whole.shape == (2, 42, 42)
  np.testing.assert_array_equal(whole[1, 1 * 6 + 5].reshape(7, 6) > 0, expected)
  np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
  value = np.asarray(x[0] @ params['value']['kernel']).reshape(42, 2, 4)
  y = np.einsum('hts,shd->thd', whole, value).reshape(7, 6, 8)
  np.testing.assert_allclose(apply(x)[0][0], y, atol=1e-5)


@pytest.mark.parametrize('section', [dict(), dict(stem='convolution', positions='absolute')])
def test_half_precision_ends_in_whole(section):
  model = build(dtype='bfloat16', **section)
  image = jax.ShapeDtypeStruct((1, 32, 24, 3), jnp.float32)
  found = jax.eval_shape(lambda p, x: model.apply({'params': p}, x), shapes(model), image)
  assert found[0].dtype == jnp.float32 and found[1]['tokens'].dtype == jnp.bfloat16
  assert found[1]['block_0/local/attention_weights'].dtype == jnp.float32


def temporary(function, *arguments):
  """Bytes that the compiled gradient of a layer needs beside what goes in and out."""
  slope = jax.jit(jax.grad(lambda *given: (function(*given) ** 2).sum(), (0, 1)))
  return slope.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def gathered(params, x, kernel, heads):
  """The plain way: every place with a copy of its neighbourhood; positions left out."""
  q, k, v = (x @ params[name]['kernel'] for name in ('query', 'key', 'value'))
  cut = (*x.shape[:3], heads, -1)
  padded = [jnp.pad(y, ((0, 0), *((kernel // 2,) * 2,) * 2, (0, 0))) for y in (k, v)]
  k, v = (
    jnp.stack([y[:, i : i + x.shape[1], j : j + x.shape[2]].reshape(cut)
               for i in range(kernel) for j in range(kernel)])
    for y in padded
  )  # fmt: skip
  shares = jax.nn.softmax(jnp.einsum('byxhd,nbyxhd->nbyxh', q.reshape(cut), k), 0)
  return jnp.einsum('nbyxh,nbyxhd->byxhd', shares, v)


@pytest.mark.parametrize(('width', 'maps'), [(128, 25), (256, 20)])
def test_memory_holds_no_copies_of_the_features(width, maps):
  """In units of one map: k^2 = 49 copies would be 49; logits of 8 heads are 49 * 8 / width."""
  layer = local_attention.LocalAttention(width, 8, 7)
  x = jax.ShapeDtypeStruct((2, 14, 14, width), 'float32')
  params = of_layer(layer, x)
  one = 4 * x.size
  ours = temporary(lambda params, x: layer.apply({'params': params}, x)[0], params, x)
  assert ours < maps * one
  if width == 128:
    assert temporary(lambda params, x: gathered(params, x, 7, 8), params, x) > 2 * 49 * one


def test_the_stem_by_hand():
  """Each place of a block of 4 x 4 pixels with its own mixture of kernels."""
  block = attention_stem.BlockAttention(64, 8, 4)
  x = jax.random.normal(jax.random.key(0), (1, 16, 3))
  params = drawn(of_layer(block, x))
  p = jax.tree.map(np.asarray, params)
  q, k = (np.asarray(x[0] @ p[n]['kernel']).reshape(16, 8, 8) for n in ('query', 'key'))
  expected = np.zeros((16, 64), np.float32)
  v = []
  for a, b in np.ndindex(4, 4):
    e = np.exp((p['place_rows'][a] + p['place_columns'][b]) @ p['mixtures'])
    v.append(x[0, 4 * a + b] @ np.einsum('m,cmd->cd', e / e.sum(), p['value']))
  v = np.stack(v).reshape(16, 8, 8)
  for t, h in np.ndindex(16, 8):
    r = [np.concatenate([p['rows'][s // 4 - t // 4 + 3, h], p['columns'][s % 4 - t % 4 + 3, h]])
         for s in range(16)]  # fmt: skip
    s = np.exp([q[t, h] @ (k[s, h] + r[s]) for s in range(16)])
    expected[t, 8 * h : 8 * h + 8] = s / s.sum() @ v[:, h]
  y = jax.jit(lambda x: block.apply({'params': params}, x))(x)
  np.testing.assert_allclose(y[0], expected, atol=1e-5)


def test_maps_and_attention_of_every_bottleneck():
  """Strides are pools behind attention; a picture of any sides that 4 divides."""
  model = build((36, 24), attention_stages='2')
  params = drawn(shapes(model))
  x = jax.random.normal(jax.random.key(0), (2, 36, 24, 3))
  logits, outputs = jax.jit(lambda p, x: model.apply({'params': p}, x))(params, x)
  assert logits.shape == (2, 5) and model.maps == [(9, 6), (5, 3)]
  assert [outputs[f'stage_{i}'].shape[1:3] for i in range(2)] == model.maps
  assert model.attention_map(outputs, 0) is None
  seen = model.attention_map(outputs, 1)
  assert model.attention_grid(1) == (9, 6) and seen.shape == (2, 8, 54, 54)
  np.testing.assert_allclose(seen.sum(-1), 1, rtol=1e-5)
  assert 'stages of convolution, attention (3 x 3)' in model.summary()


@pytest.mark.parametrize(
  'section',
  [dict(), pytest.param(dict(stem='convolution', positions='absolute'), marks=pytest.mark.slow)],
)
def test_gradients_reach_everything_and_computing_again_is_the_same(section):
  x = jax.random.normal(jax.random.key(0), (2, 32, 24, 3))
  params = drawn(shapes(build(**section)))

  def slopes(remat):
    model = build(remat=remat, **section)
    return jax.jit(jax.grad(lambda p: (model.apply({'params': p}, x)[0] ** 2).sum()))(params)

  plain, again = slopes('none'), slopes('blocks')
  for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(again), strict=True):
    assert np.abs(a).max() > 0, path
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


def run_config(**overrides):
  own = dict(model__name='sasa', model__variant='digits', model__kernel=3,
             data__image_size=(16, 16), data__validation_fraction=0.2, total_steps=4,
             eval_every=4, optimizer__schedule='constant')  # fmt: skip
  return small_config(**own | overrides)


@pytest.mark.slow
def test_it_trains_resumes_and_is_judged(tmp_path):
  train.train(run_config(), tmp_path / 'whole')
  train.train(run_config(total_steps=2), tmp_path / 'cut')
  train.train(run_config(), tmp_path / 'cut')
  a, b = (weights.open_source(tmp_path / name).flat() for name in ('whole', 'cut'))
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
  assert train.evaluate(run_config(), tmp_path / 'whole')['n_examples'] == 360


@pytest.mark.parametrize(
  ('section', 'words'),
  [
    (dict(variant='R51'), "did you mean 'R50'"),
    (dict(kernel=4), 'kernel=4 must be odd'),
    (dict(kernel=13), 'of stage 1, 8 x 6, a place sees at most 11 x 11'),
    (dict(kernel=3, image_size=(16, 16), variant='R26'), 'of stage 3, 1 x 1'),
    (dict(num_heads=5), 'num_heads=5 must divide 64'),
    (dict(num_heads=64), 'rows and columns can halve'),
    (dict(positions='relativ'), "did you mean 'relative'"),
    (dict(stem='conv'), "unknown config.model.stem 'conv'"),
    (dict(attention_stages='1,5'), 'attention_stages=1,5: give stages from 1 to 2'),
    (dict(mixtures=0), 'mixtures=0'),
    (dict(content=False, positions='none'), 'nothing is left to attend by'),
    (dict(image_size=(30, 32)), 'do not divide 30 x 32'),
  ],
)
def test_what_cannot_be_is_refused(section, words):
  with pytest.raises(ValueError, match=words):
    build(**section)
