"""Few-shot, nearest neighbours, linear probes, ReaL, calibration: against scikit-learn, NumPy."""

import json

from conftest import make_folder, small_config
import jax
from jax import numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

import vit_jax
from vit_jax import data, defaults, experiment, train
from vit_jax.evaluation import calibration, fewshot, knn, least_squares, linear
from vit_jax.explore import readouts as lab
from vit_jax.runtime import sharding


def clusters(count=300, width=6, classes=4, seed=0, spread=2.0):
  """Noisy features around a centre for each class, and their labels."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  centres = spread * np.random.default_rng(9).normal(size=(classes, width))
  return (centres[labels] + rng.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize(('count', 'width'), [(20, 64), (64, 64), (200, 16)])
@pytest.mark.parametrize('ridge', [1e-2, 1024.0])
def test_few_shots_are_a_ridge_regression(count, width, ridge):
  """Primal and dual, against numpy's solver on the explicit constant and against scikit-learn."""
  x, labels = clusters(count, width)
  kernel, bias = least_squares.fit(x, labels, 4, (7.0, ridge))[1]
  wide = (x.astype(np.float64) - x.mean(0, np.float64)) / (x.std(0, dtype=np.float64) + 1e-5)
  wide = np.concatenate([wide, np.full((count, 1), 100.0)], 1)
  targets = 2.0 * np.eye(4)[labels] - 1
  solved = np.linalg.solve(wide.T @ wide + ridge * np.eye(width + 1), wide.T @ targets)
  other, _ = clusters(50, width, seed=1)
  seen = (other - x.mean(0, np.float64)) / (x.std(0, dtype=np.float64) + 1e-5)
  seen = np.concatenate([seen, np.full((50, 1), 100.0)], 1)
  np.testing.assert_allclose(other @ kernel + bias, seen @ solved, rtol=1e-6, atol=1e-8)
  peer = Ridge(ridge, fit_intercept=False, solver='svd').fit(wide, targets)
  np.testing.assert_allclose(other @ kernel + bias, peer.predict(seen), rtol=1e-6, atol=1e-8)


def test_the_picks_are_nested_and_fair():
  labels = np.arange(100) % 3
  many, few = (fewshot.pick(labels, n, 5, 3) for n in (10, 4))
  assert (labels[many] == np.arange(3)[:, None]).all()
  np.testing.assert_array_equal(many[:, :4], few)
  assert len(np.unique(many)) == 30
  assert (fewshot.pick(labels, 4, 6, 3) != few).any()


@pytest.mark.parametrize(('k', 'temperature'), [(1, 0.07), (5, 0.07), (20, 0.5), (5, 0.0)])
def test_neighbours_are_scikit_learns(k, temperature):
  x, labels = clusters(width=3, spread=0.7)
  other, truth = clusters(seed=1, width=3, spread=0.7)
  given = knn.Neighbours(knn.normalise(x), labels, 4, {'knn': (k, temperature)})
  weigh = (lambda d: np.exp(-d / temperature)) if temperature else 'uniform'
  peer = KNeighborsClassifier(k, weights=weigh, metric='cosine', algorithm='brute').fit(x, labels)
  found = given.predict(other)['knn']
  np.testing.assert_array_equal(found, peer.predict(other))
  assert 0.3 < (found == truth).mean() < 1
  alone = given.predict(x, without=np.arange(300))['knn']
  for i in range(0, 300, 29):
    rest = np.arange(300) != i
    one = KNeighborsClassifier(k, weights=weigh, metric='cosine', algorithm='brute')
    assert alone[i] == one.fit(x[rest], labels[rest]).predict(x[i : i + 1])[0]


def test_at_low_temperatures_the_nearest_neighbour_decides():
  x, labels = clusters(width=3, spread=0.7)
  ways = {'cold': (20, 1e-5), 'nearest': (1, 0.0)}
  given = knn.Neighbours(knn.normalise(x), labels, 4, ways)
  found = given.predict(clusters(seed=1, width=3, spread=0.7)[0])
  np.testing.assert_array_equal(found['cold'], found['nearest'])


def test_neighbours_in_chunks(monkeypatch):
  x, labels = clusters()
  given = knn.Neighbours(knn.normalise(x), labels, 4, {'a': (5, 0.07), 'b': (1, 0.0)})
  whole = given.predict(x)
  monkeypatch.setattr(knn, 'CHUNK', 4 * 300 * 7)
  assert {k: v.tolist() for k, v in given.predict(x).items()} == {
    k: v.tolist() for k, v in whole.items()
  }


def test_the_optimum_of_a_linear_probe_is_scikit_learns():
  x, labels = clusters()
  kernel, bias = linear.regress(x, labels, 0.5)
  peer = LogisticRegression(C=0.5, max_iter=5000, tol=1e-8).fit(x, labels)
  np.testing.assert_allclose(x @ kernel + bias, peer.decision_function(x), atol=0.02)
  pair = labels % 2
  kernel, bias = linear.regress(x, pair, 0.5)
  np.testing.assert_array_equal(
    (x @ kernel + bias).argmax(1), LogisticRegression(C=0.5).fit(x, pair).predict(x)
  )
  kernel, bias = linear.regress(x[labels != 1], labels[labels != 1], 0.5)
  assert not ((x @ kernel + bias).argmax(1) == 1).any()  # A class without examples.


def test_calibration_by_hand():
  probability = np.array([0.95, 0.85, 0.9, 0.55, 0.5, 1.0])
  correct = np.array([1, 1, 0, 1, 0, 1], bool)
  found = calibration.measure(probability, correct, 10)
  # Bins: (0.4, 0.5]: one, wrong; (0.5, 0.6]: one, right; (0.8, 0.9]: two, one right; the last: two.
  assert found.count.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 2, 2]
  gaps = 1 * 0.5 + 1 * 0.45 + 2 * abs(0.5 - 0.875) + 2 * abs(1 - 0.975)
  assert found.error == pytest.approx(gaps / 6)
  sure = calibration.measure(np.ones(5), np.ones(5, bool), 15)
  assert sure.error == 0 and sure.count[-1] == 5
  assert calibration.measure(np.zeros(2), np.zeros(2, bool), 15).count[0] == 2


def evaluate(init_from, folder, *names, **overrides):
  """A report on weights, by names of evaluators."""
  config = defaults.complete(defaults.get_config(), {'data': 'checkpoint', 'evaluators': names})
  config.init_from = str(init_from)
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in overrides.items()})
  return train.evaluate(config, folder)


def features_of(workdir, name='features'):
  """What the head reads of both splits, and their labels, by the predictor."""
  model, found = vit_jax.load(workdir), {}
  dataset = experiment.build(small_config(data__validation_fraction=0.2)).data
  for split in ('train', 'test'):
    source = dataset.splits[split]
    images = np.stack([dataset.picture(split, i) for i in range(len(source))])
    found[split] = model(images, (name,))[name], source.labels
  return found


def test_frozen_evaluators_judge_what_the_head_reads(trained, tmp_path):
  report = evaluate(trained, tmp_path, 'fewshot', 'knn', 'linear',
                    evaluation__linear__strengths=(0.1,))  # fmt: skip
  (x, labels), (other, truth) = (features_of(trained)[split] for split in ('train', 'test'))
  row = report['fewshot']['layers'][0]
  assert row['layer'] == 'features' and report['fewshot']['n_train'] == len(labels) == 1149
  accuracy = []
  for seed in range(3):
    rows = fewshot.pick(labels, 5, seed, 10).ravel()
    kernel, bias = least_squares.fit(x[rows], labels[rows], 10, (1024.0,))[0]
    accuracy.append(((other @ kernel + bias).argmax(1) == truth).mean())
  assert row['fewshot_5'] == pytest.approx(np.mean(accuracy), abs=0.004)
  peer = KNeighborsClassifier(20, weights=lambda d: np.exp(-d / 0.07), metric='cosine')
  expected = peer.fit(x, labels).score(other, truth)
  assert report['knn']['layers'][0]['knn_20'] == pytest.approx(expected, abs=0.004)
  scaled = [(part - x.mean(0)) / (x.std(0) + 1e-5) for part in (x, other)]
  expected = LogisticRegression(C=0.1, max_iter=2000).fit(scaled[0], labels).score(scaled[1], truth)
  assert report['linear']['layers'][0]['linear'] == pytest.approx(expected, abs=0.006)
  assert {path.name for path in (tmp_path / 'reports').iterdir()} == {
    f'{name}.{kind}' for name in ('fewshot', 'knn', 'linear') for kind in ('json', 'png')
  }
  for name in ('fewshot', 'knn', 'linear'):
    assert json.loads((tmp_path / f'reports/{name}.json').read_text()) == report[name]
  assert len(list((tmp_path / 'cache').iterdir())) == 1  # One pass for all three.


def test_every_layer_and_readout(trained, tmp_path):
  """Tokens are kept whole where they fit, and the lab reads the same files."""
  options = dict(evaluation__knn__layers='all', evaluation__knn__readout='mean')
  report = evaluate(trained, tmp_path, 'knn', **options)
  rows = report['layers']
  assert [row['layer'] for row in rows] == ['tokens']  # mu has one block: the last is normalised.
  x, labels = features_of(trained, 'tokens')['train']
  other, truth = features_of(trained, 'tokens')['test']
  peer = KNeighborsClassifier(5, weights=lambda d: np.exp(-d / 0.07), metric='cosine')
  expected = peer.fit(x[:, 1:].mean(1), labels).score(other[:, 1:].mean(1), truth)
  assert rows[0]['knn_5'] == pytest.approx(expected, abs=0.004)
  small = evaluate(trained, tmp_path / 'small', 'knn', evaluation__cache_gb=6e-4, **options)
  assert small['layers'] == rows
  size = sum(path.stat().st_size for path in (tmp_path / 'small/cache').rglob('*.tokens'))
  assert size == 4 * 32 * (1149 + 360)
  with pytest.raises(ValueError, match=r'more than --config\.evaluation\.cache_gb=1e-05: raise it'):
    evaluate(trained, tmp_path / 'none', 'knn', evaluation__cache_gb=1e-5, **options)
  assert not (tmp_path / 'none').exists()


def test_blocks_side_by_side(tmp_path):
  """As iGPT-XL's probe: one classifier of several blocks, in a report and while a run trains."""
  settings = dict(knn__layers='1+2', knn__readout='mean', knn__neighbours=(5,))
  settings = {f'evaluation__{key}': value for key, value in settings.items()}
  config = defaults.complete(
    small_config(model__depth=2, data__validation_fraction=0.2, total_steps=2),
    {'evaluators': ('classification', 'knn')},
  )
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in settings.items()})
  config.eval_every = config.checkpoint_every = 2
  train.train(config, tmp_path / 'w')
  (row,) = evaluate(tmp_path / 'w', tmp_path / 'judged', 'knn', **settings)['layers']
  joined = []
  for split in ('train', 'test'):
    inner, last = (
      features_of(tmp_path / 'w', name)[split] for name in ('block_0/tokens', 'tokens')
    )
    joined.append((np.concatenate([inner[0][:, 1:].mean(1), last[0][:, 1:].mean(1)], 1), last[1]))
  (x, labels), (other, truth) = joined
  assert x.shape[1] == 64 and row['layer'] == 'block_0/tokens+tokens'
  peer = KNeighborsClassifier(5, weights=lambda d: np.exp(-d / 0.07), metric='cosine')
  assert row['knn_5'] == pytest.approx(peer.fit(x, labels).score(other, truth), abs=0.004)
  last = json.loads((tmp_path / 'w/metrics.jsonl').read_text().splitlines()[-1])
  assert last['test/knn_5'] == pytest.approx(row['knn_5'], abs=0.004)


@pytest.mark.parametrize(
  ('model', 'size'),
  [
    (dict(model__name='swin', model__variant='digits/1'), 8),
    (dict(model__name='bit', model__variant='R5x1', model__head='random'), 32),
  ],
)
def test_inner_maps_of_a_pyramid_are_read_whole(model, size):
  """They are larger than the last one, and have no token before their places."""
  config = defaults.complete(
    small_config(data__image_size=(size, size), **model), {'evaluators': ('knn',)}
  )
  config.update_from_flattened_dict({'evaluation.knn.layers': 'all'})
  (one,) = experiment.build(config).evaluators.by_name.values()
  for view in one.views:
    shape = one.subject.outputs[view.output].shape
    assert view.readout.grid == shape[1:3] and view.readout.prefix == ()
    x = np.random.default_rng(0).normal(size=(2, shape[1] * shape[2], shape[3]))
    np.testing.assert_allclose(view.read(jnp.asarray(x)), x.mean(1), atol=1e-5)
  assert len({view.readout.grid for view in one.views}) == (2 if size == 8 else 1)


def test_inner_blocks_are_read_by_the_models_own_patch():
  config = defaults.complete(
    small_config(model__depth=2, model__readout='patch+after', model__patch_index=3),
    {'evaluators': ('knn',)},
  )
  config.update_from_flattened_dict({'evaluation.knn.layers': '1'})
  (one,) = experiment.build(config).evaluators.by_name.values()
  x = np.random.default_rng(0).normal(size=(2, 5, 32))
  own = x[:, 3] - x[:, 3].mean(-1, keepdims=True)
  np.testing.assert_allclose(
    one.views[0].read(jnp.asarray(x)), own / x[:, 3].std(-1, keepdims=True), atol=1e-4
  )


def test_the_lab_reads_the_same_cache(trained, tmp_path):
  folder = make_folder(tmp_path / 'p', {f'{s}/{k}': 8 for s in ('train', 'test') for k in 'abc'})
  data = dict(data__name='folder', data__path=str(folder), data__image_size=(8, 8),
              data__channels=1)  # fmt: skip
  config = small_config(run='explore', init_from=str(trained), explore__readouts=('mean',),
                        explore__epochs=1, explore__learning_rates=(1e-3,), **data)  # fmt: skip
  for key in ('model', 'total_steps', 'batch_size', 'log_every', 'eval_every', 'checkpoint_every'):
    config[key] = defaults.get_config()[key]
  config.data.rotate = 0.0
  lab.explore(config, tmp_path / 'w')
  cache = [*(tmp_path / 'w/cache').iterdir()]
  frozen = defaults.complete(config, {'evaluators': ('knn',)})
  frozen.update_from_flattened_dict({
    'run': 'train', 'evaluation.knn.neighbours': (1,), 'evaluation.knn.readout': 'mean',
  })  # fmt: skip
  report = train.evaluate(frozen, tmp_path / 'w')
  assert [*(tmp_path / 'w/cache').iterdir()] == cache
  assert report['n_train'] == 24 and 0 <= report['layers'][0]['knn_1'] <= 1


@pytest.mark.parametrize('devices', [1, 4])
def test_what_is_computed_is_what_is_stored(trained, tmp_path, devices):
  """The numbers of a training run are those of its report, on any number of devices."""
  names = ('fewshot', 'knn', 'linear')
  options: dict = dict(evaluation__linear__solver='sgd', evaluation__linear__epochs=2)
  options |= dict(
    evaluation__linear__learning_rates=(0.01, 0.1), evaluation__fewshot__ridges=(1.0, 1024.0)
  )
  config = defaults.complete(small_config(data__validation_fraction=0.2), {'evaluators': names})
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in options.items()})
  exp = experiment.build(config)
  mesh = sharding.make_mesh(1, jax.devices()[:devices])
  model = vit_jax.load(trained)
  evaluators = experiment.build_evaluators(config, exp.objective, model.passport, exp.data, mesh)
  found = evaluators.run({'model': model.params}, ('test', 'validation'))
  assert {*found} == {*evaluators.metrics}
  assert not evaluators.run({'model': model.params}, ('train',))
  report = evaluate(trained, tmp_path, *names, **options)
  for name in names:
    row = report[name]['layers'][0]
    for key in (k.partition('/')[2] for k in found if k.startswith(f'test/{name}')):
      assert found[f'test/{key}'] == pytest.approx(row[key], abs=0.003), key
  assert set(report['fewshot']['layers'][0]['ridge'].values()) <= {1.0, 1024.0}


def test_few_shots_choose_the_checkpoint(tmp_path):
  config = defaults.complete(
    small_config(data__validation_fraction=0.2), {'evaluators': ('fewshot',)}
  )
  config.update_from_flattened_dict({
    'best': 'max:validation/fewshot_1', 'evaluation.fewshot.shots': (1,), 'eval_every': 0,
  })  # fmt: skip
  train.train(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  scores = {row['step']: row['validation/fewshot_1'] for row in rows
            if 'validation/fewshot_1' in row}  # fmt: skip
  assert {*scores} == {2, 4, 6}
  best = max(scores, key=lambda step: scores[step])
  assert vit_jax.load(tmp_path).passport.step == best


def test_other_classes_than_the_heads(trained, tmp_path):
  """Heads of their own are trained on any classes; what compares classes says so."""
  folder = make_folder(tmp_path / 'p', {f'{s}/{k}': 12 for s in ('train', 'test') for k in 'abc'})
  config = defaults.complete(defaults.get_config(), {'data': 'folder', 'evaluators': ('fewshot',)})
  config.update_from_flattened_dict({
    'init_from': str(trained), 'data.path': str(folder), 'evaluation.fewshot.shots': (1, 5),
  })  # fmt: skip
  report = train.evaluate(config, tmp_path / 'w')
  assert 0 <= report['layers'][0]['fewshot_5'] <= 1 and report['init_from'] == str(trained)
  config = defaults.complete(config, {'evaluators': ('classification',)})
  with pytest.raises(ValueError, match=r"classes \('a', 'b', 'c'\).*'fewshot'"):
    train.evaluate(config, tmp_path / 'w')


def write(path, content):
  path.write_text(json.dumps(content))
  return str(path)


def real_of(trained, folder, labels):
  config = defaults.complete(defaults.get_config(), {'data': 'folder', 'evaluators': ('real',)})
  config.update_from_flattened_dict({
    'init_from': str(trained), 'data.path': str(folder), 'evaluation.real.labels': labels,
  })  # fmt: skip
  return config


@pytest.fixture
def pictures(tmp_path):
  """ImageNet's names in two classes, which lie in an order of their own."""
  folder = make_folder(tmp_path / 'p', {'train/a': 2, 'train/b': 2, 'test/a': 3, 'test/b': 3})
  for kind, numbers in {'a': (5, 1, 3), 'b': (2, 4, 6)}.items():
    for i, number in enumerate(numbers):
      path = folder / f'test/{kind}/{i}.png'
      path.rename(path.with_name(f'ILSVRC2012_val_{number:08}.png'))
  return folder


def test_real_labels_by_number_by_name_and_by_class(trained, pictures, tmp_path):
  model = vit_jax.load(trained)
  paths = sorted((pictures / 'test').rglob('*.png'))
  numbers = [int(path.stem[-8:]) for path in paths]
  ranked = np.argsort(-model([*paths], ('logits',))['logits'], axis=1)
  sets = [[0, 3], [], [7], [1, 2, 9], [4, 5], [8]]
  expected = [ranked[i, 0] in sets[n - 1] for i, n in enumerate(numbers) if sets[n - 1]]
  top5 = [bool({*ranked[i, :5]} & {*sets[n - 1]}) for i, n in enumerate(numbers) if sets[n - 1]]
  report = train.evaluate(
    real_of(trained, pictures, write(tmp_path / 'r.json', sets)), tmp_path / 'w'
  )
  assert report['real_accuracy'] == pytest.approx(np.mean(expected))
  assert report['real_accuracy_top5'] == pytest.approx(np.mean(top5))
  assert (report['n_examples'], report['n_without_label']) == (5, 1)
  named = {path.name: sets[n - 1] for path, n in zip(paths, numbers, strict=True)}
  again = train.evaluate(
    real_of(trained, pictures, write(tmp_path / 'n.json', named)), tmp_path / 'w'
  )
  assert again | {'labels': ''} == report | {'labels': ''}
  classes = {'b': ['3', '7', int(ranked[0, 0])]}
  found = train.evaluate(
    real_of(trained, pictures, write(tmp_path / 'c.json', classes)), tmp_path / 'w'
  )
  right = [ranked[i, 0] in (3, 7, ranked[0, 0]) for i in (3, 4, 5)]
  assert found['real_accuracy'] == pytest.approx(np.mean(right)) and found['n_without_label'] == 3


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ([[1], [2]], 'is a list of 2, and .* has no number'),
    (5, 'holds 5, neither a list of lists nor an object'),
    ({'c': [1]}, 'names no picture and no class of the data, such as .*a'),
    ({'a': [10]}, r'10 is not in 0\.\.9'),
    ({'a': ['ten']}, "'ten'"),
    ({'a': 5}, r'5 is no list of classes; write \[5\]'),
    ({'a': 'ten'}, r"'ten' is no list of classes; write \[\"ten\"\]"),
    ({'a': [1.7]}, r'1\.7 is not in 0\.\.9, whole numbers'),
    ({'a': [True]}, r'True is not in 0\.\.9'),
    ({'a': [], 'b': []}, 'no test picture has a label'),
    (None, 'No such file'),
  ],
)
def test_real_labels_that_do_not_fit(trained, pictures, tmp_path, content, message):
  path = str(tmp_path / 'r.json') if content is None else write(tmp_path / 'r.json', content)
  with pytest.raises(ValueError, match=message):
    train.evaluate(real_of(trained, pictures, path), tmp_path / 'w')


@pytest.mark.parametrize(
  ('name', 'overrides', 'message'),
  [
    ('knn', dict(evaluation__knn__layers='3'), 'blocks from 1 to 1'),
    ('knn', dict(evaluation__knn__layers='1+1'), 'side by side'),
    ('knn', dict(evaluation__knn__readout='meen'), "did you mean 'mean'"),
    ('knn', dict(evaluation__knn__readout='attention_pool'), 'without parameters'),
    ('knn', dict(evaluation__knn__readout='random_patch'), 'without parameters'),
    ('knn', dict(evaluation__knn__readout='patches'), 'is not one readout'),
    ('knn', dict(evaluation__knn__neighbours=(2000,)), 'must be below 1149'),
    ('knn', dict(evaluation__knn__temperatures=(-1.0,)), 'not below 0'),
    ('fewshot', dict(evaluation__fewshot__shots=(500,)), '500 examples of each class'),
    ('fewshot', dict(evaluation__fewshot__shots=()), 'at least one'),
    ('linear', dict(evaluation__linear__solver='lbfg'), "did you mean 'lbfgs'"),
    ('linear', dict(evaluation__linear__strengths=()), 'at least one'),
    ('linear', dict(evaluation__linear__epochs=0), r'evaluation\.linear: epochs=0 .* at least 1'),
    ('real', {}, 'real.labels is not set'),
    ('classification', dict(evaluation__classification__bins=0), 'at least 1'),
  ],
)
def test_what_cannot_be_judged_is_refused(trained, tmp_path, name, overrides, message):
  with pytest.raises(ValueError, match=message):
    evaluate(trained, tmp_path / 'w', name, **overrides)
  assert not (tmp_path / 'w/reports').exists()


@pytest.mark.parametrize(
  ('name', 'overrides', 'message'),
  [
    ('fewshot', {'evaluation.fewshot.shots': (5, 200)},
     r'200 examples of each class are wanted \(200 shots\), and 8 has 139; ask for fewer shots'),
    ('fewshot', {'evaluation.fewshot.shots': (131,), 'evaluation.fewshot.ridges': (1.0, 10.0)},
     r'141 .* wanted \(131 shots to train, 10 to choose among ridges\), and 8 has 139'),
    ('linear', {'data.train_examples': 40}, r'held_out=0.2 cannot split 40 training examples'),
    ('linear', {'data.train_examples': 50, 'evaluation.linear.held_out': 0.9}, r'cannot split 50'),
  ],
)  # fmt: skip
def test_too_few_examples_are_told_before_anything_is_trained(tmp_path, name, overrides, message):
  config = defaults.complete(small_config(), {'evaluators': (name,)})
  config.update_from_flattened_dict(overrides)
  with pytest.raises(ValueError, match=message):
    experiment.build(config, tmp_path)


@pytest.mark.parametrize('name', ['fewshot', 'knn', 'linear'])
def test_a_plan_of_data_that_are_not_here_has_these_evaluators(tmp_path, name):
  config = defaults.complete(small_config(), {'evaluators': (name,)})
  known = data.describe(num_classes=10, **config.data.to_dict())
  built = experiment.build(config, tmp_path, dataset=known)
  assert f'test/{name}' in {metric.partition('_')[0] for metric in built.evaluators.metrics}


def test_a_plan_of_data_that_are_not_here_has_real_labels_too(tmp_path):
  for content in ({'a': [1]}, [[1]]):
    config = defaults.complete(small_config(), {'evaluators': ('real',)})
    config.evaluation.real.labels = write(tmp_path / 'r.json', content)
    known = data.describe(num_classes=10, **config.data.to_dict())
    built = experiment.build(config, tmp_path, dataset=known)
    assert 'test/real_accuracy' in built.evaluators.metrics


def test_a_part_of_one_class_is_no_reason_to_stop():
  """With two classes of 18 and 1 examples the one may be among those that choose."""
  x, labels = np.random.default_rng(0).normal(size=(19, 4)), np.array([0] * 18 + [1])
  for seed in range(8):
    rest, held = linear.split(labels, 0.2, seed)
    kernel, bias = linear.regress(x[rest], labels[rest], 1.0)
    predicted = (x[held] @ kernel + bias).argmax(-1)
    assert labels[rest].any() or not predicted.any()
  kernel, bias = linear.regress(x[:3], np.array([2, 2, 2]), 1.0)
  np.testing.assert_array_equal((x @ kernel + bias).argmax(-1), 2)


def test_a_report_has_top_k_and_calibration(trained, tmp_path):
  report = evaluate(trained, tmp_path, 'classification', evaluation__classification__top=(1, 3, 12))
  assert report['accuracy_top1'] == report['accuracy'] <= report['accuracy_top3']
  assert report['accuracy_top12'] is None and 0 <= report['calibration_error'] <= 1
  assert (tmp_path / 'reports/calibration.png').stat().st_size > 5000


def test_the_command_judges_any_weights(quick, trained, tmp_path):
  done = quick('--config=configs/evaluate.py:frozen', f'--config.init_from={trained}',
               f'--workdir={tmp_path}', '--mode=evaluate')  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert {*json.loads(done.stdout)} == {'fewshot', 'knn', 'linear'}
  done = quick('--config=configs/evaluate.py', f'--workdir={tmp_path}', '--mode=evaluate')
  assert done.returncode and 'error' in done.stderr
