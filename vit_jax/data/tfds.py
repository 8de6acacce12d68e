"""TFDS sets that are prepared as array_record: random access without TensorFlow."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from vit_jax.data import sources
from vit_jax.runtime.choices import check_choice

NAME_KEY = 'file_name'  # as ImageNet's set has it


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A split of a prepared set; pictures stay encoded until they are decoded into a batch.

  Attributes:
    several: whether a picture has a list of labels.
    name_key: the feature that holds the name of a picture's file; None: there is none.
  """

  examples: Any  # random access: a TFDS data source
  indices: np.ndarray
  title: str
  image_key: str
  label_key: str
  num_classes: int
  several: bool = False
  name_key: str | None = None

  def __len__(self) -> int:
    return len(self.indices)

  def read(self, indices: np.ndarray) -> tuple[Sequence[bytes], np.ndarray]:
    # A chunk at a time: a quarter of the time of one by one (32 against 120 us an example).
    rows = self.examples.__getitems__(self.indices[indices].tolist())
    labels = [row[self.label_key] for row in rows]
    return [row[self.image_key] for row in rows], self.targets(labels)

  def targets(self, labels: Sequence[Any]) -> np.ndarray:
    """Labels as int32 `B`, or lists of them as float32 `B K`: 1 for each class in a picture.

    Raises:
      ValueError: a label that is no class, such as the -1 of pictures that have none.
    """
    try:
      if self.several:
        return sources.multi_hot(labels, self.num_classes)
      return sources.classes(labels, self.num_classes)
    except ValueError as error:
      where = f'config.data.label_key={self.label_key}: {self.title}'
      raise ValueError(
        f'{where}: {error}; choose another key, another split (config.data.test_split=validation '
        'where the labels of test are not published), or a slice of it'
      ) from None

  def name(self, index: int) -> str:
    if self.name_key:
      return self.examples[int(self.indices[index])][self.name_key].decode()
    return f'example {self.indices[index]} of {self.title}'

  def take(self, indices: np.ndarray) -> 'Prepared':
    return dataclasses.replace(self, indices=self.indices[indices])


def load(
  *,
  dataset: str | None,
  data_dir: str | None,
  train_split: str,
  test_split: str,
  image_key: str,
  label_key: str,
  validation_fraction: float,
  split_seed: int,
) -> tuple[sources.Splits, tuple[str, ...]]:
  """The set `dataset`, such as 'cifar10' or 'imagenet2012:5.1.0', in `data_dir`.

  Where `label_key` is a sequence of class labels a picture has several: labels are `B K`.

  Raises:
    ValueError: unknown set, split or key; or not prepared as array_record: shows the command.
  """
  builder = open_builder(dataset, data_dir)
  names = class_names(builder, dataset, image_key, label_key)
  several = is_sequence(builder.info.features[label_key])

  def source(split: str, key: str) -> Prepared:
    examples = open_split(builder, split, f'config.data.{key}', str(dataset), data_dir)
    title = f'{dataset} {split}'
    named = NAME_KEY if NAME_KEY in builder.info.features else None
    made = Prepared(
      examples, np.arange(len(examples)), title, image_key, label_key, len(names), several, named
    )
    made.read(np.arange(1))  # Labels that are not published are -1, of all pictures: say so now.
    return made

  train = source(train_split, 'train_split')
  splits = sources.with_validation(train, validation_fraction, split_seed)
  return splits | {'test': source(test_split, 'test_split')}, names


def open_split(builder: Any, split: str, what: str, dataset: str, data_dir: str | None) -> Any:
  """Random access to a split, or to slices of some: 'train[:800]+validation[:200]'.

  Pictures stay encoded.

  Args:
    what: names the split in a message.

  Raises:
    ValueError: no such split or slice, or not prepared as array_record: shows the command.
  """
  import tensorflow_datasets

  for part in split.split('+'):
    check_choice(what, part.partition('[')[0], builder.info.splits)
  skip: Any = tensorflow_datasets.decode.SkipDecoding
  picture = tensorflow_datasets.features.Image
  features = builder.info.features.items()
  decoders = {key: skip() for key, feature in features if isinstance(feature, picture)}
  try:
    return builder.as_data_source(split, decoders=decoders)
  except NotImplementedError:  # What tfds says of formats without random access, TFRecord say.
    kind = str(builder.info.file_format).rpartition('.')[2].lower()
    raise ValueError(not_prepared(dataset, data_dir, f'is prepared as {kind} there')) from None
  except (ValueError, AssertionError) as error:
    raise ValueError(f'{what}={split} of {dataset}: {error}') from None


def open_builder(dataset: str | None, data_dir: str | None) -> Any:
  """The builder of a prepared set."""
  import tensorflow_datasets
  from tensorflow_datasets.core.registered import DatasetNotFoundError

  if not dataset:
    raise ValueError('config.data.dataset is not set: the name of a TFDS set, such as cifar10')
  check_folder(data_dir)
  where = str(pathlib.Path(data_dir).expanduser()) if data_dir else None
  try:
    builder = tensorflow_datasets.builder(dataset, data_dir=where)
  except DatasetNotFoundError:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    inside = [path.name for path in pathlib.Path(where or '.').iterdir() if path.is_dir()]
    check_choice('TFDS set config.data.dataset', dataset, known + inside * bool(data_dir))
    raise
  except AssertionError as error:  # TFDS's own of a version that it does not know.
    raise ValueError(f'config.data.dataset={dataset}: {error}') from None
  if not builder.info.splits:
    raise ValueError(not_prepared(dataset, data_dir, 'is not prepared there'))
  return builder


def check_folder(data_dir: str | None) -> None:
  """Raises a FileNotFoundError where the folder of TFDS sets is not there."""
  if data_dir and not pathlib.Path(data_dir).expanduser().is_dir():
    raise FileNotFoundError(f'config.data.data_dir={data_dir} is not a folder')


def not_prepared(dataset: str | None, data_dir: str | None, reason: str) -> str:
  """The message for a set that cannot be read, with the command that prepares it."""
  where = data_dir or '~/tensorflow_datasets'
  return (
    f'config.data.dataset={dataset} in {where}: {reason}; reading it needs array_record. Prepare '
    f"it: pip install -e '.[tfds]' && tfds build {dataset} --data_dir={where} "
    '--file_format=array_record'
  )


def class_names(builder, dataset: str | None, image_key: str, label_key: str) -> tuple[str, ...]:
  """The names of the labels, in order."""
  features = builder.info.features
  check_choice(f'config.data.image_key of {dataset}', image_key, features)
  check_choice(f'config.data.label_key of {dataset}', label_key, features)
  feature = features[label_key]
  one = feature.feature if is_sequence(feature) else feature
  # A sequence has the attributes of what it holds: one of sequences would look like one of labels.
  if is_sequence(one) or not hasattr(one, 'names'):
    raise ValueError(
      f'config.data.label_key={label_key}: {dataset} has no class names there, but {feature}'
    )
  return tuple(one.names)


def is_sequence(feature: Any) -> bool:
  """Whether a feature is a list of others, such as the labels of everything in a picture."""
  import tensorflow_datasets

  return isinstance(feature, tensorflow_datasets.features.Sequence)


def known_classes(dataset: str | None, label_key: str) -> int | None:
  """How many classes TFDS says that a set has, prepared or not; None where it does not know it."""
  import tensorflow_datasets
  from tensorflow_datasets.core.registered import DatasetNotFoundError

  try:
    features: Any = tensorflow_datasets.builder(dataset or '').info.features
  except (DatasetNotFoundError, ValueError, AssertionError):
    return None
  return getattr(features[label_key], 'num_classes', None) if label_key in features else None
