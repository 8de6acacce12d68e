"""From what probes predicted to records: one for each readout and layer, with its uncertainty."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from vit_jax import metrics
from vit_jax.evaluation import power, statistics
from vit_jax.explore.lab import Lab, Layer, probes_of
from vit_jax.models import tokens

ALPHA = 0.05
CONVERGED = 0.95  # of the final accuracy


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two readouts on the same examples: accuracy of `a` minus accuracy of `b`.

  Attributes:
    low, high: the paired bootstrap over examples and seeds, 95 %.
    p, p_holm: the permutation test over examples, for this pair and for as many as there are.
    detectable: the smallest difference that so many examples show with a chance of 80 %.
    needed: so many examples would show this difference with that chance; None: there is none.
  """

  a: str
  b: str
  difference: float
  low: float
  high: float
  p: float
  p_holm: float
  detectable: float
  needed: int | None

  @property
  def verdict(self) -> str:
    """Which of the two is better, if so many examples can tell."""
    if self.p_holm < ALPHA:
      return f'{self.a if self.difference > 0 else self.b} is better'
    return 'cannot tell'


@dataclasses.dataclass(frozen=True)
class Results:
  """Everything that a report says of one layer.

  Attributes:
    records: a dictionary for each readout, the best first.
    draws: `b R`: bootstrapped accuracies, readouts in the order of `names`.
    comparisons: every readout that is no single patch or control against the best of them.
  """

  layer: str
  names: tuple[str, ...]
  records: list[dict[str, Any]]
  draws: np.ndarray
  found: Layer
  comparisons: list[Comparison]

  def record(self, name: str) -> dict[str, Any] | None:
    """What is known of a readout; None where it was not read."""
    return next((record for record in self.records if record['readout'] == name), None)

  @property
  def patches(self) -> dict[str, int]:
    """The number of each readout of a single patch."""
    return {record['readout']: record['patch'] for record in self.records if record['patch']}

  def index(self, name: str) -> int:
    """The place of a readout in `names`."""
    return self.names.index(name)


def depth_of(layer: str, depth: int) -> int:
  """The number of a layer's block, from 1."""
  inner = re.fullmatch(r'block_(\d+)/tokens', layer)
  return int(inner[1]) + 1 if inner else depth


def words_of(layer: str, depth: int) -> str:
  """The block or blocks that a layer is of, in words, where it is not the last; else ''."""
  mean = re.fullmatch(tokens.MEAN, layer)
  if mean:
    return f'the mean of the last {mean[1]} blocks'
  return '' if layer == 'tokens' else f'block {depth_of(layer, depth)} of {depth}'


def convergence(accuracy: np.ndarray) -> np.ndarray:
  """`E S` -> `S`: the first epoch, from 1, with 95 % of the accuracy after the last."""
  return (accuracy >= CONVERGED * accuracy[-1]).argmax(0) + 1


def oscillation(accuracy: np.ndarray) -> np.ndarray:
  """`E S` -> `S`: mean absolute change from epoch to epoch, over the second half of training."""
  if len(accuracy) < 2:
    return np.zeros(accuracy.shape[1])
  return np.abs(np.diff(accuracy[(len(accuracy) - 1) // 2 :], axis=0)).mean(0)


def diverged(found: Layer, r: int) -> np.ndarray:
  """Whether the loss of a readout is no finite number after the last epoch, by seed: `S`."""
  train, test = found.fitted.loss[-1, :, r, 0], found.fitted.test_loss[-1, :, r, 0]
  return ~(np.isfinite(train) & np.isfinite(test))


def mean_of_batches(correct: np.ndarray, batch_size: int) -> float:
  """The study's metric: the mean of the accuracies of batches, the last one smaller: `S n`."""
  starts = range(0, correct.shape[-1], batch_size)
  return float(np.mean([correct[:, i : i + batch_size].mean() for i in starts]))


def compare(lab: Lab, layer: str, found: Layer) -> Results:
  """Records, bootstrap and comparisons of one layer."""
  correct = found.correct
  draws = statistics.bootstrap(correct, lab.config.seed)
  grid = sorted(lab.config.explore.learning_rates)
  names = tuple(candidate.name for candidate in lab.candidates)
  records = []
  for r in range(len(names)):
    records.append(record(lab, layer, found, r) | {
      'bootstrap_interval': resampled(draws[:, r], correct[:, r]),
      'validation_accuracy': found.validation_at(r, grid),
      'learning_rate_at_edge': len(grid) > 1 and found.rates[r] in (grid[0], grid[-1]),
    })  # fmt: skip
  order = sorted(range(len(names)), key=lambda r: -records[r]['accuracy'])
  whole = [r for r in order if lab.candidates[r].patch is None and not lab.candidates[r].control]
  pairs = [(whole[0], r) for r in whole[1:]]
  rows = pairs_of(correct, draws, names, pairs)
  return Results(layer, names, [records[r] for r in order], draws, found, rows)


def resampled(draws: np.ndarray, correct: np.ndarray) -> list[float]:
  """The 95 % interval of an accuracy, from its bootstrap draws and answers `S n`.

  Where all or none are right every draw is the same, and says nothing: then Wilson's.
  """
  if correct.any() and not correct.all():
    return list(statistics.interval(draws))
  return list(metrics.wilson(float(correct.mean()) * correct.shape[-1], correct.shape[-1]))


def record(lab: Lab, layer: str, found: Layer, r: int) -> dict[str, Any]:
  """What is known of one readout."""
  candidate, correct = lab.candidates[r], found.correct[:, r]
  curve, trained = found.fitted.test_accuracy[:, :, r, 0], found.fitted.accuracy[-1, :, r, 0]
  share, count = float(correct.mean()), correct.shape[-1]
  row, column = divmod((candidate.patch or 1) - 1, lab.grid[1])
  closed = float(found.closed[r])
  return {
    'readout': candidate.name,
    'layer': depth_of(layer, lab.depth),
    'accuracy': share,
    'accuracy_interval': list(metrics.wilson(share * count, count)),
    'n_seeds': len(correct),
    'n_examples': count,
    'parameters': probes_of(lab, [candidate]).parameters(candidate),
    'accuracy_by_seed': correct.mean(-1).tolist(),
    'accuracy_of_batches': mean_of_batches(correct, lab.settings.batch_size),
    'least_squares_accuracy': None if np.isnan(closed) else closed,
    'learning_rate': float(found.rates[r]),
    'weight_decay': float(found.decays[r]) if found.decays.size else 0.0,
    'train_accuracy': float(trained.mean()),
    'gap': float(trained.mean() - share),
    'epochs_to_95': float(convergence(curve).mean()),
    'oscillation': float(oscillation(curve).mean()),
    'diverged_seeds': int(diverged(found, r).sum()),
    'control': candidate.control,
    'patch': candidate.patch,
    'row': row if candidate.patch else None,
    'column': column if candidate.patch else None,
  }


def pairs_of(
  correct: np.ndarray, draws: np.ndarray, names: Sequence[str], pairs: list[tuple[int, int]]
) -> list[Comparison]:
  """Each pair (a, b), with p values for as many comparisons as there are."""
  p = np.array([statistics.permutation(correct[:, a], correct[:, b]) for a, b in pairs])
  rows, (seeds, _, n) = [], correct.shape
  for (a, b), single, adjusted in zip(pairs, p, statistics.holm(p), strict=True):
    low, high = statistics.interval(draws[:, a] - draws[:, b])
    difference = float(correct[:, a].mean() - correct[:, b].mean())
    square = power.mean_square(correct[:, a], correct[:, b])
    rows.append(Comparison(names[a], names[b], difference, low, high, float(single),
                           float(adjusted), power.detectable(square, n, seeds),
                           power.examples(difference, square)))  # fmt: skip
  return rows
