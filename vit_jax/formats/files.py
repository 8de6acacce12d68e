"""Files of arrays by name, opened without reading the arrays: .npz, .safetensors, torch's .pth.

What a file is, its first bytes say, never its name.
"""

from collections.abc import Callable
import json
import pathlib
import struct
import tokenize
from typing import Any, NamedTuple
import zipfile

import numpy as np

from vit_jax.formats import torch_file
from vit_jax.runtime import atomic


class Entry(NamedTuple):
  """An array in a file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  load: Callable[[], np.ndarray]

  @classmethod
  def of(cls, array: np.ndarray) -> 'Entry':
    return cls(array.shape, array.dtype, lambda: array)

  def in_float32(self) -> 'Entry':
    """The same in float32, whatever the file has."""
    dtype = np.dtype(np.float32)
    return Entry(self.shape, dtype, lambda: np.asarray(self.load(), dtype))


Arrays = dict[str, Entry]


def open_file(path: pathlib.Path) -> Arrays:
  """The arrays of a file.

  Raises:
    FileNotFoundError: no such file.
    ValueError: of no kind that is known, damaged, or not arrays alone.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist')
  with path.open('rb') as file:
    start = file.read(9)
  try:
    if start.startswith(b'PK\x03\x04'):
      with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
      torch = any(name.endswith('/data.pkl') for name in names)
      return torch_file.open_file(path, Entry) if torch else open_npz(path)
    if start[8:9] == b'{':
      return open_safetensors(path)
    if start.startswith(b'\x80'):
      raise ValueError(
        "an old torch file (before 1.6), a pickle that could run code; save it again with today's "
        'torch: torch.save(torch.load(PATH, weights_only=True), NEW)'
      )
  except (*torch_file.DAMAGED, OSError, struct.error) as error:
    raise ValueError(f'{path}: {error}') from None
  raise ValueError(f'{path} is no weight file: neither .npz nor .safetensors nor .pth')


def open_npz(path: pathlib.Path) -> Arrays:
  """NumPy's archive; an entry that claims more than it holds is refused before memory is taken."""
  arrays = {}
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      with archive.open(info) as file:
        shape, _, dtype = read_header(file, info.filename)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize + file.tell()
      if dtype.hasobject:
        raise ValueError(f'{info.filename} holds Python objects, which could run code; refused')
      if size != info.file_size:
        raise ValueError(
          f'{info.filename} claims {dtype} {shape}, {size:,} bytes, but has {info.file_size:,}'
        )
      if dtype == VOID:
        dtype = DTYPES['BF16']
      name = info.filename.removesuffix('.npy')
      arrays[name] = Entry(shape, dtype, _npz_loader(path, info.filename))
  return arrays


def read_header(file, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
  """The shape, order and type that a .npy begins with."""
  try:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    return read(file)
  except (ValueError, KeyError, SyntaxError, tokenize.TokenError) as error:
    raise ValueError(f'{name} is not an array ({error})') from None


def _npz_loader(path: pathlib.Path, name: str) -> Callable[[], np.ndarray]:
  def load() -> np.ndarray:
    try:
      with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except torch_file.DAMAGED as error:
      raise ValueError(f'{path}: {name} is damaged ({error})') from None
    return array.view(DTYPES['BF16']) if array.dtype == VOID else array

  return load


def open_safetensors(path: pathlib.Path) -> Arrays:
  from safetensors import SafetensorError, safe_open

  def loader(name: str) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
      with safe_open(str(path), 'np') as file:
        return file.get_tensor(name)

    return load

  try:
    with safe_open(str(path), 'np') as file:
      parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
      return {
        name: Entry(tuple(part.get_shape()), DTYPES[part.get_dtype()], loader(name))
        for name, part in parts.items()
      }
  except (SafetensorError, KeyError) as error:
    raise ValueError(f'a damaged .safetensors file ({error})') from None


def _dtypes() -> dict[str, np.dtype]:
  import ml_dtypes

  plain = {f'{kind}{bits}': f'{name}{bits}' for kind, name in (('F', 'float'), ('I', 'int'))
           for bits in (8, 16, 32, 64) if (kind, bits) != ('F', 8)}  # fmt: skip
  plain |= {f'U{bits}': f'uint{bits}' for bits in (8, 16, 32, 64)} | {'BOOL': 'bool'}
  return {key: np.dtype(name) for key, name in plain.items()} | {
    'BF16': np.dtype(ml_dtypes.bfloat16)
  }


DTYPES = _dtypes()
NAMES = {dtype: name for name, dtype in DTYPES.items()}
VOID = np.dtype('V2')  # What a .npz makes of bfloat16, which NumPy does not know.


def write_npz(path: pathlib.Path, arrays: Arrays) -> None:
  """Uncompressed, as weights hardly shrink; one array in memory at a time."""
  with atomic.replacing(path) as partial, zipfile.ZipFile(partial, 'w', allowZip64=True) as archive:
    for name, entry in arrays.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(entry.load()), allow_pickle=False)


def write_safetensors(path: pathlib.Path, arrays: Arrays, metadata: dict[str, str]) -> None:
  """The same for safetensors, whose own writer holds every array twice."""
  header: dict[str, Any] = {'__metadata__': metadata} if metadata else {}
  end = 0
  for name, entry in arrays.items():
    start, end = end, end + int(np.prod(entry.shape)) * entry.dtype.itemsize
    shape = list(entry.shape)
    header[name] = {'dtype': NAMES[entry.dtype], 'shape': shape, 'data_offsets': [start, end]}
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # Arrays begin at a multiple of 8.
  with atomic.replacing(path) as partial, partial.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name, entry in arrays.items():
      array = np.ascontiguousarray(entry.load())
      if (array.shape, array.dtype) != (entry.shape, entry.dtype):
        raise ValueError(f'{name}: {array.dtype} {array.shape} instead of {entry.dtype}'
                         f' {entry.shape}')  # fmt: skip
      file.write(array.tobytes() if array.dtype.kind == 'V' else array.data)
