"""Optimism: how much better than it is a choice looks to the examples that made it.

Of several candidates the best on some examples is reported. What it is worth is found by
cross-fitting: nine tenths of the examples choose, the last tenth judges, each tenth in turn. The
difference is the optimism, within one tenth of the examples without bias; the bootstrap, which
chooses anew each time, says how far the estimate may be off (too much rather than too little).

Shapes: `R` readouts, `S` runs of each, which choose for themselves, `K` candidates, `n` examples.
"""

from collections.abc import Iterator
import dataclasses

from jaxtyping import Float, Shaped
import numpy as np

FOLDS, REPEATS, DRAWS = 10, 20, 200
COLUMNS = 500  # weights of all examples that are summed at once
NUMBERS = 2**26  # float32 of candidates that are summed at once


@dataclasses.dataclass(frozen=True)
class Optimism:
  """What choosing on the examples that judge makes of each readout.

  Attributes:
    reported: the accuracy of the best candidate on all examples, `R`.
    values: how much of it the choice makes: less its cross-fitted accuracy, `R`.
    draws: the same in resampled examples, `R b`.
  """

  reported: np.ndarray
  values: np.ndarray
  draws: np.ndarray

  def interval(self, rows: int | list[int]) -> tuple[float, float]:
    """The 95 % interval of the optimism of a readout, or of the mean over some."""
    return around(
      float(self.values[rows].mean()), float(self.draws[np.atleast_1d(rows)].mean(0).std())
    )


def around(value: float, deviation: float) -> tuple[float, float]:
  """The 95 % normal interval."""
  return value - 1.96 * deviation, value + 1.96 * deviation


def measure(correct: Shaped[np.ndarray, 'R S K n'], seed: int = 0) -> Optimism:
  """The optimism of choosing the best of `K` candidates, for each run of each readout.

  Args:
    correct: whether each answer is right, or the share of several runs that have it right.
  """
  rng, n = np.random.default_rng(seed), correct.shape[-1]
  partitions = np.stack([partition(n, rng) for _ in range(REPEATS + DRAWS)])
  counts = np.ones((len(partitions), n), np.float32)
  for row in counts[REPEATS:]:
    row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
  reported, honest = cross_fit(correct, partitions, counts)
  values = reported - honest
  return Optimism(reported[:, 0], values[:, :REPEATS].mean(1), values[:, REPEATS:])


def partition(n: int, rng: np.random.Generator) -> np.ndarray:
  """The tenth of each example, `n`; what is drawn twice stays in one."""
  return rng.permutation(np.arange(n) % FOLDS)


def cross_fit(
  correct: Shaped[np.ndarray, 'R S K n'],
  partitions: np.ndarray,
  counts: Float[np.ndarray, 'm n'],
) -> tuple[np.ndarray, np.ndarray]:
  """Reported and cross-fitted accuracy, `R m`, for each partition and how often examples count."""
  n, some = correct.shape[-1], COLUMNS // FOLDS
  found: list[list[np.ndarray]] = [[], []]
  for start in range(0, len(partitions), some):
    rows = slice(start, start + some)
    weights = np.eye(FOLDS, dtype=np.float32)[partitions[rows]] * counts[rows, :, None]
    columns = weights.transpose(1, 0, 2).reshape(n, -1)
    sums = np.concatenate([block @ columns for block in blocks(correct)])
    folds = sums.reshape(*correct.shape[:3], -1, FOLDS)  # R S K m 10
    whole = folds.sum(-1)
    best = (whole[..., None] - folds).argmax(2)  # without the tenth that judges
    judged = np.take_along_axis(folds, best[:, :, None], 2)[:, :, 0].sum(-1)
    for kept, value in zip(found, (whole.max(2), judged), strict=True):
      kept.append(value.mean(1, dtype=float) / n)
  return np.concatenate(found[0], -1), np.concatenate(found[1], -1)


def blocks(correct: np.ndarray) -> Iterator[np.ndarray]:
  """All candidates of all readouts as rows, float32, as many at once as memory allows."""
  flat = correct.reshape(-1, correct.shape[-1])
  size = max(1, NUMBERS // correct.shape[-1])
  for start in range(0, len(flat), size):
    yield flat[start : start + size].astype(np.float32)
