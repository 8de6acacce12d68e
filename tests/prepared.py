"""Small TFDS sets as array_record, written without TensorFlow, which preparing real ones needs."""

import io
import json
import pathlib

import numpy as np
from PIL import Image


def encoded(pixels, kind='PNG', **options):
  """The file of a picture, uint8 `H W C` or `H W`."""
  buffer = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1:] == (1,) else pixels).save(
    buffer, kind, **options
  )
  return buffer.getvalue()


def write(data_dir, name, version, features, splits, config=None):
  """Writes the set `name` (and its config) as `tfds build --file_format=array_record` does.

  Args:
    features: of a TFDS FeaturesDict.
    splits: for each split its examples; pictures are bytes. The same object twice is written twice,
      and made ready once.
  """
  import tensorflow_datasets

  folder = pathlib.Path(data_dir) / name / (config or '') / version
  folder.mkdir(parents=True)
  known = tensorflow_datasets.features.FeaturesDict(features)
  known.save_metadata(folder)
  known.save_config(folder)
  about = {
    'fileFormat': 'array_record', 'moduleName': 'tests', 'name': name, 'version': version,
    'splits': [], **({'configName': config} if config else {}),
  }  # fmt: skip
  for split, examples in splits.items():
    path = folder / f'{name}-{split}.array_record-00000-of-00001'
    size = write_records(path, known, examples)
    about['splits'].append({
      'name': split, 'shardLengths': [str(len(examples))], 'numBytes': str(size),
      'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    })  # fmt: skip
  (folder / 'dataset_info.json').write_text(json.dumps(about))
  return folder


def write_records(path, features, examples):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer, ready, size = ArrayRecordWriter(str(path), 'group_size:1'), {}, 0
  for example in examples:
    if id(example) not in ready:
      given = {key: io.BytesIO(x) if isinstance(x, bytes) else x for key, x in example.items()}
      ready[id(example)] = features.serialize_example(given)
    writer.write(ready[id(example)])
    size += len(ready[id(example)])
  writer.close()
  return size


def write_cifar100(data_dir, test=60, train=45_200):
  """A CIFAR-100 of one picture a class, each of one colour, as long as VTAB's slices need."""
  import tensorflow_datasets

  kinds = tensorflow_datasets.features
  known = {'image': kinds.Image(shape=(32, 32, 3)), 'label': kinds.ClassLabel(num_classes=100)}
  colours = np.random.default_rng(0).integers(0, 256, (100, 3), np.uint8)
  rows = [
    {'image': encoded(np.broadcast_to(colour, (32, 32, 3))), 'label': label}
    for label, colour in enumerate(colours)
  ]
  splits = {name: [rows[i % 100] for i in range(count)] for name, count in
            {'train': train, 'test': test}.items()}  # fmt: skip
  return write(data_dir, 'cifar100', '3.0.2', known, splits)
