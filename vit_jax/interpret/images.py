"""Which images are looked at: files that are named, or test pictures of a checkpoint's own data.

Of any size: each model sees them as its own passport says.
"""

from collections.abc import Sequence
import dataclasses
import itertools

from jaxtyping import Int, UInt8
import numpy as np

from vit_jax import data, experiment
from vit_jax.data import known, preprocess
from vit_jax.data.pictures import Picture
from vit_jax.predict import Predictor

Named = list[tuple[str, Picture]]


def named(
  predictor: Predictor, checkpoint: str, paths: Sequence[str], count: int | None, normal: int
) -> Named:
  """(name, image of any size): the files given, else test pictures.

  Args:
    checkpoint: what a person called the weights.
    paths: files, or folders of them.
    count: the first so many; None: all files, or `normal` test pictures. A single picture is
      the first of the test split; many are spread over it, as some are sorted by class.

  Raises:
    ValueError, OSError: there are none, or they cannot be read.
  """
  check_count(count)
  if paths:
    return by_name([(path.stem, path) for path in preprocess.find_images([*paths])[:count]])
  if not predictor.passport.origin.get('data'):
    raise ValueError(
      f'{checkpoint} does not say what it was trained on: give IMAGES (to compare: --images=PATH)'
    )
  source = data.build(**experiment.data_of(predictor.passport, checkpoint)).splits['test']
  found = []
  for index in indices(len(source), count or normal, spread=normal > 1):
    pictures, _ = source.read(np.array([index]))
    found.append((f'test_{index}', pictures[0]))
  return found


def check_count(count: int | None) -> None:
  """Raises a ValueError for fewer images than one; None: the number was not given."""
  if count is not None and count < 1:
    raise ValueError(f'--count={count} must be at least 1')


def own_data(predictor: Predictor, what: str, head: bool = True) -> data.Dataset:
  """The data that weights were trained on, each picture with one label.

  Args:
    what: the picture that is drawn, for the error.
    head: whether the weights' own classes are asked for, not their tokens alone.

  Raises:
    ValueError: the weights do not say which data are theirs, have no head, tell other classes than
      the data, or several labels.
  """
  passport, headless = predictor.passport, not predictor.model.num_classes
  if not passport.origin.get('data') or (head and headless):
    lacking = 'classes' if head and headless else 'data they were trained on'
    raise ValueError(f'{what} needs test data, and these weights know of no {lacking}: give a '
                     'run of vit_jax')  # fmt: skip
  dataset = data.build(**experiment.data_of(passport, None))
  dataset = dataclasses.replace(dataset, preprocess=passport.preprocess)
  if not headless:
    known.check_classes('the checkpoint', passport, dataset)
  if dataset.multi_label:
    raise ValueError(f'{what} needs one label a picture, and these data have several')
  return dataset


def labelled(
  predictor: Predictor, count: int, what: str
) -> tuple[UInt8[np.ndarray, 'N H W C'], Int[np.ndarray, 'N']]:
  """So many test pictures of the weights' own data, spread over the split, and their labels.

  Raises:
    ValueError: as `own_data`.
  """
  dataset = own_data(predictor, what)
  source = dataset.splits['test']
  pictures, labels = source.read(np.array(indices(len(source), count, spread=True)))
  return np.stack([predictor.preprocess(picture) for picture in pictures]), np.asarray(labels)


def indices(size: int, count: int, spread: bool) -> list[int]:
  """The first so many of a split, or so many spread evenly over it."""
  if not spread or count >= size:
    return list(range(min(count, size)))
  return np.linspace(0, size - 1, count).round().astype(int).tolist()


def by_name(found: Named) -> Named:
  """The same with different names: of two folders, the same name may come.

  The first of a name keeps it; a later one is counted up to a name that nothing else has.
  """
  taken, seen, names = {name for name, _ in found}, set(), []
  for i, (name, picture) in enumerate(found):
    if name in seen:
      name = next(new for j in itertools.count(i) if (new := f'{name}_{j}') not in taken)
      taken.add(name)
    seen.add(name)
    names.append((name, picture))
  return names
