"""VTAB-1k's results: a record for each task, means by group and over all, a page and a picture.

A mean over tasks is taken for each seed, and its deviation is that over the seeds.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import numpy as np

from vit_jax.data.vtab_tasks import TASKS
from vit_jax.explore import page
from vit_jax.figures import COLOURS, new_figure
from vit_jax.runtime import atomic

GROUPS = tuple(dict.fromkeys(task.group for task in TASKS.values()))
Records = dict[str, dict[str, Any]]


def record(
  group: str, accuracies: Sequence[float], rate: float, steps: int, tuned: list[dict[str, Any]]
) -> dict[str, Any]:
  """What is known of a task.

  Args:
    accuracies: on the test split, one for each fine-tuning that did not diverge.
    rate, steps: the learning rate and the steps of these.
    tuned: what each setting that was tried reached on the 200.
  """
  return {
    'group': group,
    **moments(accuracies),
    'accuracy_by_seed': list(accuracies),
    'learning_rate': rate,
    'total_steps': steps,
    'tuned': tuned,
  }


def moments(values: Sequence[float]) -> dict[str, float | None]:
  """Mean and standard deviation (of a sample); None of too few."""
  return {
    'accuracy': float(np.mean(values)) if len(values) else None,
    'deviation': float(np.std(values, ddof=1)) if len(values) > 1 else None,
  }


def mean_of(records: Records, tasks: list[str]) -> dict[str, Any]:
  """The mean over those of some tasks that were run, and of how many these are."""
  found = [records[task]['accuracy_by_seed'] for task in tasks if task in records]
  found = [seeds for seeds in found if seeds]
  if not found:
    return {**moments([]), 'tasks': 0, 'of': len(tasks)}
  if len({len(seeds) for seeds in found}) > 1:  # A fine-tuning diverged somewhere.
    found = [[float(np.mean(seeds))] for seeds in found]
  return {**moments(np.mean(found, axis=0).tolist()), 'tasks': len(found), 'of': len(tasks)}


def write(
  folder: pathlib.Path, records: Records, missing: dict[str, str], about: dict[str, Any]
) -> dict[str, Any]:
  """Writes `vtab.json`, `vtab.md` and `vtab.png`; returns the content of the first."""
  groups = {
    group: mean_of(records, [name for name, task in TASKS.items() if task.group == group])
    for group in GROUPS
  }
  report = about | {
    'tasks': records,
    'groups': groups,
    'mean': mean_of(records, list(TASKS)),
    'missing': missing,
  }
  atomic.write_text(folder / 'vtab.json', json.dumps(report, indent=2) + '\n')
  picture(report).savefig(folder / 'vtab.png')
  atomic.write_text(folder / 'vtab.md', page.markdown(blocks(report, folder), folder))
  return report


def percent(numbers: dict[str, Any]) -> str:
  """A mean and its deviation, '76.3 +- 0.5'; '-' where nothing was run."""
  if numbers['accuracy'] is None:
    return '-'
  spread = '' if numbers['deviation'] is None else f' +- {100 * numbers["deviation"]:.2f}'
  return f'{100 * numbers["accuracy"]:.2f}{spread}'


def summary(report: dict[str, Any]) -> str:
  """The table of a terminal: a line for each task, each group, and all."""
  lines = [f'{task:22}{percent(found):>16}' for task, found in report['tasks'].items()]
  for name, found in (report['groups'] | {'all tasks': report['mean']}).items():
    lines.append(f'{name:22}{percent(found):>16}  mean of {found["tasks"]} of {found["of"]} tasks')
  return '\n'.join(lines)


def blocks(report: dict[str, Any], folder: pathlib.Path) -> list[page.Block]:
  """The page."""
  protocol, records = report['protocol'], report['tasks']
  settings = len(protocol['learning_rates']) * len(protocol['steps'])
  how = (
    f'{settings} settings were tried on 800 examples of each task and judged on the 200 others; '
    'the test split had no say.'
  )
  if settings == 1:
    how = 'One setting for all tasks: nothing was chosen.'
  made: list[page.Block] = [
    page.Heading(f'VTAB-1k of {report["checkpoint"]}', 1),
    page.Text(
      f'{how} Accuracies are of {protocol["seeds"]} fine-tunings on all 1,000 examples, on the '
      'test split: mean +- standard deviation, in per cent.'
    ),
    page.Table(
      ('task', 'group', 'accuracy', 'learning rate', 'steps', 'fine-tunings'),
      [
        [task, found['group'], percent(found), f'{found["learning_rate"]:g}',
         str(found['total_steps']), str(len(found['accuracy_by_seed']))]
        for task, found in records.items()
      ],
    ),
    page.Table(
      ('mean over tasks', 'accuracy', 'tasks'),
      [
        [name, percent(found), f'{found["tasks"]} of {found["of"]}']
        for name, found in (report['groups'] | {'all': report['mean']}).items()
      ],
    ),
    page.Picture(folder / 'vtab.png', 'Test accuracy by task; lines are the means of groups.'),
  ]  # fmt: skip
  if report['missing']:
    made.append(page.Heading('Not run'))
    made.append(page.Table(('task', 'why'), [list(row) for row in report['missing'].items()]))
  return made


def picture(report: dict[str, Any]) -> Any:
  """A bar for each of the 19 tasks, those of a group in one colour; dashes at each group's mean."""
  figure, axes = new_figure(7.2, 6.2)
  axis, names = axes[0, 0], list(TASKS)
  for group, colour in zip(GROUPS, COLOURS, strict=False):
    rows = [i for i, name in enumerate(names) if TASKS[name].group == group]
    for i in rows:
      bar(axis, i, report['tasks'].get(names[i]), colour)
    mean = report['groups'][group]
    if mean['accuracy'] is not None:
      label = f'{group}: {percent(mean)} ({mean["tasks"]} of {mean["of"]})'
      axis.barh(rows[0], 0, color=colour, label=label)  # For the legend.
      axis.vlines(100 * mean['accuracy'], rows[0] - 0.5, rows[-1] + 0.5, color='0.1', ls='--')
  axis.set_yticks(range(len(names)), names)
  axis.set_ylim(len(names) - 0.4, -0.6)  # The first on top.
  axis.set_xlim(0, 100)
  axis.set_xlabel('test accuracy, % (whiskers: deviation over fine-tunings; dashes: group means)')
  mean = report['mean']
  axis.set_title(f'VTAB-1k: {percent(mean)}, mean of {mean["tasks"]} of {mean["of"]} tasks')
  axis.grid(axis='x', alpha=0.3)
  if axis.get_legend_handles_labels()[0]:
    axis.legend(frameon=False, fontsize=9, loc='upper center', bbox_to_anchor=(0.5, -0.1))
  return figure


def bar(axis: Any, row: int, found: dict[str, Any] | None, colour: str) -> None:
  """The bar of a task, or why there is none."""
  if found is None or found['accuracy'] is None:
    axis.text(1, row, 'not run' if found is None else 'diverged', va='center', color='0.5',
              fontsize=8)  # fmt: skip
    return
  value, spread = 100 * found['accuracy'], 100 * (found['deviation'] or 0)
  axis.barh(row, value, color=colour, xerr=spread or None, error_kw={'capsize': 3}, height=0.75)
  place, ink = (1, 'white') if value > 10 else (value + spread + 1, 'black')
  axis.text(place, row, f'{value:.1f}', va='center', color=ink, fontsize=8, fontweight='bold')
