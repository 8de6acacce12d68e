"""Checkpoints that are compared, by short names; a sweep stands for what it chose."""

from collections.abc import Sequence
import json
import pathlib


def expand(given: Sequence[str]) -> tuple[list[str], list[str]]:
  """(checkpoints, labels); the folder of a sweep becomes a run of each setting that it chose.

  Raises:
    ValueError: fewer than two checkpoints.
  """
  paths, labels = [], []
  for path, label in zip(given, labels_of(given), strict=True):
    chosen = of_sweep(pathlib.Path(path))
    paths += [*chosen.values()] if chosen else [path]
    labels += [*chosen] if chosen else [label]
  if len(paths) < 2:
    raise ValueError(f'give two checkpoints or more, or the folder of a sweep, not {paths}')
  return paths, labels


def labels_of(checkpoints: Sequence[str]) -> list[str]:
  """Short names of checkpoints: the last word of each path, where these differ."""
  short = [pathlib.PurePath(path).name for path in checkpoints]
  return short if len({*short}) == len(short) else [str(path) for path in checkpoints]


def of_sweep(folder: pathlib.Path) -> dict[str, str]:
  """The first run of each setting that a sweep chose, by the setting's name; none of other folders.

  Raises:
    ValueError: the sweep was written before 0.8.0, which says what it chose.
  """
  path = folder / 'reports/sweep.json'
  if not path.exists():
    return {}
  records = json.loads(path.read_text())
  if not all('chosen' in record for record in records):
    raise ValueError(f'{path} does not say what was chosen: run the sweep again, which gathers it')
  found: dict[str, str] = {}
  for record in records:
    if record['chosen'] and 'test/accuracy' in record:
      found.setdefault(record['setting'], str(folder / 'runs' / record['run']))
  return found
