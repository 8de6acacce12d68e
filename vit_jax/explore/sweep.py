"""A recipe's `sweep()` as many runs, each in a folder of its own; one table and one picture.

`sweep()` returns a list of overrides, {'model.readout': 'mean', 'seed': 0}, one for each run. Runs
that are finished are not repeated, so that the same command goes on where it stopped, or only
gathers what other machines have run.

Where settings are many, `'label': 'with a teacher'` names them, in the table and the folders; and
`'objective.teacher': 'run:LABEL'` is the folder of an earlier run of that label (and that seed).

W/runs/<overrides>/   a run each
W/reports/sweep.json  a record for each run; sweep.csv, sweep.md, sweep.png: settings, over seeds
"""

import collections
import copy
import csv
import dataclasses
import json
import pathlib
import re
import shlex
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from vit_jax import checkpoint, defaults, metrics, train
from vit_jax.defaults import Config
from vit_jax.evaluation import statistics
from vit_jax.explore import page, pictures, series
from vit_jax.runtime import atomic, distributed
from vit_jax.runtime.progress import clock


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep; `overrides` are what differs from its config on the command line.

  `shown` is what names its setting in the table: the overrides, or its label.
  """

  name: str
  shown: dict[str, Any]
  overrides: dict[str, Any]
  config: Config
  workdir: pathlib.Path

  def scores(self) -> dict[str, Any] | None:
    """What the last step says; None before it."""
    rows = metrics.read(self.workdir / 'metrics.jsonl')
    if not rows or rows[-1]['step'] < self.config.total_steps or 'test/accuracy' not in rows[-1]:
      return None
    return rows[-1]

  @property
  def failure(self) -> pathlib.Path:
    """Where it says why the run diverged."""
    return self.workdir / 'failed.txt'


def plan(config: Config, choices: list[dict[str, Any]], workdir: pathlib.Path) -> list[Run]:
  """The runs of a sweep.

  Raises:
    ValueError: none, two of the same, or a key or value that does not exist.
  """
  if not choices:
    raise ValueError('sweep() of the recipe names no run')
  names = [name_of(overrides, choices) for overrides in choices]
  twice = sorted(name for name, times in collections.Counter(names).items() if times > 1)
  if twice:
    raise ValueError(f'sweep() of the recipe names some runs twice: {", ".join(twice[:5])}')
  runs: list[Run] = []
  for name, choice in zip(names, choices, strict=True):
    shown = {key: choice[key] for key in ('label', 'seed') if key in choice}
    overrides = {key: resolve(value, runs, choice) for key, value in choice.items()
                 if key != 'label'}  # fmt: skip
    made = child(config, overrides)
    runs.append(Run(name, shown if 'label' in choice else overrides, overrides, made,
                    workdir / 'runs' / name))  # fmt: skip
  return runs


def resolve(value: Any, before: list[Run], choice: dict[str, Any]) -> Any:
  """A value of `sweep()`; 'run:LABEL' becomes the folder of that run.

  Raises:
    ValueError: no run before this one has the label.
  """
  if not isinstance(value, str) or not value.startswith('run:'):
    return value
  label = value.removeprefix('run:')
  found = [run for run in before if run.shown.get('label') == label]
  same = [run for run in found if run.shown.get('seed') == choice.get('seed')]
  if not found:
    raise ValueError(f'sweep() of the recipe: {value} names no run before it')
  return str((same or found)[0].workdir)


def name_of(overrides: dict[str, Any], choices: list[dict[str, Any]]) -> str:
  """A folder's name, of the last words of the keys where those tell them apart."""
  if 'label' in overrides:
    overrides = {key: overrides[key] for key in ('label', 'seed') if key in overrides}
  keys = {key for other in choices for key in other}
  last = [key.rpartition('.')[2] for key in keys]
  short = {key: key.rpartition('.')[2] for key in keys if last.count(key.rpartition('.')[2]) == 1}
  text = ','.join(
    value if key == 'label' else f'{short.get(key, key)}={value}'
    for key, value in overrides.items()
  )
  return re.sub(r'[^\w.,=+-]', '_', text)


def child(config: Config, overrides: dict[str, Any]) -> Config:
  """The config of one run."""
  made = copy.deepcopy(config)
  made.run = 'train'
  parts = {k.removesuffix('.name'): v for k, v in overrides.items() if k.endswith('.name')}
  made = defaults.complete(made, parts)
  for key in overrides:
    defaults.check_key(made, key)
  made.update_from_flattened_dict(overrides)
  if not made.eval_every:
    raise ValueError('config.eval_every=0: a sweep compares evaluations, so it needs one')
  if 'classification' not in made.evaluators:
    raise ValueError('a sweep compares test/accuracy: config.evaluators needs classification')
  return made


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


def sweep(runs: list[Run], workdir: pathlib.Path, tuned: tuple[str, ...]) -> None:
  """Runs what is not finished, one after another, and writes the table.

  A run's folder belongs to its config from its first checkpoint on, or from its failure.

  Args:
    tuned: keys that are chosen, not compared: by validation, for each of the other settings.

  Raises:
    ValueError: a run's folder belongs to another config; nothing has run yet.
    KeyboardInterrupt: somebody stopped a run; its checkpoint is saved.
  """
  for run in runs:
    checkpoint.check_owner(run.workdir, run.config.to_dict())
  start, fresh = time.monotonic(), 0
  for number, run in enumerate(runs, 1):
    if run.scores() or run.failure.exists():
      continue
    spent = time.monotonic() - start
    left = clock(spent / fresh * (len(runs) - number + 1)) if fresh else 'unknown'
    logging.info('run %d of %d, ETA %s: %s', number, len(runs), left, run.name)
    attempt(run)
    fresh += 1
  if distributed.is_first():
    write(runs, workdir / 'reports', tuned)


def attempt(run: Run) -> None:
  """Trains one run; what diverges is noted and does not stop the others."""
  try:
    train.train(run.config, run.workdir)
  except FloatingPointError as error:
    logging.warning('%s failed: %s', run.name, error)
    checkpoint.claim(run.workdir, run.config.to_dict())
    if distributed.is_first():
      atomic.write_text(run.failure, f'{error}\n')
    return
  finally:
    jax.clear_caches()  # Else every run's programs stay in memory.
  if not run.scores():
    raise KeyboardInterrupt


def write(runs: list[Run], folder: pathlib.Path, tuned: tuple[str, ...]) -> None:
  """The records of all runs, and the settings over their seeds."""
  folder.mkdir(parents=True, exist_ok=True)
  records = [
    {'run': run.name, 'workdir': str(run.workdir), 'failed': run.failure.exists()}
    | run.shown
    | {key: x for key, x in (run.scores() or {}).items() if key.split('/')[0] in SPLITS}
    for run in runs
  ]
  atomic.write_text(folder / 'sweep.json', json.dumps(records, indent=2) + '\n')
  keys = [key for key in dict.fromkeys(k for run in runs for k in run.shown) if key != 'seed']
  rows = choose(settings(records, keys), keys, tuned)
  with (folder / 'sweep.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
  drawn = [row for row in rows if row['chosen'] and row['runs']]
  blocks: list[page.Block] = [page.Heading('Sweep', 1), page.Text(explain(rows, tuned))]
  blocks.append(table(rows, keys))
  if drawn:
    figure = pictures.ranking(
      [row['setting'] for row in drawn],
      np.array([row['accuracy'] for row in drawn]),
      np.array([[row['low'], row['high']] for row in drawn]), 0,
      'test accuracy, % (95 % t interval over seeds)',
    )  # fmt: skip
    figure.savefig(folder / 'sweep.png')
    blocks.append(page.Picture(folder / 'sweep.png', 'Chosen settings, over their seeds.'))
  blocks += series.blocks(records, keys, folder)
  atomic.write_text(folder / 'sweep.md', page.markdown(blocks, folder))
  logging.info('table of %d runs in %s', len(runs), folder / 'sweep.md')


SPLITS = ('test', 'validation')


def settings(records: list[dict[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
  """Runs that agree in all of `keys`, put together: they differ in the seed alone."""
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for record in records:
    groups.setdefault(tuple(record.get(key) for key in keys), []).append(record)
  rows = []
  for values, members in groups.items():
    done = [member for member in members if 'test/accuracy' in member]
    test = np.array([member['test/accuracy'] for member in done])
    held = [member['validation/accuracy'] for member in done if 'validation/accuracy' in member]
    low, high = statistics.spread(test) if len(test) else (np.nan, np.nan)
    rows.append(dict(zip(keys, values, strict=True)) | {
      'runs': len(done),
      'failed': sum(member['failed'] for member in members),
      'accuracy': float(test.mean()) if len(test) else None,
      'low': float(max(low, 0.0)),
      'high': float(min(high, 1.0)),
      'lowest': float(test.min()) if len(test) else None,
      'highest': float(test.max()) if len(test) else None,
      'validation': float(np.mean(held)) if held else None,
    })  # fmt: skip
  return rows


def choose(
  rows: list[dict[str, Any]], keys: list[str], tuned: tuple[str, ...]
) -> list[dict[str, Any]]:
  """Marks of each compared setting the tuned values that validation prefers; the best first.

  Of `keys`, those among `tuned` are chosen and all others compared.
  Without validation every row counts as chosen: test examples never choose.
  """
  compared = [key for key in keys if key not in tuned]
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[key] for key in compared), []).append(row)
  for values, members in groups.items():
    judged = [row['validation'] for row in members if row['validation'] is not None]
    for row in members:
      row['chosen'] = not judged or row['validation'] == max(judged)
      shown = dict(zip(compared, values, strict=True)) if judged and compared else {
        key: row[key] for key in keys
      }  # fmt: skip
      row['setting'] = ', '.join(str(x) for x in shown.values() if x is not None) or 'all'
  return sorted(rows, key=lambda row: (not row['chosen'], -(row['accuracy'] or 0)))


def explain(rows: list[dict[str, Any]], tuned: tuple[str, ...]) -> str:
  """What was chosen, and how."""
  used = [key for key in tuned if key in rows[0]]
  if used and rows[0]['validation'] is not None:
    return (
      f'{", ".join(used)}: chosen for each setting by validation accuracy; test examples had no '
      'say. Rows that were not chosen stand below.'
    )
  return 'No validation split (config.data.validation_fraction=0), so nothing was chosen.'


def table(rows: list[dict[str, Any]], keys: list[str]) -> page.Table:
  """What a person wants to see of the settings."""
  header = [*keys, 'chosen', 'test accuracy', '95 % over seeds', 'runs', 'validation']

  def percent(x: float | None) -> str:
    return '' if x is None else f'{x:.2%}'

  return page.Table(header, [
    [*(str(row[key]) for key in keys), 'yes' if row['chosen'] else '', percent(row['accuracy']),
     f'{row["low"]:.1%} to {row["high"]:.1%}' if row['runs'] > 1 else '',
     f'{row["runs"]}' + f', {row["failed"]} failed' * bool(row['failed']),
     percent(row['validation'])]
    for row in rows
  ])  # fmt: skip
