"""What weights know of their data: other splits, pictures or ways to prepare them are refused."""

import json

from conftest import make_folder, real_data, small_config
import numpy as np
import pytest

from vit_jax import convert, data, experiment, train, weights
from vit_jax.data import known, sources


def folder_config(path, **more):
  return small_config(
    data__name='folder', data__path=str(path), data__image_size=(8, 8), total_steps=2,
    eval_every=0, **more,
  )  # fmt: skip


def test_a_run_does_not_go_on_with_other_pictures(tmp_path):
  """Of class folders alone a share is tested: one picture more, and others are tested."""
  pictures = make_folder(tmp_path / 'pictures', {'a': 12, 'b': 12})
  train.train(folder_config(pictures), tmp_path / 'w')
  config = folder_config(pictures)
  config.total_steps = 4
  experiment.build(config, tmp_path / 'w')
  added = pictures / 'a/99.png'
  added.write_bytes((pictures / 'a/0.png').read_bytes())
  with pytest.raises(ValueError, match=r'was trained on 19 pictures, and of 20 now.*init_from='):
    train.train(config, tmp_path / 'w')
  described = data.describe(num_classes=2, **config.data)  # For a plan, without the data.
  assert experiment.build(config, tmp_path / 'w', dataset=described).data is not None
  added.unlink()
  make_folder(pictures, {'c': 4})
  with pytest.raises(ValueError, match=r'was trained on 2 classes \(a, b, \.\.\.\).*have 3 now'):
    train.train(config, tmp_path / 'w')


def test_a_fingerprint_is_of_names_wherever_they_lie():
  labels = np.zeros(2, np.int32)
  prints = [
    known.fingerprint(sources.Listed([f'{root}/a/0.png', f'{root}/{last}/1.png'], labels))
    for root, last in (('/x', 'b'), ('/y/z', 'b'), ('/x', 'c'))
  ]
  assert prints[0] == prints[1] != prints[2] and prints[0]['pictures'] == 2
  assert known.fingerprint(sources.all_digits()) is None


def test_pictures_of_training_are_not_tested(trained):
  """Another seed of the split tests what was trained on; the same config does not."""
  config = small_config(data__validation_fraction=0.2)
  assert train.evaluate(config, trained)['n_examples'] == 360
  seeds = small_config(data__validation_fraction=0.2, data__split_seed=1)
  with pytest.raises(
    ValueError, match=r'trained on \d+ of these 288 pictures of validation.*split_seed=0'
  ):
    train.evaluate(seeds, trained)
  fractions = small_config(data__validation_fraction=0.0)
  assert train.evaluate(fractions, trained)['n_examples'] == 360  # The same are tested.


@pytest.mark.parametrize(
  ('key', 'value'), [('fit', 'crop'), ('resize', 'nearest'), ('mean', (0.1,)), ('resize_small', 9)]
)
def test_weights_are_judged_by_pictures_as_they_know_them(trained, key, value):
  config = small_config(data__validation_fraction=0.2, **{f'data__{key}': value})
  with pytest.raises(ValueError, match=f'config.data.{key}=.*but the model in .* takes {key}='):
    train.evaluate(config, trained)


def evaluated(weights, **more):
  config = small_config(init_from=str(weights), **more)
  config.model.variant, config.model.dropout, config.model.drop_path = None, 0.0, 0.0
  return config


def test_classes_without_names_are_taken_in_order(trained, tmp_path, caplog):
  convert.convert(trained, tmp_path / 'w.npz', 'official')
  expected = train.evaluate(small_config(data__validation_fraction=0.2), trained)
  passport = json.loads((tmp_path / 'w.npz.json').read_text())
  (tmp_path / 'w.npz.json').unlink()
  found = weights.open_source(tmp_path / 'w.npz').passport
  assert found.class_names[3] == 'class 3' and passport['class_names'][3] == '3'
  config = evaluated(tmp_path / 'w.npz')
  report = train.evaluate(config, tmp_path / 'judged')
  assert report['accuracy'] == expected['accuracy']
  assert 'do not name their 10 classes' in caplog.text
  caplog.clear()
  other = evaluated(tmp_path / 'w.npz', data__name='folder')
  other.data.path = str(make_folder(tmp_path / 'pictures', {'a': 4, 'b': 4}))
  with pytest.raises(ValueError, match='the data have classes'):
    train.evaluate(other, tmp_path / 'judged')


def test_real_data_are_known_again(tmp_path):
  pictures = real_data('pizza_steak_sushi')
  built = experiment.build(folder_config(pictures), tmp_path / 'w')
  assert built.passport.origin['train']['pictures'] == 225
