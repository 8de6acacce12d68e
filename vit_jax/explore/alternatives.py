"""What else a person could ask for: other batches and shardings, the largest batch, remedies."""

from collections.abc import Iterator
from typing import Any

from vit_jax.explore import estimate
from vit_jax.explore.estimate import Estimate, Run
from vit_jax.runtime.progress import track

MOST = 2**20  # images of a batch; nobody asked for more
TRIES = 3  # programs that are compiled to find the largest batch
FULL = 0.97  # of a device: a batch that fills so much of it is the largest, near enough
QUARTERS = (1, 2, 4, 8, 16)  # of the asked batch: what the table shows


def compile_step(run: Run, **settings: Any) -> Estimate:
  """The train step with some settings changed; '__' stands for '.'."""
  changed = run.having(**settings)
  return estimate.of_step(changed, changed.build())


def unit_of(run: Run) -> int:
  """The number of images that every batch is a multiple of."""
  return len(run.devices) * run.config.accumulation_steps


def other_size(size: int, unit: int) -> int:
  """A second batch size for a line: half of the first, or twice where it has no half."""
  half = size // 2 // unit * unit
  return half or 2 * size


def make_table(run: Run, asked: Estimate) -> list[Estimate]:
  """Batch sizes around the asked one, by sharding: whole, and over all devices.

  Two of each sharding are compiled; the others lie on a line through these.
  """
  unit = unit_of(run)
  sizes = sorted({max(unit, asked.batch_size * n // 4 // unit * unit) for n in QUARTERS})
  other = other_size(asked.batch_size, unit)
  shardings = list(dict.fromkeys((asked.fsdp, 1, len(run.devices))))
  found = {(asked.fsdp, asked.batch_size): asked}
  jobs = [(fsdp, size) for fsdp in shardings for size in (asked.batch_size, other)][1:]
  for fsdp, size in track(jobs, len(jobs), 'compiling other batches and shardings', 'programs'):
    found[fsdp, size] = compile_step(run, fsdp=fsdp, batch_size=size)
  rows = []
  for fsdp in shardings:
    pair = found[fsdp, asked.batch_size], found[fsdp, other]
    rows += [found.get((fsdp, size)) or estimate.between(*pair, size) for size in sizes]
  return rows


def find_largest(run: Run, known: list[Estimate], room: int) -> Estimate | None:
  """The largest batch that fits: read off the line through what is known, then compiled.

  Args:
    known: train steps at the run's sharding that were compiled.
    room: bytes of a device that a program may fill.
  """
  by_size = {one.batch_size: one for one in known}
  unit = unit_of(run)
  if len(by_size) == 1:
    size = other_size(run.config.batch_size, unit)
    by_size[size] = compile_step(run, batch_size=size)
  tries = ([size] for size in guesses(by_size, room, unit))  # A bare number would count as many.
  for [size] in track(tries, TRIES, 'compiling the largest batch', 'programs'):
    by_size[size] = compile_step(run, batch_size=size)
  fitting = [size for size, one in by_size.items() if one.total <= room]
  return by_size[max(fitting)] if fitting else None


def guesses(by_size: dict[int, Estimate], room: int, unit: int) -> Iterator[int]:
  """Batch sizes to compile, each by what was found for those before."""
  for _ in range(TRIES):
    size = where_full(list(by_size.values()), room, unit)
    filled = [one.total / room for one in by_size.values() if one.total <= room]
    if size < unit or size in by_size or (filled and max(filled) > FULL):
      return
    yield size


def where_full(known: list[Estimate], room: int, unit: int) -> int:
  """The batch at which the line through the two steps nearest to `room` reaches it."""
  near = sorted(known, key=lambda one: abs(one.total - room))[:2]
  first, second = sorted(near, key=lambda one: one.batch_size)
  slope = (second.total - first.total) / (second.batch_size - first.batch_size)
  if slope <= 0:  # On a CPU small steps are held by each thread, larger ones once (`Run.copies`).
    return min(MOST, 2 * second.batch_size) // unit * unit
  size = first.batch_size + (room - first.total) / slope
  return int(min(MOST, max(0, size))) // unit * unit


def remedies_of(run: Run) -> list[tuple[str, dict[str, Any]]]:
  """What saves memory and is not yet done, in the order in which a person should try it.

  Pairs of the options and the settings that they stand for; the last is all of them together.
  """
  config, count = run.config, len(run.devices)
  found: list[tuple[str, dict[str, Any]]] = []
  if config.model.dtype == 'float32':
    found.append(('--config.model.dtype=bfloat16', {'model__dtype': 'bfloat16'}))
  rows = config.batch_size // count // config.accumulation_steps
  parts = next((n for n in (4, 2) if rows % n == 0), 0)
  if parts:
    steps = parts * config.accumulation_steps
    found.append((f'--config.accumulation_steps={steps}', {'accumulation_steps': steps}))
  if config.model.get('remat', 'blocks') != 'blocks':  # Some families compute all at once.
    found.append(remat_of(run))
  if count > 1 and config.fsdp < count:
    found.append((f'--config.fsdp={count}', {'fsdp': count}))
  if len(found) > 1:
    every = {key: value for _, settings in found for key, value in settings.items()}
    found.append((' '.join(option for option, _ in found), every))
  return found


def remat_of(run: Run) -> tuple[str, dict[str, Any]]:
  """Computing blocks again in the backward pass.

  XLA for the CPU undoes that unless they run in a loop: 639 MB with and without for four blocks of
  Ti/16, 217 MB in a loop (batch 32).
  """
  option, settings = '--config.model.remat=blocks', {'model__remat': 'blocks'}
  if run.devices[0].platform == 'cpu' and not run.config.model.get('scan', True):
    return f'{option} --config.model.scan=True', settings | {'model__scan': True}
  return option, settings


def try_remedies(run: Run, room: int | None = None) -> list[tuple[str, Estimate]]:
  """The train step with each remedy alone, then with all; with `room` up to the first that fits."""
  tried: list[tuple[str, Estimate]] = []
  choices = remedies_of(run)
  for option, settings in track(choices, len(choices), 'compiling remedies', 'programs'):
    tried.append((option, compile_step(run, **settings)))
    if room is not None and tried[-1][1].total <= room:
      break
  return tried
