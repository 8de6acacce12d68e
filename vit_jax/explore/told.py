"""What a sweep can tell and what it cannot: which of its settings differ by more than their seeds.

All pairs are compared at once by Tukey's test (Tukey 1949; Kramer 1956 for unequal numbers of
seeds), which takes the spread over seeds to be the same for all settings.
"""

from collections.abc import Sequence
import functools
import math

import numpy as np

from vit_jax import metrics
from vit_jax.explore import page

LEVEL = 0.05  # the chance that any pair at all is told apart where none differs


def blocks(
  names: Sequence[str], scores: Sequence[np.ndarray], examples: int | None = None
) -> list[page.Block]:
  """A section on which of some settings differ; none with fewer than two, or without seeds.

  Args:
    scores: test accuracies of each setting, one a seed.
    examples: pictures of the test split, where known.
  """
  kept = [i for i, own in enumerate(scores) if len(own) > 1]
  if len(kept) < 2 or not any(np.ptp(scores[i]) for i in kept):
    return []
  names, scores = [names[i] for i in kept], [np.asarray(scores[i], float) for i in kept]
  apart, least = told_apart(scores), smallest(scores)
  pairs = len(names) * (len(names) - 1) // 2
  means = np.array([own.mean() for own in scores])
  text = (
    f'Of {pairs} pairs {int(np.triu(apart).sum())} are told apart (Tukey, all pairs together at '
    f'{LEVEL:.0%}). A difference below {100 * least:.1f} points is not told by so many seeds, '
    'whatever its cause.'
  )
  made: list[page.Block] = [page.Heading('What can be told', 2), page.Text(text)]
  rows = []
  for i in np.argsort(-means, kind='stable'):
    below = [names[j] for j in range(len(names)) if apart[i, j] and means[i] > means[j]]
    same = [names[j] for j in range(len(names)) if j != i and not apart[i, j]]
    rows.append([names[i], f'{means[i]:.1%}', '; '.join(below), '; '.join(same)])
  made.append(page.Table(('setting', 'test accuracy', 'clearly above', 'not told from'), rows))
  return [*made, page.Text(cannot(float(means.max()), examples))]


def cannot(accuracy: float, examples: int | None) -> str:
  """What no number of seeds can tell."""
  words = (
    'Seeds change how a run starts and in which order it sees its pictures; the test pictures are '
    'the same for all. Whether other pictures, more training or larger models would rank them so, '
    'this sweep does not say'
  )
  if not examples:
    return f'{words}.'
  low, high = metrics.wilson(accuracy * examples, examples)
  return (
    f'{words}: {examples:,} test pictures alone leave the best accuracy uncertain, from {low:.1%} '
    f'to {high:.1%} (Wilson, 95 %).'
  )


def told_apart(scores: Sequence[np.ndarray]) -> np.ndarray:
  """Which pairs of settings differ: a symmetric matrix of bool."""
  means = np.array([own.mean() for own in scores])
  return np.abs(means[:, None] - means) > thresholds(scores)


def smallest(scores: Sequence[np.ndarray]) -> float:
  """The smallest difference that Tukey's test tells of any pair: of those with the most seeds."""
  return float(thresholds(scores)[np.triu_indices(len(scores), 1)].min())


def thresholds(scores: Sequence[np.ndarray]) -> np.ndarray:
  """The difference beyond which each pair is told apart: a symmetric matrix."""
  shares = np.array([1 / len(own) for own in scores])
  return critical(scores) * np.sqrt((shares[:, None] + shares) / 2)


def critical(scores: Sequence[np.ndarray]) -> float:
  """The spread over seeds, times the quantile of the studentised range of so many settings."""
  freedom = sum(len(own) - 1 for own in scores)
  square = sum(float(np.square(own - own.mean()).sum()) for own in scores) / freedom
  return quantile(len(scores), freedom) * math.sqrt(square)


@functools.cache
def quantile(settings: int, freedom: int) -> float:
  """The studentised range that is exceeded with a chance of `LEVEL`."""
  from scipy.stats import studentized_range

  return float(studentized_range.ppf(1 - LEVEL, settings, freedom))
