"""Which images are looked at: files that are named, or test pictures of a checkpoint's own data.

Of any size: each model sees them as its own passport says.
"""

from collections.abc import Sequence

import numpy as np

from vit_jax import data, experiment
from vit_jax.data import preprocess
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
  if count is not None and count < 1:
    raise ValueError(f'--count={count} must be at least 1')
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


def indices(size: int, count: int, spread: bool) -> list[int]:
  """The first so many of a split, or so many spread evenly over it."""
  if not spread or count >= size:
    return list(range(min(count, size)))
  return np.linspace(0, size - 1, count).round().astype(int).tolist()


def by_name(found: Named) -> Named:
  """The same with different names: of two folders, the same name may come."""
  seen, names = set(), []
  for i, (name, picture) in enumerate(found):
    name = f'{name}_{i}' if name in seen else name
    seen.add(name)
    names.append((name, picture))
  return names
