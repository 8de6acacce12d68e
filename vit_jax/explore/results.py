"""Results as files, and the table of the README made of them.

  python -m vit_jax.explore.results W --name=digits [--data='what the pictures are']
  python -m vit_jax.explore.results --readme=README.md

The first reads a finished run or sweep and writes `configs/results/digits.json`: config, command,
commit, versions, device, cost and the numbers of the test split. The second makes the table between
the README's marks of all files there are. `--folder` is where the files lie.
"""

import argparse
import csv
import json
import pathlib
import shlex
import sys
from typing import Any

import numpy as np

from vit_jax import metrics
from vit_jax.explore import runs, series
from vit_jax.runtime import atomic, provenance

FOLDER = pathlib.Path('configs/results')
BEGIN, END = (
  '<!-- results: python -m vit_jax.explore.results --readme=README.md -->',
  '<!-- end -->',
)
HIDDEN = ('workdir', 'config.data.data_dir', 'config.data.path')  # of a machine, not of a result
# Of a folder or file its last name is enough.
SOURCES = (
  'config.init_from', 'config.objective.teacher', 'config.model.palette', 'config.data.exclude',
)  # fmt: skip
PROGRAM = ['python', '-m', 'vit_jax.main']
LONG = 200  # letters of a sweep's settings in a row; of more the best and the worst stand there
KEPT = ('test', 'validation')
Result = dict[str, Any]


def gather(workdir: pathlib.Path, data: str | None = None) -> Result:
  """What a finished run, or a sweep, has to say.

  Args:
    data: what the pictures are, where their name does not say it.

  Raises:
    ValueError: it is not finished, or its commands are not known.
  """
  commands = provenance.read(workdir)
  if not commands:
    raise ValueError(f'{workdir} has no {provenance.NAME}: only a run of 0.8.0 or later ends so')
  last = commands[-1]
  about = {key: last[key] for key in ('version', 'commit', 'python', 'packages', 'device', 'cores')}
  first = workdir if (workdir / 'config.json').exists() else next((workdir / 'runs').iterdir())
  about |= {
    'command': portable(last['command']),
    'data': data or name_of(read_json(first / 'config.json')),
  }
  about['seconds'] = round(sum(one['seconds'] for one in commands), 1)
  return about | (
    of_sweep(workdir) if (workdir / 'reports/sweep.csv').exists() else of_run(workdir)
  )


def portable(command: str) -> str:
  """A command without the folders of one machine."""
  words = runs.without(shlex.split(command), HIDDEN)
  return shlex.join(map(shorten, ['', *words], words))


def shorten(before: str, word: str) -> str:
  """A word of a command, with the last name where it is the path of a source, `--name=path` or
  what follows `--name`."""
  if before.startswith('-') and before.lstrip('-') in SOURCES:
    return last_of(word)
  name, equals, value = word.partition('=')
  return f'{name}={last_of(value)}' if equals and name.lstrip('-') in SOURCES else word


def last_of(source: str) -> str:
  """The last name of a path; an address as it is."""
  return source if '://' in source else pathlib.PurePath(source).name


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file holds, such as the `config.json` of a run."""
  return json.loads(path.read_text())


def name_of(config: dict[str, Any]) -> str:
  """The data of a run, by the shortest name."""
  return config['data'].get('dataset') or config['data']['name']


def of_run(workdir: pathlib.Path) -> Result:
  """The config of a run and the numbers of its last step."""
  config = read_json(workdir / 'config.json')
  if config.get('run') == 'explore':
    raise ValueError(
      f'{workdir} is an exploration, whose reports tell; a result is of a run or sweep'
    )
  rows = metrics.read(workdir / 'metrics.jsonl')
  if not rows or rows[-1]['step'] < config['total_steps']:
    raise ValueError(f'{workdir} is not finished: the same command goes on')
  last = {key: x for key, x in rows[-1].items() if key.partition('/')[0] in KEPT}
  if not any(key.startswith('test/') for key in last):
    raise ValueError(f'{workdir} ends without a number of the test split: nothing to tell')
  config['data'] = {key: x for key, x in config['data'].items() if key not in ('data_dir', 'path')}
  for name in SOURCES:
    *path, key = name.split('.')[1:]
    section = config.get(path[0], {}) if path else config
    if section.get(key):
      section[key] = last_of(section[key])
  return {'metrics': last, 'config': config}


def of_sweep(workdir: pathlib.Path) -> Result:
  """The settings that a sweep compared, each with its accuracy over seeds."""
  with (workdir / 'reports/sweep.csv').open(newline='') as file:
    rows = [row for row in csv.DictReader(file) if row['chosen'] == 'True' and row['accuracy']]
  numbers = ('accuracy', 'low', 'high')
  records = read_json(workdir / 'reports/sweep.json')
  settings = [
    {'setting': row['setting'], 'runs': int(row['runs'])}
    | {key: round(float(row[key]), 6) for key in numbers}
    | also([one for one in records if one['chosen'] and one['setting'] == row['setting']])
    for row in rows
  ]
  found = {'settings': settings, 'runs': len([*(workdir / 'runs').iterdir()])}
  path = workdir / 'reports/models.json'
  return found | ({'models': [*map(model_of, read_json(path).values())]} if path.exists() else {})


def also(records: list[dict[str, Any]]) -> Result:
  """Means over seeds of what else a setting's runs measured on the test split."""
  names = {name: 0 for one in records for name in one if name.startswith('test/')}
  return {
    name: round(float(np.mean([one[name] for one in records if name in one])), 4)
    for name in names if name not in series.SHOWN
  }  # fmt: skip


def model_of(record: dict[str, Any]) -> Result:
  """Size, arithmetic of an image, memory of a batch and speed, of a record of `budget.py`."""
  speed = record['images_per_second'] or {}
  memory = record['memory_gb'] or {}
  return {
    'model': record['model'], 'image_size': record['image_size'],
    'parameters': record['parameters'], 'batch_size': record['batch_size'],
    'training_mflops': round(record['train_flops']['three_forward'] / 1e6, 1),
    'train_step_mb': round(1e3 * memory['train_step'], 1) if memory else None,
    'images_per_second': {key: round(x) for key, x in speed.items() if x},
  }  # fmt: skip


HEADER = ('command', 'data', 'test accuracy', 'cost', 'version')


def line(result: Result) -> tuple[str, ...]:
  """A row of the table."""
  words = shlex.split(result['command'])
  command = shlex.join(words[len(PROGRAM) :] if words[: len(PROGRAM)] == PROGRAM else words)
  cost = f'{result["seconds"] / 60:.0f} min' if result['seconds'] > 120 else (
    f'{result["seconds"]:.0f} s'
  )  # fmt: skip
  cpu = result['device'].endswith('cpu')
  device = f'{result["cores"]} CPU cores' if cpu else result['device']
  cost = f'{cost}, {device}'
  return f'`{command}`', result['data'], accuracy(result), cost, result['version']


def accuracy(result: Result) -> str:
  """What a row says: a number, or those of a sweep's settings, from the best to the worst."""
  if 'metrics' in result:
    return of_metrics(result['metrics'])
  settings = result['settings']
  if len(settings) == 1:  # Over its seeds.
    (row,) = settings
    low, mean, high = (100 * row[key] for key in ('low', 'accuracy', 'high'))
    return f'{mean:.1f} % ({low:.1f} to {high:.1f}), {row["runs"]} runs'
  told = [f'{row["setting"]} {100 * row["accuracy"]:.1f} %' for row in settings]
  whole = '; '.join(told)
  return whole if len(whole) < LONG else f'{told[0]}, to {told[-1]}: {len(told)} settings'


def of_metrics(found: dict[str, float]) -> str:
  """The accuracy of a run; of one that tells no classes what else its test split says."""
  if 'test/accuracy' in found:
    return f'{100 * found["test/accuracy"]:.1f} %'
  rest = {key.removeprefix('test/'): x for key, x in found.items() if key.startswith('test/')}
  told = [f'{key} {x:.4g}' for key, x in rest.items()]
  return '; '.join(told if len('; '.join(told)) < LONG else told[:1])


def table(folder: pathlib.Path) -> str:
  """The table of all results in a folder, by the names of their files.

  Raises:
    ValueError: there is none.
  """
  paths = sorted(folder.glob('*.json'))
  if not paths:
    raise ValueError(f'no result in {folder}: write one from a finished run with W --name=NAME')
  rows = [HEADER, ('---',) * len(HEADER), *(line(read_json(path)) for path in paths)]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def fill(text: str, made: str) -> str:
  """A page whose marks have the table between them.

  Raises:
    ValueError: it has no marks.
  """
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise ValueError(f'the page has no lines {BEGIN} and {END}, between which the table stands')
  return f'{before}{BEGIN}\n\n{made}\n\n{END}{after}'


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.explore.results`."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.explore.results', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('workdir', nargs='?', type=pathlib.Path, help='a finished run or sweep')
  parser.add_argument('--name', help='of the file of its result')
  parser.add_argument('--data', help='what the pictures are; else the name of the data')
  parser.add_argument('--folder', type=pathlib.Path, default=FOLDER, help='of the files')
  parser.add_argument('--readme', type=pathlib.Path, help='a page with marks for the table')
  own = parser.parse_args(arguments)
  try:
    act(own)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


def act(own: argparse.Namespace) -> None:
  """Writes a result, the table, or both; prints the table where no page is named.

  Raises:
    ValueError: a run without a name, or nothing to write.
  """
  if (own.workdir is None) != (own.name is None):
    raise ValueError('a run and --name belong together: W --name=digits')
  if own.workdir:
    own.folder.mkdir(parents=True, exist_ok=True)
    path = own.folder / f'{own.name}.json'
    atomic.write_text(path, json.dumps(gather(own.workdir, own.data), indent=2) + '\n')
    print(path)
  if own.readme:
    text = fill(own.readme.read_text(encoding='utf-8'), table(own.folder))
    atomic.write_text(own.readme, text)
  elif not own.workdir:
    print(table(own.folder))


if __name__ == '__main__':
  main()
