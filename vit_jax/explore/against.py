"""A number of a sweep's runs against a setting, their compute or their speed: pictures.

A recipe asks for them with `PICTURES = (('compute', 'test/fewshot_5'), ...)`: what stands on each
axis. The first may be a config key, `compute` (floating point operations of the whole training),
`speed` (images a second, as this machine trained them), or another number of the test or validation
split: then every evaluation of a run is a point, of runs that are not compared too.
`line(overrides)`, where the recipe has it, names the line that a run lies on.
"""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any

import jax
import numpy as np

from vit_jax import figures, metrics, weights
from vit_jax.explore import page
from vit_jax.explore.runs import Run
from vit_jax.runtime import flops

AXES = {
  'compute': 'training compute, floating point operations',
  'speed': 'images a second in training, on this machine',
}
BACKWARD = 2  # times the arithmetic of the forward pass that the backward pass takes
Record = dict[str, Any]
Pair = tuple[str, str]


def measure(run: Run) -> dict[str, float]:
  """The compute and the speed of a run that is finished; nothing of one that failed."""
  passport = weights.passport_of_run(run.workdir)
  if passport is None:
    return {}
  model = passport.build()
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), np.float32)
  shapes = jax.eval_shape(lambda key, x: model.init({'params': key}, x), jax.random.key(0), image)
  forward = flops.flops_of(lambda params, x: model.apply(params, x)[0], shapes, image)
  examples = run.config.total_steps * run.config.batch_size
  rows = metrics.read(run.workdir / 'metrics.jsonl')
  rates = [row['train/images_per_second'] for row in rows if 'train/images_per_second' in row]
  compute = float((1 + BACKWARD) * forward * examples)
  return {'compute': compute, 'speed': float(np.median(rates))} if rates else {'compute': compute}


def blocks(
  records: Sequence[Record],
  wanted: Sequence[Pair],
  line: Callable[[dict[str, Any]], str],
  folder: pathlib.Path,
) -> list[page.Block]:
  """A picture for each pair of which something was measured; files go to `folder`.

  Args:
    records: of runs, with `overrides`.
  """
  made: list[page.Block] = []
  for pair in wanted:
    lines = gather(records, pair, line)
    if not lines:
      continue
    x, y = map(short, pair)
    path = folder / f'{y}_against_{x}.png'
    draw(lines, pair).savefig(path)
    caption = f'{y.replace("_", " ")} against {x.replace("_", " ")}: means, from lowest to highest.'
    made.append(page.Picture(path, caption))
  return made


def short(word: str) -> str:
  """What stands on an axis in the name of a file; of the test split where nothing else is said."""
  split, _, number = word.rpartition('/')
  return f'{split}_{number}' if split == 'validation' else number.rpartition('.')[2]


def gather(
  records: Sequence[Record], pair: Pair, line: Callable[[dict[str, Any]], str]
) -> dict[str, dict[tuple, list[tuple[float, float]]]]:
  """(x, y) of each run, by its line and by its settings but for the seed."""
  found: dict[str, dict[tuple, list[tuple[float, float]]]] = {}
  for record in records:
    overrides = record['overrides']
    setting = tuple((key, str(value)) for key, value in overrides.items() if key != 'seed')
    for step, x, y in points(record, pair):
      if isinstance(x, int | float) and isinstance(y, int | float):
        own = found.setdefault(line(overrides), {}).setdefault((step, *setting), [])
        own.append((float(x), float(y)))
  return found


def points(record: Record, pair: Pair) -> list[tuple[int, Any, Any]]:
  """(step, x, y) of each evaluation of a run whose number x is; else of its end, at step 0."""
  if not is_over_checkpoints(pair):
    return [(0, record.get(pair[0], record['overrides'].get(pair[0])), record.get(pair[1]))]
  rows = metrics.read(pathlib.Path(record['workdir']) / 'metrics.jsonl')
  return [(row['step'], row.get(pair[0]), row.get(pair[1])) for row in rows]


def is_over_checkpoints(pair: Pair) -> bool:
  """Whether a picture has a point for each evaluation of a run."""
  return pair[0].partition('/')[0] in ('test', 'validation')


def draw(lines: dict[str, dict[tuple, list[tuple[float, float]]]], pair: Pair) -> Any:
  """A line for each group of settings; a setting is the mean of its seeds, with their range."""
  figure, axes = figures.new_figure(7.2, 4.2)
  axis = axes[0, 0]
  for i, (name, settings) in enumerate(lines.items()):
    points = np.array([
      [*np.mean(runs, axis=0), min(y for _, y in runs), max(y for _, y in runs)]
      for runs in settings.values()
    ])  # fmt: skip
    points = points[np.argsort(points[:, 0], kind='stable')]
    x, mean, low, high = points.T
    axis.errorbar(x, mean, yerr=[mean - low, high - mean], capsize=3,
                  label=figures.plain(name) or None, **figures.style(i))  # fmt: skip
  everything = np.array([x for group in lines.values() for runs in group.values() for x, _ in runs])
  if everything.min() > 0 and everything.max() > 4 * everything.min():
    axis.set_xscale('log')
  axis.set(xlabel=AXES.get(pair[0], pair[0].removeprefix('model.')), ylabel=pair[1])
  axis.grid(alpha=0.3)
  if any(lines):
    figure.legend(frameon=False, fontsize=8, loc='outside right upper')
  return figure


def line_of(pairs: Sequence[Pair]) -> Callable[[dict[str, Any]], str]:
  """The line of a run where a recipe names none: its settings but for the seed and the axes."""
  axes = {x for x, _ in pairs} | {'seed'}
  return lambda overrides: ', '.join(
    str(value) for key, value in overrides.items() if key not in axes
  )
