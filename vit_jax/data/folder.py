"""Folders of pictures, {train,test}/{class}/*: the classes, the files, and a check of each file."""

from collections.abc import Iterator
from concurrent import futures
import hashlib
import json
import os
import pathlib

from absl import logging
import numpy as np
from PIL import Image

from vit_jax.data import pictures, sources
from vit_jax.runtime import devices, fetch
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

ON_ERROR = ('error', 'skip')
Files = dict[str, list[str]]  # class name -> paths


def load(
  *,
  path: str | None,
  sha256: str | None,
  test_folder: str,
  test_fraction: float,
  validation_fraction: float,
  split_seed: int,
  on_error: str,
  decode_below: int,
) -> tuple[sources.Splits, tuple[str, ...]]:
  """Loads the pictures in `path/train/CLASS/` and `path/test/CLASS/`, or in `path/CLASS/` alone.

  The class names are the folders of the training split, in order of name. Without a test folder a
  seeded share of train is the test split.

  Raises:
    FileNotFoundError: no such path.
    ValueError: no pictures, one class only, a test class that train lacks, or a broken file.
  """
  if not path:
    raise ValueError('config.data.path is not set: a folder, an archive, or an https address')
  check_choice('config.data.on_error', on_error, ON_ERROR)
  root = fetch.folder(path, sha256)
  has_test = (root / test_folder).is_dir()
  if has_test and not (root / 'train').is_dir():
    raise ValueError(f'{root} has the folder {test_folder} but no folder train')
  train = list_files(root / 'train' if (root / 'train').is_dir() else root)
  test = list_files(root / test_folder) if has_test else {}
  check_classes(root, train, test)
  every = [file for files in (train, test) for found in files.values() for file in found]
  broken = check_files(every, root, on_error, decode_below)
  if broken:
    train, test = ({name: [file for file in found if file not in broken]
                    for name, found in files.items()} for files in (train, test))  # fmt: skip
    check_classes(root, train, test)
  names = tuple(train)
  rest: sources.Source = as_source(train, names)
  if has_test:
    tested: sources.Source = as_source(test, names)
  else:
    share = f'{test_fraction:.0%} of train'
    logging.info('%s has no folder %s: %s is the test split', root, test_folder, share)
    rest, tested = sources.split(rest, test_fraction, split_seed, 'test_fraction')
  splits = sources.with_validation(rest, validation_fraction, split_seed)
  return splits | {'test': tested}, names


def list_files(root: pathlib.Path) -> Files:
  """The pictures below each class folder, at any depth, in order of name; hidden ones left out."""
  files, others = {}, []
  for entry in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
    if entry.startswith('.'):
      continue
    found = sorted(walk(root / entry))
    files[entry] = [str(file) for file in found if file.suffix.lower() in pictures.suffixes()]
    others += [file for file in found if file.suffix.lower() not in pictures.suffixes()]
  if others:
    shown = ', '.join(str(file.relative_to(root)) for file in others[:5])
    logging.info('%s: %d files are no pictures by their names: %s', root, len(others), shown)
  return files


def walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Every file below a folder, hidden ones left out."""
  for place, folders, names in os.walk(root, followlinks=True):
    folders[:] = [name for name in folders if not name.startswith('.')]
    yield from (pathlib.Path(place, name) for name in names if not name.startswith('.'))


def check_classes(root: pathlib.Path, train: Files, test: Files) -> None:
  """Refuses classes that cannot be learnt or tested; warns of those that are not tested."""
  if not any(train.values()):
    raise ValueError(
      f'{root} holds no pictures in class folders; expected {root}/train/CLASS/PICTURE or '
      f'{root}/CLASS/PICTURE'
    )
  empty = [name for name, files in train.items() if not files]
  if empty:
    raise ValueError(f'{root}: no pictures for the classes {empty}; delete or fill their folders')
  if len(train) < 2:
    raise ValueError(f'{root} has one class only, {next(iter(train))!r}; a classifier needs two')
  unknown = [f'{name} ({len(files)})' for name, files in test.items() if name not in train]
  if unknown:
    raise ValueError(
      f'{root}: test has classes that train lacks: {", ".join(unknown)}; train has '
      f'{", ".join(train)}'
    )
  if test and not any(test.values()):
    raise ValueError(f'{root}: the test folder holds no pictures; fill or delete it')
  untested = [f'{name} ({len(train[name])} in train)' for name in train if not test.get(name)]
  if test and untested:
    logging.warning('%s: classes without a test picture: %s', root, ', '.join(untested))


def as_source(files: Files, names: tuple[str, ...]) -> sources.Listed:
  """Files by class as a source, whose labels are places in `names`."""
  number = {name: i for i, name in enumerate(names)}
  rows = [(file, number[name]) for name, found in files.items() for file in found]
  return sources.Listed([file for file, _ in rows], np.array([row[1] for row in rows], np.int32))


def check_files(files: list[str], root: pathlib.Path, on_error: str, decode_below: int) -> set[str]:
  """Opens every file, and decodes it where there are few; the result is kept in the cache.

  Returns:
    The files that cannot be read.

  Raises:
    ValueError: with `on_error='error'`, names the broken files.
  """
  whole = len(files) < decode_below
  seen = [(file, *written(file)) for file in files]
  key = hashlib.sha256(repr((whole, Image.__version__, seen)).encode()).hexdigest()[:16]
  record = fetch.cache_folder() / 'checked' / f'{key}.json'
  if record.exists():
    broken = json.loads(record.read_text())
  else:
    broken = find_broken(files, whole)
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(f'.{os.getpid()}')
    partial.write_text(json.dumps(broken))
    partial.replace(record)  # Whole, for processes that start together.
  if not broken:
    return set()
  shown = '\n'.join(f'  {reason}' for reason in list(broken.values())[:20])
  more = f'\n  and {len(broken) - 20} more' if len(broken) > 20 else ''
  message = f'{root}: {len(broken)} of {len(files)} files cannot be read:\n{shown}{more}'
  if on_error == 'error':
    raise ValueError(f'{message}\nmend or delete them, or set config.data.on_error=skip')
  logging.warning('%s\nthey are skipped', message)
  return set(broken)


def written(file: str) -> tuple[int, int]:
  """The size of a file and when it was written, in ns; (-1, -1) of a link that leads nowhere."""
  try:
    stat = os.stat(file)
  except OSError:
    return -1, -1
  return stat.st_size, stat.st_mtime_ns


def find_broken(files: list[str], whole: bool) -> dict[str, str]:
  """The broken files with what is wrong, by file."""

  def check(file: str) -> str | None:
    try:
      if whole or file.lower().endswith('.npy'):
        pictures.check(pictures.decode(pathlib.Path(file).read_bytes()))
      else:
        with Image.open(file) as image:
          pictures.check(image)
    except pictures.Damaged as error:
      return f'{file}: {error}'
    except pictures.BROKEN as error:
      return f'{file}: not an image that Pillow can read ({error})'
    return None

  what = 'decoding' if whole else 'opening'
  with futures.ThreadPoolExecutor(devices.cores()) as pool:
    reasons = list(track(pool.map(check, files), len(files), f'{what} every picture', 'pictures'))
  return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}
