"""Random changes of training pictures: crop, flip, colour, RandAugment, affine map."""

import dataclasses
import functools
import math

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from vit_jax.data import colour, jpeg, pictures
from vit_jax.data.preprocess import Preprocess
from vit_jax.data.randaugment import RandAugment, fill_of
from vit_jax.data.resize import FILTERS, mirror, resize
from vit_jax.runtime.choices import check_choice

CROPS = ('none', 'random_resized', 'padded', 'squashed')
BORDERS = {'black': 'BORDER_CONSTANT', 'reflect': 'BORDER_REFLECT_101'}  # As OpenCV calls them.


@dataclasses.dataclass(frozen=True)
class Augment:
  """The random changes of a training picture; at their defaults none, as in evaluation.

  Attributes:
    crop: 'random_resized' cuts out a random region and resizes it (Inception crop,
      arXiv:1409.4842); 'padded' adds a border and cuts out a window of the image's size;
      'squashed' squashes the picture to `crop_from` and cuts out a window (arXiv:1912.11370).
    crop_area: smallest and largest area of the region, as a share of the picture's.
    crop_ratio: smallest and largest width over height.
    crop_resize: the filter of 'random_resized'; any of `resize.FILTERS`.
    crop_padding: width of the border of 'padded' in pixels.
    crop_border: what that border shows: 'black', or 'reflect', the picture mirrored at its edge.
    crop_from: (height, width) of 'squashed'; (): the image's size by 8/7, as 256 is to 224.
    flip: whether to mirror every second picture, left to right.
    colour_jitter: largest relative change of brightness, contrast and saturation (`colour.jitter`).
    randaugment: operations of RandAugment a picture (`randaugment.RandAugment`); 0: none.
    randaugment_magnitude: their mean magnitude; 10 is the papers' strongest.
    randaugment_std: its standard deviation; inf: uniform from 0 to the magnitude.
    randaugment_probability: that an operation which was drawn is applied.
    randaugment_increasing: whether all operations grow stronger with the magnitude.
    randaugment_max: what magnitudes are clipped to after the noise.
    randaugment_resize: filter of its geometric operations; 'random': bilinear or bicubic.
    rotate: largest angle in degrees, either way, of an affine map about the centre.
    scale: its largest relative change of size, for each axis.
    shear: its largest shear in degrees.
    translate: its largest shift as a fraction of the side, for each axis.
  """

  crop: str = 'none'
  crop_area: tuple[float, float] = (0.05, 1.0)
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  crop_resize: str = 'linear'
  crop_padding: int = 4
  crop_border: str = 'black'
  crop_from: tuple[int, ...] = ()
  flip: bool = False
  colour_jitter: float = 0.0
  randaugment: int = 0
  randaugment_magnitude: float = 9.0
  randaugment_std: float = 0.5
  randaugment_probability: float = 0.5
  randaugment_increasing: bool = True
  randaugment_max: float = 10.0
  randaugment_resize: str = 'random'
  rotate: float = 0.0
  scale: float = 0.0
  shear: float = 0.0
  translate: float = 0.0

  def __post_init__(self):
    for key in ('crop_area', 'crop_ratio', 'crop_from'):
      object.__setattr__(self, key, tuple(getattr(self, key)))
    if len(self.crop_from) not in (0, 2):
      raise ValueError(f'config.data.crop_from={self.crop_from} must be (height, width)')
    check_choice('config.data.crop', self.crop, CROPS)
    check_choice('config.data.crop_resize', self.crop_resize, FILTERS)
    check_choice('config.data.crop_border', self.crop_border, BORDERS)
    for key, largest in (('crop_area', 1.0), ('crop_ratio', math.inf)):
      bounds = getattr(self, key)
      if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= largest:
        raise ValueError(
          f'config.data.{key}={getattr(self, key)} must be (smallest, largest), above 0'
          + (' and at most 1' if largest == 1 else '')
        )
    if self.crop_padding < 0:
      raise ValueError(f'config.data.crop_padding={self.crop_padding} must not be negative')
    for key in ('colour_jitter', 'rotate', 'shear', 'translate'):
      if not 0 <= getattr(self, key) < math.inf:
        raise ValueError(f'config.data.{key}={getattr(self, key)} must be 0 or more')
    if not 0 <= self.scale < 1:
      raise ValueError(f'config.data.scale={self.scale} must be in [0, 1): sizes change by 1 +- it')
    _ = self.operations  # Its settings are checked as it is built.

  @functools.cached_property
  def operations(self) -> RandAugment:
    """RandAugment with these settings."""
    return RandAugment(
      self.randaugment,
      self.randaugment_magnitude,
      self.randaugment_std,
      self.randaugment_probability,
      self.randaugment_increasing,
      self.randaugment_max,
      self.randaugment_resize,
    )

  def check(self, preprocess: Preprocess) -> None:
    """Refuses what pictures of this size and number of channels cannot undergo.

    Raises:
      ValueError: names the key.
    """
    if self.crop == 'squashed':
      self.squashed_size(preprocess.image_size)
    for key in ('randaugment', 'colour_jitter'):
      if getattr(self, key) and preprocess.channels not in (1, 3):
        raise ValueError(
          f'config.data.{key}={getattr(self, key)} is for 1 channel (grey) or 3 (RGB), not '
          f'config.data.channels={preprocess.channels}; set it to 0 for such pictures'
        )

  def __call__(
    self, picture: pictures.Picture, rng: np.random.Generator, preprocess: Preprocess
  ) -> UInt8[np.ndarray, 'H W C']:
    """One training picture; `rng` decides.

    In this order: crop to the model's size, flip, colour jitter, RandAugment, affine map.
    """
    pixels = self.cropped(picture, rng, preprocess)
    if self.flip and rng.random() < 0.5:
      pixels = mirror(pixels)
    pixels = colour.jitter(pixels, self.colour_jitter, rng)
    if self.randaugment:
      fill = fill_of(preprocess.mean, preprocess.channels)
      pixels = self.operations(pixels, rng, fill)
    return self.affine(pixels, rng)

  def cropped(
    self, picture: pictures.Picture, rng: np.random.Generator, preprocess: Preprocess
  ) -> UInt8[np.ndarray, 'H W C']:
    """The part of a picture that training sees, at the model's size."""
    if self.crop == 'random_resized':
      least = preprocess.image_size if self.crop_resize == 'linear' else None
      # Remembered, as a second decoder may ask again where the first one gives up.
      region = functools.cache(functools.partial(self.region, rng=rng))
      pixels = pictures.read(picture, preprocess.channels, region, least)
      return resize(pixels, preprocess.image_size, self.crop_resize)
    if self.crop == 'squashed':
      size = self.squashed_size(preprocess.image_size)
      larger = dataclasses.replace(preprocess, image_size=size, fit='squash')
      return window(larger(picture), preprocess.image_size, rng)
    pixels = preprocess(picture)
    if self.crop != 'padded':
      return pixels
    import cv2

    border = getattr(cv2, BORDERS[self.crop_border])
    side = self.crop_padding
    framed = cv2.copyMakeBorder(pixels, side, side, side, side, border)
    return window(framed.reshape(*framed.shape[:2], -1), preprocess.image_size, rng)

  def squashed_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that 'squashed' cuts its window from.

    Raises:
      ValueError: it is smaller than the window.
    """
    height, width = self.crop_from or tuple(round(side * 8 / 7) for side in image_size)
    if height < image_size[0] or width < image_size[1]:
      raise ValueError(
        f'config.data.crop_from={self.crop_from} is smaller than image_size={image_size}'
      )
    return height, width

  def region(self, height: int, width: int, rng: np.random.Generator) -> jpeg.Region:
    """A region of random area and ratio; the largest centred one where ten tries do not fit."""
    low, high = np.log(self.crop_ratio)
    for _ in range(10):
      area = height * width * rng.uniform(*self.crop_area)
      ratio = math.exp(rng.uniform(low, high))
      rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
      if 0 < rows <= height and 0 < columns <= width:
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        return int(top), int(left), rows, columns
    ratio = min(max(width / height, self.crop_ratio[0]), self.crop_ratio[1])
    rows = min(height, max(1, round(width / ratio)))
    columns = min(width, max(1, round(height * ratio)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns

  def affine(
    self, pixels: UInt8[np.ndarray, 'H W C'], rng: np.random.Generator
  ) -> UInt8[np.ndarray, 'H W C']:
    """A random rotation, scaling, shear and shift, bilinear, black outside."""
    if not (self.rotate or self.scale or self.shear or self.translate):
      return pixels
    height, width, _ = pixels.shape
    rotate, shear, scale_x, scale_y, shift_x, shift_y = rng.uniform(-1, 1, 6)
    angle, slant = math.radians(self.rotate * rotate), math.radians(self.shear * shear)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    sizes = np.diag([1 + self.scale * scale_x, 1 + self.scale * scale_y])
    matrix = rotation @ np.array([[1.0, math.tan(slant)], [0.0, 1.0]]) @ sizes
    centre = np.array([width / 2, height / 2])
    offset = (
      centre - matrix @ centre + self.translate * np.array([shift_x * width, shift_y * height])
    )
    rows = (*matrix[0], offset[0], *matrix[1], offset[1])
    planes = [
      Image.fromarray(plane).transform(
        (width, height), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR
      )
      for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def window(
  pixels: UInt8[np.ndarray, 'h w C'], size: tuple[int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, 'H W C']:
  """Cuts out a random part of (height, width) `size`."""
  height, width = size
  top, left = (int(rng.integers(0, have - want + 1)) for have, want in
               zip(pixels.shape[:2], size, strict=True))  # fmt: skip
  return pixels[top : top + height, left : left + width]
