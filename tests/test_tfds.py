"""TFDS sets: CIFAR-10 as array_record, read without TensorFlow; what cannot be read says why."""

import json
import shutil

from conftest import real_data, small_config
import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import tfds


def build(data_dir, dataset='cifar10', **overrides):
  keys = {f'data__{key}': value for key, value in overrides.items()}
  config = small_config(
    data__name='tfds', data__dataset=dataset, data__data_dir=str(data_dir),
    data__image_size=(32, 32), data__crop='none', data__flip=False, **keys,
  )  # fmt: skip
  return data.build(**config.data)


def test_cifar10():
  dataset = build(real_data('tfds'), validation_fraction=0.1)
  sizes = {name: len(source) for name, source in dataset.splits.items()}
  assert sizes == {'train': 45_000, 'validation': 5000, 'test': 10_000}
  assert dataset.class_names[:3] == ('airplane', 'automobile', 'bird')
  batch = next(dataset.epoch('test', 64))
  assert batch['image'].shape == (64, 32, 32, 3)
  assert len(set(batch['label'])) > 5
  whole = build(real_data('tfds')).splits['train'].examples
  first = whole[int(dataset.splits['validation'].indices[7])]
  found, labels = dataset.splits['validation'].read(np.array([7]))
  assert (found[0], labels[0]) == (first['image'], first['label'])


def test_labels_are_those_of_the_files():
  """An epoch's labels: exactly 1,000 of each class in the test split."""
  source = build(real_data('tfds')).splits['test']
  _, labels = source.read(np.arange(len(source)))
  assert np.bincount(labels).tolist() == [1000] * 10


def test_a_label_that_is_no_class_is_named():
  """ImageNet's test split has -1 everywhere, which no training may read as a class."""
  rows = [{'image': b'', 'label': label} for label in (0, 2, -1)]
  examples = type('Rows', (list,), {'__getitems__': lambda self, at: [self[i] for i in at]})(rows)
  split = tfds.Prepared(examples, np.arange(3), 'imagenet2012 test', 'image', 'label', 3)
  assert split.read(np.array([1, 0]))[1].tolist() == [2, 0]
  with pytest.raises(ValueError, match=r'test: the label -1 is not in 0..2.*test_split=validation'):
    split.read(np.arange(3))


def test_slices_of_splits():
  dataset = build(real_data('tfds'), train_split='train[:10%]', test_split='test[5000:]')
  assert [len(dataset.splits[name]) for name in ('train', 'test')] == [5000, 5000]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(dataset='cifra10'), "unknown TFDS set .{,400} more; did you mean 'cifar10'"),
    (dict(train_split='trian'), "train_split 'trian'.*did you mean 'train'"),
    (dict(label_key='lable'), "label_key of cifar10 'lable'.*did you mean 'label'"),
    (dict(label_key='id'), 'label_key=id: cifar10 has no class names'),
    (dict(dataset='mnist'), 'mnist in .*not prepared.*tfds build mnist.*array_record'),
    (dict(data_dir='/nowhere'), 'data_dir=/nowhere is not a folder'),
    (dict(dataset='cifar10:9.9.9'), 'dataset=cifar10:9.9.9: .*9.9.9'),
  ],
)
def test_what_cannot_be_read_is_named(options, message):
  options = {'data_dir': real_data('tfds')} | options
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    build(**options)


def test_tfrecord_shows_the_command(tmp_path):
  source, target = real_data('tfds') / 'cifar10/3.0.2', tmp_path / 'cifar10/3.0.2'
  target.mkdir(parents=True)
  for name in ('features.json', 'label.labels.txt', 'dataset_info.json'):
    shutil.copyfile(source / name, target / name)
  about = json.loads((target / 'dataset_info.json').read_text())
  (target / 'dataset_info.json').write_text(json.dumps(about | {'fileFormat': 'tfrecord'}))
  with pytest.raises(ValueError, match=r'prepared as tfrecord there.*tfds build cifar10'):
    build(tmp_path)
