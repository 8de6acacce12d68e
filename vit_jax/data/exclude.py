"""Training pictures that a file leaves out: what `vit_jax.explore.duplicates` found, or names.

A `duplicates.json` names the pictures of one data set and says how many that has; it is refused for
another. A text file has a name a line; empty lines and those that begin with # say nothing. A name
is what messages call a picture, 'example 17 of cifar10 train', or the end of a file's path,
'daisy/image_0802.jpg'.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from vit_jax.data.sources import Source, Splits, classes_of

FORMAT = 1  # of duplicates.json
COMMAND = 'python -m vit_jax.explore.duplicates'


def apply(splits: Splits, path: str | None) -> Splits:
  """The splits without the pictures that the file `path` names, of which test has none.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it cannot be read, is of other data, or leaves nothing of a split or of a class.
  """
  if path is None:
    return splits
  wanted, examples = read(path)
  pool = {name: source for name, source in splits.items() if name != 'test'}
  known = sum(map(len, pool.values()))
  if examples is not None and examples != known:
    raise ValueError(
      f'config.data.exclude={path} is of {examples:,} training pictures, and these data have '
      f'{known:,}: it belongs to others; make it anew for these ({COMMAND})'
    )
  found = find(wanted, pool, path)
  kept = {name: without(source, found[name], name, path) for name, source in pool.items()}
  left_out = ', '.join(f'{len(found[name]):,} of {len(pool[name]):,} of {name}' for name in pool)
  logging.info('left out by config.data.exclude=%s: %s', path, left_out)
  return splits | kept


def read(path: str) -> tuple[list[str], int | None]:
  """The names in a file, each once, and of how many pictures it is; None where it does not say.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is no text, or JSON of another kind.
  """
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise FileNotFoundError(
      f'config.data.exclude={path} is no file; give the path of a duplicates.json ({COMMAND}) or '
      'of a list of names, or leave it out'
    )
  try:
    text = file.read_text(encoding='utf-8')
    if file.suffix != '.json':
      lines = [line.strip() for line in text.splitlines()]
      return list(dict.fromkeys(x for x in lines if x and not x.startswith('#'))), None
    return names_of(json.loads(text))
  except (ValueError, KeyError, TypeError) as error:
    why = ' '.join(str(error).split())[:100]
    raise ValueError(
      f'config.data.exclude={path} is no list of duplicates ({why}): a .json must be one that '
      f'{COMMAND} wrote; other files are read as one name a line'
    ) from None


def names_of(content: Any) -> tuple[list[str], int]:
  """The training pictures in a duplicates.json, and how many pictures it looked at."""
  if content['format'] > FORMAT:
    raise ValueError(f'format {content["format"]}; this version reads {FORMAT}')
  return list(dict.fromkeys(pair['name'] for pair in content['pairs'])), int(content['examples'])


def find(wanted: Sequence[str], pool: Splits, path: str) -> dict[str, list[int]]:
  """The places of the named pictures in each split.

  Raises:
    ValueError: a name that no picture has, or several have.
  """
  lengths = {name.count('/') for name in wanted}
  asked, places = {*wanted}, {name: [] for name in wanted}
  for split, source in pool.items():
    for i in range(len(source)):
      for name in ends(source.name(i), lengths) & asked:
        places[name].append((split, i))
  missing = [name for name in wanted if not places[name]]
  if missing:
    raise ValueError(
      f'config.data.exclude={path}: {len(missing)} of its {len(wanted)} names are of no training '
      f'picture, {missing[0]!r} first; it belongs to other data (another set, split or folder), '
      'or the pictures were renamed'
    )
  twice = [name for name in wanted if len(places[name]) > 1]
  if twice:
    raise ValueError(
      f'config.data.exclude={path}: {twice[0]!r} is the name of {len(places[twice[0]])} pictures; '
      'write more of the path'
    )
  chosen = {place for found in places.values() for place in found}
  return {split: sorted(i for own, i in chosen if own == split) for split in pool}


def ends(name: str, lengths: set[int]) -> set[str]:
  """A name and its ends of so many slashes: 'a/b/c' has 'b/c' of one."""
  parts = name.split('/')
  return {name} | {'/'.join(parts[-1 - n :]) for n in lengths if n < len(parts)}


def without(source: Source, places: list[int], split: str, path: str) -> Source:
  """A source less the pictures at some places.

  Raises:
    ValueError: nothing is left, or nothing of a class.
  """
  kept = np.setdiff1d(np.arange(len(source)), np.array(places, int))
  classes = classes_of(source)
  empty = (
    [] if split != 'train' or classes is None else np.setdiff1d(classes, classes[kept]).tolist()
  )
  if not len(kept) or empty:
    what = f'of class {empty[0]} (from 0)' if len(kept) else 'at all'
    raise ValueError(f'config.data.exclude={path} leaves no picture {what} in {split}')
  return source.take(kept)
