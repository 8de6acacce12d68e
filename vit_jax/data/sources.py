"""Where pictures come from: random access by index, labels known beforehand, splits by a seed."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
  """Labelled pictures: `images[i]` is uint8, (height, width, channels), with label `labels[i]`."""

  images: Sequence[np.ndarray] | np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, indices: np.ndarray) -> 'Source':
    return Source([self.images[i] for i in indices], self.labels[indices])


Splits = dict[str, Source]


def digits(
  *, test_fraction: float, validation_fraction: float, split_seed: int
) -> tuple[Splits, tuple[str, ...]]:
  """1,797 real handwritten digits, 8 x 8 (UCI optical recognition, as scikit-learn ships them)."""
  from sklearn.datasets import load_digits

  pixels, labels = load_digits(return_X_y=True)
  images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16 -> 0..255
  whole = Source(images, labels.astype(np.int32))
  rest, test = split(whole, test_fraction, split_seed, 'test_fraction')
  splits = {'train': rest, 'test': test}
  return with_validation(splits, validation_fraction, split_seed), tuple('0123456789')


def with_validation(splits: Splits, fraction: float, seed: int) -> Splits:
  """Moves a seeded share of each class from 'train' into 'validation'; 0: none."""
  if not fraction:
    return splits
  train, validation = split(splits['train'], fraction, seed, 'validation_fraction')
  return {'train': train, 'validation': validation, 'test': splits['test']}


def split(source: Source, fraction: float, seed: int, key: str) -> tuple[Source, Source]:
  """Two parts with the same share of every class, the second of `fraction` (rounded up).

  Raises:
    ValueError: `fraction` is not between 0 and 1, or leaves a part without some class.
  """
  from sklearn.model_selection import train_test_split

  if not 0 < fraction < 1:
    raise ValueError(f'config.data.{key}={fraction} must lie between 0 and 1')
  try:
    parts = train_test_split(
      np.arange(len(source)), test_size=fraction, stratify=source.labels, random_state=seed
    )
  except ValueError as error:
    raise ValueError(
      f'config.data.{key}={fraction} cannot split {len(source)} images: {error}'
    ) from None
  first, second = (source.take(np.sort(part)) for part in parts)
  return first, second
