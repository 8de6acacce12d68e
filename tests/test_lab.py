"""What the lab says where something goes wrong: readouts that diverge, keys it does not read."""

import dataclasses
import json

from conftest import ROOT, make_folder
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import defaults, predict, recipe, weights
from vit_jax.evaluation import statistics
from vit_jax.evaluation.fitting import Fitted
from vit_jax.explore import claims, compare, lab, lab_data, pictures, readouts, sections
from vit_jax.models import readout, tokens


def exploration(trained, **overrides):
  """A config of a short exploration of the small run; '__' stands for '.'."""
  config = defaults.complete(recipe.load_recipe(f'{ROOT}/configs/explore_readouts.py'), {})
  config.init_from = str(trained)
  config.explore.update(
    readouts=('class_token', 'mean'), learning_rates=(1e-2,), epochs=2, seeds=2, audit=False
  )
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


def test_a_readout_that_diverges_is_named_and_the_report_is_whole(trained, tmp_path):
  config = exploration(
    trained, explore__readouts=('class_token', 'weighted_add'), explore__optimizer='sgd',
    explore__learning_rates=(1e30,),
  )  # fmt: skip
  readouts.explore(config, tmp_path)
  assert (tmp_path / 'reports/exploration.json').exists()
  records = json.loads((tmp_path / 'reports/readouts.json').read_text())
  lost = {record['readout']: record['diverged_seeds'] for record in records}
  assert lost['weighted_add'] == 2
  text = (tmp_path / 'reports/readouts.md').read_text()
  assert 'Training diverged' in text and 'weighted_add (2 of the seeds)' in text


def test_curves_leave_out_what_is_no_number():
  values = np.array([[[0.5, 1.0]], [[np.nan, 2.0]], [[np.inf, 3.0]]])
  assert pictures.limits(values.ravel()) == pytest.approx((0.5, np.percentile([0.5, 1, 2, 3], 99)))
  for one in (values, np.full_like(values, np.nan)):
    for what in ('accuracy', 'loss'):
      assert np.isfinite(pictures.curves(('a', 'b'), one, one, what).axes[0].get_ylim()).all()


def test_a_generalised_mean_has_a_gradient_at_any_power():
  """Powers of what is negative in a whole channel, 1e-6^8, are 0 in float32."""
  module = readout.build('gem', {}, prefix=(), grid=(2, 2), probing=True)
  tokens = jnp.asarray([[[-1.0, 2.0], [-2.0, 1.0], [-0.5, 3.0], [-1.0, -1.0]]])

  def total(power):
    return module.apply({'params': {'power': jnp.full(1, power)}}, tokens).sum()

  for power in (0.5, 3.0, 8.0, 30.0):
    value, slope = jax.value_and_grad(total)(power)
    assert np.isfinite(slope)
    expected = (np.maximum(np.asarray(tokens, float), 1e-6) ** power).mean(1) ** (1 / power)
    assert value == pytest.approx(expected.sum(), rel=1e-4)


def test_blocks_are_read_in_the_order_of_the_model():
  names = [*(f'block_{i}/tokens' for i in range(12)), 'tokens']
  found = tokens.layer_names(names, '10,2,1,02')
  assert found == ('block_0/tokens', 'block_1/tokens', 'block_9/tokens')


def test_the_page_says_which_block_was_read(trained):
  assert compare.words_of('block_2/tokens', 12) == 'block 3 of 12'
  assert compare.words_of('mean_6/tokens', 12) == 'the mean of the last 6 blocks'
  known, nothing = lab.build(exploration(trained)), np.zeros(0)
  about = dict(weights='a', data='b', n_train=9, seconds=1.0)
  found = lab.Layer(nothing, nothing, Fitted(*[nothing] * 5, weights={}), nothing, nothing)
  record = dict(
    readout='mean', accuracy=0.5, bootstrap_interval=[0.4, 0.6], n_examples=9, n_seeds=1
  )
  for layer, words in (('block_0/tokens', 'block 1 of 1'), ('tokens', 'of the last block')):
    last = compare.Results(layer, ('mean',), [record], nothing, found, [])
    text = ' '.join(block.text for block in sections.introduction(known, last, about))
    # Of what was read, and beside the model's own head.
    assert text.count(words) == (2 if layer != 'tokens' else 0)


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'data__fit': 'crop'}, r'config\.data\.fit=crop, but .* takes fit=squash, .*leave it out'),
    ({'data__resize': 'nearest', 'data__image_size': (64, 64)},
     r'image_size=\(64, 64\), config\.data\.resize=nearest, .*=\(8, 8\), resize=bilinear'),
    ({'data__mean': (0.1,)}, r'config\.data\.mean=\(0\.1,\), .* takes mean=\(0\.5,\)'),
    ({'evaluation__cache': '/elsewhere', 'evaluation__cache_gb': 1.0},
     r'config\.evaluation\.cache, config\.evaluation\.cache_gb: .* set by config\.explore'),
  ],
)  # fmt: skip
def test_keys_that_would_be_ignored_are_refused(trained, overrides, words):
  config = defaults.complete(exploration(trained), {'data': 'digits'})
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  with pytest.raises(ValueError, match=words):
    lab.build(config)


def test_keys_that_say_what_the_weights_know_are_welcome(trained):
  config = defaults.complete(exploration(trained, evaluation__batch_size=32), {'data': 'digits'})
  config.data.update(mean=(0.5,), std=(0.5,), image_size=(8, 8))
  assert lab.build(config).data.preprocess.image_size == (8, 8)


def test_test_examples_are_none_that_the_weights_were_trained_on(trained):
  config = defaults.complete(exploration(trained), {'data': 'digits'})
  assert lab.build(config).doubt == ''
  config.data.split_seed = 1
  with pytest.raises(
    ValueError, match=r'split_seed=1: .*trained on \d+ of these 360 pictures of test.*seed=0'
  ):
    lab.build(config)
  config.data.update(split_seed=0, test_fraction=0.4)
  with pytest.raises(ValueError, match=r'test_fraction=0\.4: .*take the split of the weights'):
    lab.build(config)
  config.data.test_fraction = 0.1  # Half of what was their test split.
  assert len(lab.build(config).data.splits['test']) == 180


def test_a_folder_is_the_same_however_its_path_is_written(trained, tmp_path, monkeypatch):
  make_folder(tmp_path / 'data', {'a': 20, 'b': 20})
  params, passport = weights.load(trained)
  own = defaults.part('data', 'folder').to_dict() | {'path': str(tmp_path / 'data')}
  passport = dataclasses.replace(passport, origin={'data': own})
  weights.write_model(tmp_path / 'model', params, passport)
  monkeypatch.chdir(tmp_path)
  config = defaults.complete(exploration(tmp_path), {'data': 'folder'})
  config.data.update(path='data', split_seed=3)
  with pytest.raises(
    ValueError, match=r'split_seed=3: .*trained on \d of these 8 pictures of test'
  ):
    lab.build(config)


def test_a_split_that_nobody_can_tell_is_pointed_out(trained, tmp_path, caplog):
  params, passport = weights.load(trained)
  own = defaults.part('data', 'tfds').to_dict() | {'dataset': 'some'}
  passport = dataclasses.replace(passport, origin={'data': own})
  weights.write_model(tmp_path / 'model', params, passport)
  dataset, predictor = lab.build(exploration(trained)).data, predict.load(tmp_path)

  def doubt(**changed):
    config = defaults.complete(exploration(tmp_path), {'data': 'tfds'})
    config.data.update({'dataset': 'some'} | changed)
    return lab_data.doubt(config, predictor, dataset)

  assert doubt() == doubt(dataset='other') == doubt(validation_fraction=0.3) == ''
  words = doubt(test_split='train[:9]')
  assert f'test_split=train[:9]: {tmp_path} may have been trained on some' in words
  assert words in caplog.text


def test_no_interval_is_of_zero_width():
  """All right, by two seeds: each draw is the same; Wilson's interval is not."""
  correct = np.ones((2, 1, 360), bool)
  draws = statistics.bootstrap(correct, resamples=100)[:, 0]
  assert compare.resampled(draws, correct[:, 0]) == pytest.approx(
    [360 / (360 + 1.96**2), 1], abs=1e-5
  )
  low, high = compare.resampled(1 - draws, ~correct[:, 0])
  assert low == 0 and high > 0.01
  correct[0, 0, 0] = False
  draws = statistics.bootstrap(correct, resamples=100)[:, 0]
  assert compare.resampled(draws, correct[:, 0]) == list(statistics.interval(draws))


def test_corners_are_compared_with_another_centre():
  """On 2 x 2, 1 x 2 and 1 x 1 the same patches are both."""
  for grid, count in (((1, 1), 10), ((1, 2), 10), ((2, 2), 10), ((3, 3), 11), ((4, 4), 11)):
    assert len(claims.tests_of(grid)) == count


def test_what_an_earlier_passport_does_not_say_is_the_default(trained, tmp_path):
  params, passport = weights.load(trained)
  own = {'name': 'digits', 'split_seed': 0}
  weights.write_model(tmp_path / 'm', params, dataclasses.replace(passport, origin={'data': own}))
  config = defaults.complete(exploration(tmp_path / 'm'), {'data': 'digits'})
  assert lab.build(config).doubt == ''
