"""Pictures in any form (file, bytes, array, Pillow image) -> upright uint8 pixels."""

from collections.abc import Callable
import functools
import io
import math
import pathlib
import struct
import warnings
import zlib

from jaxtyping import UInt8
import numpy as np
from PIL import Image, UnidentifiedImageError

from vit_jax.data import jpeg

Picture = str | pathlib.Path | bytes | np.ndarray | Image.Image
NPY = b'\x93NUMPY'  # how a file of one array begins
# Pillow's modes by number of channels; with any other number a picture must be an array.
MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
# By EXIF orientation; 1 is upright.
TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# What Pillow's plug-ins raise on broken files.
BROKEN = (
  OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, OverflowError, struct.error,
  zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# What strangers may send: formats that browsers have and phones make. None runs another program to
# be read, as EPS does, or decodes more than the picture, as TIFF does with tiles beyond its edges.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'WEBP')
SLIMMEST = 100  # times as long as wide: a crop enlarges the shorter side and the other with it

# Such metadata are ignored, as the picture can be read.
warnings.filterwarnings('ignore', 'Corrupt EXIF data', UserWarning)


class Damaged(ValueError):
  """A picture that cannot be read; says why, and which file where that is known."""


class TooLarge(Damaged):
  """A picture of more pixels than are wanted."""


@functools.cache
def suffixes() -> frozenset[str]:
  """The suffixes of every format that Pillow reads, and '.npy', for any number of channels."""
  Image.init()
  known = Image.registered_extensions()
  return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN) | {'.npy'}


def read(
  picture: Picture,
  channels: int,
  choose: Callable[[int, int], jpeg.Region] | None = None,
  least: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, 'H W C']:
  """The pixels of a picture, or of the region that `choose(height, width)` picks.

  With `least`, (height, width), a JPEG may come at a half, a quarter or an eighth of its size, as
  long as the region has that many pixels.

  Raises:
    Damaged: not an image, a broken one, or one of another number of channels.
    OSError: the file cannot be opened.
  """
  if isinstance(picture, str | pathlib.Path):
    with open(picture, 'rb') as file:
      data = file.read()
    try:
      return read(data, channels, choose, least)
    except Damaged as error:
      raise Damaged(f'{picture}: {error}') from None
  if isinstance(picture, bytes):
    pixels = jpeg.decode(picture, choose or whole, least) if channels == 3 else None
    if pixels is not None:
      return pixels
    picture = decode(picture)
  pixels = convert(picture, channels)
  top, left, height, width = (choose or whole)(*pixels.shape[:2])
  return pixels[top : top + height, left : left + width]


def whole(height: int, width: int) -> jpeg.Region:
  """The region that is all of a picture."""
  return 0, 0, height, width


def decode(data: bytes) -> Image.Image | np.ndarray:
  """The picture in a file's content, upright.

  Raises:
    Damaged: not an image, or a broken one.
  """
  try:
    if data.startswith(NPY):
      return np.load(io.BytesIO(data), allow_pickle=False)
    image = Image.open(io.BytesIO(data))
    image.load()
  except UnidentifiedImageError:
    raise Damaged('not an image that Pillow can read') from None
  except BROKEN as error:
    raise Damaged(f'damaged image ({error})') from None
  return upright(image)


def decode_within(data: bytes, most: int) -> Image.Image | np.ndarray:
  """The picture in a stranger's file, as it lies there, of at most so many pixels.

  What is refused is refused by its header, and what is decoded is what was measured: a file may be
  of two formats at once, which tell two sizes.

  Raises:
    TooLarge: it would have more pixels, or is so slim that a crop of it would.
    Damaged: none of FORMATS and no array of pixels, or broken.
  """
  try:
    picture = _array(data) if data.startswith(NPY) else _measured(data)
    if isinstance(picture, np.ndarray):
      check_size(picture.shape[1], picture.shape[0], most)
    else:
      check_size(*picture.size, most)
      picture.load()
  except Damaged:
    raise
  except UnidentifiedImageError:
    raise Damaged(f'not a picture of a known format: {", ".join(FORMATS)}, or .npy') from None
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise TooLarge(f'more than the {most:,} pixels that are allowed') from None
  except BROKEN as error:
    raise Damaged(f'damaged image ({error})') from None
  return picture


def check_size(width: int, height: int, most: int) -> None:
  """Refuses more than `most` pixels, and sides of which a crop would make more.

  Raises:
    TooLarge: so it is.
  """
  if width * height > most:
    raise TooLarge(f'{width} x {height} pixels, more than the {most:,} that are allowed')
  if not max(width, height) <= SLIMMEST * min(width, height):
    raise TooLarge(f'{width} x {height} pixels: one side is more than {SLIMMEST} times the other')


def _measured(data: bytes) -> Image.Image:
  """A picture of which the header alone was read."""
  with warnings.catch_warnings():
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _array(data: bytes) -> np.ndarray:
  """An array of pixels, which must have as many bytes as its header claims."""
  file = io.BytesIO(data)
  read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
  shape, _, kind = read[np.lib.format.read_magic(file)[0]](file)
  size = math.prod(shape) * kind.itemsize
  if len(shape) != 3 or not size or size != len(data) - file.tell():
    raise ValueError(f'an array {shape} of {kind} in {len(data)} bytes is no picture')
  return np.load(io.BytesIO(data), allow_pickle=False)


def upright(image: Image.Image) -> Image.Image:
  """A picture turned as its EXIF orientation asks; an invalid one is ignored."""
  try:
    orientation = image.getexif().get(jpeg.ORIENTATION)
  except BROKEN:
    return image
  return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def check(picture: Image.Image | np.ndarray) -> None:
  """Refuses what has no pixels whose values have a known range.

  Raises:
    Damaged: an array that is not uint8 `H W C`, or is empty; an image of floats.
  """
  if isinstance(picture, np.ndarray):
    if picture.dtype != np.uint8 or picture.ndim != 3 or not picture.size:
      raise Damaged(
        f'an array of pixels must be uint8 (height, width, channels), not {picture.dtype} '
        f'{picture.shape}'
      )
  elif picture.mode == 'F':
    raise Damaged('floats, whose range nothing says; save it with 8 or 16 bits')


def convert(picture: Image.Image | np.ndarray, channels: int) -> UInt8[np.ndarray, 'H W C']:
  """Brings a picture to the asked number of channels: grey is repeated, transparent is white.

  Raises:
    Damaged: as `check` says, or an array of another number of channels.
  """
  check(picture)
  if isinstance(picture, np.ndarray):
    if picture.shape[-1] == channels:
      return picture
    if picture.shape[-1] not in MODES or channels not in MODES:
      given = picture.shape[-1]
      raise Damaged(f'a picture has {given} channels, not config.data.channels={channels}')
    picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  if channels not in MODES:
    raise Damaged(f'config.data.channels={channels}: give such pictures as .npy files')
  pixels = np.asarray(to_mode(picture, MODES[channels]))
  return pixels.reshape(*pixels.shape[:2], channels)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
  """Brings a picture to the mode 'L', 'LA', 'RGB' or 'RGBA': 16-bit values are scaled to 8 bits.

  Of 32 bits nothing says how many are used: values up to 255 are taken for 8.
  """
  if image.mode.startswith('I'):
    values = np.asarray(image)
    wide = image.mode.startswith('I;16') or values.max(initial=0) > 255
    scale = 257 if wide else 1
    image = Image.fromarray((values // scale).clip(0, 255).astype(np.uint8))
  see_through = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
  if see_through and mode in ('L', 'RGB'):
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return image if image.mode == mode else image.convert(mode)
