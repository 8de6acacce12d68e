"""Whether a classifier is as often right as it is sure (Guo et al., arXiv:1706.04599)."""

import dataclasses
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from vit_jax import figures


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Examples by the probability of their prediction, in bins of equal width from 0 to 1.

  Attributes:
    count: examples in each bin.
    confidence: their mean probability; 0 in an empty bin.
    accuracy: the share that is right; 0 in an empty bin.
  """

  count: Int[np.ndarray, 'b']
  confidence: Float[np.ndarray, 'b']
  accuracy: Float[np.ndarray, 'b']

  @property
  def error(self) -> float:
    """The expected calibration error: mean distance of accuracy and confidence over examples."""
    gaps = np.abs(self.accuracy - self.confidence)
    return float((gaps * self.count).sum() / self.count.sum())


def measure(
  probability: Float[np.ndarray, 'n'], correct: Bool[np.ndarray, 'n'], bins: int
) -> Calibration:
  """Sorts examples into bins; a probability on a border belongs to the bin below (Guo's code)."""
  place = np.clip(np.ceil(probability.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
  count = np.bincount(place, minlength=bins)
  sums = [np.bincount(place, weights=x, minlength=bins) for x in (probability, correct)]
  confidence, accuracy = (total / np.maximum(count, 1) for total in sums)
  return Calibration(count, confidence, accuracy)


def draw(found: Calibration) -> Any:
  """The reliability diagram: accuracy against confidence, and how many examples stand where."""
  bins = len(found.count)
  figure = figures.new_figure(4.6, 5.2)[0]
  figure.clear()
  upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
  left, full = np.arange(bins) / bins, found.count > 0
  style: Any = dict(width=1 / bins, align='edge', edgecolor='white')
  upper.bar(left[full], found.accuracy[full], color=figures.COLOURS[0], label='accuracy', **style)
  upper.plot([0, 1], [0, 1], color='black', lw=1, ls='--', label='as sure as right')
  upper.plot(found.confidence[full], found.accuracy[full], 'o', ms=4, color=figures.COLOURS[1],
             label='mean confidence')  # fmt: skip
  title = f'calibration error {found.error:.1%} of {found.count.sum()} examples, {bins} bins'
  upper.set(ylabel='accuracy', ylim=(0, 1), xlim=(0, 1), title=title)
  upper.title.set_fontsize(10)
  upper.legend(frameon=False, loc='upper left', fontsize=8)
  lower.bar(left, found.count / found.count.sum(), color=figures.COLOURS[5], **style)
  lower.set(xlabel='probability of the prediction', ylabel='share', ylim=(0, 1))
  return figure
