"""RandAugment (arXiv:1909.13719) with timm's operations, equal to them pixel by pixel.

A new operation is a line in OPERATIONS. Pictures are uint8 `H W C`, grey or RGB.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from vit_jax.data import colour, shift
from vit_jax.runtime.choices import check_choice

Pixels = UInt8[np.ndarray, 'H W C']
RESIZES = {
  'nearest': (Image.Resampling.NEAREST,),
  'bilinear': (Image.Resampling.BILINEAR,),
  'bicubic': (Image.Resampling.BICUBIC,),
  'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


@dataclasses.dataclass(frozen=True)
class Operation:
  """One kind of change and how strong it is at a magnitude.

  Attributes:
    change: (pixels) -> pixels; (pixels, argument) with an argument; geometric ones also take
      `resample` and `fillcolor`, as Pillow does.
    argument: (magnitude 0..10 and more, sign 1 or -1) -> the argument; None: it takes none.
    geometric: whether it moves pixels.
  """

  change: Callable[..., Pixels]
  argument: Callable[[float, int], float | int] | None = None
  geometric: bool = False

  def __call__(self, pixels: Pixels, magnitude: float, sign: int, **outside: Any) -> Pixels:
    """The changed picture; `outside`: the `resample` and `fillcolor` of geometric operations."""
    words = (self.argument(magnitude, sign),) if self.argument else ()
    return self.change(pixels, *words, **(outside if self.geometric else {}))


def rotate(pixels: Pixels, degrees: float, **outside: Any) -> Pixels:
  """Turns about the centre, anticlockwise."""
  return colour.as_pixels(colour.as_image(pixels).rotate(degrees, **outside))


def shear_x(pixels: Pixels, slope: float, **outside: Any) -> Pixels:
  """Shifts each row by `slope` times its number, the top one not at all."""
  return shift.move(pixels, 1, slope, 0.0, **outside)


def shear_y(pixels: Pixels, slope: float, **outside: Any) -> Pixels:
  """Shifts each column by `slope` times its number, the left one not at all."""
  return shift.move(pixels, 0, slope, 0.0, **outside)


def translate_x(pixels: Pixels, share: float, **outside: Any) -> Pixels:
  """Shifts to the left by a share of the width."""
  return shift.move(pixels, 1, 0.0, share * pixels.shape[1], **outside)


def translate_y(pixels: Pixels, share: float, **outside: Any) -> Pixels:
  """Shifts upwards by a share of the height."""
  return shift.move(pixels, 0, 0.0, share * pixels.shape[0], **outside)


def signed(largest: float) -> Callable[[float, int], float]:
  """Arguments from -largest to largest, reached at magnitude 10."""
  return lambda magnitude, sign: sign * (magnitude / 10 * largest)


def enhancement(magnitude: float, sign: int) -> float:
  """Factors of 0.1..1.9 for magnitudes of 0..10: 5 is no change."""
  del sign
  return magnitude / 10 * 1.8 + 0.1


def growing_enhancement(magnitude: float, sign: int) -> float:
  """Factors 1 +- 0..0.9 for magnitudes of 0..10, and at least 0.1: 0 is no change."""
  return max(0.1, 1.0 + sign * (magnitude / 10 * 0.9))


def bits_kept(magnitude: float, sign: int) -> int:
  """Bits that posterising keeps: 0..4 for magnitudes of 0..10, so ever more; 8 are all."""
  del sign
  return min(8, int(magnitude / 10 * 4))


def growing_bits_kept(magnitude: float, sign: int) -> int:
  """Bits that posterising keeps: 4..0 for magnitudes of 0..10, and 0 above."""
  return max(0, 4 - bits_kept(magnitude, sign))


def threshold(magnitude: float, sign: int) -> int:
  """Values from which solarising inverts: 0..256 for magnitudes of 0..10, so ever fewer."""
  del sign
  return min(256, int(magnitude / 10 * 256))


def growing_threshold(magnitude: float, sign: int) -> int:
  """Values from which solarising inverts: 256..0 for magnitudes of 0..10, and 0 above."""
  return 256 - threshold(magnitude, sign)


def added(magnitude: float, sign: int) -> int:
  """What is added to dark values: 0..110 for magnitudes of 0..10, and at most 128."""
  del sign
  return min(128, int(magnitude / 10 * 110))


OPERATIONS: dict[str, Operation] = {
  'AutoContrast': Operation(colour.auto_contrast),
  'Equalize': Operation(colour.equalize),
  'Invert': Operation(colour.invert),
  'Rotate': Operation(rotate, signed(30.0), geometric=True),
  'Posterize': Operation(colour.posterize, bits_kept),
  'PosterizeIncreasing': Operation(colour.posterize, growing_bits_kept),
  'Solarize': Operation(colour.solarize, threshold),
  'SolarizeIncreasing': Operation(colour.solarize, growing_threshold),
  'SolarizeAdd': Operation(colour.solarize_add, added),
  'Color': Operation(colour.saturation, enhancement),
  'ColorIncreasing': Operation(colour.saturation, growing_enhancement),
  'Contrast': Operation(colour.contrast, enhancement),
  'ContrastIncreasing': Operation(colour.contrast, growing_enhancement),
  'Brightness': Operation(colour.brightness, enhancement),
  'BrightnessIncreasing': Operation(colour.brightness, growing_enhancement),
  'Sharpness': Operation(colour.sharpness, enhancement),
  'SharpnessIncreasing': Operation(colour.sharpness, growing_enhancement),
  'ShearX': Operation(shear_x, signed(0.3), geometric=True),
  'ShearY': Operation(shear_y, signed(0.3), geometric=True),
  'TranslateXRel': Operation(translate_x, signed(0.45), geometric=True),
  'TranslateYRel': Operation(translate_y, signed(0.45), geometric=True),
}


@functools.cache
def choices(increasing: bool) -> tuple[str, ...]:
  """The 15 operations that are drawn from: of those in two forms the one that is asked for."""
  twice = {name.removesuffix('Increasing') for name in OPERATIONS if name.endswith('Increasing')}
  left_out = twice if increasing else {f'{name}Increasing' for name in twice}
  return tuple(name for name in OPERATIONS if name not in left_out)


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Random operations on a picture, each with its own chance, magnitude and sign.

  Attributes:
    layers: operations drawn for a picture, with replacement; 0: none.
    magnitude: the mean magnitude; 10 is the papers' strongest.
    std: standard deviation of the magnitude; 0: always the mean; inf: uniform in 0..magnitude.
    probability: that a drawn operation is applied.
    increasing: whether to draw from the forms whose strength grows with the magnitude.
    largest: what magnitudes are clipped to, after the noise.
    resize: the filter of geometric operations, a name of RESIZES; 'random': bilinear or bicubic.
  """

  layers: int = 2
  magnitude: float = 9.0
  std: float = 0.5
  probability: float = 0.5
  increasing: bool = True
  largest: float = 10.0
  resize: str = 'random'

  def __post_init__(self):
    check_choice('config.data.randaugment_resize', self.resize, RESIZES)
    if self.layers < 0 or self.layers != int(self.layers):
      raise ValueError(f'config.data.randaugment={self.layers} must be a whole number, 0 or more')
    if not 0 <= self.probability <= 1:
      raise ValueError(
        f'config.data.randaugment_probability={self.probability} must lie between 0 and 1'
      )
    if not self.std >= 0:
      raise ValueError(f'config.data.randaugment_std={self.std} must be 0 or more (inf: uniform)')
    if not 0 < self.largest < math.inf:
      raise ValueError(f'config.data.randaugment_max={self.largest} must be above 0 and finite')
    if not 0 <= self.magnitude <= self.largest:
      raise ValueError(
        f'config.data.randaugment_magnitude={self.magnitude} must lie between 0 and '
        f'config.data.randaugment_max={self.largest}; raise that for a stronger change'
      )

  def __call__(self, pixels: Pixels, rng: np.random.Generator, fill: tuple[int, ...]) -> Pixels:
    """The changed picture; `rng` decides.

    Args:
      fill: one value a channel, for what geometric operations bring in from outside.
    """
    for name, magnitude, sign, resample in self.draw(rng):
      outside = {'resample': resample, 'fillcolor': fill[0] if len(fill) == 1 else fill}
      pixels = OPERATIONS[name](pixels, magnitude, sign, **outside)
    return pixels

  def draw(self, rng: np.random.Generator) -> list[tuple[str, float, int, Image.Resampling]]:
    """What is done to a picture, in order: (operation, magnitude, sign, filter)."""
    names, filters = choices(self.increasing), RESIZES[self.resize]
    # Every number is drawn, used or not: cheaper than deciding, and the order stays plain.
    chosen, applied = rng.integers(len(names), size=self.layers), rng.random(self.layers)
    signs, filtered = rng.integers(2, size=(2, self.layers))
    magnitudes = self.magnitudes(rng)
    drawn = zip(chosen, magnitudes, 2 * signs - 1, filtered % len(filters), applied, strict=True)
    return [
      (names[number], float(magnitude), int(sign), filters[which])
      for number, magnitude, sign, which, chance in drawn
      if chance < self.probability
    ]

  def magnitudes(self, rng: np.random.Generator) -> np.ndarray:
    """One magnitude a layer, within 0..largest."""
    if self.std == math.inf:
      return rng.uniform(0, self.magnitude, self.layers)
    return rng.normal(self.magnitude, self.std, self.layers).clip(0, self.largest)


def fill_of(mean: tuple[float, ...], channels: int) -> tuple[int, ...]:
  """The mean colour of preprocessing as pixel values: ImageNet's is (124, 116, 104)."""
  values = tuple(min(255, max(0, round(255 * value))) for value in mean)
  return values * channels if len(values) == 1 else values
