"""Folders of pictures, {train,test}/{class}/*: the classes and the files."""

from collections.abc import Iterator
import os
import pathlib

from absl import logging
import numpy as np

from vit_jax.data import checked, pictures, sources
from vit_jax.runtime import fetch
from vit_jax.runtime.choices import check_choice

# Folders beside train that hold what another tool tests on: none of them is passed over unasked.
TESTED = ('test', 'val', 'valid', 'validation', 'eval')
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

  Args:
    test_folder: the name of the test folder; empty: a share of train, whatever else is there.

  Raises:
    FileNotFoundError: no such path.
    ValueError: no pictures, one class only, a test class that train lacks, or a broken file.
  """
  if not path:
    raise ValueError('config.data.path is not set: a folder, an archive, or an https address')
  check_choice('config.data.on_error', on_error, checked.ON_ERROR)
  root = fetch.folder(path, sha256)
  train = list_files(root / 'train' if (root / 'train').is_dir() else root)
  tested_at = find_test(root, test_folder)
  test = list_files(tested_at) if tested_at else {}
  check_classes(root, train, test, tested_at)
  every = [file for files in (train, test) for found in files.values() for file in found]
  broken = checked.check_files(every, root, on_error, decode_below)
  if broken:
    train, test = ({name: [file for file in found if file not in broken]
                    for name, found in files.items()} for files in (train, test))  # fmt: skip
    check_classes(root, train, test, tested_at)
  names = tuple(train)
  rest: sources.Source = as_source(train, names)
  if tested_at:
    tested: sources.Source = as_source(test, names)
  else:
    share = f'{test_fraction:.0%} of train'
    why = f'{root} has no folder {test_folder}' if test_folder else f'{root}: no test folder asked'
    logging.info('%s: %s is the test split', why, share)
    rest, tested = sources.split(rest, test_fraction, split_seed, 'test_fraction')
  splits = sources.with_validation(rest, validation_fraction, split_seed)
  return splits | {'test': tested}, names


def find_test(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """The test folder; None: there is none, and nothing that could be meant.

  Raises:
    ValueError: a folder that was asked for is not there, or others stand beside train alone.
  """
  has_train = (root / 'train').is_dir()
  if name and (root / name).is_dir():
    if not has_train:
      raise ValueError(f'{root} has the folder {name} but no folder train')
    return root / name
  others = [other for other in TESTED if has_train and (root / other).is_dir()]
  if name and (others or name != 'test'):
    there = f', but {" and ".join(others)}' if others else ''
    remedy = f'config.data.test_folder={others[0]}, or empty' if others else 'an empty one'
    raise ValueError(
      f'{root} has no folder {name}{there}; set {remedy} (config.data.test_folder=) for a share '
      'of train'
    )
  return None


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
  """Every file below a folder, hidden ones left out; a folder that links lead to again, once."""
  real = root.resolve()
  seen = {real, *real.parents}

  def is_new(folder: pathlib.Path) -> bool:
    real = folder.resolve()
    new = real not in seen
    seen.add(real)
    return new

  for place, folders, names in os.walk(root, followlinks=True):
    folders[:] = [
      name for name in sorted(folders)
      if not name.startswith('.') and is_new(pathlib.Path(place, name))
    ]  # fmt: skip
    yield from (pathlib.Path(place, name) for name in names if not name.startswith('.'))


def check_classes(
  root: pathlib.Path, train: Files, test: Files, tested_at: pathlib.Path | None
) -> None:
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
  if tested_at and not any(test.values()):
    raise ValueError(
      f'{tested_at} holds no pictures in class folders; expected {tested_at}/CLASS/PICTURE. Fill '
      'it, or set config.data.test_folder= (empty) for a share of train'
    )
  untested = [f'{name} ({len(train[name])} in train)' for name in train if not test.get(name)]
  if test and untested:
    logging.warning('%s: classes without a test picture: %s', root, ', '.join(untested))


def as_source(files: Files, names: tuple[str, ...]) -> sources.Listed:
  """Files by class as a source, whose labels are places in `names`."""
  number = {name: i for i, name in enumerate(names)}
  rows = [(file, number[name]) for name, found in files.items() for file in found]
  return sources.Listed([file for file, _ in rows], np.array([row[1] for row in rows], np.int32))
