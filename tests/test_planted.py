"""Planted evidence: what is planted is what is said, and who finds it, in 100 draws."""

import json

from conftest import ROOT
import jax
import numpy as np
import pytest

from vit_jax import defaults, explore, models, recipe, weights
from vit_jax.data import planted as data
from vit_jax.data import sources
from vit_jax.evaluation import candidates
from vit_jax.explore import page, planted, planted_page

SMALL = dict(train_examples=300, test_examples=200, epochs=5)


def exploration(**options):
  config = defaults.complete(recipe.load_recipe(f'{ROOT}/configs/explore_planted.py'), {})
  config.explore.update(options)
  return config


def share(values, labels, place):
  """The accuracy of the nearest class mean at one place, trained on one half."""
  half = len(labels) // 2
  means = np.stack([values[:half][labels[:half] == k, place].mean(0) for k in np.unique(labels)])
  distance = ((values[half:, place, None] - means) ** 2).sum(-1)
  return (distance.argmin(1) == labels[half:]).mean()


@pytest.mark.parametrize('classes', [2, 3])
def test_codes_stand_where_they_are_said_to(classes):
  made = data.plant_code('code', np.random.default_rng(0), 2000, 9, 16, classes, 4.0)
  (place,) = np.flatnonzero(made.evidence)
  accuracy = [share(made.values, made.labels, k) for k in range(9)]
  assert accuracy[place] > 0.9 and abs(accuracy[place] - made.possible) < 0.05
  assert max(np.delete(accuracy, place)) < 1 / classes + 0.06


@pytest.mark.parametrize('classes', [2, 3])
def test_joint_codes_say_nothing_alone(classes):
  """Neither part tells the class, nor any sum of parts; both together do."""
  made = data.plant_code('joint', np.random.default_rng(0), 4000, 9, 16, classes, 6.0)
  a, b = np.flatnonzero(made.evidence)
  for place in (a, b):
    assert share(made.values, made.labels, place) < 1 / classes + 0.05
  total = (made.values[:, a] + made.values[:, b])[:, None]
  assert share(total, made.labels, 0) < 1 / classes + 0.06
  pairs = np.einsum('nd,ne->nde', made.values[:, a], made.values[:, b]).reshape(4000, 1, -1)
  assert share(pairs, made.labels, 0) > 0.9 and made.possible > 0.95


@pytest.mark.parametrize('kind', data.PICTURES)
def test_digits_lie_in_their_quarter(kind):
  splits, _ = sources.digits(test_fraction=0.2, validation_fraction=0.0, split_seed=0)
  known = {np.asarray(x).tobytes(): label for x, label in
           zip(*splits['test'].read(np.arange(360)), strict=True)}  # fmt: skip
  for quarter, (row, column) in enumerate(((0, 0), (0, 8), (8, 0), (8, 8))):
    made = data.paste_digits(kind, np.random.default_rng(quarter), splits['test'], 40, quarter)
    assert made.images.shape == (40, 16, 16, 1)
    pasted = made.images[:, row : row + 8, column : column + 8]
    assert [known[x.tobytes()] for x in pasted] == made.labels.tolist()
    grid = data.patches_of(quarter, (4, 4)).reshape(4, 4)
    assert grid.sum() == 4 and grid[row // 4 : row // 4 + 2, column // 4 : column // 4 + 2].all()
    tokens = data.cut(made.images, 4).reshape(40, 4, 4, 16)
    expected = pasted[:, :4, :4].reshape(40, 16) / 127.5 - 1
    np.testing.assert_allclose(tokens[:, row // 4, column // 4], expected, rtol=1e-5)
  assert data.patches_of(3, (3, 3)).reshape(3, 3).tolist() == [[0] * 3, [0, 1, 1], [0, 1, 1]]


def test_single_evidence_is_found_in_95_of_100_draws():
  """By the patch map, by learned weights, by attention; the report's numbers say so too."""
  config = exploration(draws=100, readouts=('weighted_add', 'weighted_add_softmax'), **SMALL)
  found = planted.study(config, 'code', planted.reader_of(config, 'code'))
  assert found.evidence.sum() == 100 and found.evidence.any(0).sum() > 10
  rows = {row['finder']: row for row in planted_page.finders_of(found)}
  assert set(rows) == {'patch map', 'weighted_add', 'weighted_add_softmax'}
  for name, row in rows.items():
    hits = found.evidence[np.arange(100), found.maps[name].argmax(1)].sum()
    assert row['found'] == hits >= 95
    assert row['precision'] == pytest.approx(hits / 100)


@pytest.mark.slow
@pytest.mark.parametrize('kind', data.PICTURES)
def test_digits_are_found_in_95_of_100_draws(kind):
  config = exploration(draws=100, readouts=('weighted_add',), **SMALL | {'train_examples': 600})
  found = planted.study(config, kind, planted.reader_of(config, kind))
  for row in planted_page.finders_of(found):
    assert row['found'] >= 95
    assert row['precision'] > 0.9


@pytest.mark.slow
def test_joint_evidence_is_seen_by_what_is_not_linear(tmp_path):
  """Attention pooling finds both patches; patches and mixes stay at chance, and the report says."""
  explore.run(exploration(draws=6, kinds=('joint', 'code')), tmp_path)
  about = json.loads((tmp_path / 'reports/planted.json').read_text())
  sees = {row['readout']: row['sees'] for row in about['joint']['readouts']}
  assert sees['attention_pool']
  assert not any(sees[name] for name in ('planted patches alone', 'mean', 'weighted_add'))
  assert all(row['sees'] for row in about['code']['readouts'])
  found = {row['finder']: row['precision'] for row in about['joint']['finders']}
  assert found['attention_pool'] > 0.8 > 0.4 > max(found['patch map'], found['weighted_add'])
  text = (tmp_path / 'reports/planted.md').read_text()
  assert 'see it: attention_pool; cannot be seen to see it' in text


def test_measures_against_a_loop():
  rng = np.random.default_rng(0)
  values, evidence = rng.normal(size=(7, 6)), np.zeros((7, 6), bool)
  evidence[:, [1, 4]] = True
  found = planted_page.measure(values, evidence)
  hits = [len({1, 4} & {*np.argsort(-row)[:2].tolist()}) / 2 for row in values]
  assert found['precision'] == pytest.approx(np.mean(hits))
  assert found['found'] == sum(row.argmax() in (1, 4) for row in values)
  assert found['by_chance'] == pytest.approx(1 / 3)
  perfect = planted_page.measure(evidence * 1.0, evidence)
  assert (perfect['precision'], perfect['correlation']) == (1, pytest.approx(1))
  assert perfect['precision_interval'][0] < 0.8  # Seven of seven prove little.
  assert planted_page.measure(np.zeros((7, 6)), evidence)['correlation'] == 0


def test_a_report_of_few_draws_goes_on_where_it_stopped(tmp_path, monkeypatch):
  """One kind is there: only the other is studied; the folder belongs to its config."""
  options = dict(draws=2, kinds=('code', 'digit_on_noise'), readouts=('attention_pool',), **SMALL)
  config, study, seen = exploration(**options), planted.study, []

  def stop(*arguments):
    seen.append(arguments[1])
    if len(seen) == 2:
      raise KeyboardInterrupt
    return study(*arguments)

  monkeypatch.setattr(planted, 'study', stop)
  with pytest.raises(KeyboardInterrupt):
    explore.run(config, tmp_path)
  explore.run(config, tmp_path)
  assert seen == ['code', 'digit_on_noise', 'digit_on_noise']
  about = json.loads((tmp_path / 'reports/planted.json').read_text())
  for kind in options['kinds']:
    assert [row['finder'] for row in about[kind]['finders']] == ['patch map', 'attention_pool']
  assert (tmp_path / 'reports/planted/maps.png').exists()
  with pytest.raises(ValueError, match='another config'):
    explore.run(exploration(**options | {'draws': 3}), tmp_path)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [('attention_pool', True), ('attention_pool+before', True), ('attention_pool+all', False),
   ('attention_pool+batch_before', False), ('clip', False), ('abmilp_attention', False),
   ('cait', False), ('prr', False), ('vjepa2', False), ('mean', False), ('gem', False),
   ('ep', True), ('aim', True), ('capi+before', True), ('vjepa', True), ('abmilp', True),
   ('abmilp_tanh', True), ('simpool', True), ('simpool_gamma', True)],
)  # fmt: skip
def test_a_map_of_attention_is_that_over_the_patches(name, expected):
  reader = planted.Reader((4, 4))
  (found,) = candidates.choose_candidates((name,), reader, reader.settings, (17, 16))
  assert planted.attends_to_patches(found, 16) == expected
  if expected:
    tokens = jax.random.normal(jax.random.key(0), (5, 17, 16))
    params = found.module.init(jax.random.key(1), tokens)['params']
    looked = planted.attention(found.module, params, np.asarray(tokens))
    assert looked.shape == (16,) and looked.sum() == pytest.approx(1, rel=1e-5)


def test_readouts_without_a_map_are_named():
  two = np.full(2, 0.5)
  accuracy = {planted.ALONE: two, 'mean': two, 'attention_pool': two, 'ep': two}
  maps = {planted.PATCH_MAP: np.zeros((2, 4)), 'attention_pool': np.zeros((2, 4))}
  found = planted.Found((2, 2), 2, np.ones((2, 4), bool), maps, accuracy, two, np.zeros(0))
  (text,) = planted_page.without_map({'code': found})
  assert isinstance(text, page.Text) and text.text.endswith('as they are: mean, ep.')


def passport_without_class_token():
  section = dict(variant='mu/4', readout='mean', class_token=False, image_size=(16, 16), channels=1)
  known = defaults.part('model', 'vit').to_dict() | section | {'num_classes': 10}
  seen = dict(image_size=(16, 16), channels=1, resize='bilinear', mean=(0.5,), std=(0.5,))
  return weights.Passport.from_json({
    'format': 1, 'model': models.complete(known), 'class_names': list('0123456789'),
    'preprocess': seen | dict(fit='squash', resize_small=None),
  })  # fmt: skip


def test_a_model_without_class_token(tmp_path):
  """What it cannot be read by is told before anything is computed."""
  passport = passport_without_class_token()
  model = passport.build()
  params = jax.jit(lambda: models.init(model, jax.random.key(0)))()
  weights.write_model(tmp_path / 'm', params, passport)
  config = exploration(kinds=('code', 'digit_on_noise'), readouts=('weighted_add',), **SMALL)
  config.init_from = str(tmp_path / 'm')
  with pytest.raises(ValueError, match='reads the class token, which these weights lack'):
    explore.run(config, tmp_path / 'W')
  assert not (tmp_path / 'W').exists()


def test_kinds_may_be_read_by_other_finders():
  """As by a model without class token beside tokens that have one."""
  two, evidence = np.full(2, 0.5), np.eye(2, 4, dtype=bool)
  found = {
    kind: planted.Found(
      (2, 2), 2, evidence, dict.fromkeys([planted.PATCH_MAP, *names], evidence * 1.0),
      dict.fromkeys([planted.ALONE, *names], two), two, np.zeros(0),
    )
    for kind, names in (('code', ['weighted_add', 'attention_pool']), ('joint', ['attention_pool']))
  }  # fmt: skip
  figure = planted_page.draw_maps(found)
  assert [axis.get_visible() for axis in figure.axes] == [True] * 6 + [False, True]
  finders = {kind: planted_page.finders_of(one) for kind, one in found.items()}
  first, second = planted_page.draw_precision(finders).axes
  places = [[line.get_ydata()[0] for line in axis.lines[1:-1:2]] for axis in (first, second)]
  assert places == [[0, 1, 2], [0, 2]]


@pytest.mark.parametrize(
  ('options', 'words'),
  [({'kinds': ('cod',)}, "did you mean 'code'"), ({'draws': 0}, 'draws=0'),
   ({'side': 3}, 'side=3 must divide'), ({'side': 0}, 'side=0'), ({'side': -2}, 'side=-2'),
   ({'classes': 1}, 'classes be at least 2'),
   ({'readouts': ('meen',)}, "did you mean 'mean'")],
)  # fmt: skip
def test_what_cannot_be_planted_is_refused(tmp_path, options, words):
  with pytest.raises(ValueError, match=words):
    explore.run(exploration(**options), tmp_path / 'W')
  assert not (tmp_path / 'W').exists()


def write_map_model(folder, start):
  """Weights of a small BiT for the canvases: its tokens are a map, with nothing before it."""
  known = defaults.part('model', 'bit').to_dict() | {'variant': 'R5x1', 'head': 'random'}
  section = models.complete(known | dict(image_size=(16, 16), channels=1, num_classes=10))
  seen = dict(image_size=(16, 16), channels=1, resize='bilinear', mean=(0.5,), std=(0.5,))
  passport = weights.Passport.from_json({
    'format': 1, 'model': section, 'class_names': list('0123456789'),
    'preprocess': seen | dict(fit='squash', resize_small=None),
  })  # fmt: skip
  model = passport.build()
  params = jax.jit(lambda: models.init(model, jax.random.key(start)))()
  weights.write_model(folder, params, passport)


def test_a_model_of_maps_and_other_weights_under_its_name(tmp_path, caplog):
  config = exploration(kinds=('digit_on_noise',), readouts=('mean',), **SMALL | {'draws': 2})
  config.init_from = str(tmp_path / 'm')
  write_map_model(tmp_path / 'm', 0)
  explore.run(config, tmp_path / 'W')
  about = json.loads((tmp_path / 'W/reports/planted.json').read_text())
  assert [row['readout'] for row in about['digit_on_noise']['readouts']][1:] == ['mean']
  explore.run(config, tmp_path / 'W')  # The same weights: what is there is read again.
  write_map_model(tmp_path / 'm', 1)
  with pytest.raises(ValueError, match=r'found with other weights.*choose another --workdir'):
    explore.run(config, tmp_path / 'W')
  path = tmp_path / 'W/probes/planted/digit_on_noise.npz'
  with np.load(path) as file:
    old = {key: x for key, x in file.items() if key != 'identity'}
  np.savez(path, **old)  # As earlier versions wrote it.
  explore.run(config, tmp_path / 'W')
  assert 'does not say of which weights' in caplog.text
