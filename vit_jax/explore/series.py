"""What the runs of a sweep measured beside accuracy: a table; numbers by block as lines."""

from collections.abc import Iterable
import pathlib
import re
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.explore import page

SHOWN = ('test/accuracy', 'test/loss')  # The sweep's own table has the one, curves the other.
Records = list[dict[str, Any]]


def blocks(records: Records, keys: list[str], folder: pathlib.Path) -> list[page.Block]:
  """A section of other numbers of the test split, if any were measured; pictures go to `folder`."""
  found = by_setting(records, keys)
  names = list(dict.fromkeys(name for row in found.values() for name in row))
  numbered = by_block(names)
  single = [name for name in names if name.rpartition('_')[0] not in numbered]
  made: list[page.Block] = []
  if single:
    header = ['setting', *(name.removeprefix('test/') for name in single)]
    rows = [
      [setting, *('' if name not in row else f'{row[name]:.4g}' for name in single)]
      for setting, row in found.items()
    ]
    made += [page.Heading('Also measured on test, means over seeds', 2), page.Table(header, rows)]
  for name in numbered:
    title = name.removeprefix('test/')
    path = folder / f'{title}.png'
    lines(found, name).savefig(path)
    made.append(page.Picture(path, f'{title} by block (0: the input), means over seeds.'))
  return made


def by_block(names: Iterable[str]) -> list[str]:
  """The NAME of names NAME_0, NAME_1, ...: numbers by block, from 0 on without a gap.

  What is numbered otherwise is no series: few-shot accuracies by shots, and those of nearest
  neighbours, knn_10_0, by temperature.
  """
  found: dict[str, set[int]] = {}
  for name in names:
    start, _, number = name.rpartition('_')
    if number.isdecimal() and not start.startswith('test/knn_'):
      found.setdefault(start, set()).add(int(number))
  return [start for start, own in found.items() if len(own) > 1 and own == {*range(len(own))}]


def name_of(row: dict[str, Any], keys: list[str], rows: Records) -> str:
  """A setting in a few words: values that all rows have as they are, others with their key.

  What is the same in all rows is left out, where they differ in anything.
  """
  telling = [key for key in keys if len({repr(other.get(key)) for other in rows}) > 1] or keys
  words = [
    str(row[key]) if all(other.get(key) is not None for other in rows)
    else f'{key.rpartition(".")[2]}={row[key]}'
    for key in telling if row.get(key) is not None
  ]  # fmt: skip
  return ', '.join(words) or 'base'


def by_setting(records: Records, keys: list[str]) -> dict[str, dict[str, float]]:
  """The mean over seeds of every other number of the test split, by setting."""
  groups: dict[str, Records] = {}
  for record in records:
    setting = name_of(record, keys, records)
    groups.setdefault(setting, []).append(record)
  return {
    setting: {name: float(np.mean([m[name] for m in members if name in m]))
              for name in numbers_of(members)}
    for setting, members in groups.items()
  }  # fmt: skip


def numbers_of(members: Records) -> Iterable[str]:
  """Names of what some runs measured of the test split."""
  names = dict.fromkeys(name for member in members for name in member)
  return [name for name in names if name.startswith('test/') and name not in SHOWN]


def lines(found: dict[str, dict[str, float]], name: str) -> Any:
  """A line for each setting that has numbers NAME_0, NAME_1, ..."""
  figure, axes = figures.new_figure(7.5, 4.0)
  axis = axes[0, 0]
  drawn = {setting: row for setting, row in found.items() if f'{name}_0' in row}
  for i, (setting, row) in enumerate(drawn.items()):
    count = sum(re.fullmatch(re.escape(name) + r'_\d+', key) is not None for key in row)
    values = [row[f'{name}_{k}'] for k in range(count)]
    axis.plot(values, label=figures.plain(setting), **figures.style(i))
  axis.set(xlabel='block (0: the input)', ylabel=name.removeprefix('test/'))
  most = max(len(line.get_xdata()) for line in axis.lines)
  axis.set_xticks(range(0, most, 1 + most // 16))
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.0, 1.0), loc='upper left')
  return figure
