"""torch's .pth files without torch: tensors alone; a pickle that would run code is refused.

Since torch 1.6 such a file is a zip archive: `data.pkl` describes the tensors, `data/KEY` holds
their bytes. The description is a pickle, and a pickle can call anything; this reader knows four
functions and refuses every other name.
"""

from collections import OrderedDict
from collections.abc import Callable
import math
from operator import index
import pathlib
import pickle
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np

DTYPES = {
  'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
  'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}  # fmt: skip
# What reading an archive raises that is damaged, or packed in a way that Python does not know.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError)
# Files keep the state beside others under such names.
WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'model_ema', 'state_dict_ema', 'module')


class Storage:
  """Names the type of a storage in a pickle."""

  def __init__(self, name: str):
    self.dtype = np.dtype(DTYPES[name])


class Tensor:
  """A tensor's place in its storage."""

  def __init__(self, storage: tuple[Any, str], offset: int, shape, strides, *_):
    self.dtype, self.key = storage
    self.offset, self.shape, self.strides = index(offset), ints(shape), ints(strides)


def ints(values: Any) -> tuple[int, ...]:
  """Whole numbers; anything else is a TypeError."""
  return tuple(map(index, values))


def parameter(tensor: Tensor, *_) -> Tensor:
  return tensor


ALLOWED = {
  ('collections', 'OrderedDict'): OrderedDict,
  ('torch._utils', '_rebuild_tensor_v2'): Tensor,
  ('torch._utils', '_rebuild_parameter'): parameter,
}


class Unpickler(pickle.Unpickler):
  """Knows tensors and dictionaries; everything else is refused by name."""

  def find_class(self, module: str, name: str) -> Any:
    if module == 'torch' and name in DTYPES:
      return Storage(name)
    if (module, name) not in ALLOWED:
      raise ValueError(
        f'its pickle asks for {module}.{name}, which is no tensor and could run code; refused. If '
        'you trust the file, save its state dict alone: torch.save(model.state_dict(), PATH)'
      )
    return ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
    _, storage, key, *_ = pid
    return storage.dtype, key


def open_file(path: pathlib.Path, entry: Callable) -> dict[str, Any]:
  """`entry(shape, dtype, load)` for each tensor of a file, by name.

  Raises:
    ValueError: no state dict, or one with more than tensors in it.
  """
  with zipfile.ZipFile(path) as archive:
    described = next(name for name in archive.namelist() if name.endswith('/data.pkl'))
    root = described.removesuffix('data.pkl')
    if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder') != b'little':
      raise ValueError('written on a machine of another byte order')
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    with archive.open(described) as file:
      try:
        tensors = tensors_of(Unpickler(file).load())
        for name, tensor in tensors.items():
          check(name, tensor, sizes.get(f'{root}data/{tensor.key}', 0))
      except (pickle.UnpicklingError, EOFError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f'its description is damaged ({error})') from None
  return {
    name: entry(tensor.shape, tensor.dtype, loader(path, f'{root}data/{tensor.key}', tensor))
    for name, tensor in tensors.items()
  }


def tensors_of(state: Any) -> dict[str, Tensor]:
  """The tensors by name, which some files keep under a name."""
  if not isinstance(state, dict):
    raise ValueError(f'it holds a {type(state).__name__}, not tensors by name')
  for wrapper in WRAPPERS:
    if isinstance(state.get(wrapper), dict):
      state = state[wrapper]
  found = {name.removeprefix('module.'): x for name, x in state.items() if isinstance(x, Tensor)}
  if not found:
    raise ValueError('it holds no tensors by name')
  return found


def check(name: str, tensor: Tensor, size: int) -> None:
  """Refuses a tensor that reaches beyond its storage, or claims more numbers than lie there."""
  numbers = (tensor.offset, *tensor.shape, *tensor.strides)
  steps = zip(tensor.shape, tensor.strides, strict=True)
  last = tensor.offset + sum((n - 1) * stride for n, stride in steps)
  beyond = 0 not in tensor.shape and (last + 1) * tensor.dtype.itemsize > size
  # Strides of 0 would make any shape of a few bytes.
  claims = math.prod(tensor.shape) * tensor.dtype.itemsize > size
  if beyond or claims or min(numbers) < 0:
    raise ValueError(f'{name} {tensor.shape} reaches beyond its {size:,} bytes')


def loader(path: pathlib.Path, name: str, tensor: Tensor) -> Callable[[], np.ndarray]:
  def load() -> np.ndarray:
    try:
      with zipfile.ZipFile(path) as archive:
        flat = np.frombuffer(archive.read(name), tensor.dtype)
    except DAMAGED as error:
      raise ValueError(f'{path}: {name} is damaged ({error})') from None
    strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)

  return load
