"""Steps of a run by a budget: what a compute, or a time on this machine, allows; models counted.

A recipe's `sweep()` says `'total_steps': 'flops:2e13'`, floating point operations of the whole
training (three times its forward passes), or `'total_steps': 'seconds:30'`, of training steps as
this machine takes them now. What was counted and measured of each model stands in
`W/reports/models.json`, so that the same command finds the same numbers of steps.
"""

import json
import math
import pathlib
from typing import Any

from absl import logging
import jax

from vit_jax import defaults, weights
from vit_jax.defaults import Config
from vit_jax.explore import counted, page, plan
from vit_jax.explore.compute_page import megabytes, three_digits
from vit_jax.runtime import atomic, distributed, targets
from vit_jax.runtime.choices import check_choice

KINDS = ('flops', 'seconds')
COUNTED, TIMED = counted.Asked(compiled=False), counted.Asked(timed=True)
Record = dict[str, Any]


class Models:
  """What is known of the models of a sweep, one record a model (`explore/counted.py`).

  Args:
    path: a JSON file that keeps them.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.known: dict[str, Record] = json.loads(path.read_text()) if path.exists() else {}

  def record(self, config: Config, timed: bool) -> Record:
    """The record of a run's model; `timed`: with memory, and images a second on this machine.

    Raises:
      ValueError: several processes would each measure another speed.
    """
    key = signature(config)
    if key in self.known and (not timed or is_timed(self.known[key])):
      return self.known[key]
    if timed and distributed.several():
      raise ValueError(
        f'{self.path} has no speed of {title(config)}, and several processes would each measure '
        'another: run the same command with --mode=list in one process first'
      )
    logging.info('counting%s %s', ' and timing' * timed, title(config))
    run = plan.open_run(config, self.path.parent / 'none', targets.here(), None)
    known = {'test_examples': len(run.dataset.splits['test'])}
    self.known[key] = counted.record(title(config), run, TIMED if timed else COUNTED) | known
    jax.clear_caches()  # Else the programs of all models stay in memory.
    if distributed.is_first():
      self.path.parent.mkdir(parents=True, exist_ok=True)
      atomic.write_text(self.path, json.dumps(self.known, indent=2) + '\n')
    return self.known[key]

  def steps(self, config: Config, words: str) -> int:
    """The number of steps that a budget such as 'flops:2e13' allows.

    Raises:
      ValueError: the words are no budget, or allow no step; or a time is asked of a run whose
        teacher is not there.
    """
    kind, _, text = words.partition(':')
    check_choice("kind of budget in sweep(), as in 'flops:1e13'", kind, KINDS)
    try:
      amount = float(text)
    except ValueError:
      amount = math.nan
    if not math.isfinite(amount):
      raise ValueError(f'total_steps {words!r} of sweep(): no finite number behind the colon')
    there = self.without_later_runs(config)
    if kind == 'seconds' and there.objective != config.objective:
      raise ValueError(
        f'total_steps {words!r} of sweep(): a step takes the time of its teacher too, '
        f'{config.objective.teacher}, which is not trained yet; say a number of steps, or flops:'
      )
    found = self.record(there, timed=kind == 'seconds')
    each = found['train_flops']['three_forward'] if kind == 'flops' else seconds_of(found)
    steps = round(amount / (each * config.batch_size))
    if steps < 1:
      raise ValueError(f'total_steps {words!r} of sweep() allows {title(config)} no step')
    return steps

  def without_later_runs(self, config: Config) -> Config:
    """A config less those runs of the sweep that it starts from and that are not there yet.

    The model that it trains, and the arithmetic of a forward pass, are the same without them.
    """
    made, runs = config.copy_and_resolve_references(), self.path.parent.parent / 'runs'

    def is_later(source: str | None) -> bool:
      path = pathlib.Path(source or '')
      if not path.is_relative_to(runs):
        return False
      return not (weights.passport_of_run(path) or weights.own_folder(path))

    if is_later(made.init_from):
      made.init_from = None
    if is_later(made.objective.get('teacher')):
      made.objective = defaults.part('objective', 'classification')
    return made


def is_timed(found: Record) -> bool:
  """Whether a record has the speed of its model."""
  return bool((found['images_per_second'] or {}).get('train_step'))


def seconds_of(found: Record) -> float:
  """Seconds of training that an image takes on this machine.

  Raises:
    ValueError: too little memory was free for a step.
  """
  speed = found['images_per_second']['train_step']
  if speed is None:
    raise ValueError(
      f'{found["model"]} could not be timed for its budget: a step of {found["batch_size"]} takes '
      f'{found["memory_gb"]["total"]:.3g} GB, which are not free; take a smaller config.batch_size'
    )
  return 1 / speed


def is_budget(value: Any) -> bool:
  """Whether a value of `sweep()` is a budget instead of a number of steps."""
  return isinstance(value, str)


def title(config: Config) -> str:
  """A model as a person writes it."""
  return f'{config.model.name}:{config.model.variant}'


def signature(config: Config) -> str:
  """What a record depends on."""
  parts = {key: config[key].to_dict() for key in ('model', 'objective')}
  parts |= {key: config[key] for key in ('batch_size', 'accumulation_steps', 'devices')}
  parts['image_size'] = tuple(config.data.get('image_size', ()))
  parts['optimizer'] = config.optimizer.name
  return json.dumps(parts, sort_keys=True)


HEADER = ('model', 'images', 'parameters', 'MFLOPs', 'training MFLOPs', 'MB of a train step',
          'images a second', 'training')  # fmt: skip


def table(records: list[Record]) -> page.Table:
  """Models beside one another: size, arithmetic of an image, memory and speed of a batch."""
  return page.Table(HEADER, [
    [
      row['model'], ' x '.join(map(str, row['image_size'])), f'{row["parameters"]:,}',
      three_digits(row['flops']['traced'] / 1e6),
      three_digits(row['train_flops']['three_forward'] / 1e6),
      megabytes(row['memory_gb']['train_step']), three_digits(row['images_per_second']['forward']),
      three_digits(row['images_per_second']['train_step']),
    ]
    for row in records
  ])  # fmt: skip
