"""JPEG decoding of a region alone, with libjpeg-turbo 3; the same pixels as Pillow's, sooner.

The library comes with the `turbojpeg` wheel (Linux, x86-64). Where it is missing, `decode` returns
None, or lets Pillow do it: slower, and equal to the last bit, so that data stay a
function of (seed, step) on any machine.
"""

from collections.abc import Callable
import ctypes
import functools
from importlib import metadata
import io
import math
import struct
import threading
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.resize import shrink

Region = tuple[int, int, int, int]  # top, left, height, width
Choice = Callable[[int, int], tuple[int, Region]]
# turbojpeg.h of libjpeg-turbo 3.0
TJINIT_DECOMPRESS = 1
TJPARAM_SUBSAMP, TJPARAM_WIDTH, TJPARAM_HEIGHT = 4, 5, 6
TJPARAM_PRECISION, TJPARAM_COLORSPACE, TJPF_RGB = 7, 8, 0
COLOURS = (1, 2)  # TJCS_YCbCr, TJCS_GRAY
MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8}  # by subsampling: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0
# Interpolating chroma looks at its neighbours: beyond an edge, one pixel makes it exact (tried).
MARGIN = 2
ORIENTATION = 0x0112  # the EXIF tag
# By its value: whether the file holds the picture mirrored, upside down, and then transposed:
# (transposed, upside down, mirrored).
STORED = {
  1: (False, False, False), 2: (False, False, True), 3: (False, True, True),
  4: (False, True, False), 5: (True, False, False), 6: (True, True, False),
  7: (True, True, True), 8: (True, False, True),
}  # fmt: skip


class _Fraction(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ('numerator', 'denominator')]


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ('x', 'y', 'w', 'h')]


@functools.cache
def library() -> Any:
  """The library libturbojpeg 3, or None where the wheel that holds it is not installed."""
  try:
    files = metadata.files('turbojpeg') or []
    path = next(file for file in files if 'libturbojpeg' in file.name).locate()
    # Only the long call lets other Python threads run: to get the lock back takes its time.
    lib: Any = ctypes.PyDLL(str(path))
    lib.decompress = ctypes.CDLL(str(path)).tj3Decompress8
    lib.tj3Init.restype = ctypes.c_void_p
  except (metadata.PackageNotFoundError, StopIteration, OSError, AttributeError):
    return None
  handle, size = ctypes.c_void_p, ctypes.c_size_t
  lib.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
  lib.tj3Get.argtypes = [handle, ctypes.c_int]
  lib.tj3SetCroppingRegion.argtypes = [handle, _Region]
  lib.tj3SetScalingFactor.argtypes = [handle, _Fraction]
  lib.decompress.argtypes = [
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


def decode(
  data: bytes, choose: Callable[[int, int], Region], least: tuple[int, int] | None = None
) -> np.ndarray | None:
  """The region `choose(height, width)` of a JPEG as RGB, upright.

  With `least`, (height, width), at a half, a quarter or an eighth of its size where it still has
  that many pixels. None where Pillow must decode it whole: no JPEG, CMYK, damaged, odd metadata.
  """
  turn = orientation(data) if data[:2] == b'\xff\xd8' else None
  if turn is None:
    return None
  transposed, upside_down, mirrored = STORED.get(turn, STORED[1])

  def stored(height: int, width: int) -> tuple[int, Region]:
    """How much to shrink, and the region in the smaller picture as it lies in the file."""
    top, left, rows, columns = choose(*((width, height) if transposed else (height, width)))
    by = shrink((rows, columns), least) if least else 1
    if transposed:
      top, left, rows, columns = left, top, columns, rows
    top = height - top - rows if upside_down else top
    left = width - left - columns if mirrored else left
    return by, (top // by, left // by, rows // by, columns // by)

  pixels = _with_turbo(data, stored)
  if pixels is None and least:
    pixels = _with_pillow(data, stored)
  if pixels is None:
    return None
  pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
  return np.ascontiguousarray(pixels.swapaxes(0, 1)) if transposed else pixels


def _with_turbo(data: bytes, stored: Choice) -> np.ndarray | None:
  """None where this decoder cannot do it as Pillow would."""
  lib, handle = _decoder.library, _decoder.handle
  if not handle:
    return None
  lib.tj3SetCroppingRegion(handle, _Region(0, 0, 0, 0))
  if lib.tj3DecompressHeader(handle, data, len(data)):
    return None
  get = functools.partial(lib.tj3Get, handle)
  mcu = MCU_WIDTH.get(get(TJPARAM_SUBSAMP))
  if mcu is None or get(TJPARAM_COLORSPACE) not in COLOURS or get(TJPARAM_PRECISION) != 8:
    return None
  height, width = get(TJPARAM_HEIGHT), get(TJPARAM_WIDTH)
  if height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
    return None  # Pillow warns of it, or refuses.
  by, (top, left, rows, columns) = stored(height, width)
  x = max(0, left - MARGIN) // (mcu // by or 1) * (mcu // by or 1)
  y = max(0, top - MARGIN)
  right = min(-(-width // by), left + columns + MARGIN)
  bottom = min(-(-height // by), top + rows + MARGIN)
  pixels = np.empty((bottom - y, right - x, 3), np.uint8)
  if lib.tj3SetScalingFactor(handle, _Fraction(1, by)):
    return None
  if lib.tj3SetCroppingRegion(handle, _Region(x, y, right - x, bottom - y)):
    return None
  if lib.decompress(handle, data, len(data), pixels.ctypes.data, 0, TJPF_RGB):
    return None
  return pixels[top - y : top - y + rows, left - x : left - x + columns]


def _with_pillow(data: bytes, stored: Choice) -> np.ndarray | None:
  """The same pixels where there is no other decoder."""
  try:
    image = Image.open(io.BytesIO(data))
    if image.mode not in ('RGB', 'L'):
      return None
    width, height = image.size
    by, (top, left, rows, columns) = stored(height, width)
    image.draft(image.mode, (width // by, height // by))
    return np.asarray(image.convert('RGB'))[top : top + rows, left : left + columns]
  except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
    return None  # Whoever decodes it whole says what is wrong.


def orientation(data: bytes) -> int | None:
  """The orientation of a JPEG as EXIF says it, 1 to 8; None where only Pillow can tell."""
  data = data[: start_of_scan(data)]
  start, exif = data.find(b'Exif\0\0'), Image.Exif()
  if start >= 4 and (b'\x01\x12' in data or b'\x12\x01' in data):  # The tag, in either order.
    length = int.from_bytes(data[start - 2 : start], 'big')
    try:
      exif.load(data[start : start - 2 + length])
    except (SyntaxError, KeyError, ValueError, struct.error):
      return None
  # XMP counts where EXIF is silent.
  return exif.get(ORIENTATION, None if b'tiff:Orientation' in data else 1)


def start_of_scan(data: bytes) -> int:
  """The place where the metadata end; the length of `data` where its segments are not in order."""
  at = 2
  while data[at : at + 1] == b'\xff' and data[at : at + 2] != b'\xff\xda':
    at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
  return at if data[at : at + 2] == b'\xff\xda' else len(data)
