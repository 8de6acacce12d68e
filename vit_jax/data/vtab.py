"""VTAB-1k (arXiv:1910.04867): a task of `vtab_tasks.py` as train, validation and test splits.

The sets are read as they were prepared: TFDS shuffles by a hash of the example, so that another
version of a set may have other examples at the same places.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from absl import logging
import numpy as np

from vit_jax.data import pictures, tfds
from vit_jax.data.sources import Splits
from vit_jax.data.vtab_tasks import TASKS, Example, Task
from vit_jax.runtime.choices import check_choice

EXAMPLES = ('800', '1000')
CROP_FROM = 448 / 384  # The window of a random crop, over what it is cut from.


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A prepared split with the labels of a task; pictures are decoded when they are asked for."""

  examples: Any  # random access: a TFDS data source
  indices: np.ndarray
  title: str
  task: Task

  def __len__(self) -> int:
    return len(self.indices)

  def read(self, indices: np.ndarray) -> tuple[Sequence[pictures.Picture], np.ndarray]:
    rows = self.examples.__getitems__(self.indices[indices].tolist())
    found = [self.picture(row['image']) for row in rows]
    labels = [self.label(row, int(i)) for row, i in zip(rows, indices, strict=True)]
    return found, np.array(labels, np.int32)

  def picture(self, data: bytes) -> pictures.Picture:
    """A picture as it is stored, or where its values are scaled its pixels `H W C`."""
    if self.task.scale == 1:
      return data
    pixels = np.asarray(pictures.decode(data), np.uint8) * np.uint8(self.task.scale)
    return pixels if pixels.ndim == 3 else pixels[..., None]

  def label(self, example: Example, index: int) -> int:
    """The class of the example at a place.

    Raises:
      ValueError: the task has no such class.
    """
    rule, count = self.task.label, self.task.num_classes
    label = int(example[rule] if isinstance(rule, str) else rule(example))
    if not 0 <= label < count:
      raise ValueError(
        f'{self.name(index)}: class {label} is not one of the {count} of the task; was the set '
        f'prepared as version {self.task.version}?'
      )
    return label

  def name(self, index: int) -> str:
    return f'example {self.indices[index]} of {self.title}'

  def take(self, indices: np.ndarray) -> 'Labelled':
    return dataclasses.replace(self, indices=self.indices[indices])


def task_of(name: str | None) -> Task:
  """A row of TASKS.

  Raises:
    ValueError: there is none of that name; lists them.
  """
  if name is None:
    raise ValueError(f'config.data.task is not set: one of {", ".join(TASKS)}')
  check_choice('config.data.task', name, TASKS)
  return TASKS[name]


def decide(section: dict[str, Any]) -> dict[str, Any]:
  """A section whose crop and flip are those of its task where it does not say.

  Raises:
    ValueError: no such task.
  """
  row = task_of(section['task'])
  crop = section['crop'] or ('squashed' if row.crop else 'none')
  size = tuple(round(side * CROP_FROM) for side in section['image_size'])
  flip = row.flip if section['flip'] is None else section['flip']
  return section | {'crop': crop, 'flip': flip, 'crop_from': tuple(section['crop_from']) or size}


def load(
  *,
  task: str | None,
  data_dir: str | None,
  examples: str,
  validation_fraction: float,
  split_seed: int,
) -> tuple[Splits, tuple[str, ...]]:
  """A task of VTAB-1k: train, test and, with `examples='800'`, validation.

  Raises:
    ValueError: no such task, another number of examples, or a set that is not prepared: shows the
      command that prepares it.
  """
  del split_seed  # The slices are fixed.
  row = task_of(task)
  check_choice('config.data.examples', examples, EXAMPLES)
  if validation_fraction:
    raise ValueError(
      f'config.data.validation_fraction={validation_fraction}: VTAB has a validation split of its '
      'own; set config.data.examples=800 instead'
    )
  builder = open_set(row, data_dir)
  whole = examples == '1000'
  splits = {'train': f'{row.train}+{row.validation}' if whole else row.train}
  splits |= {} if whole else {'validation': row.validation}
  opened: Splits = {}
  for name, split in (splits | {'test': row.test}).items():
    found = tfds.open_split(builder, split, f'{name} of task {task}', row.dataset, data_dir)
    opened[name] = Labelled(found, np.arange(len(found)), f'{row.dataset} {split}', row)
  return opened, class_names(row, builder)


def open_set(row: Task, data_dir: str | None) -> Any:
  """The builder of a task's prepared set, of the version that the slices are of where it is there.

  Raises:
    ValueError: it is not prepared; FileNotFoundError: no such folder.
  """
  version = find_version(row, data_dir)
  if version is None:
    tfds.check_folder(data_dir)
    by_hand = f'; first put {row.manual} into its downloads/manual' if row.manual else ''
    reason = f'is not prepared there{by_hand}'
    raise ValueError(tfds.not_prepared(row.dataset, data_dir, reason))
  if int(version.partition('.')[0]) != row.version:
    logging.warning(
      '%s is prepared as version %s, and the slices of VTAB are of version %d: they may hold other '
      'examples', row.dataset, version, row.version,
    )  # fmt: skip
  return tfds.open_builder(f'{row.dataset}:{version}', data_dir)


def find_version(row: Task, data_dir: str | None) -> str | None:
  """The version to read: the newest of the row's, else the newest; None where there is none."""
  folder = pathlib.Path(data_dir or '~/tensorflow_datasets').expanduser() / row.dataset
  there = [path.parent.name.split('.') for path in folder.glob('*.*.*/dataset_info.json')]
  numbers = [tuple(map(int, parts)) for parts in there if all(map(str.isdigit, parts))]
  newest = max(numbers, key=lambda parts: (parts[0] == row.version, parts), default=None)
  return None if newest is None else '.'.join(map(str, newest))


def class_names(row: Task, builder: Any) -> tuple[str, ...]:
  """The names of a task's classes.

  Raises:
    ValueError: the set that is prepared has another number of them.
  """
  if not isinstance(row.label, str):
    return row.names
  names = tfds.class_names(builder, row.dataset, 'image', row.label)
  if len(names) != row.num_classes:
    raise ValueError(
      f'{row.dataset} has {len(names)} classes there, VTAB {row.num_classes}: prepare version '
      f'{row.version} of it'
    )
  return names
