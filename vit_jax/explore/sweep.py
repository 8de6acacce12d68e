"""A recipe's `sweep()` as many runs, each in a folder of its own; one table and one picture.

`sweep()` returns a list of overrides, {'model.readout': 'mean', 'seed': 0}, one for each run. Runs
that are finished are not repeated, so that the same command goes on where it stopped, or only
gathers what other machines have run.

W/runs/<overrides>/   a run each
W/reports/sweep.json  a record for each run; sweep.csv, sweep.md, sweep.png: settings, over seeds

What else a recipe may say: `TUNED`, keys that validation chooses; `PICTURES` and `line`, pictures
of one number against another (`against.py`); `COUNTED = True`, a table of the models.
"""

import csv
import json
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from vit_jax import checkpoint, train
from vit_jax.evaluation import statistics
from vit_jax.explore import against, budget, page, pictures, series, told
from vit_jax.explore.runs import TUNED, Run, commands, plan
from vit_jax.runtime import atomic, distributed
from vit_jax.runtime.progress import clock

__all__ = ['Run', 'commands', 'plan', 'sweep']


def sweep(runs: list[Run], workdir: pathlib.Path, recipe: Any) -> None:
  """Runs what is not finished, one after another, and writes the table.

  A run's folder belongs to its config from its first checkpoint on, or from its failure.

  Args:
    recipe: the module; its `TUNED` are keys that are chosen, not compared: by validation, for each
      of the other settings.

  Raises:
    ValueError: a run's folder belongs to another config; nothing has run yet.
    KeyboardInterrupt: somebody stopped a run; its checkpoint is saved.
  """
  for run in runs:
    checkpoint.check_owner(run.workdir, run.config.to_dict())
  start, fresh = time.monotonic(), 0
  for number, run in enumerate(runs, 1):
    if run.is_finished:
      continue
    spent = time.monotonic() - start
    left = clock(spent / fresh * (len(runs) - number + 1)) if fresh else 'unknown'
    logging.info('run %d of %d, ETA %s: %s', number, len(runs), left, run.name)
    attempt(run)
    fresh += 1
  if distributed.is_first():
    write(runs, workdir / 'reports', recipe)


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


def write(runs: list[Run], folder: pathlib.Path, recipe: Any) -> None:
  """The records of all runs, and the settings over their seeds."""
  folder.mkdir(parents=True, exist_ok=True)
  tuned = getattr(recipe, 'TUNED', TUNED)
  wanted = getattr(recipe, 'PICTURES', ())
  records = [record(run, bool(wanted)) for run in runs]
  keys = [key for key in dict.fromkeys(k for run in runs for k in run.shown) if key != 'seed']
  rows = choose(settings(records, keys), keys, tuned)
  for one in records:
    (own,) = [row for row in rows if is_among(one, [row], keys)]
    one.update(chosen=own['chosen'], setting=own['setting'])
  atomic.write_text(folder / 'sweep.json', json.dumps(records, indent=2) + '\n')
  with (folder / 'sweep.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
  drawn = [row for row in rows if row['chosen'] and row['runs']]
  blocks: list[page.Block] = [page.Heading('Sweep', 1), page.Text(explain(rows, keys, tuned))]
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
  best = [row for row in records if is_among(row, drawn, keys)]
  over = [pair for pair in wanted if against.is_over_checkpoints(pair)]
  ends = [pair for pair in wanted if pair not in over]
  line = getattr(recipe, 'line', None) or against.line_of(wanted)
  counted = models(runs, folder) if getattr(recipe, 'COUNTED', False) else []
  blocks += compared(best, drawn, keys, counted)
  blocks += against.blocks(best, ends, line, folder) + against.blocks(records, over, line, folder)
  blocks += series.blocks(records, keys, folder)
  atomic.write_text(folder / 'sweep.md', page.markdown(blocks, folder))
  logging.info('table of %d runs in %s', len(runs), folder / 'sweep.md')


def models(runs: list[Run], folder: pathlib.Path) -> list[budget.Record]:
  """A record of each model that some run trains, as this machine has it."""
  known = budget.Models(folder / 'models.json')
  distinct = {budget.signature(run.config): run.config for run in runs}
  return [known.record(config, timed=True) for config in distinct.values()]


def compared(
  best: list[dict[str, Any]],
  chosen: list[dict[str, Any]],
  keys: list[str],
  counted: list[budget.Record],
) -> list[page.Block]:
  """What the chosen settings tell, and the models that they train."""
  scores = [
    np.array([row['test/accuracy'] for row in best
              if is_among(row, [setting], keys) and 'test/accuracy' in row])
    for setting in chosen
  ]  # fmt: skip
  examples = counted[0]['test_examples'] if counted else None
  made = told.blocks([setting['setting'] for setting in chosen], scores, examples)
  if counted:
    made += [page.Heading('Models, one image or one batch on this machine', 2)]
    made += [budget.table(counted)]
  return made


SPLITS = ('test', 'validation')


def record(run: Run, whole: bool) -> dict[str, Any]:
  """What `sweep.json` says of a run; `whole` adds its compute and speed."""
  scores = {key: x for key, x in (run.scores() or {}).items() if key.split('/')[0] in SPLITS}
  about = {'run': run.name, 'workdir': str(run.workdir), 'failed': run.failure.exists()}
  also = {'overrides': run.overrides} | (against.measure(run) if scores and whole else {})
  return about | run.shown | scores | also


def is_among(row: dict[str, Any], chosen: list[dict[str, Any]], keys: list[str]) -> bool:
  """Whether a run has one of the settings."""
  return any(all(row.get(key) == other[key] for key in keys) for other in chosen)


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

  Of `keys`, those among `tuned` are chosen and all others compared. Of each group one row wins: the
  one of which fewest runs diverged, as those that are left say too much good of it; then by
  validation; then the smallest values. Without validation every row counts as chosen: test
  examples never choose.
  """
  compared = [key for key in keys if key not in tuned]
  used = [key for key in keys if key in tuned]
  for members in groups_of(rows, compared):
    judged = [row for row in members if row['validation'] is not None]
    best = min(judged, key=lambda row: (row['failed'], -row['validation'], *sizes(row, used)),
               default=None)  # fmt: skip
    for row in members:
      row['chosen'] = best is None or row is best
      row['setting'] = series.name_of(row, compared if judged and compared else keys, rows)
  return sorted(rows, key=lambda row: (not row['chosen'], -(row['accuracy'] or 0)))


def groups_of(rows: list[dict[str, Any]], compared: list[str]) -> list[list[dict[str, Any]]]:
  """Rows that agree in what is compared, and differ in what is tuned alone."""
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[key] for key in compared), []).append(row)
  return [*groups.values()]


def sizes(row: dict[str, Any], used: list[str]) -> list[float]:
  """The tuned values of a row, by which equals are ordered; what is no number counts as 0."""
  return [float(row[key]) if isinstance(row[key], int | float) else 0.0 for key in used]


def explain(rows: list[dict[str, Any]], keys: list[str], tuned: tuple[str, ...]) -> str:
  """What was chosen, and how."""
  used = [key for key in keys if key in tuned]
  if all(row['validation'] is None for row in rows):
    return 'No validation accuracy (config.data.validation_fraction), so nothing was chosen.'
  if not used:
    return 'Every setting is compared: there was nothing for validation to choose.'
  after = ', of values with which fewest runs diverged' * any(row['failed'] for row in rows)
  return (
    f'{", ".join(used)}: chosen for each setting by validation accuracy{after}; test examples had '
    'no say. Rows that were not chosen stand below.' + at_an_edge(rows, keys, used)
  )


def at_an_edge(rows: list[dict[str, Any]], keys: list[str], used: list[str]) -> str:
  """Which settings chose the least or the most of what was tried for them, and might want more."""
  told = []
  for members in groups_of(rows, [key for key in keys if key not in used]):
    for key in used:
      tried = {row[key] for row in members if isinstance(row[key], int | float)}
      edges = {min(tried), max(tried)} if len(tried) > 2 else set()
      told += [f'{row["setting"]} ({row[key]:g})' for row in members
               if row['chosen'] and row[key] in edges]  # fmt: skip
  return f' At the edge of what was tried: {", ".join(told)}.' * bool(told)


def span(low: float, high: float) -> str:
  """An interval of accuracies; of all that there are: that seeds which agree tell none."""
  return f'{low:.1%} to {high:.1%}' if high - low < 1 else 'not told'


def table(rows: list[dict[str, Any]], keys: list[str]) -> page.Table:
  """What a person wants to see of the settings."""
  header = [*keys, 'chosen', 'test accuracy', '95 % over seeds', 'runs', 'validation']

  def percent(x: float | None) -> str:
    return '' if x is None else f'{x:.2%}'

  return page.Table(header, [
    [*('' if row[key] is None else str(row[key]) for key in keys),
     'yes' if row['chosen'] else '', percent(row['accuracy']),
     span(row['low'], row['high']) if row['runs'] > 1 else '',
     f'{row["runs"]}' + f', {row["failed"]} failed' * bool(row['failed']),
     percent(row['validation'])]
    for row in rows
  ])  # fmt: skip
