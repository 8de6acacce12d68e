"""The selection audit: one set of runs, its epoch and learning rate chosen by each of four rules.

epoch_on_test  the epoch with the best test accuracy, of each run, at our learning rate
rate_on_test   the point of the grid with the best test accuracy after the last epoch
held_out       the point and the epoch that are best on a tenth of train, which is not trained on
ours           the rate that a fifth of train prefers, all of train, the last epoch

All but the third read the same runs. Test examples choose in the first two: `optimism.py` says how
much better that looks than it is.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from vit_jax.evaluation import fitting, optimism, statistics
from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens
from vit_jax.explore.lab import Lab, as_evaluated
from vit_jax.explore.selection import SELECTION_SEEDS, hold_out, points
from vit_jax.runtime import atomic

RULES = ('epoch_on_test', 'rate_on_test', 'held_out', 'ours')
HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class Audit:
  """What each rule could choose from: `R` readouts, `S` runs, `n` test examples, each right or not.

  Attributes:
    by_epoch: `R S E n`: at our learning rate, after each epoch.
    by_rate: `R S G n`: after the last epoch, at each learning rate of the grid.
    held_out: `R S n`: where the tenth of train is read best.
    accuracy, epoch, rate: `R`: its accuracy on that tenth, its epoch from 1, its learning rate.
    tenth: the number of examples in it.
  """

  by_epoch: np.ndarray
  by_rate: np.ndarray
  held_out: np.ndarray
  accuracy: np.ndarray
  epoch: np.ndarray
  rate: np.ndarray
  tenth: int

  def correct(self) -> np.ndarray:
    """What each rule reports, `4 R S n`, in the order of `RULES`."""
    epoch = self.by_epoch.mean(-1).argmax(2)[..., None, None]
    rate = self.by_rate.mean((1, -1)).argmax(1)[:, None, None, None]
    return np.stack([
      np.take_along_axis(self.by_epoch, epoch, 2)[:, :, 0],
      np.take_along_axis(self.by_rate, rate, 2)[:, :, 0],
      self.held_out,
      self.by_epoch[:, :, -1],
    ])  # fmt: skip


def run(
  lab: Lab, parts: Sequence[Probes], store: dict[str, Tokens], ours: np.ndarray, what: str
) -> Audit:
  """Trains every readout at every learning rate, on all of train and on nine tenths of it.

  Args:
    parts: the readouts, as many at once as memory allows.
    ours: the learning rate and weight decay of each readout that our rule chose, `R 2`.
  """
  grid = points(lab.config.explore)
  chosen, start, found = (grid == ours[:, None]).all(-1).argmax(1), 0, []
  for part in parts:
    some = chosen[start : start + len(part.candidates)]
    start += len(some)
    found.append(audit_part(lab, part, store, some, grid, what))
  arrays = [f.name for f in dataclasses.fields(Audit) if f.name != 'tenth']
  joined = {name: np.concatenate([getattr(one, name) for one in found]) for name in arrays}
  return Audit(**joined, tenth=found[0].tenth)


def audit_part(
  lab: Lab, part: Probes, store: dict[str, Tokens], ours: np.ndarray, grid: np.ndarray, what: str
) -> Audit:
  """The audit of some readouts; `ours` are places in the grid."""
  train, test, seeds = store['train'], store['test'], lab.seeds[:SELECTION_SEEDS]
  tested, count = np.arange(len(test.labels)), len(seeds)
  rates, decays = (np.tile(x, (len(ours), 1)) for x in grid.T)
  everything, by_epoch, last = np.arange(len(train.labels)), [], np.zeros(0)
  title = f'{what}: audit, all of train'
  for params, _ in fitting.epochs(part, train, everything, rates, seeds, title, decays):
    last = fitting.evaluate(part, params, test, tested, count)[1] == test.labels  # S R L n
    by_epoch.append(last[:, np.arange(len(ours)), ours])
  kept = hold_out_tenth(lab, part, store, rates, decays, seeds, what)
  return Audit(np.stack(by_epoch).transpose(2, 1, 0, 3), last.swapaxes(0, 1), **kept)


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of nine tenths of train, and those of the tenth that chooses.

  Raises:
    ValueError: a class has too few examples for that.
  """
  asked = 'the tenth of config.explore.audit (--config.explore.audit=False does without)'
  return hold_out(labels, HELD_OUT, seed, asked)


def hold_out_tenth(
  lab: Lab, part: Probes, store: dict[str, Tokens], rates: np.ndarray, decays: np.ndarray,
  seeds: list[int], what: str,
) -> dict[str, Any]:  # fmt: skip
  """The third rule: what a tenth of train prefers, and what that says of test."""
  train, test, plain = store['train'], store['test'], as_evaluated(lab, store)
  rest, held = split(train.labels, lab.config.seed)
  tested, rows = np.arange(len(test.labels)), np.arange(len(rates))
  best, epoch, place = np.full(len(rates), -1.0), np.zeros(len(rates), int), np.zeros_like(rows)
  correct, kept = np.zeros((len(rates), len(seeds), len(tested)), bool), np.zeros(len(rates))
  title = f'{what}: audit, nine tenths'
  trained = fitting.epochs(part, train, rest, rates, seeds, title, decays)
  for number, (params, _) in enumerate(trained, 1):
    loss, predictions = fitting.evaluate(part, params, plain, held, len(seeds))
    accuracy = (predictions == plain.labels[held]).mean((0, 3))  # R L
    # Of equal ones the lowest loss: one answer counts for more than any loss.
    score = accuracy - 1e-7 * np.clip(np.nan_to_num(loss.mean(0), nan=100), 0, 100)
    better = score.max(1) > best
    if better.any():
      found = fitting.evaluate(part, params, test, tested, len(seeds))[1] == test.labels
      place[better] = score.argmax(1)[better]
      best[better], epoch[better] = score.max(1)[better], number
      kept[better] = accuracy[rows, place][better]
      correct[better] = found[:, rows, place].swapaxes(0, 1)[better]
  chosen = rates[rows, place]
  return dict(held_out=correct, accuracy=kept, epoch=epoch, rate=chosen, tenth=len(held))


@dataclasses.dataclass(frozen=True)
class Rule:
  """What one rule reports of each readout, `R`, and how far that is to be believed.

  Attributes:
    accuracy: as reported.
    optimism: how much of it the choice makes.
    gain: less what our rule reports.
    optimism_interval, gain_interval: 95 %, `R 2`.
    mean: the same numbers of the mean over those that are `counted`.
  """

  name: str
  accuracy: np.ndarray
  optimism: np.ndarray
  optimism_interval: np.ndarray
  gain: np.ndarray
  gain_interval: np.ndarray
  mean: dict[str, Any]


def judge(lab: Lab, audit: Audit) -> list[Rule]:
  """What each rule reports, its optimism, and what it reports beyond ours."""
  correct, seed = audit.correct(), lab.config.seed
  rules, count, runs, n = correct.shape
  flat = correct.transpose(2, 0, 1, 3).reshape(runs, -1, n)
  draws = statistics.bootstrap(flat, seed).reshape(-1, rules, count)
  shares = audit.by_rate.mean(1, keepdims=True, dtype=np.float32)
  looks = {
    'epoch_on_test': optimism.measure(audit.by_epoch, seed),
    'rate_on_test': optimism.measure(shares, seed),
  }
  accuracy, gains = correct.mean((2, 3)), draws - draws[:, -1:]
  some = counted(lab)
  return [
    rule_of(name, accuracy[i], accuracy[i] - accuracy[-1], looks.get(name), gains[:, i], some)
    for i, name in enumerate(RULES)
  ]


def counted(lab: Lab) -> list[int]:
  """Places of the readouts over which means are told: controls only where nothing else was read."""
  places = range(len(lab.candidates))
  return [r for r in places if not lab.candidates[r].control] or [*places]


def rule_of(
  name: str, accuracy: np.ndarray, gain: np.ndarray, look: optimism.Optimism | None,
  gains: np.ndarray, some: list[int],
) -> Rule:  # fmt: skip
  """The numbers of one rule; where test examples had no say there is no optimism."""
  rows = range(len(accuracy))
  value = look.values if look else np.zeros(len(rows))
  nothing = (0.0, 0.0)
  return Rule(
    name, accuracy, value, np.array([look.interval(r) if look else nothing for r in rows]), gain,
    np.array([statistics.interval(gains[:, r]) for r in rows]),
    {
      'accuracy': float(accuracy[some].mean()),
      'optimism': float(value[some].mean()),
      'optimism_interval': list(look.interval(some) if look else nothing),
      'gain': float(gain[some].mean()),
      'gain_interval': list(statistics.interval(gains[:, some].mean(1))),
    },
  )  # fmt: skip


def save(path: pathlib.Path, audit: Audit) -> None:
  """Writes an audit into one file, eight answers a byte."""
  arrays: dict[str, Any] = {}
  for name, value in vars(audit).items():
    packed = isinstance(value, np.ndarray) and value.dtype == bool
    arrays[name] = np.packbits(value, -1) if packed else value
  arrays['examples'] = audit.held_out.shape[-1]
  with atomic.replacing(path) as partial, partial.open('wb') as file:
    np.savez(file, **arrays)


def restore(path: pathlib.Path) -> Audit:
  """Reads what `save` wrote."""
  with np.load(path) as file:
    arrays = dict(file)
  count = int(arrays.pop('examples'))
  found: dict[str, Any] = {
    name: np.unpackbits(x, -1, count).astype(bool) if x.dtype == np.uint8 else x
    for name, x in arrays.items()
  }
  tenth = int(found.pop('tenth'))
  return Audit(**found, tenth=tenth)
