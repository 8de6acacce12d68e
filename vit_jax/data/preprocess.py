"""From any picture to the model's input: fitted to its size; normalised on the device.

These settings travel with the weights, so `predict` sees what training saw.
"""

import dataclasses
import math
import pathlib

from jax import numpy as jnp
from jaxtyping import Array, Float, Num, UInt8
import numpy as np
from PIL import Image

from vit_jax.data import pictures
from vit_jax.data.resize import FILTERS, resize
from vit_jax.runtime.choices import check_choice

FITS = ('squash', 'crop')
LARGEST = 10**8  # pixels of which a centre is cut out, 0.3 GB in RGB: no photograph comes near


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """The settings that turn a picture into the model's input, and the function that does.

  Attributes:
    image_size: (height, width) in pixels.
    channels: 1 (grey), 2 (grey, alpha), 3 (RGB), 4 (RGBA), or any number for pictures from arrays.
    resize: the filter where a picture has another size; all but 'nearest' and 'linear' smooth when
      shrinking.
    mean: subtracted from pixel values in 0..1; one number, or one a channel; (): 0.5.
    std: divided by afterwards; (): 0.5.
    fit: 'squash' resizes the whole picture; 'crop' resizes its shorter side to `resize_small` and
      takes the centre.
    resize_small: pixels, for images as wide as high; None: 1 / 0.875 of the shorter side of
      `image_size`.
  """

  image_size: tuple[int, int]
  channels: int
  resize: str = 'bilinear'
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  fit: str = 'squash'
  resize_small: int | None = None

  def __post_init__(self):
    object.__setattr__(self, 'image_size', tuple(self.image_size))
    for key in ('mean', 'std'):
      object.__setattr__(self, key, tuple(getattr(self, key)) or (0.5,))
    if len(self.image_size) != 2 or min(self.image_size) < 1:
      raise ValueError(f'config.data.image_size={self.image_size} must be (height, width)')
    if self.channels < 1:
      raise ValueError(f'config.data.channels={self.channels} must be at least 1')
    for key in ('mean', 'std'):
      if len(getattr(self, key)) not in (1, self.channels):
        raise ValueError(f'config.data.{key} needs 1 or {self.channels} numbers')
    if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
      raise ValueError(
        f'config.data.mean={self.mean} and std={self.std} must be numbers, and std above 0: pixel '
        'values are divided by it'
      )
    check_choice('config.data.resize', self.resize, FILTERS)
    check_choice('config.data.fit', self.fit, FITS)
    if self.resize_small is not None and self.resize_small < min(self.image_size):
      raise ValueError(
        f'config.data.resize_small={self.resize_small} must be at least the shorter side of '
        f'config.data.image_size={self.image_size}'
      )

  def __call__(self, picture: pictures.Picture) -> UInt8[np.ndarray, 'H W C']:
    """Any picture, as evaluation and prediction see it.

    Raises:
      pictures.Damaged: not an image, a broken one, or one so slim that `crop` would enlarge it
        beyond LARGEST; names the file.
    """
    if isinstance(picture, Image.Image):
      picture = pictures.upright(picture)
    pixels = pictures.read(picture, self.channels)
    if self.fit == 'squash':
      return resize(pixels, self.image_size, self.resize)
    height, width = self.image_size
    size = self.before_crop(*pixels.shape[:2])
    if math.prod(size) > LARGEST:
      named = f'{picture}: ' if isinstance(picture, str | pathlib.Path) else ''
      raise pictures.TooLarge(
        f'{named}{pixels.shape[1]} x {pixels.shape[0]} pixels are too slim: to cut out {width} x '
        f'{height}, {size[1]} x {size[0]} would be made of them; leave it out, or cut it'
      )
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return resize(pixels, size, self.resize)[top : top + height, left : left + width]

  def before_crop(self, height: int, width: int) -> tuple[int, int]:
    """(height, width) that a picture of this size is resized to before its centre is cut out."""
    small = self.resize_small or round(min(self.image_size) / 0.875)
    # The scale at which the picture covers the enlarged window; a side at a time, as torchvision.
    cover = max(self.image_size[0] / height, self.image_size[1] / width)
    scale = small / min(self.image_size) * cover
    return (
      max(self.image_size[0], int(height * scale + 1e-6)),
      max(self.image_size[1], int(width * scale + 1e-6)),
    )

  def batch(self, images) -> Num[np.ndarray, 'B H W C']:
    """The model's input from a picture, a list of them, or an array `B H W C`.

    Args:
      images: an array of uint8, of any size; or of floats, which are normalised already.

    Raises:
      ValueError: an unreadable picture, none, or another array.
    """
    if isinstance(images, str | pathlib.Path | Image.Image):
      images = [images]
    if not isinstance(images, list | tuple):
      images = np.asarray(images)
      if images.ndim != 4:
        raise ValueError(f'images must be (batch, height, width, channels), not {images.shape}')
    if not len(images):
      raise ValueError('there are no images: give at least one')
    if isinstance(images, list | tuple) or images.dtype == np.uint8:
      return np.stack([self(image) for image in images])
    if not np.issubdtype(images.dtype, np.floating):
      raise ValueError(f'images must be uint8 (0 to 255) or normalised floats, not {images.dtype}')
    return images.astype(np.float32)

  def normalise(self, images: Num[Array, 'B H W C']) -> Float[Array, 'B H W C']:
    """Normalises pixel values of 0..255, of any type: (x / 255 - mean) / std, in float32."""
    mean, std = (jnp.asarray(value, jnp.float32) for value in (self.mean, self.std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def find_images(paths: list[str]) -> list[pathlib.Path]:
  """The files given, and the images inside folders given, at any depth and in order of name.

  Raises:
    FileNotFoundError: a path that does not exist, or a folder without images.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if not path.exists():
      raise FileNotFoundError(f'{path} does not exist')
    known = pictures.suffixes()
    inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in known and p.is_file())
    if path.is_dir() and not inside:
      raise FileNotFoundError(f'{path} holds no image; suffixes: {" ".join(sorted(known))}')
    found += inside if path.is_dir() else [path]
  return found
