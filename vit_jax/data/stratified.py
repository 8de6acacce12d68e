"""Two parts of a set of examples, drawn by a seed, with the same share of every class.

Row for row what `train_test_split` of scikit-learn draws, so that a split stays what it was, and
what scikit-learn's users know; importing that takes a second, a fifth of the start of a small run.
"""

import math

from jaxtyping import Int
import numpy as np

Rows = Int[np.ndarray, ' _']  # Each part has its own number.


def split(
  count: int, fraction: float, seed: int, labels: np.ndarray | None = None
) -> tuple[Rows, Rows]:
  """Rows of the first part and of the second, of `fraction` (rounded up), both shuffled.

  Shares are rounded, so that a rare class may lack in one of them.

  Args:
    labels: a class each; None: examples are drawn whatever their class.

  Raises:
    ValueError: a part would be empty or smaller than the number of classes, or a class has one
      example alone.
  """
  if not 0 < fraction < 1:
    raise ValueError('the share must lie between 0 and 1')
  held = math.ceil(fraction * count)
  if held >= count:
    raise ValueError(f'{held} in the second part leave none for the first')
  random = np.random.RandomState(seed)
  if labels is None:
    order = random.permutation(count)
    return order[held:], order[:held]
  return _by_class(np.unique(labels, return_inverse=True)[1], count - held, held, random)


def _by_class(
  classes: np.ndarray, first: int, second: int, random: np.random.RandomState
) -> tuple[Rows, Rows]:
  """As `split`, given how many rows each part has."""
  counts = np.bincount(classes)
  if counts.min() < 2:
    raise ValueError('a class has one example alone, which cannot be in both parts')
  if min(first, second) < len(counts):
    raise ValueError(f'parts of {first} and {second} cannot both have all {len(counts)} classes')
  of_first = _shares(counts, first, random)
  of_second = _shares(counts - of_first, second, random)
  parts: tuple[list, list] = ([], [])
  for rows, end, more in zip(
    np.split(np.argsort(classes, kind='stable'), np.cumsum(counts)[:-1]), of_first, of_second,
    strict=True,
  ):  # fmt: skip
    rows = rows[random.permutation(len(rows))]
    parts[0].extend(rows[:end])
    parts[1].extend(rows[end : end + more])
  return random.permutation(parts[0]), random.permutation(parts[1])


def _shares(counts: np.ndarray, wanted: int, random: np.random.RandomState) -> np.ndarray:
  """How many of `wanted` examples each class gives: rounded down, the largest rests then one more.

  Of equal rests the seed chooses.
  """
  exact = counts / counts.sum() * wanted
  shares = np.floor(exact)
  rests, missing = exact - shares, int(wanted - shares.sum())
  for rest in np.unique(rests)[::-1]:
    if missing == 0:
      break
    (equal,) = np.where(rests == rest)
    chosen = random.choice(equal, min(len(equal), missing), replace=False)
    shares[chosen] += 1
    missing -= len(chosen)
  return shares.astype(int)
