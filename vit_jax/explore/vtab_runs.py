"""The fine-tunings of VTAB-1k: what is tried for each task, and the config of each run."""

import dataclasses
import pathlib
from typing import Any

from vit_jax import data, defaults, recipe, weights
from vit_jax.defaults import Config
from vit_jax.explore.runs import Run

# Keys that the protocol decides, and how a person asks for something else.
DECIDED = {
  'total_steps': '--steps', 'optimizer.learning_rate': '--learning_rates', 'seed': '--seeds',
  'data.task': '--tasks', 'data.data_dir': '--data_dir', 'data.name': None, 'data.examples': None,
  'init_from': 'CHECKPOINT', 'run': None, 'eval_every': None, 'best': None,
  'evaluators': None,
}  # fmt: skip
HELD, TESTED = 'validation/accuracy', 'test/accuracy'
WARMUP = 200  # steps, or a fifth of the run (Scenic's settings)
EVERY = 500  # steps from one checkpoint to the next


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What is tried, and how often the best of it is repeated."""

  learning_rates: tuple[float, ...] = (0.01, 0.003)
  steps: tuple[int, ...] = (2500, 500)
  seeds: int = 3

  @property
  def settings(self) -> list[tuple[float, int]]:
    """Pairs (learning rate, steps)."""
    return [(rate, steps) for steps in self.steps for rate in self.learning_rates]

  @property
  def runs(self) -> int:
    """Fine-tunings of a task; nothing is chosen of one setting."""
    return (len(self.settings) if len(self.settings) > 1 else 0) + self.seeds


PAPER = Protocol((0.01,), (2500,))  # arXiv:2010.11929, table 4


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is run.

  Attributes:
    config: what all runs share.
    given: keys that a person gave, which the protocol leaves as they are.
    missing: of tasks that cannot be run, what prepares their data.
  """

  config: Config
  given: tuple[str, ...]
  protocol: Protocol
  tasks: tuple[str, ...]
  missing: dict[str, str]
  workdir: pathlib.Path

  def run(self, task: str, kind: str, rate: float, steps: int, seed: int) -> Run:
    """A fine-tuning; `kind` is tune, of 800 examples, or final, of 1,000."""
    tuning = kind == 'tune'
    overrides: dict[str, Any] = {
      'data.task': task,
      'data.examples': '800' if tuning else '1000',
      'optimizer.learning_rate': rate,
      'total_steps': steps,
      'seed': seed,
      # Without this a run is evaluated by what chooses its checkpoint alone: tuning never tests.
      'eval_every': 0 if tuning else steps,
      'checkpoint_every': EVERY,
      'optimizer.warmup_steps': min(WARMUP, steps // 5),
    }
    left = {key: value for key, value in overrides.items() if key not in self.given}
    config = self.config.copy_and_resolve_references()
    config.update_from_flattened_dict(left)
    name = f'learning_rate={rate:g},steps={steps}' + f',seed={seed}' * (not tuning)
    where, measured = self.workdir / task / kind / name, HELD if tuning else TESTED
    return Run(f'{task}: {name}', left, left, config, where, measured, kept=not tuning)


def base_config(source: str, data_dir: str | None, words: list[str]) -> tuple[Config, tuple]:
  """What all runs share, as `configs/finetune.py` has it, and the keys that `words` override.

  Raises:
    ValueError: weights that cannot be read, or a key that does not exist or that is decided here.
  """
  model = weights.open_source(source).passport.model['name']
  config = defaults.get_config()
  config.data = dict(name='vtab', task='cifar100', data_dir=data_dir, image_size=(384, 384))
  config.model = dict(name=model)
  config.optimizer = dict(
    name='sgd', momentum_dtype='bfloat16', clip_norm=1.0, weight_decay=0.0, schedule='cosine'
  )
  config.init_from = source
  config.batch_size, config.accumulation_steps = 512, 8
  config.keep_checkpoints = 2
  given = [key for key, _ in recipe.sort_words(words)[2]]
  for key in given:
    if key in DECIDED:
      instead = f': use {DECIDED[key]}' if DECIDED[key] else ''
      raise ValueError(f'--config.{key} is decided by the protocol of VTAB{instead}')
  return recipe.read(words, config), tuple(given)


def find_tasks(config: Config, asked: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
  """The tasks whose data are there, and of the others what is wrong with them."""
  there, missing = [], {}
  for task in asked:
    section = config.data.to_dict() | {'task': task}
    try:
      data.build(**section)
      there.append(task)
    except (ValueError, OSError) as error:
      missing[task] = str(error)
  return tuple(there), missing
