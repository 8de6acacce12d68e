"""The section on selection: what four rules report of the same runs, and how far to believe it."""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.evaluation import optimism
from vit_jax.explore import selection
from vit_jax.explore.audit import Audit, Rule, counted
from vit_jax.explore.compare import Comparison, Results
from vit_jax.explore.lab import Lab
from vit_jax.explore.page import Block, Heading, Picture, Table, Text

TITLES = {
  'epoch_on_test': 'best epoch on test',
  'rate_on_test': 'best grid point on test',
  'held_out': '10 % of train held out',
  'ours': 'ours',
}


def section(
  folder: pathlib.Path, lab: Lab, results: Results, audit: Audit, rules: Sequence[Rule]
) -> list[Block]:
  """The blocks; draws the picture into `folder`."""
  rows, options = whole_readouts(lab, results), lab.config.explore
  ours = selection.choosing(options, selection.SELECTIONS['held_out'])
  blocks: list[Block] = [
    Heading('What choosing does to the numbers'),
    Text(
      f'The same runs ({selection.seeds_of(options)}) by four rules. The first two let the test '
      'examples choose the epoch of each run at our learning rate, or the point of the grid. The '
      f'third trains on 90 % and lets the rest ({audit.tenth} examples) choose point and epoch. '
      f'Ours: learning rates {ours}; the last epoch. Optimism: how much of what is reported the '
      'choice itself makes; where test examples had no say there is none. Means are over all '
      'readouts, single patches included.'
    ),
    Table(
      ['rule', 'mean accuracy', 'optimism, points', '95 %', 'beyond ours, points', '95 %', 'best'],
      [summary(rule, lab) for rule in rules],
    ),
    Text(winner(lab, results) + power_of(results.comparisons, audit.held_out.shape[-1])),
    Table(
      ['readout', *(TITLES[rule.name] for rule in rules), 'optimism: epoch', 'optimism: point',
       'chosen on 10 %'],
      [cells(r, lab, audit, rules) for r in rows],
    ),
  ]  # fmt: skip
  path = folder / 'selection.png'
  draw([lab.candidates[r].name for r in rows], [rule for rule in rules[:2]], rows).savefig(path)
  return [*blocks, Picture(path, 'Optimism of choosing on the test examples, 95 % intervals.')]


def whole_readouts(lab: Lab, results: Results) -> list[int]:
  """Places of the readouts that are no single patches and no controls, the best first."""
  place = {candidate.name: r for r, candidate in enumerate(lab.candidates)}
  return [
    place[record['readout']]
    for record in results.records
    if record['patch'] is None and not record['control']
  ]


def summary(rule: Rule, lab: Lab) -> list[str]:
  """A row of the table of rules, over all readouts that are counted."""
  mean = rule.mean
  best = max(counted(lab), key=lambda r: rule.accuracy[r])
  return [
    TITLES[rule.name], f'{mean["accuracy"]:.2%}', *points(mean['optimism'],
    mean['optimism_interval']), *points(mean['gain'], mean['gain_interval']),
    f'{lab.candidates[best].name}, {rule.accuracy[best]:.2%}',
  ]  # fmt: skip


def points(value: float, interval: Sequence[float]) -> tuple[str, str]:
  """A difference and its interval, in points; nothing where both are exactly zero."""
  if not value and not any(interval):
    return '0', ''
  return f'{100 * value:+.2f}', f'{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}'


def cells(r: int, lab: Lab, audit: Audit, rules: Sequence[Rule]) -> list[str]:
  """A readout under all rules."""
  looks = [
    '{} ({})'.format(*points(float(rule.optimism[r]), rule.optimism_interval[r].tolist()))
    for rule in rules[:2]
  ]
  chosen = f'rate {audit.rate[r]:g}, epoch {audit.epoch[r]}: {audit.accuracy[r]:.1%} there'
  return [lab.candidates[r].name, *(f'{rule.accuracy[r]:.2%}' for rule in rules), *looks, chosen]


def winner(lab: Lab, results: Results) -> str:
  """How much the best readout owes to having been found on the test examples."""
  rows = whole_readouts(lab, results)
  if len(rows) < 2:
    return ''
  shares = results.found.correct[:, rows].mean(0, dtype=np.float32)
  look = optimism.measure(shares[None, None], lab.config.seed)
  value, interval = points(float(look.values[0]), look.interval(0))
  return (
    f'Which of {len(rows)} readouts is the best was found on the test examples, too: of its '
    f'{look.reported[0]:.2%} that makes {value} points ({interval or "exactly"}). '
  )


def power_of(comparisons: Sequence[Comparison], n: int) -> str:
  """What the test set can show, in words."""
  if not comparisons:
    return ''
  second = comparisons[0]
  least = np.median([c.detectable for c in comparisons])
  needed = (
    'they differ by nothing'
    if second.needed is None
    else f'the {100 * second.difference:.2f} points between them would need {second.needed:,}'
  )
  return (
    f'{n:,} test examples show, in four of five such sets, a difference of {100 * least:.2f} '
    f'points (the median pair), or {100 * second.detectable:.2f} between {second.a} and '
    f'{second.b}; {needed}.'
  )


def draw(names: Sequence[str], rules: Sequence[Rule], rows: Sequence[int]) -> Any:
  """The optimism of each readout, a colour a rule, with its interval."""
  figure, axes = figures.new_figure(7.0, 1.4 + 0.34 * len(names))
  axis, places = axes[0, 0], np.arange(len(names))
  axis.axvline(0, color='black', lw=0.8)
  for i, rule in enumerate(rules):
    values, intervals = 100 * rule.optimism[rows], 100 * rule.optimism_interval[rows]
    errors = np.abs(intervals.T - values)
    axis.errorbar(values, places + 0.24 * i - 0.12, xerr=errors, fmt='os'[i],
                  color=figures.COLOURS[i], capsize=2, ms=5, label=TITLES[rule.name])  # fmt: skip
  axis.set_yticks(places, names)
  axis.set_ylim(len(names) - 0.4, -0.6)  # The best readout on top.
  axis.set(xlabel='optimism, points (95 % interval)')
  axis.grid(axis='x', alpha=0.3)
  axis.legend(frameon=False, fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncols=2)
  return figure
