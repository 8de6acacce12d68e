"""What a run would take on devices that need not be here: `--mode=plan --target=h100:8`.

The run's own train step and forward pass are compiled for the devices. Nothing is computed, and
the folder of the run is not claimed: `W/reports/plan.json` and `plan.md` are all that is written.
"""

import dataclasses
import importlib
import json
import pathlib
from typing import Any

from absl import logging
import jax

from vit_jax import checkpoint, data, defaults, experiment, weights
from vit_jax.defaults import Config
from vit_jax.explore import estimate, plan_page
from vit_jax.explore.alternatives import find_largest, make_table, try_remedies
from vit_jax.explore.estimate import Estimate, Run
from vit_jax.explore.planned import Plan, flops_per_image
from vit_jax.runtime import atomic, distributed, memory, targets
from vit_jax.runtime.progress import track

GB = 1e9
PARTS = ('state', 'activations', 'batch', 'total')


def plan(
  config: Config,
  workdir: pathlib.Path,
  target: str | None = None,
  num_classes: int | None = None,
  fit: bool = False,
  table: bool = True,
) -> dict[str, Any]:
  """Plans a run, and writes `W/reports/plan.json` and `plan.md`.

  Args:
    target: a name of `runtime/targets.py` with its topology; None: the devices here.
    num_classes: what is known of data that are not here.
    fit: also look for the largest batch, and for what makes the asked one fit.
    table: also look at other batch sizes and shardings.

  Returns:
    the content of `plan.json`.

  Raises:
    ValueError: no such target, data that are not here, or a config that cannot be.
  """
  checkpoint.check_owner(workdir, config.to_dict())
  found = examine(open_run(config, workdir, targets.open_target(target), num_classes))
  if table:
    found = dataclasses.replace(found, table=tuple(make_table(found.run, found.asked)))
  if fit:
    found = add_fit(found)
  report = as_json(found, fit)
  folder = workdir / 'reports'
  if distributed.is_first():
    atomic.write_text(folder / 'plan.json', json.dumps(report, indent=2) + '\n')
    atomic.write_text(folder / 'plan.md', plan_page.write(found))
  logging.info('%s\nwritten: %s', plan_page.summary(found), folder / 'plan.md')
  return report


def open_run(
  config: Config, workdir: pathlib.Path, target: targets.Target, num_classes: int | None
) -> Run:
  """What is planned, with its data or what is known of them.

  Raises:
    ValueError: it asks for more devices than the target has, or cannot be on these.
  """
  defaults.check_numbers(config)
  known = weights.passport_of_run(workdir)
  if known is None and config.init_from:
    known = weights.open_source(config.init_from).passport
  several = bool(config.objective.get('multi_label'))
  dataset = open_data(experiment.data_section(config, known), num_classes, several)
  if target.name != 'here':
    if (config.devices or 1) > len(target.devices):
      raise ValueError(f'config.devices={config.devices}: {target.name} has {len(target.devices)}')
    chosen = target.devices[: config.devices]
  else:
    chosen = list(experiment.make_mesh(config, dataset.preprocess.image_size).devices.flat)
  return Run(config, workdir, target, chosen, dataset)


def open_data(section: dict[str, Any], num_classes: int | None, multi_label: bool) -> data.Dataset:
  """The data, or their shapes alone where they are not here and their classes are known.

  Args:
    multi_label: whether a picture of data that are not here may have several labels.

  Raises:
    ValueError: they are not here, and nobody says how many classes they have.
  """
  if num_classes is not None:
    return data.describe(num_classes=num_classes, multi_label=multi_label, **section)
  try:
    return data.build(**section)
  except (ValueError, OSError) as error:
    count = data.known_classes(**section)
    if count is None:
      raise ValueError(
        f'{error}; a plan needs only the number of classes of these data: --num_classes=1000'
      ) from None
    logging.info('the data are not here; they have %d classes', count)
    return data.describe(num_classes=count, multi_label=multi_label, **section)


def examine(run: Run) -> Plan:
  """Compiles what was asked for: the train step, and evaluation's forward pass."""
  built = run.build()
  jobs = track(('train step', 'forward pass'), 2, f'compiling for {run.target.name}', 'programs')
  examine_each = {'train step': estimate.of_step, 'forward pass': estimate.of_forward}
  asked, forward = (examine_each[job](run, built) for job in jobs)
  process = process_size() if run.devices[0].platform == 'cpu' else 0
  dtype = getattr(built.model, 'dtype', 'float32')
  return Plan(run, dtype, asked, forward, flops_per_image(run), process)


def process_size() -> int:
  """Bytes that a run's process holds beside its arrays: libraries, compiled programs.

  Told by this process, which has loaded and compiled the same; the rest of the libraries that a run
  loads are loaded here too.
  """
  for name in ('grain', 'tensorboardX', 'matplotlib.pyplot'):
    importlib.import_module(name)
  return memory.resident()


def add_fit(found: Plan) -> Plan:
  """The plan with the largest batch that fits, and with what makes the asked one fit."""
  run, room = found.run, found.room
  known = [one for one in found.table if one.fsdp == run.config.fsdp and one.seconds]
  largest = find_largest(run, known or [found.asked], room)
  remedies = () if found.fits(found.asked) else tuple(try_remedies(run, room))
  return dataclasses.replace(found, largest=largest, remedies=remedies)


def too_large(config: Config, workdir: pathlib.Path) -> str:
  """What to say of a run for which the devices here have too little memory: a table of remedies."""
  found = examine(open_run(config, workdir, targets.open_target(None), None))
  remedies = tuple(try_remedies(found.run))
  return plan_page.remedies(dataclasses.replace(found, remedies=remedies))


def as_json(found: Plan, fit: bool) -> dict[str, Any]:
  """The content of `plan.json`; every figure is of one device."""
  run, asked = found.run, found.asked
  devices = len(run.devices)
  report: dict[str, Any] = {
    'target': run.target.name,
    'device': run.devices[0].device_kind,
    'devices': devices,
    'batch_size': asked.batch_size,
    'fsdp': asked.fsdp,
    'fits': found.fits_whole,
    'device_memory_gb': run.limit / GB,
    'reserved': run.target.reserved,
    'process_gb': found.process / GB,
  }
  report |= program_json(found, asked)
  report['forward'] = {'batch_size': found.forward.batch_size}
  report['forward'] |= program_json(found, found.forward, training=False)
  peaks = run.target.peaks
  report['peaks'] = dataclasses.asdict(peaks) if peaks else None
  report['compile_seconds'] = asked.seconds
  report['jax'] = jax.__version__
  if fit:
    report['largest_batch_size'] = found.largest.batch_size if found.largest else None
    report['remedy'] = found.remedy
  return plan_page.rounded(report)


def program_json(found: Plan, one: Estimate, training: bool = True) -> dict[str, Any]:
  """What `plan.json` says of a program."""
  seconds = found.bounds(one, training)
  messages: dict[str, dict[str, float]] = {}
  for message in one.messages:
    row = messages.setdefault(message.kind, {'count': 0, 'gb': 0.0})
    row['count'] += message.times
    row['gb'] += message.times * message.size / GB
  return {
    'memory_gb': {key: one.memory[key] / GB if key in one.memory else None for key in PARTS},
    'flops': found.flops_of(one, training),
    'traffic_gb': None if one.traffic is None else one.traffic / GB,
    'traffic_counted_by': one.counted_by,
    'collectives': messages,
    'attention': one.attention,
    'seconds_are': 'lower bounds, each part alone at the published peak',
    'seconds_arithmetic': seconds['arithmetic'],
    'seconds_memory': seconds['memory'],
    'seconds_collectives': seconds['collectives'],
    'images_per_second_at_most': seconds['images_per_second'],
  }
