"""A plan in words and tables: `W/reports/plan.md`, and what the command says."""

from collections.abc import Sequence
import pathlib
from typing import Any

from vit_jax.explore import page
from vit_jax.explore.alternatives import unit_of
from vit_jax.explore.estimate import Estimate
from vit_jax.explore.page import Block, Heading, Table, Text
from vit_jax.explore.planned import Plan

GB = 1e9
BOUNDS = {
  'arithmetic': 'arithmetic',
  'memory': 'reading and writing memory',
  'collectives': 'messages between devices',
}


def write(found: Plan) -> str:
  """The page, in Markdown."""
  run = found.run
  blocks: list[Block] = [
    Heading(f'Plan for {run.target.name}: {len(run.devices)} x {run.devices[0].device_kind}', 1),
    Text(summary(found)),
    Table(('what, on each device', 'train step', 'evaluation'), part_rows(found)),
    Text(honesty(found)),
  ]
  if found.table:
    blocks += [Heading('Batch sizes and shardings'), Table(TABLE, table_rows(found)), Text(
      'Batch sizes are of all devices together. Rows marked * were compiled; the others lie on a '
      'line through these, as memory and traffic grow evenly with the batch.')]  # fmt: skip
  if found.remedies:
    blocks += [Heading('What saves memory'), Table(REMEDIES, remedy_rows(found))]
  return page.markdown(blocks, pathlib.Path())


def summary(found: Plan) -> str:
  """Whether the asked run fits, and what bounds its speed."""
  run, asked = found.run, found.asked
  where = f'{len(run.devices)} x {run.devices[0].device_kind}'
  larger = max(asked.total, found.forward.total)
  text = (
    f'A batch of {asked.batch_size} with fsdp={asked.fsdp} '
    f'{"fits" if found.fits_whole else "does not fit"} on {where}: {gigabytes(larger)} of '
    f'{gigabytes(found.room)} GB a device.'
  )
  if found.forward.total > max(asked.total, found.room):
    text += ' Evaluation takes more than training: lower config.evaluation.batch_size.'
  if asked.attention:
    text += f' Attention runs in the {asked.attention} form.'
  text += speed(found)
  if found.largest:
    text += f' The largest batch that fits is {found.largest.batch_size} (compiled).'
  if found.remedies:
    options = found.remedy
    text += f' It would fit with {options}.' if options else ' No remedy that was tried is enough.'
  return text


def speed(found: Plan) -> str:
  """What bounds the speed of the train step, in a sentence or two."""
  seconds = found.bounds(found.asked)
  if seconds['images_per_second'] is None:
    return ' No peak figures are published for it, so nothing is said of its speed.'
  longest = max(BOUNDS, key=lambda key: seconds[key] or 0)
  return (
    f' At most {seconds["images_per_second"]:,.0f} images a second, bound by {BOUNDS[longest]}: '
    f'at the published peaks, arithmetic takes {milliseconds(seconds["arithmetic"])} ms a step, '
    f'memory {milliseconds(seconds["memory"])}, messages {milliseconds(seconds["collectives"])}.'
  )


def part_rows(found: Plan) -> list[list[str]]:
  """What train step and evaluation take, a row for each part."""
  both = (found.asked, found.forward)
  flops = (found.flops_of(found.asked), found.flops_of(found.forward, training=False))
  return [
    ['images, of all devices', *(str(one.batch_size) for one in both)],
    *([f'{key}, GB', *(gigabytes(one.memory.get(key)) for one in both)]
      for key in ('state', 'activations', 'batch', 'total')),
    ['arithmetic, TFLOP', *(f'{x / 1e12:.4g}' for x in flops)],
    ['traffic, GB', *(gigabytes(one.traffic) for one in both)],
    ['messages, GB', *(gigabytes(message_bytes(one)) for one in both)],
    ['attention', *(str(one.attention) for one in both)],
  ]  # fmt: skip


def honesty(found: Plan) -> str:
  """What the figures are, what was left out, and where the peaks come from."""
  run = found.run
  text = (
    'Memory is what the compiler assigned, with four batches on the device: one in use, the others '
    f'made ahead. A device has {gigabytes(run.limit)} GB for programs: {run.target.reserved}.'
  )
  if found.process:
    text += f' The process itself takes {gigabytes(found.process)} GB before the first step.'
  counted = found.asked.counted_by
  by = 'by XLA' if counted == 'xla' else 'from the program: what each instruction reads and writes'
  text += f' Traffic is counted {by}.'
  if run.target.peaks:
    text += f' Peaks: {run.target.peaks.source}. Times are lower bounds; a real step takes longer.'
  return text


TABLE = (
  'batch', 'fsdp', 'GB a device', 'fits', 'images a second at most', 'messages, GB', 'compiled',
)  # fmt: skip


def table_rows(found: Plan) -> list[list[str]]:
  """A row for each batch size and sharding."""
  rows = []
  for one in found.table:
    at_most = found.bounds(one)['images_per_second']
    rows.append(
      [
        str(one.batch_size),
        str(one.fsdp),
        gigabytes(one.total),
        yes(found.fits(one)),
        f'{at_most:,.0f}' if at_most else '-',
        gigabytes(message_bytes(one)),
        '*' if one.seconds else '',
      ]
    )
  return rows


REMEDIES = ('option', 'GB a device', 'fits')


def remedy_rows(found: Plan) -> list[list[str]]:
  """The asked run as it is, and with each remedy."""
  rows, options = [('as it is', found.asked)], [option for option, _ in found.remedies]
  for option, one in found.remedies:
    every = len(options) > 2 and all(other in option for other in options)
    rows.append(('all of these' if every else option, one))
  return [[option, gigabytes(one.total), yes(found.fits(one))] for option, one in rows]


def remedies(found: Plan) -> str:
  """The remedies as lines of a terminal, and a batch that would fit without them."""
  text = columns([REMEDIES, *remedy_rows(found)])
  text += f'\n{gigabytes(found.room)} GB of a device are there for this run'
  if found.forward.total > found.room:
    return (
      f'{text}; evaluation takes {gigabytes(found.forward.total)}: --config.evaluation.batch_size'
    )
  size = smaller_batch(found)
  return f'{text}; as it is, about --config.batch_size={size} would fit' if size else text


def smaller_batch(found: Plan) -> int:
  """The batch that would fit if all but the state grows with it; 0: none, or the asked one does."""
  asked, unit = found.asked, unit_of(found.run)
  state = asked.memory.get('state', asked.total)
  if found.fits(asked) or asked.total == state:
    return 0
  share = (found.room - state) / (asked.total - state)
  return max(0, int(share * asked.batch_size)) // unit * unit


def columns(rows: Sequence[Sequence[str]]) -> str:
  """Rows of words under one another."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ('  '.join(word.ljust(width) for word, width in zip(row, widths, strict=True))
           for row in rows)  # fmt: skip
  return '\n'.join('  ' + line.rstrip() for line in lines)


def message_bytes(one: Estimate) -> int:
  """Bytes of all messages of a call."""
  return sum(message.times * message.size for message in one.messages)


def yes(fits: bool) -> str:
  return 'yes' if fits else 'no'


def gigabytes(size: int | None) -> str:
  return '-' if size is None else f'{size / GB:.3g}'


def milliseconds(seconds: float | None) -> str:
  return '-' if seconds is None else f'{1000 * seconds:.3g}'


def rounded(value: Any) -> Any:
  """Numbers with six digits, in whatever they stand."""
  if isinstance(value, dict):
    return {key: rounded(x) for key, x in value.items()}
  return float(f'{value:.6g}') if isinstance(value, float) else value
