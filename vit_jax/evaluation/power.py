"""What a test set can show: the smallest difference, and how many examples a difference needs.

Two classifiers answer the same examples; an example's difference is 1 where only the first is
right, -1 where only the second, with several seeds their mean. The formula is Miettinen's (1968)
and Connor's (Biometrics 43, 1987) for McNemar's test, with the mean square of the differences in
place of the share of discordant pairs, which it is with one seed.
"""

import math

from jaxtyping import Bool
import numpy as np

POWER = 0.8  # the chance that a true difference of this size is found
LEVEL = 0.05


def quantiles() -> tuple[float, float]:
  """Normal quantiles of the two-sided level and of the power."""
  from scipy.stats import norm

  return float(norm.ppf(1 - LEVEL / 2)), float(norm.ppf(POWER))


def mean_square(a: Bool[np.ndarray, 'S n'], b: Bool[np.ndarray, 'S n']) -> float:
  """The mean square of the examples' differences; with one seed the share of discordant pairs."""
  return float(np.square(a.mean(0) - b.mean(0)).mean())


def detectable(square: float, n: int, seeds: int = 1) -> float:
  """The smallest difference of accuracy that so many examples show with a chance of `POWER`.

  1, as large as any can be, where they are too few to show one: 3 or less.

  Args:
    square: as `mean_square` gives it; no less than one discordant example is assumed.
    seeds: of each classifier. An example's difference is a multiple of 1 / seeds, so that a mean
      difference has a mean square of at least itself / seeds, whatever was seen of a smaller one.
  """
  low, high, quantile = 0.0, 1.0, quantiles()
  while high - low > 1e-9:
    middle = (low + high) / 2
    if wanted(middle, max(square, 1 / n, middle / seeds), *quantile) <= n:
      high = middle
    else:
      low = middle
  return 1.0 if high > 1 - 1e-6 else high


def examples(difference: float, square: float) -> int | None:
  """The number of examples that show such a difference with a chance of `POWER`.

  None where there is no difference to show.
  """
  if not difference:
    return None
  return math.ceil(wanted(difference, square, *quantiles()))


def wanted(difference: float, square: float, z: float, power: float) -> float:
  """Connor's number of examples, not rounded."""
  square = max(square, difference**2)
  root = z * math.sqrt(square) + power * math.sqrt(square - difference**2)
  return (root / difference) ** 2
