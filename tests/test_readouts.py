"""The readout lab's parts: planted data, caches, probes against independent loops, statistics."""

import errno
import os
import shutil
import types

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import optax
from prepared import encoded, write
import pytest

from vit_jax import data, models
from vit_jax.evaluation import (
  candidates,
  features,
  fitting,
  least_squares,
  power,
  probes,
  statistics,
  store,
)
from vit_jax.explore import claims
from vit_jax.models import readout as readouts
from vit_jax.models import tokens
from vit_jax.runtime import sharding

GRID, WIDTH, CLASSES = (2, 3), 8, 3
MODEL = types.SimpleNamespace(
  grid=GRID, prefix=('class_token',), sizes=lambda: {'num_heads': 2, 'mlp_dim': 16}
)
SECTION = {'gelu': 'tanh', 'epsilon': 1e-6}
SETTINGS = probes.Settings(epochs=8, batch_size=32, schedule='cosine')


def make(names, settings=SETTINGS):
  chosen = candidates.choose_candidates(tuple(names), MODEL, SECTION, (7, WIDTH))
  return probes.Probes(chosen, shape=(7, WIDTH), num_classes=CLASSES, first=1, settings=settings)


def noise(n=600, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, n).astype(np.int32)
  signal = 3 * np.eye(CLASSES, WIDTH)[labels]
  return rng, rng.normal(size=(n, 7, WIDTH)), labels, signal


def accuracies(values, labels, names=('all',), rate=3e-2):
  """Test accuracy by readout: trained on two thirds, tested on the rest."""
  some = make(names)
  cut = 2 * len(labels) // 3
  train, test = (features.Tokens(values[None, part].astype(np.float32), labels[part])
                 for part in (slice(0, cut), slice(cut, None)))  # fmt: skip
  rates = np.full((len(some.candidates), 1), rate)
  rows = np.arange(cut), np.arange(len(labels) - cut)
  fitted = fitting.fit(some, train, rows[0], test, rows[1], rates, [0, 1])
  gradient = dict(zip((c.name for c in some.candidates), fitted.test_accuracy[-1].mean(0)[:, 0],
                      strict=True))  # fmt: skip
  fixed = [c for c in some.candidates if not c.learned and c.width == WIDTH]
  closed = least_squares.accuracy(make([c.name for c in fixed]), train, test, 1.0) if fixed else []
  return gradient, dict(zip((c.name for c in fixed), closed, strict=True)), fitted


@pytest.mark.parametrize('k', [1, 4, 6])
def test_only_one_patch_knows(k):
  _, values, labels, signal = noise()
  values[:, k] += signal
  gradient, closed, _ = accuracies(values, labels)
  singles = {name for name in gradient if name.startswith('patch_') or name == 'class_token'}
  for found in (gradient, closed):
    assert max(singles & found.keys(), key=found.get) == f'patch_{k}'
    assert found[f'patch_{k}'] > 0.85
    assert all(found[name] < 0.5 for name in singles - {f'patch_{k}'})
    assert found['random_patch'] < 0.7
    assert found['shuffled_labels'] < 0.5


def test_only_the_sum_knows():
  rng, values, labels, signal = noise()
  values[:, 1:] = 20 * rng.normal(size=(len(labels), 6, WIDTH))
  values[:, 6] -= values[:, 1:].sum(1) - signal  # What all patches add up to.
  gradient, closed, _ = accuracies(values, labels, ('class_token', 'patches', 'sum', 'mean'), 1e-2)
  assert closed['sum'] == closed['mean'] == 1.0
  assert gradient['sum'] > 0.95
  others = [name for name in gradient if name not in ('sum', 'mean')]
  assert all(gradient[name] < 0.55 and closed[name] < 0.55 for name in others)


def test_only_a_weighted_mix_knows():
  rng, values, labels, signal = noise(1200)
  shared = 8 * rng.normal(size=(len(labels), WIDTH))
  values[:, 1:] = 0.3 * values[:, 1:] + rng.permutation(shared)[:, None]
  values[:, 2], values[:, 5] = shared + signal, shared  # The difference carries the label.
  names = ('class_token', 'patches', 'sum', 'mean', 'weighted_concat', 'weighted_add')
  gradient, _, fitted = accuracies(values, labels, names)
  mixes = {name: gradient.pop(name) for name in ('weighted_concat', 'weighted_add')}
  assert min(mixes.values()) > 0.9 > max(gradient.values()) + 0.2
  weights = fitted.weights['weighted_concat'][:, 0]
  largest = np.sort(np.abs(weights).argsort(1)[:, -2:], axis=1) + 1
  np.testing.assert_array_equal(largest, [[2, 5], [2, 5]])
  np.testing.assert_allclose(weights[:, 1], -weights[:, 4], rtol=0.2)


def test_softmax_weights_can_be_read_as_a_map():
  _, values, labels, signal = noise()
  values[:, 3] += signal
  _, _, fitted = accuracies(values, labels, ('weighted_concat_softmax', 'weighted_add_softmax'))
  for weights in fitted.weights.values():
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights.argmax(-1) == 2).all()


def test_sum_and_mean_give_the_same_least_squares_predictions():
  _, values, labels, signal = noise()
  values += 0.05 * signal[:, None]
  some, held = make(('sum', 'mean')), values[400:].astype(np.float32)
  train = features.Tokens(values[None, :400].astype(np.float32), labels[:400])
  ((read, rows),) = least_squares.batches(some, train, 0)
  moments = least_squares.accumulate(read, some.training_labels(train, 0)[:, rows], CLASSES)
  kernel, bias = least_squares.solve(moments, 1024.0)
  logits = some.read(held, np.ones(len(held), int)) @ kernel + bias[:, None]
  np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-5)
  np.testing.assert_array_equal(logits[0].argmax(1), logits[1].argmax(1))


def test_least_squares_solve_what_the_protocol_says():
  """Against the plain system with its constant feature of 100."""
  rng, values, labels, _ = noise(50)
  x, y = 2 + 3 * values[:, 0], 2.0 * np.eye(CLASSES)[labels] - 1
  kernel, bias = least_squares.solve(
    least_squares.accumulate(x[None], labels[None], CLASSES), 1024.0
  )
  mean, scale = x.mean(0), x.std(0) + 1e-5
  standard = np.c_[(x - mean) / scale, np.full(len(x), 100.0)]
  direct = np.linalg.solve(standard.T @ standard + 1024 * np.eye(WIDTH + 1), standard.T @ y)
  new = rng.normal(size=(20, WIDTH))
  expected = np.c_[(new - mean) / scale, np.full(20, 100.0)] @ direct
  np.testing.assert_allclose(new @ kernel[0] + bias[0], expected, rtol=1e-8)


def test_a_patch_readout_has_no_gradient_at_other_tokens():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, WIDTH)))
  for k in range(1, 7):
    read = readouts.Patch(('class_token',), GRID, patch_index=k)
    gradient = jax.grad(lambda x, read=read: (read.apply({}, x) ** 2).sum())(x)
    touched = np.flatnonzero(np.abs(gradient).sum((0, 2)))
    assert touched.tolist() == [k]


@pytest.mark.slow
def test_all_together_is_each_alone_and_a_plain_loop():
  """One compiled program for all readouts, rates and seeds gives what optax gives one by one."""
  _, values, labels, signal = noise(70)
  values += 0.3 * signal[:, None]
  settings = probes.Settings(epochs=3, batch_size=32, head='torch', schedule='cosine')
  names = ('class_token', 'patch_2', 'mean', 'max', 'weighted_add', 'weighted_concat_softmax')
  names += ('attention_pool',)
  some = make(names, settings)
  train = features.Tokens(values[None].astype(np.float32), labels)
  rows, rates = np.arange(70), np.tile([1e-3, 1e-2], (len(names), 1))
  together = fitting.fit(some, train, rows, train, rows, rates, [3, 5])
  for r, candidate in enumerate(some.candidates):
    for i, rate in enumerate(rates[r]):
      head = some.settings.head_of(
        jax.random.key(5), 16 if 'concat' in candidate.name else WIDTH, some.num_classes
      )
      module = candidate.module
      own = module.init(jax.random.key(5), jnp.zeros((1, 7, WIDTH))).get('params', {})
      params = {'readout': own, 'head': head}

      def loss(params, x, y, module=module):
        features = module.apply({'params': params['readout']}, x)
        logits = features @ params['head']['kernel'] + params['head']['bias']
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

      optimizer = optax.adam(optax.cosine_decay_schedule(rate, 9))

      @jax.jit
      def step(params, state, x, y, loss=loss, optimizer=optimizer):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
        return optax.apply_updates(params, updates), state

      state = optimizer.init(params)
      for epoch in range(3):
        order = np.random.default_rng((5, epoch)).permutation(rows)
        for start in range(0, 70, 32):
          chosen = order[start : start + 32]
          params, state = step(params, state, jnp.asarray(train.values[0, chosen]), labels[chosen])
      expected = loss(params, jnp.asarray(train.values[0]), labels)
      np.testing.assert_allclose(together.test_loss[-1, 1, r, i], expected, rtol=2e-4)


@pytest.mark.parametrize('at_once', [30, 11])
def test_eight_devices_train_the_probes_of_one(monkeypatch, at_once):
  """Batches of 30 and a last one of 10, cut over eight: rows that fill up count nowhere.

  Whole, or looked at in three parts of 10; batch norm takes the statistics of the real rows.
  """
  monkeypatch.setattr(probes, 'AT_ONCE', 4.0 * 2 * 7 * WIDTH * at_once)
  _, values, labels, signal = noise(70)
  train = features.Tokens((values + 0.3 * signal[:, None])[None].astype(np.float32), labels)
  names = ('class_token', 'mean', 'weighted_add', 'random_patch', 'mean+batch', 'max+batch_before')
  rows, part_of = np.arange(70), {30: 30, 11: 10}[at_once]
  chosen = candidates.choose_candidates(names, MODEL, SECTION, (7, WIDTH))
  settings, found = probes.Settings(epochs=3, batch_size=30), []
  for count in (1, 8):
    mesh = sharding.make_mesh(1, jax.devices()[:count])
    some = probes.Probes(
      chosen, shape=(7, WIDTH), num_classes=CLASSES, first=1, settings=settings, mesh=mesh
    )
    batch = next(fitting.batches(some, train, rows, [0, 1]))
    parts = fitting.place(batch, mesh)['tokens'].addressable_shards
    assert [part.data.shape[1] for part in parts] == [-(-part_of // count)] * count
    assert batch['mask'].sum() == part_of
    found.append(fitting.fit(some, train, rows, train, rows, np.full((6, 2), 1e-2), [0, 1]))
  for key in ('loss', 'test_loss'):
    np.testing.assert_allclose(*(getattr(one, key) for one in found), rtol=2e-4, err_msg=key)
  assert (found[0].predictions == found[1].predictions).mean() > 0.97  # Sums round otherwise.


@pytest.mark.parametrize(
  ('name', 'count'),
  [('class_token', 2307), ('weighted_add', 2503), ('weighted_concat', 4611 + 196), ('mean', 2307)],
)
def test_counts_of_the_study(name, count):
  model = types.SimpleNamespace(
    grid=(14, 14), prefix=('class_token',), sizes=lambda: {'num_heads': 12, 'mlp_dim': 3072}
  )
  chosen = candidates.choose_candidates((name,), model, SECTION, (197, 768))
  some = probes.Probes(chosen, shape=(197, 768), num_classes=3, first=1, settings=SETTINGS)
  assert some.parameters(chosen[0]) == count


def test_every_readout_of_the_grid_is_there_once():
  shape = (7, WIDTH)
  chosen = candidates.choose_candidates(('all', 'patch_2'), MODEL, SECTION, shape)
  names = [c.name for c in chosen]
  assert names == [
    'class_token', *(f'patch_{k}' for k in range(1, 7)), 'sum', 'sum_all', 'mean', 'mean_all',
    'max', 'weighted_add', 'weighted_add_softmax', 'weighted_concat', 'weighted_concat_softmax',
    'attention_pool', 'random_patch', 'shuffled_labels',
  ]  # fmt: skip
  without = types.SimpleNamespace(**vars(MODEL) | {'prefix': ()})
  found = [c.name for c in candidates.choose_candidates(('all',), without, SECTION, (6, WIDTH))]
  assert set(names) - set(found) == {
    'class_token', 'sum_all', 'mean_all', 'weighted_add', 'weighted_add_softmax',
    'weighted_concat', 'weighted_concat_softmax',
  }  # fmt: skip
  with pytest.raises(ValueError, match='class token, which these weights lack'):
    candidates.choose_candidates(('class_token',), without, SECTION, (6, WIDTH))


@pytest.mark.parametrize(
  ('name', 'words'),
  [('patch_7', r'2 x 3 patches.*\n +1 \.\.\. +3\n.*\n +4 \.\.\. +6'), ('patch_0', 'lies outside'),
   ('patch_-1', 'lies outside'), ('meen', "did you mean 'mean'")],
)  # fmt: skip
def test_unknown_readouts_are_refused(name, words):
  with pytest.raises(ValueError, match=words):
    candidates.choose_candidates((name,), MODEL, SECTION, (7, WIDTH))


def test_corners_and_centre_of_the_studys_grid():
  assert tokens.corners((14, 14)) == [1, 14, 183, 196]  # Its 182 is no corner.
  assert tokens.centre((14, 14)) == [91, 92, 105, 106]
  assert tokens.centre((3, 3)) == [5]
  assert tokens.distance_from_centre((3, 3)).reshape(3, 3)[0, 0] == pytest.approx(2**0.5)


@pytest.fixture(scope='module')
def small():
  """A model with fresh weights, its data, and what a pass needs."""
  config = small_config()
  section = config.data.to_dict()
  dataset = data.build(**section)
  model = models.build(
    **models.complete(config.model.to_dict() | {'dropout': 0.0}),
    image_size=(8, 8), channels=1, num_classes=10,
  )  # fmt: skip
  return model, models.init(model, jax.random.key(0)), dataset


def token_pass(small, folder, **options):
  model, params, dataset = small
  settings = {'layers': ('tokens',), 'batch_size': 64} | options
  mesh = sharding.make_mesh(1)
  params = jax.device_put(params, sharding.replicated(mesh))
  return features.Pass(model, params, {'name': 'vit'}, dataset, mesh, folder=folder, **settings)


def test_the_cache_is_a_fresh_forward_pass(small, tmp_path):
  model, params, dataset = small
  layers = ('block_0/tokens', 'tokens')
  found = token_pass(small, tmp_path, layers=layers).run()
  for split in ('train', 'test'):
    images = np.stack([dataset.picture(split, i) for i in range(len(dataset.splits[split]))])
    _, named = model.apply({'params': params}, dataset.preprocess.normalise(jnp.asarray(images)))
    kept = found[split]['tokens'].values
    assert kept.shape == (1, len(images), 5, 32)
    np.testing.assert_allclose(kept[0], named['tokens'], atol=2e-5)
    inner = np.asarray(named['block_0/tokens'])
    inner = (inner - inner.mean(-1, keepdims=True)) / inner.std(-1, keepdims=True)
    np.testing.assert_allclose(found[split]['block_0/tokens'].values[0], inner, atol=1e-3)
    _, labels = dataset.splits[split].read(np.arange(len(images)))
    np.testing.assert_array_equal(found[split]['tokens'].labels, labels)
  half = token_pass(small, tmp_path, dtype='bfloat16').run()['test']['tokens'].values
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(np.float32), found['test']['tokens'].values, atol=0.03)


def test_views_are_the_pictures_of_training(small, tmp_path):
  model, params, dataset = small
  found = token_pass(small, tmp_path, views=2, seed=7).run()
  kept = found['train']['tokens'].values
  assert kept.shape[0] == 2
  picture, _ = dataset.splits['train'].read(np.array([100]))
  for view in range(2):
    rng = np.random.default_rng((7, view, 100))
    image = dataset.augment(picture[0], rng, dataset.preprocess)
    _, named = model.apply(
      {'params': params}, dataset.preprocess.normalise(jnp.asarray(image[None]))
    )
    np.testing.assert_allclose(kept[view, 100], named['tokens'][0], atol=2e-5)
  assert np.abs(kept[0] - kept[1]).max() > 0.1
  assert found['test']['tokens'].values.shape[0] == 1


@pytest.mark.parametrize('stop_at', [1, 7, 40])
def test_an_interrupted_cache_resumes_to_the_same_bytes(small, tmp_path, monkeypatch, stop_at):
  """Stopped in the middle of a batch, in either view, and started again."""
  expected = token_pass(small, tmp_path / 'whole', views=2)
  expected.run()
  calls, append = iter(range(1000)), store.append

  def stop(file, array):
    if next(calls) == stop_at:
      append(file, array[: len(array) // 2])
      raise KeyboardInterrupt
    append(file, array)

  given = token_pass(small, tmp_path / 'parts', views=2)
  with monkeypatch.context() as patch:
    patch.setattr(store, 'append', stop)
    with pytest.raises(KeyboardInterrupt):
      given.run()
  done = store.read_progress(tmp_path / 'parts' / given.key).get('train', 0)
  assert 0 <= done < 2 * 1437
  given.run()
  for path in sorted((tmp_path / 'whole' / expected.key).iterdir()):
    assert path.read_bytes() == (tmp_path / 'parts' / given.key / path.name).read_bytes(), path.name


def test_a_full_disk_leaves_the_cache_valid(small, tmp_path, monkeypatch):
  given, append, calls = token_pass(small, tmp_path), store.append, iter(range(1000))

  def full(file, array):
    if next(calls) > 8:
      raise OSError(errno.ENOSPC, 'No space left on device')
    append(file, array)

  with monkeypatch.context() as patch:
    patch.setattr(store, 'append', full)
    with pytest.raises(OSError, match=r'no space is left.*config\.explore\.cache'):
      given.run()
  assert store.read_progress(tmp_path / given.key) == {'train': 256}
  model, params, dataset = small
  image = dataset.picture('train', 300)[None]
  _, named = model.apply({'params': params}, dataset.preprocess.normalise(jnp.asarray(image)))
  kept = given.run()['train']['tokens'].values[0, 300]
  np.testing.assert_allclose(kept, named['tokens'][0], atol=2e-5)


def test_a_cache_of_other_weights_or_data_is_never_used(small, tmp_path):
  model, params, dataset = small
  other = jax.tree.map(lambda x: x, params)
  other['cls'] = other['cls'].at[0, 0, 0].add(1e-6)
  passes = [token_pass(small, tmp_path), token_pass((model, other, dataset), tmp_path),
            token_pass(small, tmp_path, dtype='bfloat16'), token_pass(small, tmp_path, views=1),
            token_pass((model, params, data.build(**small_config(data__split_seed=1).data)),
                       tmp_path)]  # fmt: skip
  assert len({one.key for one in passes}) == len(passes)
  a, b = (one.run()['test']['tokens'].values for one in passes[:2])
  assert np.abs(a - b).max() > 0


def test_a_record_that_changes_in_place_is_noticed(tmp_path):
  """A TFDS file of the same size and time: one picture of 100 differs, or one label."""
  import tensorflow_datasets

  kinds, rng = tensorflow_datasets.features, np.random.default_rng(0)
  known = {'image': kinds.Image(shape=(8, 8, 3)), 'label': kinds.ClassLabel(num_classes=4)}
  rows = [{'image': encoded(rng.integers(0, 256, (8, 8, 3), np.uint8), 'BMP'), 'label': i % 4}
          for i in range(100)]  # fmt: skip
  darker = bytearray(rows[50]['image'])
  darker[-1] ^= 1
  other = {'same': rows[50], 'picture': rows[50] | {'image': bytes(darker)},
           'label': rows[50] | {'label': 3}}  # fmt: skip
  keys, sizes = {}, set()
  for name, row in other.items():
    changed = [*rows[:50], row, *rows[51:]]
    write(tmp_path, 'planted', '1.0.0', known, {'train': changed, 'test': rows[:8]})
    for path in (tmp_path / 'planted/1.0.0').glob('*array_record*'):
      os.utime(path, (0, 0))
      sizes.add(path.stat().st_size)
    section = small_config(
      data__name='tfds', data__dataset='planted', data__data_dir=str(tmp_path),
      data__image_size=(8, 8), data__crop='none', data__flip=False,
    ).data  # fmt: skip
    keys[name] = [store.hash_of_split(data.build(**section), split) for split in ('train', 'test')]
    shutil.rmtree(tmp_path / 'planted')
  assert len({key[0] for key in keys.values()}) == 3
  assert len({key[1] for key in keys.values()}) == 1
  assert len(sizes) == 1  # Records are padded: no size tells anything.


def test_a_cache_that_would_be_too_large_is_refused(small, tmp_path):
  with pytest.raises(ValueError, match=r'cache_gb=0\.0001: raise it, or halve it with .*bfloat16'):
    token_pass(small, tmp_path, limit=1e5).run()
  with pytest.raises(ValueError, match=r'raise it, or take fewer views$'):
    token_pass(small, tmp_path, limit=1e5, views=2, dtype='bfloat16').run()
  assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_cache(small, tmp_path):
  given = token_pass(small, tmp_path)
  (tmp_path / given.key).mkdir()
  with store.locked(tmp_path / given.key), pytest.raises(ValueError, match='another process'):
    given.run()


def test_holm_is_the_textbook_one():
  adjusted = statistics.holm(np.array([0.01, 0.04, 0.03, 0.005]))
  np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize('seeds', [1, 2, 3])
def test_the_permutation_test_is_that_of_scipy(seeds):
  """All 2**9 exchanges of whole examples, one by one; with one seed McNemar's exact test."""
  from scipy.stats import binomtest, permutation_test

  rng = np.random.default_rng(seeds)
  for chance in (0.8, 0.6, 0.3):
    a, b = rng.random((seeds, 9)) < 0.8, rng.random((seeds, 9)) < chance
    pair = a.mean(0), b.mean(0)
    expected = permutation_test(
      pair, lambda x, y, axis: (x - y).mean(axis), permutation_type='samples', n_resamples=10_000
    )
    found = statistics.permutation(a, b)
    assert found == pytest.approx(expected.pvalue)
    if seeds == 1:
      counts = int((a & ~b).sum()), int((a | b).sum() - (a & b).sum())
      assert found == pytest.approx(binomtest(*counts).pvalue if counts[1] else 1)


def test_seeds_are_no_new_evidence():
  """Five seeds that answer alike give the p of one; as five times the examples, a smaller one."""
  rng = np.random.default_rng(0)
  a, b = rng.random((1, 200)) < 0.85, rng.random((1, 200)) < 0.75
  one, five = (statistics.permutation(a.repeat(k, 0), b.repeat(k, 0)) for k in (1, 5))
  assert one == pytest.approx(five)
  apart = statistics.permutation(a.repeat(5, 1), b.repeat(5, 1))
  assert apart < one / 10


def test_the_permutation_test_errs_as_rarely_as_it_says():
  """Two readouts equally good, seeds alike: at most 5 % are told apart."""
  rng, wrong, trials = np.random.default_rng(1), 0, 400
  for _ in range(trials):
    hard = rng.random((2, 1, 120)) < 0.8  # What makes an example hard for one of them.
    noisy = hard ^ (rng.random((2, 3, 120)) < 0.05)
    wrong += statistics.permutation(*noisy) < 0.05
  assert 0.02 < wrong / trials < 0.07


def test_power_is_what_simulation_finds():
  """Of so many test sets, four of five show the difference; Connor's example to the last digit."""
  from scipy.stats import norm

  needed = power.examples(0.1, 0.3)
  z, beta = norm.ppf(0.975), norm.ppf(0.8)
  assert needed == np.ceil((z * 0.3**0.5 + beta * 0.29**0.5) ** 2 / 0.01) == 234
  assert power.detectable(0.3, needed) == pytest.approx(0.1, rel=3e-3)
  rng, found, trials = np.random.default_rng(0), 0, 400
  for _ in range(trials):
    kind = rng.choice(3, needed, p=[0.2, 0.1, 0.7])
    found += statistics.permutation((kind == 0)[None], (kind == 1)[None]) < 0.05
  assert 0.74 < found / trials < 0.86
  assert power.examples(0.0, 0.3) is None
  # Alike on all: with one seed a true difference still is a share of discordant examples.
  assert power.detectable(0.0, 100) == pytest.approx(0.0762, abs=1e-3)
  assert power.detectable(0.0, 100, seeds=5) < 0.03
  for n in (75, 200):  # So that a difference of that size, all of it in one direction, is found.
    least = power.detectable(0.0, n)
    better = rng.random((trials, 1, n)) < least
    found = sum(statistics.permutation(row, np.zeros((1, n), bool)) < 0.05 for row in better)
    assert 0.7 < found / trials < 0.9
  assert power.examples(1.0, 1.0) == 4  # So that fewer show nothing, however they differ.
  assert all(power.detectable(square, n) == 1 for square in (0.0, 0.3, 1.0) for n in (1, 2, 3))


@pytest.mark.parametrize('count', [1, 11])
def test_intervals_of_many_claims_hold_together(count):
  """Of so many true nulls, in about 95 of 100 experiments no interval leaves out the truth."""
  rng, whole, trials = np.random.default_rng(0), 0, 200
  for _ in range(trials):
    values = rng.normal(size=(count, 5))
    level = claims.level_of(count)
    intervals = [statistics.spread(one, level) for one in values]
    whole += all(low <= 0 <= high for low, high in intervals)
  assert 0.91 < whole / trials <= 1
  draws = rng.normal(size=100_000)
  np.testing.assert_allclose(statistics.interval(draws, 0.99), (-2.576, 2.576), atol=0.06)


def test_the_bootstrap_covers_and_pairs():
  """95 % intervals hold the truth about 95 times of 100; pairs differ less than each varies."""
  rng, inside = np.random.default_rng(0), 0
  for trial in range(100):
    correct = rng.random((1, 1, 200)) < 0.8
    low, high = statistics.interval(statistics.bootstrap(correct, trial, 400)[:, 0])
    inside += low <= 0.8 <= high
  assert 86 <= inside <= 100
  a = rng.random((3, 1, 300)) < 0.7
  pair = np.concatenate([a, a ^ (rng.random(a.shape) < 0.02)], axis=1)
  draws = statistics.bootstrap(pair, 0, 500)
  assert (draws[:, 0] - draws[:, 1]).std() < 0.5 * draws[:, 0].std()


def test_seeds_and_examples_both_widen_the_bootstrap():
  rng = np.random.default_rng(0)
  same = np.repeat(rng.random((1, 1, 400)) < 0.8, 4, axis=0)
  differ = np.stack([rng.random((1, 400)) < p for p in (0.6, 0.7, 0.9, 1.0)])
  spreads = [np.std(statistics.bootstrap(x, 0, 500)) for x in (same, differ)]
  assert spreads[1] > 1.5 * spreads[0]


class Both(readouts.Readout):
  """A toy without parameters, twice as wide as the tokens."""

  def __call__(self, x):
    patches = self.patches(x)
    return jnp.concatenate([patches.min(1), patches.max(1)], 1)


def test_a_new_readout_is_one_class_and_one_line(monkeypatch):
  """It is trained, tested in closed form, and read by a model, with no other change."""
  monkeypatch.setitem(readouts.READOUTS, 'both', Both)
  _, values, labels, signal = noise()
  values[:, 3] += 3 * signal
  gradient, _, _ = accuracies(values, labels, ('all',))
  assert list(gradient)[-3:] == ['both', 'random_patch', 'shuffled_labels']
  assert min(gradient['both'], closed_of('both', values, labels)) > 0.8 > gradient['class_token']
  some = make(('both', 'mean'))
  assert some.parameters(some.candidates[1]) == 2 * WIDTH * CLASSES + CLASSES
  section = models.complete(small_config().model.to_dict() | {'readout': 'both'})
  model = models.build(**section, image_size=(8, 8), channels=1, num_classes=10)
  params = models.init(model, jax.random.key(0))
  assert params['head']['kernel'].shape == (64, 10)


def closed_of(name, values, labels):
  """Accuracy of least squares of one readout on what it was fitted to."""
  given = features.Tokens(values[None].astype(np.float32), labels)
  return least_squares.accuracy(make((name,)), given, given, 1.0)[0]


def test_the_models_own_setting_does_not_leak_into_the_rows_of_the_table():
  section = SECTION | {'readout_weights': 'softmax', 'patch_index': 3, 'gelu': 'exact'}
  names = ('patch_2', 'weighted_add', 'weighted_add_softmax', 'attention_pool')
  one, free, soft, pool = candidates.choose_candidates(names, MODEL, section, (7, WIDTH))
  assert one.module.patch_index == 2
  assert (free.module.readout_weights, soft.module.readout_weights) == ('free', 'softmax')
  assert (pool.module.gelu, pool.module.num_heads, pool.module.mlp_dim) == ('exact', 2, 16)


def test_any_output_can_be_cached(small, tmp_path):
  given = token_pass(small, tmp_path, layers=('features', 'tokens'))
  found = given.run()['test']
  assert found['features'].values.shape == (1, 360, 32)
  np.testing.assert_allclose(found['features'].values[0], found['tokens'].values[0, :, 0])
  with pytest.raises(ValueError, match="did you mean 'features'"):
    token_pass(small, tmp_path, layers=('feature',)).run()


@pytest.mark.parametrize('name', ['class_token', 'mean', 'patch_4'])
def test_what_a_readout_makes_is_kept_instead_of_tokens(small, tmp_path, name):
  model = small[0]
  (one,) = candidates.choose_candidates((name,), model, SECTION, (5, 32))
  whole = token_pass(small, tmp_path)
  given = token_pass(small, tmp_path, readouts={'tokens': one.module})
  assert given.key != whole.key
  kept = given.run()['test']['tokens'].values
  values = whole.run()['test']['tokens'].values
  expected = {'class_token': values[:, :, 0], 'mean': values[:, :, 1:].mean(2),
              'patch_4': values[:, :, 4]}[name]  # fmt: skip
  np.testing.assert_allclose(kept, expected, atol=1e-6)
  assert given.row('tokens') == 32 * 4


def test_maps_are_rows_of_tokens():
  """A map `B h w C` is `B N C` to the cache, row by row."""
  x = jnp.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
  read = tokens.read_layer({'tokens': x}, 'tokens')
  np.testing.assert_array_equal(read, x.reshape(2, 6, 4))
  inner = tokens.read_layer({'block_0/tokens': x}, 'block_0/tokens')
  np.testing.assert_allclose(inner.std(-1), 1, atol=1e-3)


def test_with_views_the_training_pictures_are_there_as_evaluation_sees_them_too(small, tmp_path):
  plain = token_pass(small, tmp_path).run()['train']['tokens'].values
  found = token_pass(small, tmp_path, views=2, plain=True).run()
  views = token_pass(small, tmp_path, views=2).run()['train']['tokens'].values
  np.testing.assert_array_equal(found['train_plain']['tokens'].values, plain)
  np.testing.assert_array_equal(found['train']['tokens'].values, views)
