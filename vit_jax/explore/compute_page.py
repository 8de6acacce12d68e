"""Records of models as a table of a terminal, and as a picture: arithmetic, memory, speed."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from vit_jax.figures import new_figure, style

Row = dict[str, Any]
Number = int | float


def thousand_million(x: Number | None) -> str:
  return '-' if x is None else f'{x / 1e9:.2f}'


def three_digits(x: Number | None) -> str:
  return '-' if x is None else f'{x:,.0f}' if x >= 100 else f'{x:.3g}'


def megabytes(x: Number | None) -> str:
  return '-' if x is None else f'{1000 * x:,.0f}'


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the table.

  Attributes:
    value: of a record.
    needs: the part of a record without which the column is left out.
  """

  title: str
  width: int
  value: Callable[[Row], str]
  needs: str = 'parameters'


def of(section: str, key: str) -> Callable[[Row], Any]:
  """The number `key` in a part of a record; None where that was not asked for."""
  return lambda row: (row[section] or {}).get(key)


def adds(row: Row) -> float | None:
  """All multiply-adds of the closed form; None where a family has none."""
  analytic = row['flops']['analytic']
  return None if analytic is None else analytic / 2


def shown(section: str, key: str, text: Callable[[Any], str]) -> Callable[[Row], str]:
  """A number of a record as text."""
  value = of(section, key)
  return lambda row: text(value(row))


COLUMNS = (
  Column('px', 9, lambda row: 'x'.join(map(str, dict.fromkeys(row['image_size'])))),
  Column('parameters', 14, lambda row: f'{row["parameters"]:,}'),
  Column('GMACs', 9, lambda row: thousand_million(adds(row))),
  Column('GFLOPs', 9, shown('flops', 'traced', thousand_million)),
  Column('by XLA', 9, shown('flops', 'xla', thousand_million), 'memory_gb'),
  Column('train', 9, shown('train_flops', 'traced', thousand_million)),
  Column('batch', 6, lambda row: str(row['batch_size']), 'memory_gb'),
  Column('MB forward', 11, shown('memory_gb', 'forward', megabytes), 'memory_gb'),
  Column('MB train', 9, shown('memory_gb', 'train_step', megabytes), 'memory_gb'),
  Column('forward/s', 10, shown('images_per_second', 'forward', three_digits), 'images_per_second'),
  Column('train/s', 8, shown('images_per_second', 'train_step', three_digits), 'images_per_second'),
  Column('largest', 8, lambda row: str(row['largest_batch_size']), 'largest_batch_size'),
  Column('exaFLOPs', 10, shown('exaflops', 'traced', three_digits), 'exaflops'),
  Column('3 forward', 10, shown('exaflops', 'three_forward', three_digits), 'exaflops'),
)
TITLE = 22  # characters of a model's name; that of a recipe may be longer


def header(first: Row) -> str:
  """The titles of the table's columns, for records with the parts of this one."""
  columns = ''.join(f'{one.title:>{one.width}}' for one in chosen(first))
  return f'{"model":{max(TITLE, len(first["model"]))}}{columns}'


def line(row: Row) -> str:
  """A record as a row of the table."""
  columns = ''.join(f'{one.value(row):>{one.width}}' for one in chosen(row))
  return f'{row["model"]:{TITLE}}{columns}'


def chosen(row: Row) -> list[Column]:
  """The columns whose part is there."""
  return [one for one in COLUMNS if row[one.needs] is not None]


@dataclasses.dataclass(frozen=True)
class Panel:
  """What a panel of the picture draws against the side of the images."""

  label: str
  value: Callable[[Row], Number | None]


def scaled(section: str, key: str, factor: float) -> Callable[[Row], Number | None]:
  """A number of a record in other units."""
  value = of(section, key)
  return lambda row: None if value(row) is None else factor * value(row)


PANELS = (
  Panel('GFLOPs of an image, forward', scaled('flops', 'traced', 1e-9)),
  Panel('GB of activations, train step of {batch_size}', of('memory_gb', 'train_step')),
  Panel('images a second, forward', of('images_per_second', 'forward')),
  Panel('images a second, train step', of('images_per_second', 'train_step')),
  Panel('largest batch of a train step', lambda row: row['largest_batch_size']),
)


def picture(rows: list[Row]) -> Any:
  """FLOPs against parameters, then each number that is there against the side of the images."""
  panels = [one for one in PANELS if any(one.value(row) for row in rows)]
  count = 1 + len(panels)
  columns = min(3, count)
  lines = math.ceil(count / columns)
  figure, axes = new_figure(4.4 * columns, 3.9 * lines + 0.4, lines, columns)
  places = list(axes.flat)
  names = list(dict.fromkeys(row['model'] for row in rows))
  against_parameters(places[0], rows, names)
  for axis, panel in zip(places[1:], panels, strict=False):
    against_side(axis, rows, names, panel)
  for axis in places[count:]:
    axis.axis('off')
  entries = places[0].get_legend_handles_labels()
  wide = min(len(names), 2 * columns)
  figure.legend(*entries, loc='outside lower center', ncols=wide, frameon=False, fontsize=9)
  return figure


def against_parameters(axis: Any, rows: list[Row], names: list[str]) -> None:
  """A point for each model and size; the sizes of one model stand above one another."""
  for number, name in enumerate(names):
    own = [row for row in rows if row['model'] == name]
    across = [row['parameters'] / 1e6 for row in own]
    axis.plot(across, [row['flops']['traced'] / 1e9 for row in own], label=name, **style(number))
  axis.set(xscale='log', yscale='log')
  axis.set(xlabel='million parameters', ylabel='GFLOPs of an image, forward')
  axis.margins(0.15)
  finish(axis)


def against_side(axis: Any, rows: list[Row], names: list[str], panel: Panel) -> None:
  """A line for each model; without a number there is no point."""
  for number, name in enumerate(names):
    own = [row for row in rows if row['model'] == name and panel.value(row)]
    places = [row['image_size'][0] for row in own]
    axis.plot(places, [panel.value(row) for row in own], **style(number))
  sides = sorted({row['image_size'][0] for row in rows})
  axis.set(xlabel='side of the images, pixels', ylabel=panel.label.format(**rows[0]), yscale='log')
  axis.set_xticks(sides, [str(side) for side in sides])
  axis.margins(0.15)
  finish(axis)


def finish(axis: Any) -> None:
  """Plain numbers instead of powers of ten, and a grid."""
  from matplotlib.ticker import FuncFormatter, LogLocator

  for one in (axis.yaxis, axis.xaxis):
    if one.get_scale() == 'log':
      low, high = one.get_view_interval()
      subs = (1, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5)
      one.set_major_locator(LogLocator(subs=subs, numticks=12))
      one.set_major_formatter(FuncFormatter(lambda x, _: three_digits(x)))
      one.set_minor_formatter(FuncFormatter(lambda *_: ''))
  axis.grid(alpha=0.3)
