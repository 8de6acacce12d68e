"""The selection audit: four rules on the same runs; what choosing on the test examples is worth."""

import dataclasses
import json

from conftest import ROOT
import numpy as np
import pytest
from scipy.stats import norm

from vit_jax import defaults, recipe
from vit_jax.evaluation import features, optimism
from vit_jax.explore import audit, audit_page, compare, lab, readouts, selection

NAMES = ('class_token', 'mean', 'weighted_add', 'shuffled_labels')


def answers(rng, count, n, chances, shared=0.8):
  """Right or wrong, `count 1 K n`: candidates of these chances that mostly agree."""
  common = rng.normal(size=(count, 1, 1, n)) * shared**0.5
  own = rng.normal(size=(count, 1, len(chances), n)) * (1 - shared) ** 0.5
  return common + own < norm.ppf(chances)[:, None]


def test_cross_fitting_is_the_plain_loop():
  rng = np.random.default_rng(0)
  correct = rng.random((2, 3, 4, 57)) < 0.7
  partitions = np.stack([optimism.partition(57, rng) for _ in range(5)])
  counts = rng.integers(0, 3, (5, 57)).astype(np.float32)
  reported, honest = optimism.cross_fit(correct, partitions, counts)
  for r, m in np.ndindex(2, 5):
    best, judged = 0.0, 0.0
    for s in range(3):
      weighted = correct[r, s] * counts[m]
      best += weighted.sum(1).max() / 57 / 3
      for fold in range(10):
        there = partitions[m] == fold
        chosen = weighted[:, ~there].sum(1).argmax()
        judged += weighted[chosen, there].sum() / 57 / 3
    assert reported[r, m] == pytest.approx(best, rel=1e-5)
    assert honest[r, m] == pytest.approx(judged, rel=1e-5)


@pytest.mark.parametrize(
  'chances', [np.full(10, 0.8), np.linspace(0.8, 0.83, 10), np.r_[np.full(9, 0.8), 0.83]]
)
def test_optimism_is_what_it_is(chances):
  """Ten candidates, alike or not: against the truth that only a simulation knows."""
  rng, n = np.random.default_rng(0), 200
  many = answers(rng, 4000, n, chances)[:, 0].mean(-1)
  truth = (many.max(1) - chances[many.argmax(1)]).mean()
  found, inside = [], 0
  for trial in range(30):
    look = optimism.measure(answers(rng, 1, n, chances), trial)
    low, high = look.interval(0)
    found.append(float(look.values[0]))
    inside += low <= truth <= high
  error = 3 * np.std(found) / 30**0.5 + 2e-3
  assert abs(np.mean(found) - truth) < error
  assert inside >= 27


def exploration(trained, **overrides):
  config = defaults.complete(recipe.load_recipe(f'{ROOT}/configs/explore_readouts.py'), {})
  config.init_from = str(trained)
  config.explore.readouts = NAMES
  config.explore.learning_rates = (1e-3, 1e-2, 1e-1)
  config.explore.epochs = 3
  config.explore.seeds = 3
  config.explore.update(overrides)
  return config


@pytest.fixture(scope='module')
def audited(trained, tmp_path_factory):
  """A lab, its tokens, what was found of them, and the audit."""
  built, folder = lab.build(exploration(trained)), tmp_path_factory.mktemp('audited')
  passed = readouts.token_pass(built, folder).run()
  store = {split: layers['tokens'] for split, layers in passed.items()}
  found = readouts.study(built, store, 'tokens')
  pairs = np.stack([found.rates, found.decays], 1)
  return built, store, found, audit.run(built, readouts.chunk(built), store, pairs, 'tokens')


def test_the_rules_read_the_same_runs(audited):
  """Ours is what the lab reports of these seeds; each other rule is what a loop would choose."""
  built, _, found, audit_ = audited
  epoch, rate, held, ours = audit_.correct()
  agree = ours.swapaxes(0, 1) == found.correct[:2]
  assert agree.mean() > 0.995  # Other shapes are summed in another order.
  at = [built.config.explore.learning_rates.index(x) for x in found.rates]
  for r in range(4):
    np.testing.assert_array_equal(audit_.by_rate[r, :, at[r]], audit_.by_epoch[r, :, -1])
    best = max(range(3), key=lambda g, r=r: audit_.by_rate[r, :, g].mean())
    np.testing.assert_array_equal(rate[r], audit_.by_rate[r, :, best])
    for s in range(2):
      assert epoch[r, s].mean() == audit_.by_epoch[r, s].mean(-1).max()
  assert (epoch.mean((1, 2)) >= ours.mean((1, 2))).all()
  assert audit_.tenth == 144
  assert set(audit_.rate) <= {1e-3, 1e-2, 1e-1} and set(audit_.epoch) <= {1, 2, 3}
  assert held.shape == (4, 2, 360)


def test_test_examples_choose_where_the_rule_says_so(audited):
  """With other test labels the held-out tenth chooses the same; the answers alone change."""
  built, store, found, audit_ = audited
  pairs = np.stack([found.rates, found.decays], 1)
  turned = dataclasses.replace(store['test'], labels=(store['test'].labels + 1) % 10)
  again = audit.run(built, readouts.chunk(built), store | {'test': turned}, pairs, 'tokens')
  for key in ('accuracy', 'epoch', 'rate'):
    np.testing.assert_array_equal(getattr(again, key), getattr(audit_, key))
  assert (again.held_out != audit_.held_out).any()


def test_where_nothing_is_to_be_learnt_choosing_still_looks_good(audited):
  """Labels of chance: the test's own choice reports more than it is worth, ours does not."""
  built, store, *_ = audited
  rng = np.random.default_rng(0)
  store = {
    split: features.Tokens(x.values, rng.permutation(x.labels)) for split, x in store.items()
  }
  some = audit.run(built, readouts.chunk(built), store, np.array(4 * [(1e-2, 0.0)]), 'tokens')
  by_name = {rule.name: rule for rule in audit.judge(built, some)}
  for name in ('epoch_on_test', 'rate_on_test'):
    mean = by_name[name].mean
    assert mean['optimism'] > 0.003
    assert mean['gain'] > 0
    assert mean['optimism'] == pytest.approx(by_name[name].optimism[:3].mean())
    assert (by_name[name].optimism_interval[:, 1] >= by_name[name].optimism).all()
  for name in ('held_out', 'ours'):
    assert by_name[name].mean['optimism'] == 0
    assert abs(by_name[name].accuracy - 0.1).max() < 0.06
  assert by_name['ours'].mean['gain_interval'] == [0, 0]


def test_an_audit_is_kept(audited, tmp_path):
  audit_ = audited[-1]
  audit.save(tmp_path / 'selection.npz', audit_)
  again = audit.restore(tmp_path / 'selection.npz')
  for field in dataclasses.fields(audit.Audit):
    np.testing.assert_array_equal(getattr(again, field.name), getattr(audit_, field.name))


def test_controls_alone_are_audited_too(audited):
  built, *_, whole = audited
  (last,) = [one for one in built.candidates if one.control]
  alone = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
  alone = {key: value if key == 'tenth' else value[-1:] for key, value in alone.items()}
  rules = audit.judge(dataclasses.replace(built, candidates=(last,)), audit.Audit(**alone))
  assert [rule.mean['accuracy'] for rule in rules] == [float(rule.accuracy[0]) for rule in rules]
  assert audit.counted(built) == [0, 1, 2]


def test_every_report_has_its_section(trained, tmp_path):
  """One rate of one seed and one readout will do; without the audit there is no section."""
  config = exploration(trained, learning_rates=(1e-2,), seeds=1, readouts=('mean', 'patch_2'))
  readouts.explore(config, tmp_path / 'lab')
  text = (tmp_path / 'lab/reports/readouts.md').read_text()
  assert '## What choosing does to the numbers' in text
  assert '| ours | ' in text and '| best epoch on test | ' in text
  assert (tmp_path / 'lab/reports/readouts/selection.png').exists()
  about = json.loads((tmp_path / 'lab/reports/exploration.json').read_text())
  assert list(about['selection']) == list(audit.RULES)
  assert about['selection']['rate_on_test']['optimism'] == 0  # There was one rate to choose.
  for audited in (False, True):  # It may be left out, and asked for again, of what is finished.
    config.explore.audit = audited
    readouts.explore(config, tmp_path / 'lab')
    text = (tmp_path / 'lab/reports/readouts.md').read_text()
    assert ('What choosing' in text) == audited


def test_the_section_describes_ours_whatever_the_report_is_by(audited, tmp_path):
  built, _, found, whole = audited
  config = built.config.copy_and_resolve_references()
  config.explore.update(selection='test', seeds=1)
  one = dataclasses.replace(built, config=config)
  assert '(one seed)' in selection.choosing(config.explore)
  results = compare.compare(built, 'tokens', found)
  rules = audit.judge(built, whole)
  _, text, *_ = audit_page.section(tmp_path, one, results, whole, rules)
  assert 'see below' not in text.text and text.text.startswith('The same runs (one seed)')
  assert 'on 20% of the training examples (one seed; of those within a standard' in text.text


def test_too_few_examples_to_hold_some_out_are_told_before_the_pass(audited, tmp_path):
  built, labels = audited[0], np.arange(90) % 10
  with pytest.raises(ValueError, match=r'audit=False does without\) cannot split 90 .*examples'):
    readouts.check_splits(built, labels)
  config = built.config.copy_and_resolve_references()
  config.explore.audit = False
  readouts.check_splits(dataclasses.replace(built, config=config), labels)
  config.explore.validation_fraction = 0.005
  with pytest.raises(ValueError, match=r'validation_fraction=0\.005 cannot split 1437 training'):
    readouts.explore(config, tmp_path / 'lab')
  assert not (tmp_path / 'lab').exists()


@pytest.mark.parametrize(
  'overrides', [{'selection': 'test'}, {'selection': 'test_epoch'}, {'learning_rates': (1e-2,)}]
)
def test_the_held_out_tenth_is_seen_as_by_evaluation(trained, tmp_path, monkeypatch, overrides):
  """Where probes train on changed views, whatever rule the report is by."""
  config, seen = exploration(trained, **{'views': 1, 'audit': True} | overrides), []
  evaluate = audit.fitting.evaluate

  def watched(part, params, tokens, *rest):
    seen.append(tokens)
    return evaluate(part, params, tokens, *rest)

  monkeypatch.setattr(audit.fitting, 'evaluate', watched)
  config.explore.update(readouts=('mean',), epochs=1, seeds=1)
  built = lab.build(config)
  without = config.copy_and_resolve_references()
  without.explore.audit = False
  passed = readouts.token_pass(built, tmp_path)
  assert passed.key == readouts.token_pass(lab.build(without), tmp_path).key
  store = passed.run()
  found = readouts.study(built, {split: x['tokens'] for split, x in store.items()}, 'tokens')
  seen.clear()
  readouts.audit_of(built, passed, store, found, tmp_path / 'probes')
  plain = built.predictor(np.stack([built.data.picture('train', i) for i in range(4)]), ('tokens',))
  held = [x.values[0, :4] for x in seen if len(x.labels) == 1437]
  assert held
  for values in held:
    np.testing.assert_allclose(values, plain['tokens'], atol=2e-5)
