"""JPEG decoding of a region alone, with libjpeg-turbo 3; the same pixels as Pillow's, sooner.

The library comes with the `turbojpeg` wheel (Linux, x86-64). Where it is missing, `decode` returns
None and Pillow decodes the whole picture: slower, and equal to the last bit, so that data stay a
function of (seed, step) on any machine.
"""

from collections.abc import Callable
import ctypes
import functools
from importlib import metadata
import math
import struct
import threading
from typing import Any

import numpy as np
from PIL import Image

Region = tuple[int, int, int, int]  # top, left, height, width
# turbojpeg.h of libjpeg-turbo 3.0
TJINIT_DECOMPRESS = 1
TJPARAM_SUBSAMP, TJPARAM_WIDTH, TJPARAM_HEIGHT = 4, 5, 6
TJPARAM_PRECISION, TJPARAM_COLORSPACE, TJCS_YCBCR, TJPF_RGB = 7, 8, 1, 0
MCU_WIDTH = {0: 8, 1: 16, 2: 16, 4: 8}  # by chroma subsampling: 4:4:4, 4:2:2, 4:2:0, 4:4:0
# Interpolating chroma looks at its neighbours: beyond an edge, one pixel makes it exact (tried).
MARGIN = 2
ORIENTATION = 0x0112  # the EXIF tag


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ('x', 'y', 'w', 'h')]


@functools.cache
def library() -> Any:
  """libturbojpeg 3, or None where the wheel that holds it is not installed."""
  try:
    files = metadata.files('turbojpeg') or []
    path = next(file for file in files if 'libturbojpeg' in file.name).locate()
    lib = ctypes.CDLL(str(path))
    lib.tj3Init.restype = ctypes.c_void_p
  except (metadata.PackageNotFoundError, StopIteration, OSError, AttributeError):
    return None
  handle, size = ctypes.c_void_p, ctypes.c_size_t
  lib.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
  lib.tj3Get.argtypes = [handle, ctypes.c_int]
  lib.tj3SetCroppingRegion.argtypes = [handle, _Region]
  lib.tj3Decompress8.argtypes = [
    handle, ctypes.c_char_p, size, ctypes.c_void_p, ctypes.c_int, ctypes.c_int,
  ]  # fmt: skip
  lib.tj3Destroy.argtypes = [handle]
  return lib


class _Decoder(threading.local):
  """A handle for each thread: one is not to be shared."""

  def __init__(self):
    self.library = library()
    self.handle = self.library and self.library.tj3Init(TJINIT_DECOMPRESS)

  def __del__(self):
    if self.handle:
      self.library.tj3Destroy(self.handle)


_decoder = _Decoder()


def decode(data: bytes, choose: Callable[[int, int], Region]) -> np.ndarray | None:
  """The region `choose(height, width)` of a plain JPEG as RGB.

  None where this decoder cannot do it as Pillow would: no library, no JPEG, grey or CMYK, turned by
  EXIF, damaged.
  """
  lib, handle = _decoder.library, _decoder.handle
  if not handle or data[:2] != b'\xff\xd8' or is_turned(data):
    return None
  lib.tj3SetCroppingRegion(handle, _Region(0, 0, 0, 0))
  if lib.tj3DecompressHeader(handle, data, len(data)):
    return None
  get = functools.partial(lib.tj3Get, handle)
  mcu = MCU_WIDTH.get(get(TJPARAM_SUBSAMP))
  if mcu is None or get(TJPARAM_COLORSPACE) != TJCS_YCBCR or get(TJPARAM_PRECISION) != 8:
    return None
  height, width = get(TJPARAM_HEIGHT), get(TJPARAM_WIDTH)
  if height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
    return None  # Pillow warns of it, or refuses.
  top, left, rows, columns = choose(height, width)
  x = max(0, left - MARGIN) // mcu * mcu
  y = max(0, top - MARGIN)
  right, bottom = min(width, left + columns + MARGIN), min(height, top + rows + MARGIN)
  pixels = np.empty((bottom - y, right - x, 3), np.uint8)
  if lib.tj3SetCroppingRegion(handle, _Region(x, y, right - x, bottom - y)):
    return None
  if lib.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, TJPF_RGB):
    return None
  return pixels[top - y : top - y + rows, left - x : left - x + columns]


def is_turned(data: bytes) -> bool:
  """Whether metadata ask for another orientation, or may do so."""
  if b'tiff:Orientation' in data:  # XMP
    return True
  start = data.find(b'Exif\0\0')
  if start < 4:
    return start != -1
  length = int.from_bytes(data[start - 2 : start], 'big')
  exif = Image.Exif()
  try:
    exif.load(data[start : start - 2 + length])
    return exif.get(ORIENTATION, 1) != 1
  except (SyntaxError, KeyError, ValueError, struct.error):
    return True  # Pillow decides.
