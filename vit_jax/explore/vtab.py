"""VTAB-1k of a checkpoint: 19 tasks of 1,000 examples, fine-tuned one after another; one table.

  python -m vit_jax.explore.vtab CHECKPOINT --data_dir=D --workdir=W [--tasks=cifar100,dtd]
    [--protocol=paper] [--config.KEY=VALUE ...]

For each task every learning rate and number of steps is tried on 800 examples and judged on the
200 others; what is best there is trained on all 1,000, three times, and tested. With
`--protocol=paper` the ViT paper's one setting is taken instead. Tasks whose data are not prepared
are named, with what prepares them. The same command goes on where it stopped: every run is an
ordinary one, in a folder of its own, and finished ones are not repeated.

W/TASK/tune/*/    the runs that choose, of which only numbers stay
W/TASK/final/*/   the runs that are tested, with their models
W/vtab.json , vtab.md , vtab.png   accuracies: means and deviations by task, by group, over all
"""

import argparse
from collections.abc import Iterator
import dataclasses
import pathlib
import shutil
import signal
import sys
from typing import Any

from absl import logging

from vit_jax import checkpoint
from vit_jax.data import tfds
from vit_jax.data.vtab_tasks import TASKS
from vit_jax.explore import vtab_page
from vit_jax.explore.runs import Run
from vit_jax.explore.sweep import attempt
from vit_jax.explore.vtab_runs import HELD, PAPER, TESTED, Plan, Protocol, base_config, find_tasks
from vit_jax.runtime import compilation, devices, memory, messages
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

SAVING = (
  'less memory: --config.model.dtype=bfloat16, --config.accumulation_steps=32, '
  '--config.model.remat=blocks, a smaller --config.data.image_size'
)


def evaluate(plan: Plan) -> dict[str, Any]:
  """Runs what is not finished, and writes the tables after each task.

  Returns:
    the content of `vtab.json`.

  Raises:
    ValueError: a folder belongs to a run of other settings.
    KeyboardInterrupt: somebody stopped a run; its checkpoint is saved.
  """
  records: dict[str, dict[str, Any]] = {}
  about = {'checkpoint': plan.config.init_from, 'protocol': dataclasses.asdict(plan.protocol)}

  def work() -> Iterator[None]:
    for task in plan.tasks:
      records[task] = yield from fine_tune(plan, task)
      vtab_page.write(plan.workdir, records, plan.missing, about)

  for _ in track(work(), len(plan.tasks) * plan.protocol.runs, 'VTAB-1k', 'fine-tunings'):
    pass
  return vtab_page.write(plan.workdir, records, plan.missing, about)


def fine_tune(plan: Plan, task: str) -> Iterator[None]:
  """All fine-tunings of a task, with a halt after each; returns what they say.

  Raises:
    ValueError: every setting diverged.
  """
  settings, tuned = plan.protocol.settings, []
  for rate, steps in settings if len(settings) > 1 else ():
    run = finish(plan.run(task, 'tune', rate, steps, 0))
    scores = run.scores()
    held = scores and scores[HELD]
    tuned.append({'learning_rate': rate, 'total_steps': steps, 'validation_accuracy': held})
    yield
  judged = [row for row in tuned if row['validation_accuracy'] is not None]
  if tuned and not judged:
    raise ValueError(f'{task}: every setting diverged; try lower --learning_rates')
  best = max(judged, key=lambda row: row['validation_accuracy'], default=None)
  rate, steps = (best['learning_rate'], best['total_steps']) if best else settings[0]
  found = []
  for seed in range(plan.protocol.seeds):
    scores = finish(plan.run(task, 'final', rate, steps, seed)).scores()
    found += [scores[TESTED]] if scores else []
    yield
  return vtab_page.record(TASKS[task].group, found, rate, steps, tuned)


def finish(run: Run) -> Run:
  """A run that is finished, or failed, now or before; of one that tunes its numbers stay alone.

  Raises:
    ValueError: its folder belongs to a run of other settings.
  """
  config = run.config.to_dict()
  if run.is_finished and (run.workdir / 'config.json').exists():
    checkpoint.check_same(run.workdir, config)
  else:
    checkpoint.check_owner(run.workdir, config)
    logging.info('%s', run.name)
    attempt(run)
  for name in () if run.kept else ('checkpoints', 'model'):
    shutil.rmtree(run.workdir / name, ignore_errors=True)
  return run


def numbers(kind: type) -> Any:
  """A reader of '0.01,0.003' as numbers above 0."""

  def read(text: str) -> tuple:
    try:
      found = tuple(kind(word) for word in text.split(','))
    except ValueError:
      found = ()
    if not found or min(found) <= 0 or len({*found}) < len(found):
      raise argparse.ArgumentTypeError(f'{text!r}: different numbers above 0, commas between')
    return found

  return read


def protocol_of(options: argparse.Namespace) -> Protocol:
  """What the options ask for.

  Raises:
    ValueError: they change the paper's protocol, or ask for no run at all.
  """
  given = {key: getattr(options, key) for key in ('learning_rates', 'steps')}
  given = {key: value for key, value in given.items() if value is not None}
  if options.protocol == 'paper' and given:
    raise ValueError(f'--protocol=paper has one setting: leave --{next(iter(given))} out')
  if options.seeds < 1:
    raise ValueError(f'--seeds={options.seeds} must be at least 1')
  chosen = PAPER if options.protocol == 'paper' else Protocol()
  return dataclasses.replace(chosen, seeds=options.seeds, **given)


def open_plan(options: argparse.Namespace, words: list[str]) -> Plan:
  """What a command line asks for.

  Raises:
    ValueError: an unknown task or key, or no task whose data are there.
  """
  asked = options.tasks.split(',') if options.tasks else list(TASKS)
  for task in asked:
    check_choice('task in --tasks', task, TASKS)
  protocol = protocol_of(options)
  tfds.check_folder(options.data_dir)
  config, given = base_config(options.checkpoint, options.data_dir, words)
  tasks, missing = find_tasks(config, asked)
  said = '\n'.join(f'  {task}: {why}' for task, why in missing.items())
  if not tasks:
    raise ValueError(f'none of the {len(asked)} tasks can be run:\n{said}')
  logging.info('%d of %d tasks can be run: %s', len(tasks), len(asked), ', '.join(tasks))
  if missing:
    logging.warning('%d are left out:\n%s', len(missing), said)
  return Plan(config, given, protocol, tasks, missing, options.workdir)


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.explore.vtab`."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.explore.vtab', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  add = parser.add_argument
  add('checkpoint', help='a run, a weight file, or an address')
  add('--workdir', required=True, type=pathlib.Path)
  add('--data_dir', help='where TFDS sets are; ~/tensorflow_datasets')
  add('--tasks', help=f'some of {", ".join(TASKS)}, with commas between; all')
  add('--protocol', choices=['tuned', 'paper'], default='tuned', help='paper: one setting for all')
  add('--learning_rates', type=numbers(float), help='to choose from; 0.01,0.003')
  add('--steps', type=numbers(int), help='to choose from; 2500,500')
  add('--seeds', type=int, default=3, help='fine-tunings with the chosen setting')
  messages.show()
  memory.keep_freed(memory.LARGE)
  compilation.keep()
  devices.prepare()
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C; the loop takes both over.
  options, words = parser.parse_known_args(arguments)
  try:
    report = evaluate(open_plan(options, words))
    print(vtab_page.summary(report))
  except KeyboardInterrupt:
    sys.exit('stopped; the same command goes on from here')
  except MemoryError as error:
    sys.exit(f'error: {error}; {SAVING}')
  except (ValueError, TypeError, OSError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
