"""Data sets by name: splits, class names, and batches that are a pure function of (seed, step).

A new one is a loader and one line here.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any

from absl import logging
import numpy as np

from vit_jax.data import exclude, folder, pipeline, sources, tfds, vtab
from vit_jax.data.augment import Augment
from vit_jax.data.preprocess import Preprocess
from vit_jax.data.processes import Make, Pool, Threads
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import fields_of, take

DATASETS: dict[str, Callable[..., tuple[sources.Splits, tuple[str, ...]]]] = {
  'digits': sources.digits,
  'folder': folder.load,
  'tfds': tfds.load,
  'vtab': vtab.load,
}
# What a section leaves to the data themselves.
DECIDE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {'vtab': vtab.decide}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The splits of a data set and how its pictures become the model's input.

  Attributes:
    whole_epochs: whether an epoch ends with a smaller batch instead of in the middle of one.
    threads: that decode; None: one a core.
    processes: that make training pictures, each with one thread; None or 0: the threads do.
    repeats: how often a training picture is shown in an epoch, each time with its own changes.
  """

  splits: sources.Splits
  class_names: tuple[str, ...]
  preprocess: Preprocess
  augment: Augment
  whole_epochs: bool = False
  threads: int | None = None
  processes: int | None = None
  repeats: int = 1

  def __post_init__(self):
    self.augment.check(self.preprocess)
    if self.repeats < 1:
      raise ValueError(f'config.data.repeats={self.repeats} must be at least 1 (1: no copies)')
    if self.threads is not None and self.threads < 1:
      raise ValueError(f'config.data.threads={self.threads} must be at least 1')
    if (self.processes or 0) < 0:
      raise ValueError(f'config.data.processes={self.processes} must not be negative')
    check_labels(self.splits, len(self.class_names))

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the model's input."""
    return (*self.preprocess.image_size, self.preprocess.channels)

  @property
  def multi_label(self) -> bool:
    """Whether a picture may have several labels, or none: 'label' is then float32 `B K`."""
    return bool(label_shape(self.splits['train']))

  def batch_at(
    self,
    step: int,
    *,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    make: Make | None = None,
  ) -> dict[str, np.ndarray]:
    """The training batch of a step counted from 1: 'image' uint8 `B H W C`, 'label' int32 `B`, or
    float32 `B K` (`multi_label`), 'mask' bool `B`: which rows are real.

    Args:
      rows: of it that are read, as `sharding.rows_here` says; None: this process's equal share.
      make: what makes the pictures, of `workers`; None: threads here.
    """
    return pipeline.training_batch(
      self.splits['train'],
      step,
      batch_size=batch_size,
      seed=seed,
      whole_epochs=self.whole_epochs,
      make=make or self.changed,
      repeats=self.repeats,
      rows=rows,
    )

  def changed(
    self, indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Training pictures and labels at some indices, each changed by (seed, step, its row)."""

    # One generator for each: a picture's crop is the same on any number of hosts.
    def make(picture, i: int):
      return self.augment(picture, np.random.default_rng((*key, rows[i])), self.preprocess)

    return pipeline.load(self.splits['train'], indices, self.image_shape, self.threads, make)

  @contextlib.contextmanager
  def workers(self, asked: bool = True) -> Iterator[Pool | Threads]:
    """What makes training pictures: processes, which end with the context, or threads here.

    Args:
      asked: whether a person wants processes; else threads stand in where none can be had.

    Raises:
      ValueError: what makes the pictures cannot be handed to processes.
    """
    train = {'train': self.splits['train']}
    alone = dataclasses.replace(self, splits=train, threads=1)
    found: Pool | Threads = Threads(self.changed)
    if self.processes:
      try:
        found = Pool(alone.changed, self.processes, math.prod(self.image_shape))
      except ValueError as error:
        if asked:
          raise
        logging.warning('threads make training pictures: %s', error)
    try:
      yield found
    finally:
      found.end()

  def epoch(
    self, split: str, batch_size: int, *, first: int = 0, view: tuple[int, int] | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split in order; the last batch is padded, 'mask' says which rows are real.

    Args:
      first: the batch to begin with, from 0.
      view: (seed, number): pictures changed as in training, by these and the example's index.
    """
    source = self.splits[split]

    def make(picture, index: int):
      if view is None:
        return self.preprocess(picture)
      return self.augment(picture, np.random.default_rng((*view, index)), self.preprocess)

    batch = functools.partial(
      pipeline.evaluation_batch,
      source,
      batch_size=batch_size,
      shape=self.image_shape,
      threads=self.threads,
      make=make,
    )
    return pipeline.prefetch(batch, range(first, -(-len(source) // batch_size)))

  def picture(self, split: str, index: int) -> np.ndarray:
    """One picture as evaluation sees it."""
    found, _ = self.splits[split].read(np.array([index]))
    return self.preprocess(found[0])


def build(name: str, **section) -> Dataset:
  """The data set `name` from its config section: each part takes the keys that it has fields for.

  What is left of the section goes to the loader, but for two keys of training examples: of whatever
  it loads, `exclude` leaves some out, and `train_examples` says how many of the rest are used.

  Raises:
    ValueError: a value that is impossible; FileNotFoundError: no such data.
  """
  check_choice('config.data.name', name, DATASETS)
  if not 0 <= section.get('split_seed', 0) < 2**32:
    raise ValueError(f'config.data.split_seed={section["split_seed"]} must be in 0..2**32 - 1')
  section = decide(name, section)
  preprocess, augment = take(Preprocess, section), take(Augment, section)
  whole = Dataset({}, (), preprocess, augment, **given(section))  # Checked before it is loaded.
  own = fields_of(Preprocess) | fields_of(Augment) | fields_of(Dataset)
  own |= {'train_examples', 'exclude'}
  loading = {key: value for key, value in section.items() if key not in own}
  splits, class_names = DATASETS[name](**loading)
  splits = exclude.apply(splits, section.get('exclude'))
  if (train_examples := section.get('train_examples')) is not None:
    part = sources.subset(splits['train'], train_examples, section['split_seed'])
    splits = splits | {'train': part}
  return dataclasses.replace(whole, splits=splits, class_names=class_names)


def decide(name: str, section: dict[str, Any]) -> dict[str, Any]:
  """A section in which what is None, and may be, is as the data say."""
  return DECIDE[name](section) if name in DECIDE else section


def label_shape(source: sources.Source) -> tuple[int, ...]:
  """The shape of one picture's labels: (), or (number of classes,) where it may have several."""
  return source.read(np.arange(0))[1].shape[1:]


def check_labels(splits: sources.Splits, num_classes: int) -> None:
  """Raises a ValueError where splits have several labels a picture and others one, or too many."""
  for name, shape in ((name, label_shape(source)) for name, source in splits.items()):
    if shape and shape != (num_classes,):
      raise ValueError(f'{name}: labels of {shape[0]} classes, but {num_classes} class names')
    if bool(shape) != bool(label_shape(splits['train'])):
      raise ValueError(f'{name} and train: one has several labels a picture and the other one')


def given(section: dict[str, Any]) -> dict[str, Any]:
  """The keys of a config section that say how batches are made."""
  keys = ('whole_epochs', 'threads', 'processes', 'repeats')
  return {key: section[key] for key in keys if key in section}


def describe(name: str, num_classes: int, multi_label: bool = False, **section) -> Dataset:
  """The data set of a config section without its pictures, which need not be here.

  Args:
    multi_label: whether a picture may have several labels.

  Raises:
    ValueError: a value that is impossible.
  """
  check_choice('config.data.name', name, DATASETS)
  if num_classes < 2:
    raise ValueError(f'--num_classes={num_classes} must be at least 2')
  section = decide(name, section)
  preprocess, augment = take(Preprocess, section), take(Augment, section)
  names = ('train', 'validation', 'test') if section['validation_fraction'] else ('train', 'test')
  nothing = sources.Listed([], np.zeros((0, num_classes) if multi_label else 0, np.int32))
  classes = tuple(unnamed(num_classes))
  splits: sources.Splits = dict.fromkeys(names, nothing)
  return Dataset(splits, classes, preprocess, augment, **given(section))


def unnamed(count: int) -> list[str]:
  """Names of classes that nobody has named."""
  return [f'class {i}' for i in range(count)]


def are_named(classes: Sequence[str]) -> bool:
  """Whether classes have names of their own: files of others often hold none."""
  return list(classes) != unnamed(len(classes))


def known_classes(name: str, **section) -> int | None:
  """How many classes a public data set has that is not here; None where nobody knows."""
  if name == 'vtab':
    return vtab.task_of(section['task']).num_classes
  return tfds.known_classes(section['dataset'], section['label_key']) if name == 'tfds' else None
