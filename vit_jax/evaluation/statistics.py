"""How sure a comparison of classifiers on the same examples is.

Shapes: `S` seeds, `R` classifiers, `n` examples.
"""

import math
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

NEGLIGIBLE = 1e-100  # a chance that is taken for none
SAME = 1e-9  # values that differ by less are the same
RESAMPLES = 10_000  # so many that the tails of corrected intervals hold some dozens of draws


def bootstrap(
  correct: Bool[np.ndarray, 'S R n'], seed: int = 0, resamples: int = RESAMPLES
) -> Float[np.ndarray, 'b R']:
  """Mean accuracies of resampled examples and seeds, the same draws for every classifier.

  So the difference of two columns is a paired bootstrap of the difference.
  """
  rng = np.random.default_rng(seed)
  seeds, classifiers, n = correct.shape
  flat = correct.reshape(seeds * classifiers, n).astype(np.float32)
  means = np.empty((resamples, classifiers), np.float32)
  for start in range(0, resamples, 100):
    some = slice(start, min(start + 100, resamples))
    size = some.stop - some.start
    counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)])
    shares = (counts.astype(np.float32) @ flat.T / n).reshape(size, seeds, classifiers)
    drawn = rng.integers(0, seeds, (size, seeds))
    means[some] = np.take_along_axis(shares, drawn[:, :, None], axis=1).mean(1)
  return means


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """The middle of bootstrap draws, such a share of them."""
  tail = 50 * (1 - level)
  low, high = np.percentile(draws, [tail, 100 - tail])
  return float(low), float(high)


def permutation(a: Bool[np.ndarray, 'S n'], b: Bool[np.ndarray, 'S n']) -> float:
  """Two-sided p of a permutation test over examples: which of the two was which is exchanged.

  An example's seeds are exchanged together, as their answers are no new evidence. The distribution
  over all 2**n exchanges is computed, not drawn: with one seed it is McNemar's exact test (1947).
  It holds for these seeds; how others would do, the bootstrap over seeds says.
  """
  from scipy.signal import upfirdn
  from scipy.stats import binom

  differences = a.sum(0, dtype=int) - b.sum(0, dtype=int)
  sizes = np.bincount(np.abs(differences))
  chances, lowest, most = np.ones(1), 0, 0  # Of each sum over the examples that fall to `a`.
  for size, count in enumerate(sizes[1:].tolist(), 1):
    if count:
      steps = binom.pmf(np.arange(count + 1), count, 0.5)
      kept = np.flatnonzero(steps > NEGLIGIBLE)
      chances = upfirdn(chances, steps[kept], size)  # A convolution, in steps of `size`.
      lowest, most = lowest + size * int(kept[0]), most + size * count
  sums = 2 * (lowest + np.arange(len(chances))) - most
  return min(1.0, float(chances[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def holm(p: np.ndarray) -> np.ndarray:
  """p values for as many comparisons as there are (Holm 1979)."""
  order = np.argsort(p)
  raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  adjusted = np.empty(len(p))
  adjusted[order] = np.minimum(raised, 1)
  return adjusted


def of_one_sign(count: int) -> float:
  """The chance that so many differences have one sign where none is to be expected."""
  return 2.0 ** (1 - count)


def spread(values: Float[np.ndarray, 'S'], level: float = 0.95) -> tuple[float, float]:
  """The t interval of the mean of a few seeds; endless with fewer than two.

  Values that are all the same leave nothing to measure chance by: it is endless too where so few
  might all have one sign by chance (with fewer than six at 95 %).
  """
  from scipy.stats import t

  if len(values) < 2 or (np.ptp(values) < SAME and of_one_sign(len(values)) > 1 - level):
    return -math.inf, math.inf
  half = float(
    t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
  )
  return float(values.mean()) - half, float(values.mean()) + half


def kendall(values: Float[np.ndarray, 'R M']) -> Float[np.ndarray, 'M M']:
  """Kendall's tau (b, which allows ties) of each pair of `M` rankings of the same `R` things.

  Not a number beside a column whose values are all the same.
  """
  from scipy.stats import kendalltau

  count = values.shape[1]
  found = np.eye(count)
  for i in range(count):
    for j in range(i):
      pair: Any = kendalltau(values[:, i], values[:, j])
      found[i, j] = found[j, i] = pair.statistic
  return found


def mean_of_pairs(matrix: Float[np.ndarray, 'M M'], level: float = 0.95) -> tuple[float, ...]:
  """The mean over all pairs of `M` things, and its interval over such things.

  The jackknife of a U statistic (Arvesen 1969): each of them left out in turn, pseudo-values, and
  Student's t. Endless with fewer than three, and where a few agree entirely (`spread`).
  """
  count = len(matrix)
  rows, columns = np.triu_indices(count, 1)
  pairs = matrix[rows, columns]
  mean = float(pairs.mean())
  if count < 3:
    return mean, -math.inf, math.inf
  without = [pairs[(rows != i) & (columns != i)].mean() for i in range(count)]
  low, high = spread(count * mean - (count - 1) * np.array(without), level)
  return (mean, max(-1.0, low), min(1.0, high)) if math.isfinite(low) else (mean, low, high)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
  """Spearman's correlation and its two-sided p; None where one side is constant."""
  from scipy.stats import spearmanr

  if np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9:
    return None
  found: Any = spearmanr(a, b)
  return float(found.statistic), float(found.pvalue)
