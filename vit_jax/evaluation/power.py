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


def detectable(square: float, n: int) -> float:
  """The smallest difference of accuracy that so many examples show with a chance of `POWER`.

  1, as large as any can be, where they are too few to show one: 3 or less.

  Args:
    square: as `mean_square` gives it; no less than one discordant example is assumed.
  """
  z, power = quantiles()
  square = max(square, 1 / n)
  # examples(difference, square) = n, solved for the difference.
  a = z * math.sqrt(square * n)
  root = a**2 - (n + power**2) * square * (z**2 - power**2)
  return min(1.0, (a + math.sqrt(root)) / (n + power**2)) if root >= 0 else 1.0


def examples(difference: float, square: float) -> int | None:
  """The number of examples that show such a difference with a chance of `POWER`.

  None where there is no difference to show.
  """
  if not difference:
    return None
  z, power = quantiles()
  square = max(square, difference**2)
  root = z * math.sqrt(square) + power * math.sqrt(square - difference**2)
  return math.ceil((root / difference) ** 2)
