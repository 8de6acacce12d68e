"""From any picture to the model's input: upright, right mode, resized; normalised on the device.

These settings travel with the weights, so `predict` sees what training saw.
"""

import dataclasses
import pathlib

from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_jax.choices import choose

RESIZE = {
  'nearest': Image.Resampling.NEAREST,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}
# As Image.init() would list them, but without loading every plug-in at import.
SUFFIXES = frozenset(
  ['.bmp', '.gif', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp']
)


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """What turns a picture into the model's input.

  Attributes:
    image_size: (height, width) in pixels.
    channels: 1 (grey) or 3 (RGB).
    resize: the filter where a picture has another size; the whole picture is squashed.
    mean: subtracted from pixel values in 0..1; one number, or one a channel.
    std: divided by afterwards.
  """

  image_size: tuple[int, int]
  channels: int
  resize: str
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self):
    if self.channels not in (1, 3):
      raise ValueError(f'config.data.channels={self.channels} must be 1 (grey) or 3 (RGB)')
    for key in ('mean', 'std'):
      if len(getattr(self, key)) not in (1, self.channels):
        raise ValueError(f'config.data.{key} needs 1 or {self.channels} numbers')
    if 0 in self.std:
      raise ValueError('config.data.std must not be 0: pixel values are divided by it')
    choose('config.data.resize', self.resize, RESIZE)

  def open(self, path: str | pathlib.Path) -> UInt8[np.ndarray, 'H W C']:
    """Reads an image file.

    Raises:
      ValueError: not an image, or a damaged one; names the file.
    """
    try:
      with Image.open(path) as image:
        return self.fit(image)
    except UnidentifiedImageError:
      raise ValueError(f'{path}: not an image that Pillow can read') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      if isinstance(error, OSError) and error.errno:
        raise
      raise ValueError(f'{path}: damaged image ({error})') from None

  def fit(self, image: Image.Image | np.ndarray) -> UInt8[np.ndarray, 'H W C']:
    """Any picture, upright, in the model's mode and size."""
    if isinstance(image, np.ndarray):
      if image.shape == (*self.image_size, self.channels):
        return image
      image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image = convert(ImageOps.exif_transpose(image), 'L' if self.channels == 1 else 'RGB')
    height, width = self.image_size
    if image.size != (width, height):
      image = image.resize((width, height), RESIZE[self.resize])
    return np.asarray(image).reshape(*self.image_size, self.channels)

  def normalise(self, images: UInt8[Array, 'B H W C']) -> Float[Array, 'B H W C']:
    """0..255 -> (x / 255 - mean) / std, in float32 on the device."""
    mean, std = (jnp.asarray(value, jnp.float32) for value in (self.mean, self.std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def convert(image: Image.Image, mode: str) -> Image.Image:
  """To 'L' or 'RGB': 16-bit values are scaled, transparent pixels stand on white."""
  if image.mode.startswith('I'):
    values = np.asarray(image)
    scale = 257 if values.max(initial=0) > 255 else 1
    image = Image.fromarray((values // scale).clip(0, 255).astype(np.uint8))
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return image.convert(mode)


def find_images(paths: list[str]) -> list[pathlib.Path]:
  """The files given, and the images inside folders given, at any depth and in order of name.

  Raises:
    FileNotFoundError: a path that does not exist, or a folder without images.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if not path.exists():
      raise FileNotFoundError(f'{path} does not exist')
    inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
    if path.is_dir() and not inside:
      raise FileNotFoundError(f'{path} holds no image; suffixes: {" ".join(sorted(SUFFIXES))}')
    found += inside if path.is_dir() else [path]
  return found
