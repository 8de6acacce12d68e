"""Several backbones in one report: who agrees, by Kendall, with intervals over training runs."""

import dataclasses
import json

from conftest import ROOT
import numpy as np
import pytest

from vit_jax import defaults, explore, recipe, weights
from vit_jax.evaluation import statistics
from vit_jax.evaluation.fitting import Fitted
from vit_jax.explore import backbones, backbones_page, claims, compare, lab, readouts


def test_kendall_counts_pairs():
  """Concordant less discordant pairs, over all pairs; the matrix is symmetric."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(8, 3))
  found = statistics.kendall(values)
  for i, j in ((0, 1), (0, 2), (1, 2)):
    signs = [
      np.sign((values[a, i] - values[b, i]) * (values[a, j] - values[b, j]))
      for a in range(8) for b in range(a)
    ]  # fmt: skip
    assert found[i, j] == found[j, i]
    assert found[i, j] == pytest.approx(np.mean(signs))
  assert statistics.kendall(np.c_[values[:, 0], -values[:, 0]])[0, 1] == pytest.approx(-1)


@pytest.mark.parametrize(('count', 'noise'), [(3, 1.0), (5, 0.3), (8, 3.0)])
def test_intervals_over_backbones_cover(count, noise):
  """Rankings of ten readouts, alike or nearly of chance, in 100 studies of a few backbones."""
  rng = np.random.default_rng(count)
  worth = np.linspace(0, 3, 10)[:, None]
  found = [
    statistics.mean_of_pairs(statistics.kendall(worth + noise * rng.normal(size=(10, count))))
    for _ in range(100)
  ]
  truth = np.mean([mean for mean, _, _ in found])
  assert sum(low <= truth <= high for _, low, high in found) >= 90
  two = statistics.mean_of_pairs(statistics.kendall(worth + rng.normal(size=(10, 2))))
  assert two[1:] == (-np.inf, np.inf)


def test_values_that_are_all_the_same_are_not_certain():
  """As many as would all have one sign by chance less often than the level allows."""
  for count, level, told in ((2, 0.95, False), (5, 0.95, False), (6, 0.95, True),
                             (6, 0.9955, False), (9, 0.9955, True)):  # fmt: skip
    low, high = statistics.spread(np.full(count, 3.0), level)
    assert (low, high) == ((3, 3) if told else (-np.inf, np.inf))
    assert claims.judge(low, high) == ('holds' if told else 'cannot tell')
  assert claims.span(-np.inf, np.inf) == 'not told by so few seeds'
  assert backbones_page.span(backbones.finite(-np.inf, np.inf)) == 'not told'


def exploration(trained, others, **overrides):
  config = defaults.complete(recipe.load_recipe(f'{ROOT}/configs/explore_readouts.py'), {})
  config.init_from = str(trained)
  config.explore.update(
    checkpoints=tuple(map(str, others)), learning_rates=(1e-2,), epochs=2, seeds=2, audit=False,
    readouts=('class_token', 'sum_all', 'mean_all', 'weighted_add'),
  )  # fmt: skip
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.fixture(scope='module')
def others(trained, tmp_path_factory):
  """Two further backbones: the small run's weights with other noise each."""
  folder = tmp_path_factory.mktemp('others')
  params, passport = weights.load(trained)
  rng = np.random.default_rng(0)
  for i in (1, 2):
    shape = params['cls'].shape
    changed = params | {'cls': params['cls'] + 0.5 * i * rng.normal(size=shape).astype(np.float32)}
    weights.write_model(folder / f'run{i}/model', changed, passport)
  return [folder / 'run1', folder / 'run2']


def test_three_backbones_in_one_report(trained, others, tmp_path):
  config = exploration(trained, others)
  explore.run(config, tmp_path / 'W')
  about = json.loads((tmp_path / 'W/reports/backbones.json').read_text())
  assert about['backbones'] == [str(trained), *map(str, others)]
  folders = sorted((tmp_path / 'W/backbones').iterdir())
  assert [path.name for path in folders] == [f'1-{trained.name}', '2-run1', '3-run2']
  for m, folder in enumerate(folders):
    records = json.loads((folder / 'reports/readouts.json').read_text())
    own = {record['readout']: record['accuracy'] for record in records}
    for name, row in zip(about['readouts'], about['accuracy'], strict=True):
      assert row[m] == pytest.approx(own[name])
  table = np.array(about['accuracy'])
  assert (np.diff(table.mean(1)) <= 1e-12).all()  # The best mean first.
  assert about['agreement']['pairs'] == pytest.approx(statistics.kendall(table))
  for row in about['differences']:
    assert row['a'] == about['readouts'][0]
    low, high = statistics.spread(np.array(row['differences']))
    assert row['interval'] == pytest.approx([low, high])
  said = {claim['claim']: claim for claim in about['claims']}
  own = json.loads((folders[1] / 'reports/exploration.json').read_text())['claims']
  for claim in own:
    assert said[claim['claim']]['differences'][1] == pytest.approx(claim['difference'])
    assert said[claim['claim']]['each'][1] == claim['verdict']
  text = (tmp_path / 'W/reports/backbones.md').read_text()
  assert '## Do the rankings agree?' in text and '## Accuracy by backbone' in text
  for name in ('accuracy', 'ranks'):
    assert (tmp_path / f'W/reports/backbones/{name}.png').exists()
  with pytest.raises(ValueError, match='another config'):
    explore.run(exploration(trained, others[:1]), tmp_path / 'W')


def test_a_claim_rests_on_all_of_them():
  """What every backbone says holds; what one of three says alone cannot be told."""
  assert backbones.agreement(np.array([[0.9, 0.9], [0.8, 0.8]])) is None
  same = np.array([[0.9, 0.91, 0.92], [0.8, 0.8, 0.81], [0.7, 0.72, 0.69]])
  found = backbones.agreement(same)
  assert found['tau'] == 1 and found['interval'] is None  # Three that agree may do so by chance.
  turned = backbones.agreement(np.array([[0.9, 0.91, 0.5], [0.8, 0.8, 0.6], [0.7, 0.72, 0.7]]))
  assert turned['tau'] == pytest.approx(-1 / 3) and turned['interval'][1] > 0


def of_shares(seed, mean, other):
  """Results of `mean_all` and `sum_all` with three seeds, which are right so often."""
  rng, nothing = np.random.default_rng(seed), np.zeros((1, 3, 2, 1))
  right = np.stack([rng.random((3, 500)) < share for share in (mean, other)], axis=1)
  fitted = Fitted(nothing, nothing, nothing, nothing, right[:, :, None].astype(int), {})
  found = lab.Layer(np.ones(2), nothing[0], fitted, np.zeros(2), np.ones(500, int))
  names = ('mean_all', 'sum_all')
  return compare.Results('tokens', names, [], statistics.bootstrap(right), found, [])


@pytest.mark.parametrize('shares', [(0.56, 0.92), (0.92, 0.56), (0.7, 0.7)])
def test_that_two_differ_holds_on_either_side(shares, monkeypatch):
  tests = [test for names, test in claims.tests_of((4, 4)) if names == ['mean_all', 'sum_all']]
  monkeypatch.setattr(lab, 'build', lambda _: None)
  monkeypatch.setattr(claims, 'claims', lambda _, found: [test(found, 0.99) for test in tests])
  config = defaults.get_config()
  found = [backbones.Backbone(str(seed), config, of_shares(seed, *shares)) for seed in range(4, 7)]
  (row,) = backbones.conclusions(found)
  expected = 'cannot tell' if shares[0] == shares[1] else 'holds'
  assert row['each'] == [expected] * 3 and row['verdict'] == expected
  assert claims.judge(-3.0, -1.0) == 'does not hold'  # Any other claim has a side.


def test_backbones_of_other_splits_are_refused():
  one, other = (backbones.Backbone(name, defaults.get_config(), of_shares(0, 0.7, 0.7))
                for name in 'ab')  # fmt: skip
  backbones.check_same_labels([one, other])
  other.results.found.labels[3] = 0
  with pytest.raises(ValueError, match='trained on the same split'):
    backbones.check_same_labels([one, other])


def test_what_cannot_be_compared_is_refused(trained, others, tmp_path):
  weights.write_model(tmp_path / 'copy/model', *weights.load(trained))
  for again in (trained, trained / '..' / trained.name, tmp_path / 'copy'):
    with pytest.raises(ValueError, match=f'twice: {trained}, .*{again.name}; a second'):
      explore.run(exploration(trained, [again]), tmp_path / 'W')
  with pytest.raises(ValueError, match=r'reads config\.init_from alone'):
    readouts.explore(exploration(trained, others), tmp_path / 'W')
  one = lab.build(exploration(trained, []))
  test = one.data.splits['test']
  fewer = dataclasses.replace(one.data, splits=one.data.splits | {'test': test.take(np.arange(9))})
  with pytest.raises(ValueError, match='9 test examples of 10 classes, a 360 of 10'):
    backbones.check_alike([('a', one), ('b', dataclasses.replace(one, data=fewer))])
  assert not (tmp_path / 'W').exists()
