"""Where pictures come from: random access by index; splits by a seed; the built-in digits."""

from collections.abc import Collection, Sequence
import dataclasses
import functools
import importlib.util
import pathlib
from typing import Protocol, SupportsIndex, runtime_checkable

from jaxtyping import Float32, Int32
import numpy as np

from vit_jax.data import stratified
from vit_jax.data.pictures import Picture


@runtime_checkable
class Source(Protocol):
  """Labelled pictures in an order of their own."""

  def __len__(self) -> int: ...

  def read(self, indices: np.ndarray) -> tuple[Sequence[Picture], np.ndarray]:
    """The pictures, still encoded, and labels at some indices; from any thread.

    Labels are `B` int32, a class each; or `B K` float32, 1 for each class in a picture and else 0.
    The same for every index, and for none: no indices give an array of 0 rows.
    """
    ...

  def name(self, index: int) -> str:
    """The name of a picture in a message."""
    ...

  def take(self, indices: np.ndarray) -> 'Source':
    """The part of this source at some indices."""
    ...


Splits = dict[str, Source]


@dataclasses.dataclass(frozen=True)
class Listed:
  """Pictures in a list or array (pixels or file names), with labels known beforehand.

  Attributes:
    labels: `N`, a class each; or `N K`, 1 for each class in a picture and else 0.
    numbers: by which pixels are named; None: their places. A part keeps those of the whole.

  Raises:
    ValueError: labels of another shape or number, or other numbers in `N K`.
  """

  images: Sequence[Picture] | np.ndarray
  labels: np.ndarray
  numbers: np.ndarray | None = None

  def __post_init__(self):
    shape = self.labels.shape
    if len(shape) not in (1, 2) or shape[0] != len(self.images):
      raise ValueError(
        f'labels of shape {shape} for {len(self.images)} pictures; give a class each, `N`, or '
        '`N K`: 1 for each class in a picture and else 0'
      )
    if len(shape) == 2 and not ((self.labels == 0) | (self.labels == 1)).all():
      raise ValueError('labels `N K` must be 1 for each class in a picture and else 0')

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, indices: np.ndarray) -> tuple[Sequence[Picture], np.ndarray]:
    return [self.images[i] for i in indices], self.labels[indices]

  def name(self, index: int) -> str:
    image = self.images[index]
    number = index if self.numbers is None else self.numbers[index]
    return image if isinstance(image, str) else f'picture {number}'

  def take(self, indices: np.ndarray) -> 'Listed':
    numbers = np.asarray(indices) if self.numbers is None else self.numbers[indices]
    return Listed([self.images[i] for i in indices], self.labels[indices], numbers)


def multi_hot(
  labels: Sequence[Collection[SupportsIndex]], num_classes: int
) -> Float32[np.ndarray, 'B K']:
  """Lists of classes, one list a picture, as rows: 1 for each class that is listed and else 0.

  Raises:
    ValueError: a class that is not in 0..num_classes - 1.
  """
  rows = np.zeros((len(labels), num_classes), np.float32)
  for row, given in zip(rows, labels, strict=True):
    listed = [int(label) for label in given]
    if any(not 0 <= label < num_classes for label in listed):
      raise ValueError(f'the labels {listed} are not all in 0..{num_classes - 1}')
    row[listed] = 1
  return rows


def classes(labels: Sequence[SupportsIndex], num_classes: int) -> Int32[np.ndarray, 'B']:
  """Labels, one a picture, as int32.

  Raises:
    ValueError: a class that is not in 0..num_classes - 1.
  """
  found = np.array([int(label) for label in labels], np.int32)
  outside = found[(found < 0) | (found >= num_classes)]
  if len(outside):
    raise ValueError(f'the label {outside[0]} is not in 0..{num_classes - 1}')
  return found


def digits(
  *, test_fraction: float, validation_fraction: float, split_seed: int
) -> tuple[Splits, tuple[str, ...]]:
  """Loads 1,797 real handwritten digits, 8 x 8 (UCI, as scikit-learn ships them)."""
  rest, test = split(all_digits(), test_fraction, split_seed, 'test_fraction')
  splits = with_validation(rest, validation_fraction, split_seed)
  return splits | {'test': test}, tuple('0123456789')


@functools.cache
def all_digits() -> Listed:
  """The digits before they are split, from scikit-learn's file: importing it takes a second."""
  spec = importlib.util.find_spec('sklearn')
  folders = (spec and spec.submodule_search_locations) or ()
  path = next((pathlib.Path(folder) / 'datasets/data/digits.csv.gz' for folder in folders), None)
  if path and path.exists():
    table = np.loadtxt(path, delimiter=',')
    pixels, classes = table[:, :-1], table[:, -1]
  else:  # Of a version that keeps it elsewhere.
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
  labels = classes.astype(np.int32)
  images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16 -> 0..255
  images.flags.writeable = labels.flags.writeable = False  # Every data set has the same arrays.
  return Listed(images, labels)


def with_validation(train: Source, fraction: float, seed: int) -> Splits:
  """The splits 'train', and 'validation' with a seeded share of it; 0: none."""
  if not fraction:
    return {'train': train}
  train, validation = split(train, fraction, seed, 'validation_fraction')
  return {'train': train, 'validation': validation}


def subset(source: Source, size: int, seed: int) -> Source:
  """A seeded part of a training source, in its order; that of a smaller size lies inside it.

  Where labels are known beforehand, one a picture, each class keeps its share, rounded as by
  Sainte-Lague.

  Raises:
    ValueError: `size` is below 1 or above the source's.
  """
  if not 1 <= size <= len(source):
    raise ValueError(
      f'config.data.train_examples={size} must be between 1 and {len(source)}, the number of '
      'training examples (after validation_fraction); None takes all'
    )
  order = np.random.default_rng(seed).permutation(len(source))
  classes = classes_of(source)
  labels = np.zeros(len(source), int) if classes is None else classes[order]
  counts = np.bincount(labels)
  by_class = np.argsort(labels, kind='stable')
  rank = np.empty(len(source), int)  # The place of each example among those of its class.
  rank[by_class] = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
  first = np.argsort((rank + 0.5) / counts[labels], kind='stable')[:size]
  return source.take(np.sort(order[first]))


def classes_of(source: Source) -> np.ndarray | None:
  """The class of each example, `N`; None where it is not known beforehand, or not the only one."""
  return source.labels if isinstance(source, Listed) and source.labels.ndim == 1 else None


def split(source: Source, fraction: float, seed: int, key: str) -> tuple[Source, Source]:
  """Splits a source in two, the second of `fraction` (rounded up).

  Where labels are known beforehand, one a picture, both have the same share of every class.

  Raises:
    ValueError: `fraction` is not between 0 and 1, leaves a part empty or smaller than the number of
      classes, or a class has one example alone.
  """
  if not 0 < fraction < 1:
    raise ValueError(f'config.data.{key}={fraction} must lie between 0 and 1')
  try:
    parts = stratified.split(len(source), fraction, seed, classes_of(source))
  except ValueError as error:
    raise ValueError(
      f'config.data.{key}={fraction} cannot split {len(source)} images: {error}'
    ) from None
  first, second = (source.take(np.sort(part)) for part in parts)
  return first, second
