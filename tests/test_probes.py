"""Published readouts and probes: counts, formulas in NumPy, reach; norms, rules, presets."""

import types

from conftest import ROOT, small_config
from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from vit_jax import defaults, models, recipe
from vit_jax.evaluation import candidates, fitting, probes
from vit_jax.evaluation.store import Tokens
from vit_jax.explore import compare, lab, native, readouts, selection
from vit_jax.models import readout, tokens
from vit_jax.models.cross_attention import AttentiveReadout

RECIPE = f'{ROOT}/configs/explore_readouts.py'
GRID, WIDTH, HEADS = (2, 3), 12, 3
PREFIX = (*readout.earlier(3), 'class_token')  # 3 + 1 + 6 tokens
PUBLISHED = [name for name in readout.READOUTS if readout.class_of(name).published]
TOKENS = np.random.default_rng(0).normal(size=(2, 10, WIDTH))
PATCHES = TOKENS[:, 4:]

# reference: width 768, 196 patches, 1000 classes, head with bias; V-JEPA's own file also declares a
# projection of 590,592 that it never calls, and AIM's head has no bias.
COUNTS = {
  'class_token': 769_000, 'class_and_mean': 1_537_000, 'class_of_4': 3_073_000,
  'class_of_4_and_mean': 3_841_000, 'avgmax': 769_000, 'prr': 769_000, 'gem': 769_001,
  'ep': 1_383_400, 'capi': 1_950_952, 'aim': 1_948_416 + 1000, 'simpool': 1_950_184,
  'simpool_gamma': 1_950_184, 'vjepa': 7_857_640 - 590_592, 'jepa': 7_857_640,
  'vjepa2': 28_530_664, 'abmilp': 769_769, 'abmilp_tanh': 1_360_361,
  'abmilp_attention': 3_720_425, 'cait': 14_950_120, 'cait_one': 7_860_712, 'clip': 3_282_664,
  'attention_pool': 7_856_104,
}  # fmt: skip


@pytest.mark.parametrize('name', COUNTS)
def test_published_counts(name):
  model = types.SimpleNamespace(
    grid=(14, 14), prefix=('class_token',), sizes=lambda: {'num_heads': 12, 'mlp_dim': 3072}
  )
  (chosen,) = candidates.choose_candidates((name,), model, {}, (3 + 197, 768))
  some = probes.Probes(
    [chosen], shape=(200, 768), num_classes=1000, first=4, settings=probes.Settings()
  )
  assert some.parameters(chosen) == COUNTS[name]


def test_every_published_row_is_counted():
  assert {*PUBLISHED} <= {*COUNTS}


def norm(x, own=None):
  """Layer norm with its scale and bias, or without."""
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x if own is None else x * own['scale'] + own['bias']


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def dense(x, own):
  return x @ own['kernel'] + own.get('bias', 0)


def attend(q, k, v, heads):
  """One head after another: `B Q D`, `B N D`, `B N D`."""
  parts, size = [], q.shape[-1] // heads
  for h in range(heads):
    part = slice(h * size, (h + 1) * size)
    weights = softmax(q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(size))
    parts.append(weights @ v[..., part])
  return np.concatenate(parts, -1)


def mlp(x, own):
  y = dense(x, own['Dense_0'])
  return dense(y * (1 + erf(y / np.sqrt(2))) / 2, own['Dense_1'])


def repeat(own):
  return np.repeat(own['query'], 2, 0)


def efficient(own):
  """Twelve queries, as 32 do not divide the width."""
  value, out = PATCHES @ own['value']['kernel'], []
  for j in range(12):
    weights = softmax(PATCHES @ own['query'][0, j] / np.sqrt(WIDTH))
    out.append(np.einsum('bn,bn->b', weights, value[:, :, j]))
  return np.stack(out, -1)


def key_value(own):
  return attend(repeat(own), dense(PATCHES, own['key']), dense(PATCHES, own['value']), 1)[:, 0]


def block(x, own):
  """A block of self-attention with HEADS heads."""
  part, y = own['MultiHeadDotProductAttention_1'], norm(x, own['LayerNorm_0'])
  q, k, v = (
    y @ part[name]['kernel'].reshape(WIDTH, WIDTH) + part[name]['bias'].reshape(-1)
    for name in ('query', 'key', 'value')
  )
  x = x + attend(q, k, v, HEADS) @ part['out']['kernel'].reshape(WIDTH, WIDTH) + part['out']['bias']
  return x + mlp(norm(x, own['LayerNorm_2']), own['MlpBlock_3'])


def pooler(own, blocks=0):
  x = PATCHES
  for i in range(blocks):
    x = block(x, own[f'block_{i}'])
  keys = norm(x, own['norm_tokens'])
  query = dense(repeat(own), own['query_projection'])
  y = attend(query, dense(keys, own['key']), dense(keys, own['value']), HEADS)
  query = repeat(own) + (dense(y, own['out']) if 'out' in own else y)
  return (query + mlp(norm(query, own['norm_query']), own['mlp']))[:, 0]


def instances(own):
  x = PATCHES
  if 'query' in own:
    x = dense(attend(*(dense(x, own[k]) for k in ('query', 'key', 'value')), 1), own['out'])
  scores = dense(np.tanh(dense(x, own['hidden'])) if 'hidden' in own else x, own['score'])
  return (softmax(scores, 1) * x).sum(1)


def simple(own, gamma=None):
  value = norm(PATCHES, own['norm'])
  query = PATCHES.mean(1, keepdims=True) @ own['query']['kernel']
  weights = softmax(query @ (value @ own['key']['kernel']).swapaxes(1, 2) / np.sqrt(WIDTH))
  if gamma is None:
    return (weights @ value)[:, 0]
  positive = value - value.min(1, keepdims=True) + 1e-6
  return (weights @ positive**gamma)[:, 0] ** (1 / gamma)


def class_attention(own, blocks):
  token = repeat(own)
  for i in range(blocks):
    part = {k.removeprefix(f'block_{i}_'): v for k, v in own.items() if k.startswith(f'block_{i}_')}
    x = norm(np.concatenate([token, PATCHES], 1), part['norm_1'])
    y = attend(dense(x[:, :1], part['query']), dense(x, part['key']), dense(x, part['value']), 1)
    token = token + part['scale_1']['scale'] * dense(y, part['out'])
    token = token + part['scale_2']['scale'] * mlp(norm(token, part['norm_2']), part['mlp'])
  return norm(token, own['norm'])[:, 0]


def positioned(own):
  x = np.concatenate([PATCHES.mean(1, keepdims=True), PATCHES], 1) + own['positions']
  query, key, value = dense(x[:, :1], own['query']), dense(x, own['key']), dense(x, own['value'])
  return dense(attend(query, key, value, 1), own['out'])[:, 0]


FORMULAS = {
  'avgmax': lambda own: (PATCHES.max(1) + PATCHES.mean(1)) / 2,
  'gem': lambda own: (np.maximum(PATCHES, 1e-6) ** own['power']).mean(1) ** (1 / own['power']),
  'prr': lambda own: attend(TOKENS[:, 3:], TOKENS[:, 3:], TOKENS[:, 3:], HEADS)[:, 0],
  'class_and_mean': lambda own: np.concatenate([TOKENS[:, 3], PATCHES.mean(1)], -1),
  'class_of_4': lambda own: TOKENS[:, :4].reshape(2, -1),
  'class_of_4_and_mean': lambda own: np.c_[TOKENS[:, :4].reshape(2, -1), PATCHES.mean(1)],
  'ep': efficient,
  'aim': key_value,
  'capi': key_value,
  'vjepa': pooler,
  'jepa': pooler,
  'vjepa2': lambda own: pooler(own, 3),
  'abmilp': instances,
  'abmilp_tanh': instances,
  'abmilp_attention': instances,
  'simpool': simple,
  'simpool_gamma': lambda own: simple(own, 1.25),
  'cait': lambda own: class_attention(own, 2),
  'cait_one': lambda own: class_attention(own, 1),
  'clip': positioned,
}


def make(name):
  return readout.build(
    name, {'num_heads': HEADS}, prefix=PREFIX, grid=GRID, probing=True
  )  # fmt: skip


def drawn(module):
  """Parameters of a module, each of them random."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 10, WIDTH)))
  rng = np.random.default_rng(1)
  draw = lambda x: (0.5 + np.abs(rng.normal(size=x.shape)) * 0.5).astype(np.float32)  # noqa: E731
  signs = lambda x: x * rng.choice([-1, 1], x.shape) if x.ndim > 1 else x  # noqa: E731
  return jax.tree.map(lambda x: signs(draw(x)), shapes.get('params', {}))


@pytest.mark.parametrize('name', PUBLISHED)
def test_formula_order_and_reach(name):
  """The formula in NumPy; patches in another order; no gradient at tokens that are not read."""
  module = make(name)
  own = drawn(module)

  given = jax.tree.map(jnp.asarray, own)

  @jax.jit
  def look(x):
    outputs, back = jax.vjp(lambda x: module.apply({'params': given}, x), x)
    return outputs, back(jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape))[0]

  features, gradient = look(jnp.asarray(TOKENS, jnp.float32))
  assert features.shape == (2, *module.shape(WIDTH))
  np.testing.assert_allclose(features, FORMULAS[name](own), rtol=2e-4, atol=2e-5)
  order = [*range(4), *(4 + np.random.default_rng(2).permutation(6))]
  turned = look(jnp.asarray(TOKENS[:, order], jnp.float32))[0]
  same = np.allclose(turned, features, rtol=1e-4, atol=1e-5)
  assert same == (name != 'clip')
  reached = set(np.flatnonzero(np.abs(gradient).sum((0, 2))))
  patches = {*range(4, 10)}
  expected = {
    'class_and_mean': {3} | patches, 'class_of_4': {0, 1, 2, 3}, 'prr': {3} | patches,
    'class_of_4_and_mean': {*range(10)},
  }  # fmt: skip
  assert reached == expected.get(name, patches)


def test_attention_pooling_is_linens():
  """Its first half, by linen's own attention with the same parameters; then an MLP."""
  module = make('attention_pool')
  own = drawn(module)
  linen = nn.MultiHeadDotProductAttention(HEADS)
  part = {'params': own['MultiHeadDotProductAttention_0']}
  x = np.asarray(linen.apply(part, np.repeat(own['probe'], 2, 0), PATCHES.astype(np.float32)))
  y = dense(norm(x, own['LayerNorm_0']), own['MlpBlock_0']['Dense_0'])
  y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
  expected = (x + dense(y, own['MlpBlock_0']['Dense_1']))[:, 0]
  given = jax.tree.map(jnp.asarray, own)
  found = module.apply({'params': given}, jnp.asarray(TOKENS, jnp.float32))
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


LIGHT = [
  name
  for name in readout.READOUTS
  if readout.class_of(name).pools
  and issubclass(readout.class_of(name), AttentiveReadout)
  and not make(name).heavy
]


def sizes_of(jaxpr):
  """The sizes of all arrays that a program makes, those of inner programs too."""
  for equation in jaxpr.eqns:
    for inner in jax.core.jaxprs_in_params(equation.params):
      yield from sizes_of(inner)
    yield from (out.aval.size for out in equation.outvars)


@pytest.mark.parametrize('name', LIGHT)
def test_many_rates_share_the_tokens(name):
  """No keys, no values, no scaled tokens of each rate: nothing of a step is as large."""
  module, rates, count, width = make(name), 50, 48, 24
  module = module.clone(grid=(1, count), prefix=())
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, count, width)))['params']
  own = jax.tree.map(lambda x: jnp.ones((rates, *x.shape)), shapes)
  x = jnp.zeros((8, count, width))
  loss = lambda own: jax.vmap(lambda p: module.apply({'params': p}, x))(own).sum()  # noqa: E731
  made = jax.make_jaxpr(jax.grad(loss))(own).jaxpr
  largest = max(*sizes_of(made), max(x.size for x in jax.tree.leaves(own)))
  assert largest < rates * x.size


def test_words_behind_a_name():
  """The prefix as further patches, but no class token of an earlier block; norms; both."""
  apply = lambda name: make(name).apply({}, jnp.asarray(TOKENS, jnp.float32))  # noqa: E731
  np.testing.assert_allclose(apply('mean+all'), TOKENS[:, 3:].mean(1), atol=1e-6)
  np.testing.assert_allclose(apply('mean_all'), apply('mean+all'), atol=1e-6)
  np.testing.assert_allclose(apply('mean+before'), norm(PATCHES).mean(1), atol=1e-5)
  np.testing.assert_allclose(apply('mean+after'), norm(PATCHES.mean(1)), atol=1e-5)
  both = norm(norm(TOKENS[:, 3:]).max(1))
  np.testing.assert_allclose(apply('max+all+after+before'), both, atol=1e-5)
  np.testing.assert_allclose(apply('max+batch+batch_before'), PATCHES.max(1), atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'words'),
  [('simpol', "did you mean 'simpool'"), ('ep+al', "did you mean 'all'"),
   ('ep+after+batch', 'not both'),
   ('class_token+all', 'leave out .all'), ('ep+batch', 'batch norm takes statistics'),
   ('class_of_4', 'reads the last 4 blocks, and the model has 1')],
)  # fmt: skip
def test_readouts_of_a_model_that_cannot_work(name, words):
  with pytest.raises(ValueError, match=words):
    build(name)


def test_without_a_class_token():
  with pytest.raises(ValueError, match='class token, but class_token=False'):
    build('class_of_4', depth=4, class_token=False)
  module = readout.build('prr', {'num_heads': HEADS}, prefix=(), grid=GRID)
  expected = attend(PATCHES, PATCHES, PATCHES, HEADS).mean(1)
  found = jax.jit(module.apply)({}, jnp.asarray(PATCHES, jnp.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def build(name, **section):
  given = small_config().model.to_dict() | {'readout': name} | section
  return models.build(
    **models.complete(given), image_size=(8, 8), channels=1, num_classes=10
  )  # fmt: skip


def test_a_model_hands_its_readout_the_class_tokens_of_earlier_blocks():
  """Each behind the last norm; so does the lab, from the same weights."""
  model = build('class_of_4', depth=4, dropout=0.0)
  params = jax.jit(lambda: models.init(model, jax.random.key(0)))()
  scale = np.random.default_rng(0).normal(size=32)
  params['Transformer']['encoder_norm']['scale'] = jnp.asarray(scale, jnp.float32)
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
  _, named = jax.jit(model.apply)({'params': params}, images)
  raw = np.stack([named[f'block_{i}/tokens'][:, 0] for i in range(4)], 1)
  np.testing.assert_allclose(named['features'], (norm(raw) * scale).reshape(2, -1), atol=2e-5)
  again = tokens.earlier_class_tokens(model, params, named, 3)
  np.testing.assert_allclose(again.reshape(2, -1), named['features'][:, :96], atol=1e-5)
  np.testing.assert_allclose(
    tokens.earlier_class_tokens(model, params, named, 3, raw=True), raw[:, :3], atol=1e-6
  )
  mean = np.mean([named[f'block_{i}/tokens'] for i in range(1, 4)], axis=0)
  found = tokens.read_layer(named, 'mean_3/tokens', raw=True)
  np.testing.assert_allclose(found, mean, atol=1e-6)
  np.testing.assert_allclose(tokens.read_layer(named, 'mean_3/tokens'), norm(mean), atol=1e-4)


def planted(n=70):
  """Tokens `1 n 7 8` of three classes that hardly differ in scale and place."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, n).astype(np.int32)
  values = 5 + 3 * rng.normal(size=(n, 7, 8)) + 4 * np.eye(3, 8)[labels][:, None]
  return Tokens(values[None].astype(np.float32), labels)


def some_probes(names, **settings):
  model = types.SimpleNamespace(
    grid=GRID, prefix=('class_token',), sizes=lambda: {'num_heads': 2, 'mlp_dim': 16}
  )
  chosen = candidates.choose_candidates(tuple(names), model, {}, (7, 8))
  return probes.Probes(
    chosen, shape=(7, 8), num_classes=3, first=1, settings=probes.Settings(**settings)
  )


def train(some, tokens, rate=1e-2, decay=0.0):
  """Parameters of one seed and rate after training."""
  rates = np.full((len(some.candidates), 1), rate)
  rows, decays = np.arange(len(tokens.labels)), np.full(rates.shape, decay)
  *_, (params, _) = fitting.epochs(some, tokens, rows, rates, [3], 'test', decays)
  return jax.device_get(params)


def test_batch_norm_holds_the_statistics_of_what_trained():
  """Over the real examples of a batch and the tokens that are read; prediction then needs no other.

  The second batch of 6 and 58 rows that only fill it up weighs 6/64 of a tenth.
  """
  tokens = planted()
  some = some_probes(('mean+batch', 'mean+batch_before', 'gem+batch'), epochs=1, batch_size=64)
  held = train(some, tokens)['held']
  order = np.random.default_rng((3, 0)).permutation(70)
  parts = tokens.values[0, order[:64], 1:], tokens.values[0, order[64:], 1:]
  means = [part.mean((0, 1)) for part in parts]
  weight = max(0.1, 1 / 2) * 6 / 64
  expected = means[0] + weight * (means[1] - means[0])
  np.testing.assert_allclose(held['tokens from 1']['mean'][0], expected, rtol=1e-5)
  np.testing.assert_allclose(held['8+batch']['mean'][0, 0], expected, rtol=1e-5)
  variances = [part.mean(1).var(0) for part in parts]
  expected = variances[0] + weight * (variances[1] - variances[0])
  np.testing.assert_allclose(held['8+batch']['variance'][0, 0], expected, rtol=1e-4)
  assert held['gem+batch']['mean'].shape == (1, 1, 8)  # seeds, rates, width


@pytest.mark.parametrize('name', ['mean+batch_before', 'mean+all+batch_before'])
def test_what_is_normalised_does_not_depend_on_what_is_beside_it(name):
  """The class token, far away from the patches, is in the statistics of who reads it alone."""
  tokens = planted(64)
  tokens.values[0][:, 0] += 20
  names = ('class_token+batch_before', 'mean+batch_before', 'mean+all+batch_before')

  def logits(*names):
    some = some_probes(names, epochs=3, batch_size=64)
    one = jax.tree.map(lambda x: x[0], train(some, tokens))
    found = jax.jit(some.logits)(one, tokens.values[0], np.zeros(64, int))
    return found[[candidate.name for candidate in some.candidates].index(name)]

  np.testing.assert_allclose(logits(*names), logits(name), rtol=1e-4, atol=1e-5)


def test_batch_norm_of_evaluation_is_that_of_training():
  """A whole set in each batch: what is tested sees the numbers that were trained on, to the bit."""
  tokens = planted(64)
  some = some_probes(('mean+batch', 'ep+batch_before+batch'), epochs=4, batch_size=64)
  params = train(some, tokens, rate=0.0)
  one = jax.tree.map(lambda x: x[0], params)
  random = np.zeros(64, int)
  trained, _ = jax.jit(some.measure)(one, tokens.values[0], random, jnp.ones(64))
  tested = jax.jit(some.logits)(one, tokens.values[0], random)
  np.testing.assert_allclose(tested, trained, atol=1e-5)
  single = jax.jit(some.logits)(one, tokens.values[0, :1], random[:1])
  np.testing.assert_allclose(single[:, :, 0], tested[:, :, 0], atol=1e-5)


def test_a_batch_in_parts_is_the_batch(monkeypatch):
  tokens = planted()
  some = some_probes(('class_token', 'weighted_add'), epochs=2, batch_size=32)
  whole = train(some, tokens)
  monkeypatch.setattr(probes, 'AT_ONCE', 4 * 7 * 8 * 10)  # Ten examples: 32 in four parts.
  assert fitting.divide(some, 70, 1) == (3, 4)
  parts = train(some, tokens)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_parts_bound_what_lies_in_memory(monkeypatch):
  """50,000 x 65 tokens, from a file here: each step reads its part alone, whatever the batch."""
  monkeypatch.setattr(probes, 'AT_ONCE', 1e7)
  values = np.broadcast_to(np.float32(0), (1, 50_000, 65, 192))
  some = some_probes(('class_token',), epochs=1, batch_size=16_384)
  some.shape = (65, 192)
  given = Tokens(values, np.zeros(50_000, np.int32))
  batch = next(fitting.batches(some, given, np.arange(50_000), [0, 1]))
  assert batch['tokens'].nbytes <= 1e7
  steps, parts = fitting.divide(some, 50_000, 2)
  assert (steps, parts * batch['mask'].size >= 16_384) == (4, True)


def plain_loop(optimizer, tokens, epochs):
  """A head on the mean of the patches, trained by optax alone from zero; whole batches."""
  x, labels = tokens.values[0, :, 1:].mean(1), tokens.labels
  params = {'kernel': jnp.zeros((8, 3)), 'bias': jnp.zeros(3)}
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    def loss(own):
      logits = x @ own['kernel'] + own['bias']
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(epochs):
    params, state = step(params, state)
  return params


def test_adamw_with_clipping_and_warmup_is_that_of_optax():
  tokens = planted(64)
  settings = dict(warmup_epochs=2.0, clip_norm=0.5, b2=0.95, epochs=6, batch_size=64)
  found = train(some_probes(('mean', 'max'), **settings), tokens, 0.1, 0.3)
  schedule = optax.join_schedules(
    [optax.linear_schedule(0, 0.1, 2), optax.cosine_decay_schedule(0.1, 4)], [2]
  )
  mask = {'kernel': True, 'bias': False}
  rule = optax.adamw(schedule, b2=0.95, weight_decay=0.3, mask=mask)
  expected = plain_loop(optax.chain(optax.clip_by_global_norm(0.5), rule), tokens, 6)
  for name, x in expected.items():
    np.testing.assert_allclose(found['fixed']['8'][name][0, 0, 0], x, rtol=1e-3, atol=1e-5)


def test_lars_by_hand():
  """Of each probe by itself: the trust ratio of its matrix, momentum 0.9; a bias has no ratio."""
  tokens = planted(64)
  settings = dict(optimizer='lars', schedule='constant', head='torch', epochs=3, batch_size=64)
  some = some_probes(('mean', 'max', 'sum'), **settings)
  start = some.settings.head_of(jax.random.key(3), 8, some.num_classes)
  x, labels = tokens.values[0, :, 1:].mean(1), tokens.labels
  own = {name: np.asarray(value, np.float64) for name, value in start.items()}
  trace = {name: 0 * value for name, value in own.items()}
  for _ in range(3):
    error = softmax(x @ own['kernel'] + own['bias']) - np.eye(3)[labels]
    gradient = {'kernel': x.T @ error / 64, 'bias': error.mean(0)}
    size = np.linalg.norm(own['kernel']) / np.linalg.norm(gradient['kernel'])
    gradient['kernel'] *= 0.001 * size
    trace = {name: 0.9 * trace[name] + gradient[name] for name in own}
    own = {name: own[name] - 0.5 * trace[name] for name in own}
  found = train(some, tokens, 0.5)['fixed']['8']
  place = [c.name for c in some.fixed['8']].index('mean')
  for name in own:
    np.testing.assert_allclose(found[name][0, place, 0], own[name], rtol=1e-4, atol=1e-6)


def test_the_best_epoch_is_kept_where_it_is_asked_for():
  tokens = planted()
  some = some_probes(('class_token', 'mean'), epochs=6, batch_size=16, head='torch')
  rows, rates = np.arange(70), np.full((2, 1), 0.3)
  given = (some, tokens, rows[:40], tokens, rows[40:], rates, [0, 1], True, 'test', None)
  last, best = (fitting.fit(*given, wanted) for wanted in (False, True))
  for found, of in ((last, lambda x: x[-1]), (best, lambda x: x.max(0))):
    right = (found.predictions == tokens.labels[40:]).mean(-1)
    np.testing.assert_allclose(right, of(found.test_accuracy))
  assert (last.test_accuracy[-1] < best.test_accuracy.max(0)).any()


def test_rules_of_selection():
  accuracy, loss = np.array([[0.90, 0.91, 0.2]]), np.array([[0.3, 8.0, 2.0]])
  rules = selection.SELECTIONS
  assert selection.choose(rules['held_out'], accuracy, loss, 100) == [0]
  assert all(
    selection.choose(rules[k], accuracy, loss, 100) == [1] for k in rules if k != 'held_out'
  )
  assert [name for name, rule in rules.items() if rule.on_test] == ['test', 'test_epoch']


def preset(name, **overrides):
  config = defaults.complete(recipe.load_recipe(f'{RECIPE}:{name}'), {})
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.mark.parametrize(
  ('name', 'theirs', 'heads'),
  [('dinov2_linear', 'test', 52), ('dinov3_linear', 'test', 13), ('capi', 'held_out_best', 30),
   ('ep', 'test_epoch', 2), ('aim', 'test_epoch', 1), ('vjepa', 'held_out', 1),
   ('mae_linear', 'test_epoch', 1)],
)  # fmt: skip
def test_presets(name, theirs, heads):
  """As many heads as published; ours and theirs differ in the rule and in what it holds out."""
  ours, other = preset(name).explore, preset(f'{name},theirs').explore
  assert (ours.selection, other.selection) == ('held_out', theirs)
  grid = len(ours.readouts) * len(ours.learning_rates) * len(ours.weight_decays)
  assert grid == heads
  differing = {key for key in ours if ours[key] != other[key]}
  assert differing <= {'selection', 'validation_fraction'}


def test_presets_of_evaluators():
  knn, shots = preset('knn').evaluation.knn, preset('fewshot').evaluation.fewshot
  linear = preset('logreg,theirs').evaluation.linear
  assert (knn.neighbours, knn.temperatures) == ((10, 20, 100, 200), (0.07,))
  assert (shots.shots, shots.seeds, shots.ridges) == ((1, 5, 10, 25), 3, (1024.0,))
  assert (len(linear.strengths), linear.standardise, linear.held_out) == (45, False, 0.1)
  np.testing.assert_allclose([linear.strengths[0], linear.strengths[-1]], [1e-6, 1e5])
  with pytest.raises(ValueError, match='choose fair, study'):
    preset('dinov4')


@pytest.mark.parametrize(
  ('name', 'overrides', 'words'),
  [
    ('dinov2_linear', {}, 'class_of_4 reads the last 4 blocks, and here are 1'),
    ('aim', {}, 'reads the last 6 blocks, and this model names 1'),
    ('ep', {'explore__selection': 'tests'}, 'unknown config.explore.selection'),
    ('ep', {'explore__token_norm': 'layer'}, 'unknown config.explore.token_norm'),
    ('capi', {'explore__weight_decays': (-1.0,)}, 'weight_decays'),
    ('ep', {'explore__warmup_epochs': 90.0}, 'below epochs=90'),
    ('ep', {'explore__optimizer': 'larz'}, "did you mean 'lars'"),
    ('ep', {'explore__readouts': ('none',)}, 'none makes no vector'),
    ('ep', {'explore__readouts': ('random_patch+batch',)}, 'a control'),
  ],
)
def test_presets_that_cannot_work(trained, name, overrides, words):
  with pytest.raises(ValueError, match=words):
    lab.build(preset(name, init_from=str(trained), **overrides))


def test_a_probe_that_needs_a_class_token():
  model = types.SimpleNamespace(grid=GRID, prefix=(), sizes=dict)
  for name in ('class_token+batch', 'class_and_mean'):
    with pytest.raises(ValueError, match=r'reads the class token, which these weights lack'):
      candidates.choose_candidates((name,), model, {}, (6, 8))
  chosen = candidates.choose_candidates(('probes',), model, {}, (6, 8))
  assert 'prr' in {c.name for c in chosen}
  assert not {c.name for c in chosen} & {'class_and_mean', 'class_of_4'}


def test_the_native_readout_is_compared():
  none = np.zeros(0)
  found = lab.Layer(none, none, fitting.Fitted(*[none] * 5, weights={}), none, none)
  names = 'class_token+batch', 'mean'
  records = [{'readout': name, 'accuracy': 0.5} for name in names]
  last = compare.Results('tokens', names, records, none, found, [])
  assert native.mismatch('class_token', last).endswith('not read here, only as class_token+batch.')
  assert '(50.00% here), not by class_token+batch' in native.mismatch('mean', last)
  assert native.mismatch('ep', last).endswith('which was not read here.')


@pytest.mark.slow
def test_published_probes_of_a_run(trained, tmp_path):
  """Everything together: all kinds of norms, a rule that looks at test, a report that says so."""
  config = preset(
    'ep,theirs', init_from=str(trained), explore__epochs=2, explore__warmup_epochs=1.0,
    explore__seeds=2, explore__token_norm='none',
    explore__readouts=('ep+batch', 'aim+all+batch_before+batch', 'mean+after', 'gem+before'),
  )  # fmt: skip
  readouts.explore(config, tmp_path)
  text = (tmp_path / 'reports/readouts.md').read_text()
  assert 'LARS, batches of 4096, 2 epochs' in text
  assert 'on these very examples' in text and 'no test example had a say' not in text
  assert 'Their own head reads tokens behind the norm' in text
  for name in config.explore.readouts:
    assert f'| {name} |' in text
