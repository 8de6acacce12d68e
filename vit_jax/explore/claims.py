"""What the token-readout study concluded, each with our measure and whether it holds.

A claim compares two readouts, or two sets of patches. It holds when the whole interval of the
difference lies on its side, does not hold when the whole interval lies on the other, and otherwise
cannot be told; that two differ holds on either side. Intervals of accuracies resample examples and
seeds together; those of speed, oscillation and gap are t intervals over the seeds. They are as wide
as their number asks (Bonferroni): with a chance of 95 % all of them hold what they should.
"""

from collections.abc import Callable
import math
from typing import Any

import numpy as np

from vit_jax.evaluation import statistics
from vit_jax.explore import compare
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import Lab
from vit_jax.models import tokens

# claim, measure, verdict; difference: above 0 where the claim is right, if not `two_sided`
Claim = dict[str, Any]
Value = Callable[[Results, int], np.ndarray]  # A number of one readout for each seed.


def claims(lab: Lab, results: Results) -> list[Claim]:
  """A row for each conclusion that the readouts at hand allow to test."""
  tests = [test for names, test in tests_of(lab.grid) if have(results, names)]
  level = level_of(len(tests))
  return [test(results, level) for test in tests]


def level_of(count: int) -> float:
  """The level of each of so many intervals, so that all hold together with a chance of 95 %."""
  return 1 - compare.ALPHA / max(1, count)


def tests_of(grid: tuple[int, int]) -> list[tuple[list[str], Callable[..., Claim]]]:
  """For each conclusion the readouts that it speaks of, and `(results, level) -> a row`.

  None compares corners with the centre where a patch is both, as on 2 x 2.
  """
  corner = [f'patch_{k}' for k in tokens.corners(grid)]
  middle = [f'patch_{k}' for k in tokens.centre(grid)]
  rows: list[tuple[Callable[..., Claim], tuple[Any, ...]]] = [
    (accuracy_claim, ('The corner patches know less than the centre ones', middle, corner)),
    (accuracy_claim, ('The centre patches know clearly less than the class token',
                      ['class_token'], middle)),
    (accuracy_claim, ('The plain sum (of all tokens) is worse than the class token',
                      ['class_token'], ['sum_all'])),
    (accuracy_claim, ('The mean (of all tokens) is better than the class token', ['mean_all'],
                      ['class_token'])),
    (accuracy_claim, ('The weighted mix is as good as the mean or better', ['weighted_add'],
                      ['mean_all'])),
    (accuracy_claim, ('Mean and sum differ (a linear head can compute the same from both)',
                      ['mean_all'], ['sum_all'], True)),
    (seed_claim, ('The weighted mix converges faster than the class token', ['class_token'],
                  ['weighted_add'], 'epochs to 95 %', speed)),
    (seed_claim, ('The sum oscillates more than the class token', ['sum_all'], ['class_token'],
                  'oscillation', swing)),
    (seed_claim, ('The mean oscillates more than the class token', ['mean_all'], ['class_token'],
                  'oscillation', swing)),
    (seed_claim, ('The corner patches overfit more than the class token', corner, ['class_token'],
                  'train-test gap', gap)),
    (equal_claim, ('The weighted mix is as stable as the class token', ['weighted_add'],
                   ['class_token'], 'oscillation', swing)),
  ]  # fmt: skip
  return [(some[1] + some[2], lambda results, level, test=test, some=some:
           test(results, level, *some))
          for test, some in rows if not {*some[1]} & {*some[2]}]  # fmt: skip


def judge(low: float, high: float, two_sided: bool = False) -> str:
  """The verdict on a difference whose interval is given; `two_sided`: that there is any."""
  if low > 0 or (two_sided and high < 0):
    return 'holds'
  return 'does not hold' if high < 0 else 'cannot tell'


def row_of(
  claim: str, measure: str, difference: float, low: float, high: float, two_sided: bool = False
) -> Claim:
  """A row of the table of conclusions."""
  verdict = judge(low, high, two_sided)
  return {
    'claim': claim, 'measure': measure, 'verdict': verdict, 'difference': difference,
    'two_sided': two_sided,
  }  # fmt: skip


def have(results: Results, names: list[str]) -> bool:
  """Whether all of these were read."""
  return all(name in results.names for name in names)


def accuracy_claim(
  results: Results, level: float, claim: str, a: list[str], b: list[str], two_sided: bool = False
) -> Claim:
  """Tests that the readouts `a` are more accurate than `b`, each side a mean.

  Args:
    two_sided: that their accuracies differ, whichever is higher.
  """
  first, second = ([results.index(name) for name in names] for names in (a, b))
  correct = results.found.correct.mean((0, 2))
  difference = correct[first].mean() - correct[second].mean()
  low, high = statistics.interval(
    results.draws[:, first].mean(1) - results.draws[:, second].mean(1), level
  )
  measure = (
    f'accuracy of {title(a)} {correct[first].mean():.1%}, of {title(b)} '
    f'{correct[second].mean():.1%}: {100 * difference:+.1f} points ({100 * low:+.1f} to '
    f'{100 * high:+.1f})'
  )
  return row_of(claim, measure, float(100 * difference), low, high, two_sided)


def title(names: list[str]) -> str:
  """One readout by its name, patches by their numbers."""
  return names[0] if len(names) == 1 else ', '.join(n.removeprefix('patch_') for n in names)


def speed(results: Results, r: int) -> np.ndarray:
  """Epochs to 95 % of the final accuracy."""
  return compare.convergence(results.found.fitted.test_accuracy[:, :, r, 0]).astype(float)


def swing(results: Results, r: int) -> np.ndarray:
  """Oscillation of the test accuracy, in points."""
  return 100 * compare.oscillation(results.found.fitted.test_accuracy[:, :, r, 0])


def gap(results: Results, r: int) -> np.ndarray:
  """Training minus test accuracy, in points."""
  trained = results.found.fitted.accuracy[-1, :, r, 0]
  return 100 * (trained - results.found.correct[:, r].mean(-1))


def seeds_of(results: Results, names: list[str], value: Value) -> np.ndarray:
  """The mean over some readouts, by seed."""
  return np.mean([value(results, results.index(name)) for name in names], axis=0)


def seed_claim(
  results: Results, level: float, claim: str, a: list[str], b: list[str], what: str, value: Value
) -> Claim:
  """Tests that `value` is larger for `a` than for `b`."""
  first, second = seeds_of(results, a, value), seeds_of(results, b, value)
  low, high = statistics.spread(first - second, level)
  measure = (
    f'{what}: {title(a)} {first.mean():.2f}, {title(b)} {second.mean():.2f} '
    f'(difference {span(low, high)})'
  )
  return row_of(claim, measure, float((first - second).mean()), low, high)


def span(low: float, high: float) -> str:
  """An interval in words; that there is none where it has no end."""
  return f'{low:+.2f} to {high:+.2f}' if math.isfinite(low) else 'not told by so few seeds'


def equal_claim(
  results: Results, level: float, claim: str, a: list[str], b: list[str], what: str, value: Value
) -> Claim:
  """Tests that `value` of `a` does not exceed that of `b` by more than half of it."""
  first, second = seeds_of(results, a, value), seeds_of(results, b, value)
  low, high = statistics.spread(1.5 * second - first, level)
  values = f'{title(a)} {first.mean():.2f}, {title(b)} {second.mean():.2f}'
  measure = f'{what}: {values}; as stable: at most half as much again'
  return row_of(claim, measure, float((1.5 * second - first).mean()), low, high)
