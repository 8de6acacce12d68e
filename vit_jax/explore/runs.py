"""What a recipe's `sweep()` names, as runs: each its config, its folder and its command.

Where settings are many, `'label': 'with a teacher'` names them, in the table and the folders; and
`'objective.teacher': 'run:LABEL'` is the folder of an earlier run of that label (and that seed), as
`'init_from': 'run:LABEL'` is; a run that others name need not tell classes: it is not compared.
`'total_steps'` may be a budget (`budget.py`).
"""

import collections
import copy
import dataclasses
import pathlib
import re
import shlex
from typing import Any

from vit_jax import checkpoint, defaults, metrics, weights
from vit_jax.defaults import Config
from vit_jax.explore import budget

TUNED = ('optimizer.learning_rate',)  # what validation chooses where a recipe does not say


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep; `overrides` are what differs from its config on the command line.

  `shown` is what names its setting in the table: the overrides, or its label. A run is finished
  once its last step says what is `measured` (None: any number of the test split) and its model is
  there, unless of its folder only the numbers are `kept`.
  """

  name: str
  shown: dict[str, Any]
  overrides: dict[str, Any]
  config: Config
  workdir: pathlib.Path
  measured: str | None = None
  kept: bool = True

  @property
  def is_finished(self) -> bool:
    """Whether nothing is left to do: it diverged, or its numbers and its model are there.

    The numbers of the last step are written before its checkpoint: who is killed in between has
    lost the weights, and only another run brings them back.
    """
    if self.failure.exists() or self.scores() is None:
      return self.failure.exists()
    newest = checkpoint.newest_passport(self.workdir)
    is_saved = newest is None or newest['step'] >= self.config.total_steps
    return not self.kept or (is_saved and weights.has_current_model(self.workdir))

  def scores(self) -> dict[str, Any] | None:
    """What the last step says, or that of the best checkpoint where `config.best` is set.

    None before the last step.
    """
    rows = metrics.read(self.workdir / 'metrics.jsonl')
    if not rows or rows[-1]['step'] < self.config.total_steps or not self.is_judged(rows[-1]):
      return None
    if not self.config.best:
      return rows[-1]
    mode, _, name = self.config.best.partition(':')
    judged = [row for row in rows if name in row and self.is_judged(row)]
    return {'max': max, 'min': min}[mode](judged, key=lambda row: row[name])

  def is_judged(self, row: dict[str, Any]) -> bool:
    """Whether a row says what is to be measured."""
    return self.measured in row if self.measured else is_judged(row)

  @property
  def failure(self) -> pathlib.Path:
    """Where it says why the run diverged."""
    return self.workdir / 'failed.txt'


def is_judged(row: dict[str, Any]) -> bool:
  """Whether a line of metrics has numbers of the test split."""
  return any(key.startswith('test/') for key in row)


def plan(
  config: Config,
  choices: list[dict[str, Any]],
  workdir: pathlib.Path,
  tuned: tuple[str, ...] | None = None,
) -> list[Run]:
  """The runs of a sweep.

  Args:
    tuned: keys that validation chooses, which a label does not stand for; None: as `kept_of` finds.

  Raises:
    ValueError: none, two of the same, or a key or value that does not exist.
  """
  if not choices:
    raise ValueError('sweep() of the recipe names no run')
  check_said(choices)
  kept = kept_of(choices, tuned)
  names = [name_of(overrides, choices, kept) for overrides in choices]
  twice = sorted(name for name, times in collections.Counter(names).items() if times > 1)
  if twice:
    raise ValueError(f'sweep() of the recipe names some runs twice: {", ".join(twice[:5])}')
  runs: list[Run] = []
  models = budget.Models(workdir / 'reports' / 'models.json')
  sources = {value for choice in choices for value in choice.values() if is_run(value)}
  for name, choice in zip(names, choices, strict=True):
    shown = {key: choice[key] for key in kept if key in choice}
    overrides = {key: resolve(value, runs, choice) for key, value in choice.items()
                 if key != 'label'}  # fmt: skip
    made = child(config, overrides, models)
    if f'run:{choice.get("label")}' not in sources:
      check_compared(made)
    runs.append(Run(name, shown if 'label' in choice else overrides, overrides, made,
                    workdir / 'runs' / name))  # fmt: skip
  return runs


def check_said(choices: list[dict[str, Any]]) -> None:
  """Raises a ValueError where a value of None could be taken for one that is not said at all."""
  plain = [choice for choice in choices if 'label' not in choice]
  for key in dict.fromkeys(key for one in plain for key, value in one.items() if value is None):
    if any(key not in choice for choice in plain):
      raise ValueError(
        f'sweep() of the recipe: {key} is None in some runs and missing in others, which would '
        'count as one setting; say its value in each, or give the runs labels'
      )


def kept_of(choices: list[dict[str, Any]], tuned: tuple[str, ...] | None) -> tuple[str, ...]:
  """The keys that name a run which has a label: that, what is tuned, and its seed.

  Where a recipe does not say what is tuned, `TUNED` is if labels and seeds leave some runs alike;
  else a label stands for its learning rate too.
  """
  if tuned is None:
    labelled = [(one['label'], one.get('seed')) for one in choices if 'label' in one]
    tuned = TUNED if len({*labelled}) < len(labelled) else ()
  return ('label', *tuned, 'seed')


def resolve(value: Any, before: list[Run], choice: dict[str, Any]) -> Any:
  """A value of `sweep()`; 'run:LABEL' becomes the folder of that run.

  Raises:
    ValueError: no run before this one has the label.
  """
  if not is_run(value):
    return value
  label = value.removeprefix('run:')
  found = [run for run in before if run.shown.get('label') == label]
  same = [run for run in found if run.shown.get('seed') == choice.get('seed')]
  if not found:
    raise ValueError(f'sweep() of the recipe: {value} names no run before it')
  return str((same or found)[0].workdir)


def is_run(value: Any) -> bool:
  """Whether a value of `sweep()` names another run."""
  return isinstance(value, str) and value.startswith('run:')


def name_of(overrides: dict[str, Any], choices: list[dict[str, Any]], kept: tuple[str, ...]) -> str:
  """A folder's name, of the last words of the keys where those tell them apart.

  Args:
    kept: the keys that name a run beside its label, where it has one.
  """
  if 'label' in overrides:
    overrides = {key: overrides[key] for key in kept if key in overrides}
  keys = {key for other in choices for key in other}
  last = [key.rpartition('.')[2] for key in keys]
  short = {key: key.rpartition('.')[2] for key in keys if last.count(key.rpartition('.')[2]) == 1}
  text = ','.join(
    value if key == 'label' else f'{short.get(key, key)}={value}'
    for key, value in overrides.items()
  )
  return re.sub(r'[^\w.,=+-]', '_', text)


def child(config: Config, overrides: dict[str, Any], models: budget.Models) -> Config:
  """The config of one run; a budget in `overrides` becomes the number of its steps there too."""
  made = copy.deepcopy(config)
  made.run = 'train'
  parts = {k.removesuffix('.name'): v for k, v in overrides.items() if k.endswith('.name')}
  parts |= {k: v for k, v in overrides.items() if k == 'evaluators'}
  made = defaults.complete(made, parts)
  for key in overrides:
    defaults.check_key(made, key)
  made.update_from_flattened_dict(
    {key: value for key, value in overrides.items() if key != 'total_steps'}
  )
  if 'total_steps' in overrides:
    wanted = overrides['total_steps']
    steps = models.steps(made, wanted) if budget.is_budget(wanted) else wanted
    overrides['total_steps'] = made.total_steps = steps
  if not made.eval_every:
    raise ValueError('config.eval_every=0: a sweep compares evaluations, so it needs one')
  return made


def check_compared(config: Config) -> None:
  """Raises a ValueError unless a run has the number that a sweep compares."""
  if 'classification' not in config.evaluators:
    raise ValueError('a sweep compares test/accuracy: config.evaluators needs classification')


def commands(runs: list[Run], recipe: str, words: list[str]) -> list[str]:
  """A command for each run, for a SLURM array or any launcher."""
  kept = without(words, ('workdir', 'mode', 'config.run'))
  return [
    shlex.join([
      'python', '-m', 'vit_jax.main', f'--config={recipe}', *kept, '--config.run=train',
      *(f'--config.{key}={value}' for key, value in run.overrides.items()),
      f'--workdir={run.workdir}',
    ])
    for run in runs
  ]  # fmt: skip


def without(words: list[str], names: tuple[str, ...]) -> list[str]:
  """A command line less some options, written as --name=value or --name value."""
  kept, left = [], iter(words)
  for word in left:
    name, equals, _ = word.lstrip('-').partition('=')
    if not (word.startswith('-') and name in names):
      kept.append(word)
    elif not equals:
      next(left, None)
  return kept
