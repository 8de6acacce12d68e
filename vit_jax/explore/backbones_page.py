"""The report of several backbones: accuracy of readout by backbone, rankings, conclusions."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from vit_jax import figures
from vit_jax.evaluation import statistics
from vit_jax.explore import backbones, page
from vit_jax.explore.backbones import Backbone
from vit_jax.explore.page import Block, Heading, Picture, Table, Text
from vit_jax.runtime import atomic

NOT_TOLD = 'not told'  # by so few backbones


def write(folder: pathlib.Path, found: Sequence[Backbone]) -> None:
  """Writes backbones.json, .md, .html and pictures."""
  (folder / 'backbones').mkdir(parents=True, exist_ok=True)
  names = backbones.common_readouts(found)
  blocks: list[Block] = [Heading('Do backbones agree on what to read?', 1), introduction(found)]
  about: dict[str, Any] = {'backbones': [one.name for one in found], 'readouts': names}
  if names:
    table = backbones.accuracies(found, names)
    about |= {
      'accuracy': table.tolist(),
      'agreement': backbones.agreement(table),
      'differences': backbones.differences(found, names),
    }
    blocks += by_backbone(folder / 'backbones', names, table)
    blocks += rankings(folder / 'backbones', names, table, about['agreement'])
    blocks += best_against(about['differences'], len(found))
  about['claims'] = backbones.conclusions(found)
  blocks += study(about['claims'])
  atomic.write_text(folder / 'backbones.md', page.markdown(blocks, folder))
  atomic.write_text(folder / 'backbones.html', page.self_contained(blocks, 'Several backbones'))
  atomic.write_text(folder / 'backbones.json', json.dumps(about, indent=2) + '\n')
  logging.info('%d backbones: report in %s', len(found), folder / 'backbones.html')


def introduction(found: Sequence[Backbone]) -> Text:
  count = len(found[0].results.found.labels)
  named = ', '.join(f'{i} {one.name}' for i, one in enumerate(found, 1))
  return Text(
    f'{len(found)} backbones on the same {count} test examples: {named}. Each has a report of its '
    'own beside this one. Accuracies are means over the seeds of the probes; intervals are t '
    'intervals over backbones, and speak of others that are trained alike; where there are too few '
    'of them to tell, that is said. The test examples are the same for all, so that what they '
    'alone make of a difference is in the report of each, and not in these intervals.'
  )


def by_backbone(folder: pathlib.Path, names: Sequence[str], table: np.ndarray) -> list[Block]:
  """Accuracy of readout by backbone, as a table and a picture."""
  header = ['readout', *map(str, range(1, table.shape[1] + 1)), 'mean', '95 % over backbones']
  rows = [
    [name, *(f'{x:.2%}' for x in row), f'{row.mean():.2%}', percent(spread_of(row))]
    for name, row in zip(names, table, strict=True)
  ]
  path = folder / 'accuracy.png'
  draw(names, table).savefig(path)
  return [
    Heading('Accuracy by backbone'),
    Table(header, rows),
    Picture(path, 'Accuracy of the readouts: a sign each backbone; bars: mean and 95 % over them.'),
  ]


def spread_of(row: np.ndarray) -> list[float] | None:
  """The 95 % t interval over backbones."""
  return backbones.finite(*statistics.spread(row))


def percent(interval: list[float] | None) -> str:
  """An interval of accuracies, which end at 0 and 1."""
  return NOT_TOLD if interval is None else f'{max(interval[0], 0):.1%} to {min(interval[1], 1):.1%}'


def rankings(
  folder: pathlib.Path, names: Sequence[str], table: np.ndarray, found: dict[str, Any] | None
) -> list[Block]:
  """Whether the rankings agree, and a line for each readout through its ranks."""
  if found is None or table.shape[1] < 2:
    return []
  interval = found['interval']
  words = (
    '95 % over backbones {:+.2f} to {:+.2f}'.format(*interval)
    if interval
    else 'an interval needs three backbones, and more where all agree entirely'
  )
  path = folder / 'ranks.png'
  draw_ranks(names, table).savefig(path)
  count = table.shape[1]
  rows = [[str(i + 1), *(f'{x:+.2f}' for x in row)] for i, row in enumerate(found['pairs'])]
  return [
    Heading('Do the rankings agree?'),
    Text(
      f"Kendall's tau of {len(names)} readouts, the mean of all pairs of backbones: "
      f'{found["tau"]:+.2f} ({words}). 1: the same order, 0: no more alike than chance, -1: the '
      'reverse. Readouts that no number of test examples here tells apart lower it.'
    ),
    Table(['backbone', *map(str, range(1, count + 1))], rows),
    Picture(path, 'Rank of each readout by backbone.'),
  ]


def best_against(rows: Sequence[dict[str, Any]], count: int) -> list[Block]:
  """The readout with the best mean against every other, over backbones."""
  if not rows or count < 2:
    return []
  return [
    Heading('Is one best on all of them?'),
    Table(
      ['pair', 'points, by backbone', 'mean', '95 % over backbones', 'p (Holm)', 'verdict'],
      [[f'{r["a"]} - {r["b"]}', signed(r['differences'], 100.0), f'{100 * r["difference"]:+.2f}',
        span(r['interval'], 100.0), f'{r["p_holm"]:.3g}', r['verdict']] for r in rows],
    ),
    Text('Paired t tests over backbones. The best was found on the same backbones.'),
  ]  # fmt: skip


def study(rows: Sequence[dict[str, Any]]) -> list[Block]:
  """The conclusions of the token-readout study, each on every backbone."""
  if not rows:
    return []
  return [
    Heading('The conclusions of the token-readout study'),
    Table(
      ['claim', 'difference, by backbone', 'verdict of each', 'over backbones', 'verdict'],
      [[r['claim'], signed(r['differences']), '; '.join(r['each']), span(r['interval']),
        r['verdict']] for r in rows],
    ),
    Text(
      'Differences are above 0 where the claim is right: points of accuracy, oscillation or gap, '
      'or epochs. Intervals over backbones are as wide as the number of claims asks (Bonferroni). '
      'A claim that holds on one backbone alone is a fact about that training run.'
    ),
  ]  # fmt: skip


def signed(values: Sequence[float], factor: float = 1.0) -> str:
  """Differences, one a backbone."""
  return ', '.join(f'{factor * x:+.2f}' for x in values)


def span(interval: Sequence[float] | None, factor: float = 1.0) -> str:
  """The interval of a difference."""
  if interval is None:
    return NOT_TOLD
  return '{:+.2f} to {:+.2f}'.format(*(factor * x for x in interval))


def draw(names: Sequence[str], table: np.ndarray) -> Any:
  """Accuracies `R M`: a row each readout, a sign each backbone, the mean with its interval."""
  figure, axes = figures.new_figure(7.0, 1.4 + 0.34 * len(names))
  axis, places = axes[0, 0], np.arange(len(names))
  for row, place in zip(table, places, strict=True):
    interval = spread_of(row)
    if interval:
      axis.barh(place, 100 * np.diff(interval), left=100 * interval[0], height=0.5,
                color=figures.COLOURS[5], alpha=0.25)  # fmt: skip
    axis.plot([100 * row.mean()] * 2, [place - 0.25, place + 0.25], color='black', lw=1.5)
  for m, values in enumerate(table.T):
    axis.plot(100 * values, places, ls='', marker='osD^vPX*<>'[m % 10], ms=5,
              color=figures.COLOURS[m % 6], label=f'backbone {m + 1}')  # fmt: skip
  axis.set_yticks(places, names)
  axis.set_ylim(len(names) - 0.4, -0.6)  # The best on top.
  axis.set(xlabel='test accuracy, %')
  axis.grid(axis='x', alpha=0.3)
  axis.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.01, 1), loc='upper left')
  return figure


def draw_ranks(names: Sequence[str], table: np.ndarray) -> Any:
  """A line for each readout through its ranks, from backbone to backbone; ties lie between."""
  from scipy.stats import rankdata

  count = table.shape[1]
  ranks = rankdata(-table, axis=0)
  figure, axes = figures.new_figure(3.4 + 0.9 * count, 1.4 + 0.3 * len(names))
  axis = axes[0, 0]
  for i, row in enumerate(ranks):
    axis.plot(range(1, count + 1), row, marker='o', ms=5, color=figures.COLOURS[i % 6],
              ls=('-', '--', ':')[i // 6 % 3])  # fmt: skip
  ends = {rank: ', '.join(np.array(names)[ranks[:, -1] == rank]) for rank in set(ranks[:, -1])}
  for rank, text in ends.items():
    axis.annotate(text, (count, rank), (8, 0), textcoords='offset points', va='center', fontsize=8)
  axis.set_ylim(len(names) + 0.5, 0.5)
  axis.set_xticks(range(1, count + 1))
  axis.set(xlabel='backbone', ylabel='rank')
  axis.grid(axis='y', alpha=0.3)
  for side in ('top', 'right'):
    axis.spines[side].set_visible(False)
  return figure
