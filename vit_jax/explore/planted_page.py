"""The report on planted evidence: who finds it, which readouts cannot see it, one draw as maps."""

from collections.abc import Sequence
import json
import pathlib
import textwrap
from typing import Any

from absl import logging
import numpy as np

from vit_jax import figures, metrics
from vit_jax.defaults import Config
from vit_jax.evaluation import statistics
from vit_jax.explore import compare, page
from vit_jax.explore.page import Block, Heading, Picture, Table, Text
from vit_jax.explore.planted import ALONE, Found
from vit_jax.runtime import atomic

TITLES = {
  'code': 'a code in one patch',
  'joint': 'two codes that matter together',
  'digit_on_noise': 'a digit on noise',
  'digit_among_digits': 'a digit among digits',
}


def write(folder: pathlib.Path, found: dict[str, Found], config: Config) -> None:
  """Writes planted.json, .md, .html and pictures."""
  (folder / 'planted').mkdir(parents=True, exist_ok=True)
  finders = {kind: finders_of(one) for kind, one in found.items()}
  readers = {kind: readers_of(one) for kind, one in found.items()}
  blocks: list[Block] = [
    Heading('Is planted evidence found?', 1),
    introduction(config),
    *finding(finders, folder / 'planted'),
    *without_map(found),
    *maps(found, folder / 'planted'),
    *reading(found, readers),
  ]
  atomic.write_text(folder / 'planted.md', page.markdown(blocks, folder))
  atomic.write_text(folder / 'planted.html', page.self_contained(blocks, 'Planted evidence'))
  whole = {kind: {'finders': finders[kind], 'readouts': readers[kind]} for kind in found}
  atomic.write_text(folder / 'planted.json', json.dumps(whole, indent=2) + '\n')
  logging.info('planted evidence: report in %s', folder / 'planted.html')


def finders_of(found: Found) -> list[dict[str, Any]]:
  """For each map over the draws: how often its top patch was planted, precision, correlation."""
  return [{'finder': name} | measure(values, found.evidence) for name, values in found.maps.items()]


def measure(values: np.ndarray, evidence: np.ndarray) -> dict[str, Any]:
  """How well maps `d N` point at the evidence `d N`, with 95 % intervals over the draws.

  Precision: of as many patches as were planted, those of the largest values, the share that was.
  Correlation: Spearman's, of the values with 0 and 1; 0 where a map is flat.
  """
  draws, count = evidence.shape
  order = np.argsort(-values, axis=1, kind='stable')
  first = np.take_along_axis(evidence, order[:, :1], 1)[:, 0]
  precision = np.array([
    row[places[: row.sum()]].mean() for row, places in zip(evidence, order, strict=True)
  ])  # fmt: skip
  pairs = zip(values, evidence, strict=True)
  ranks = [statistics.rank_correlation(x, row.astype(float)) for x, row in pairs]
  correlation = np.array([rank[0] if rank else 0.0 for rank in ranks])
  return {
    'draws': draws,
    'found': int(first.sum()),
    'found_interval': list(metrics.wilson(int(first.sum()), draws)),
    'precision': float(precision.mean()),
    # Of numbers in 0..1 none spread more than those that are 0 or 1, whose interval is Wilson's.
    'precision_interval': list(metrics.wilson(float(precision.sum()), draws)),
    'by_chance': float(evidence.sum(1).mean() / count),
    'correlation': float(correlation.mean()),
    'correlation_interval': spread_of(correlation),
  }


def spread_of(values: np.ndarray) -> list[float] | None:
  """The 95 % t interval of a mean correlation over draws; None where these are too few."""
  low, high = statistics.spread(values)
  return [max(-1.0, low), min(1.0, high)] if np.isfinite(low) else None


def readers_of(found: Found) -> list[dict[str, Any]]:
  """For each readout its accuracy over the draws, and whether it sees the evidence at all.

  It does where its accuracy lies above chance: the lower end of an interval that is as wide as the
  number of readouts asks.
  """
  chance, level = 1 / found.classes, 1 - compare.ALPHA / len(found.accuracy)
  rows = []
  for name, values in found.accuracy.items():
    low, high = statistics.spread(values, level)
    rows.append({
      'readout': name, 'accuracy': float(values.mean()), 'by_draw': values.tolist(),
      'interval': [max(0.0, low), min(1.0, high)] if np.isfinite(low) else None,
      'chance': chance, 'sees': low > chance,
    })  # fmt: skip
  return sorted(rows, key=lambda row: -row['accuracy'])


def introduction(config: Config) -> Text:
  options = config.explore
  model = (
    config.init_from
    or f'no model: tokens are the pixels of {options.side} x {options.side} patches'
  )
  return Text(
    f'{options.draws} draws of each kind, {options.train_examples} training and '
    f'{options.test_examples} test examples each; the place of the evidence, codes and noise are '
    f'drawn anew. Tokens of codes: {options.width} numbers of unit noise, codes of length '
    f'{options.strength:g}, {options.classes} classes. Pictures: 16 x 16 canvases with a digit in '
    f'one quarter, read by {model}. Heads: Adam, learning rate {options.learning_rate:g}, '
    f'{options.epochs} epochs.'
  )


def finding(finders: dict[str, list[dict[str, Any]]], folder: pathlib.Path) -> list[Block]:
  """Who finds it: a table and a picture."""
  rows = [
    [TITLES[kind], row['finder'], f'{row["found"]} of {row["draws"]}',
     span(row['found_interval']), f'{row["precision"]:.2f}', span(row['precision_interval']),
     f'{row["by_chance"]:.2f}', f'{row["correlation"]:+.2f}', span(row['correlation_interval'])]
    for kind, some in finders.items() for row in some
  ]  # fmt: skip
  path = folder / 'precision.png'
  draw_precision(finders).savefig(path)
  return [
    Heading('Who finds it'),
    Table(['evidence', 'finder', 'top patch planted', '95 %', 'precision', '95 %', 'by chance',
           'rank correlation', '95 %'], rows),
    Text('Patch map: test accuracy of single patches. Mixes: size of their weights. Attention: its '
         'mean over test examples and heads. Precision: of as many patches as were planted, those '
         'that a finder puts first.'),
    Picture(path, 'Precision of each finder, 95 % intervals over draws; the line: by chance.'),
  ]  # fmt: skip


def without_map(found: dict[str, Found]) -> list[Block]:
  """A line on the readouts that point at no patch."""
  names = {name: 0 for one in found.values() for name in one.accuracy if name not in one.maps}
  told = [name for name in names if name != ALONE]
  why = 'Accuracy alone is told of what points at no patch, and of attention to more than patches'
  return [Text(f'{why} as they are: {", ".join(told)}.')] if told else []


def span(interval: Sequence[float] | None) -> str:
  """An interval in two digits."""
  return '' if interval is None else '{:.2f} to {:.2f}'.format(*interval)


def maps(found: dict[str, Found], folder: pathlib.Path) -> list[Block]:
  """The first draw of each kind, as each finder sees it."""
  path = folder / 'maps.png'
  draw_maps(found).savefig(path)
  return [
    Heading('One draw as a picture'),
    Picture(path, 'The first draw: what was planted (framed), and what each finder makes of it.'),
  ]


def reading(found: dict[str, Found], readers: dict[str, list[dict[str, Any]]]) -> list[Block]:
  """Which readouts see the evidence."""
  blocks: list[Block] = [Heading('Which readouts can see it')]
  for kind, rows in readers.items():
    possible = np.nanmean(found[kind].possible) if np.isfinite(found[kind].possible).any() else None
    best = '' if possible is None else f' A reader of the codes would tell {possible:.1%}.'
    blind = [row['readout'] for row in rows if not row['sees']]
    seen = [row['readout'] for row in rows if row['sees']]
    said = 'all do' if not blind else f'see it: {", ".join(seen) or "none"}'
    also = f'; cannot be seen to see it: {", ".join(blind)}' if blind else ''
    blocks += [
      Text(f'{TITLES[kind].capitalize()} (chance {rows[0]["chance"]:.0%}): {said}{also}.{best}'),
      Table(['readout', 'accuracy', '95 % over draws, for so many readouts', 'above chance'],
            [[row['readout'], f'{row["accuracy"]:.1%}', percent(row['interval']),
              'yes' if row['sees'] else 'no'] for row in rows]),
    ]  # fmt: skip
  return [*blocks, Text(
    'Joint evidence: each part alone is of chance, so that no single patch and no linear mix of '
    'patches can tell the class, however it is weighted; what multiplies or mixes patches before '
    'something that is not linear can. Attention without positions cannot tell where a patch lies: '
    'between like patches it does not choose.'
  )]  # fmt: skip


def percent(interval: Sequence[float] | None) -> str:
  """An interval of accuracies."""
  return '' if interval is None else '{:.1%} to {:.1%}'.format(*interval)


def draw_precision(finders: dict[str, list[dict[str, Any]]]) -> Any:
  """A panel for each kind: precision by finder, with its interval."""
  names = [*dict.fromkeys(row['finder'] for rows in finders.values() for row in rows)]
  figure, axes = figures.new_figure(2.2 + 2.0 * len(finders), 1.3 + 0.32 * len(names), 1,
                                    len(finders))  # fmt: skip
  for axis, (kind, rows) in zip(axes[0], finders.items(), strict=True):
    for row in rows:  # A model without class token has fewer.
      place, (low, high) = names.index(row['finder']), row['precision_interval']
      axis.plot([low, high], [place] * 2, color=figures.COLOURS[5], lw=3)
      axis.plot(row['precision'], place, 'o', color=figures.COLOURS[0], ms=5)
    axis.axvline(rows[0]['by_chance'], color='black', lw=0.8, ls='--')
    axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [])
    axis.set(xlim=(-0.05, 1.05), ylim=(len(names) - 0.5, -0.5), xlabel='precision')
    axis.set_xticks([0, 0.5, 1], ['0', '0.5', '1'])
    axis.set_title(TITLES[kind], fontsize=9)
    axis.grid(axis='x', alpha=0.3)
  return figure


def draw_maps(found: dict[str, Found]) -> Any:
  """A row for each kind: its canvas, if there is one, and each finder's map of the first draw."""
  names = [*dict.fromkeys(name for one in found.values() for name in one.maps)]
  columns = 1 + len(names)
  figure, axes = figures.new_figure(1.75 * columns + 0.3, 1.95 * len(found) + 0.3, len(found),
                                    columns)  # fmt: skip
  for row, (kind, one) in zip(axes, found.items(), strict=True):
    planted = one.evidence[0].reshape(one.grid)
    height, width = one.grid
    if one.example.size:
      row[0].imshow(
        one.example[..., 0], cmap='gray', extent=(-0.5, width - 0.5, height - 0.5, -0.5)
      )
    else:
      row[0].imshow(planted, cmap='gray_r', vmin=0, vmax=2)
    row[0].set_title(textwrap.fill(TITLES[kind], 22), fontsize=8)
    for axis, name in zip(row[1:], names, strict=True):
      if name not in one.maps:
        axis.set_visible(False)
        continue
      axis.imshow(one.maps[name][0].reshape(one.grid), cmap='viridis')
      axis.set_title(name, fontsize=8)
    for axis in row:
      frame(axis, planted)
  return figure


def frame(axis: Any, planted: np.ndarray) -> None:
  """Frames the planted patches, and drops the ticks."""
  sides, ups = np.array([-0.5, 0.5, 0.5, -0.5, -0.5]), np.array([-0.5, -0.5, 0.5, 0.5, -0.5])
  for y, x in np.argwhere(planted):
    axis.plot(x + sides, y + ups, color=figures.COLOURS[1], lw=1.5)
  axis.set(xlabel='', ylabel='', xticks=[], yticks=[])
