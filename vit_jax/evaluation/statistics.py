"""How sure a comparison of classifiers on the same examples is.

Shapes: `S` seeds, `R` classifiers, `n` examples.
"""

import math
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

RESAMPLES = 2000


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


def interval(draws: np.ndarray) -> tuple[float, float]:
  """The middle 95 % of bootstrap draws."""
  low, high = np.percentile(draws, [2.5, 97.5])
  return float(low), float(high)


def discordant(a: Bool[np.ndarray, 'S n'], b: Bool[np.ndarray, 'S n']) -> tuple[float, float]:
  """Examples that only `a` has right, and that only `b` has right: means over the seeds."""
  return float((a & ~b).sum(-1).mean()), float((b & ~a).sum(-1).mean())


def mcnemar(only_a: float, only_b: float) -> float:
  """Two-sided exact p (McNemar 1947, binomial), from counts that are rounded to whole examples."""
  from scipy.stats import binomtest

  a, b = round(only_a), round(only_b)
  return float(binomtest(a, a + b).pvalue) if a + b else 1.0


def holm(p: np.ndarray) -> np.ndarray:
  """p values for as many comparisons as there are (Holm 1979)."""
  order = np.argsort(p)
  raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  adjusted = np.empty(len(p))
  adjusted[order] = np.minimum(raised, 1)
  return adjusted


def detectable(only_a: float, only_b: float, n: int) -> float:
  """The smallest difference of accuracy that `n` examples can show at the 5 % level.

  With so many discordant examples d, McNemar's test needs a difference of 1.96 sqrt(d).
  """
  return 1.96 * math.sqrt(max(only_a + only_b, 1)) / n


def spread(values: Float[np.ndarray, 'S']) -> tuple[float, float]:
  """The 95 % t interval of the mean of a few seeds; endless with fewer than two."""
  from scipy.stats import t

  if len(values) < 2:
    return -math.inf, math.inf
  half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
  return float(values.mean()) - half, float(values.mean()) + half


def rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
  """Spearman's correlation and its two-sided p; None where one side is constant."""
  from scipy.stats import spearmanr

  if np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9:
    return None
  found: Any = spearmanr(a, b)
  return float(found.statistic), float(found.pvalue)
