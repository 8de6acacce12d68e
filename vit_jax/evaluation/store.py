"""The files of a token cache: appended, counted, locked; and what they depend on, as hashes."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from flax import traverse_util
import numpy as np

from vit_jax.data import Dataset
from vit_jax.data.pictures import Picture
from vit_jax.runtime import atomic

ROWS = 256  # stored pictures that are hashed at once


@dataclasses.dataclass(frozen=True)
class Tokens:
  """All that was kept of one layer of one split.

  Attributes:
    values: `V N T D`, memory-mapped: views, examples, tokens, width; `V N F` of features.
    labels: `N`.
  """

  values: np.ndarray
  labels: np.ndarray


def path_of(folder: pathlib.Path, split: str, layer: str) -> pathlib.Path:
  return folder / f'{split}.{layer.replace("/", "-")}'


def open_tokens(
  folder: pathlib.Path, split: str, layer: str, dtype: np.dtype, shape: tuple[int, ...]
) -> Tokens:
  """The values of a layer as an array of `shape`, `V N ...`, and the labels beside them."""
  labels = np.fromfile(folder / f'{split}.labels', np.int32).reshape(shape[:2])[0]
  return Tokens(np.memmap(path_of(folder, split, layer), dtype, 'r', shape=shape), labels)


def reopen(path: pathlib.Path, size: int):
  """A file to append to, cut to the `size` bytes that are known to be good."""
  file = open(path, 'r+b' if path.exists() else 'w+b', buffering=0)  # noqa: SIM115
  file.truncate(size)
  file.seek(size)
  return file


def append(file, array: np.ndarray) -> None:
  """Writes every byte, or raises: a raw file may take a part of them."""
  left = memoryview(np.ascontiguousarray(array).tobytes())
  while left:
    left = left[file.write(left) :]


def settle(files: list, folder: pathlib.Path, done: dict[str, int]) -> None:
  """Brings the rows to disk, then the count of them."""
  with contextlib.suppress(OSError):  # A full disk: the count of before stays true.
    for file in files:
      os.fsync(file.fileno())
    atomic.write_text(folder / 'progress.json', json.dumps(done))


def read_progress(folder: pathlib.Path) -> dict[str, int]:
  try:
    return json.loads((folder / 'progress.json').read_text())
  except (OSError, ValueError):
    return {}


@contextlib.contextmanager
def locked(folder: pathlib.Path):
  """Keeps a second process from writing the same files.

  Raises:
    ValueError: another one is at it.
  """
  try:
    import fcntl
  except ImportError:  # Windows.
    yield
    return
  with open(folder / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise ValueError(f'another process is computing the tokens in {folder}') from None
    yield


def hash_of_params(params) -> str:
  """A hash of every name, shape and bit."""
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
  total = hashlib.sha256()
  for name in sorted(flat):
    array = np.ascontiguousarray(flat[name])
    total.update(f'{name} {array.shape} {array.dtype};'.encode())
    total.update(array.tobytes())
  return total.hexdigest()


def hash_of_split(data: Dataset, split: str) -> str:
  """A hash of the classes, every label, every picture as it is stored, and 32 pictures' pixels.

  A file counts by its name, size and time of change, a record of a set by its bytes: all records
  lie in few files, whose sizes and times need not change with one of them. Pixels of all would cost
  as much as the pass saves.
  """
  source = data.splits[split]
  total = hashlib.sha256(json.dumps([split, len(source), *data.class_names]).encode())
  for start in range(0, len(source), ROWS):
    pictures, labels = source.read(np.arange(start, min(start + ROWS, len(source))))
    total.update(np.ascontiguousarray(labels).tobytes())
    for picture in pictures:
      total.update(described(picture))
  for index in np.unique(np.linspace(0, len(source) - 1, 32).astype(int)):
    total.update(np.ascontiguousarray(data.picture(split, int(index))).tobytes())
  return total.hexdigest()


def described(picture: Picture) -> bytes:
  """What tells whether a stored picture has changed: its length, then its bytes or its file's."""
  if isinstance(picture, str | pathlib.Path):
    about = os.stat(picture)
    content = f'{picture} {about.st_size} {about.st_mtime_ns};'.encode()
  else:
    content = picture if isinstance(picture, bytes) else np.ascontiguousarray(picture).tobytes()
  return len(content).to_bytes(8, 'little') + content
