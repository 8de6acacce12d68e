"""Changes of pixel values, equal to Pillow's bit by bit: lookup tables, enhancements, jitter.

Tables are applied by OpenCV, in a quarter of Pillow's time; pictures are grey or RGB.
"""

from collections.abc import Callable

from jaxtyping import UInt8
import numpy as np
from PIL import Image

Pixels = UInt8[np.ndarray, 'H W C']
VALUES = np.arange(256)


def as_image(pixels: Pixels) -> Image.Image:
  """Pixels as a Pillow image of mode 'L' (1 channel) or 'RGB' (3)."""
  return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def as_pixels(image: Image.Image) -> Pixels:
  """A Pillow image as `H W C`, a grey one with one channel."""
  return np.asarray(image).reshape(image.height, image.width, -1)


def look_up(pixels: Pixels, table: np.ndarray) -> Pixels:
  """Replaces each value v by `table[v]`, or by `table[v, c]` in channel c."""
  import cv2

  table = table.reshape(1, 256, -1).astype(np.uint8)
  return cv2.LUT(pixels, table).reshape(pixels.shape)


def histograms(pixels: Pixels) -> list[np.ndarray]:
  """How often each value of 0..255 occurs, by channel.

  Exact up to 2 ** 24 pixels, as OpenCV counts in float32.
  """
  import cv2

  return [
    cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    for channel in range(pixels.shape[-1])
  ]


def auto_contrast(pixels: Pixels) -> Pixels:
  """Stretches each channel so that its darkest value becomes 0 and its brightest 255."""
  return look_up(pixels, np.stack([_stretching(counts) for counts in histograms(pixels)], -1))


def _stretching(counts: np.ndarray) -> np.ndarray:
  low, high = np.flatnonzero(counts)[[0, -1]]
  if high == low:
    return VALUES
  scale = 255.0 / (high - low)
  return (VALUES * scale + -low * scale).astype(int).clip(0, 255)


def equalize(pixels: Pixels) -> Pixels:
  """Makes the values of each channel about equally frequent."""
  return look_up(pixels, np.stack([_equalizing(counts) for counts in histograms(pixels)], -1))


def _equalizing(counts: np.ndarray) -> np.ndarray:
  last = counts[np.flatnonzero(counts)[-1]]
  step = (counts.sum() - last) // 255
  if step == 0:
    return VALUES
  below = np.cumsum(counts) - counts
  return ((step // 2 + below) // step).clip(0, 255)


def invert(pixels: Pixels) -> Pixels:
  """The negative."""
  return look_up(pixels, 255 - VALUES)


def posterize(pixels: Pixels, bits: int) -> Pixels:
  """Keeps the `bits` highest bits of each value: 8 all, 0 none."""
  return look_up(pixels, VALUES >> (8 - bits) << (8 - bits))


def solarize(pixels: Pixels, threshold: int) -> Pixels:
  """Inverts the values from `threshold` on: 0 or less all, 256 none."""
  return look_up(pixels, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def solarize_add(pixels: Pixels, amount: int) -> Pixels:
  """Adds `amount` to the values below 128."""
  brighter = (VALUES + amount).clip(0, 255)
  return look_up(pixels, np.where(VALUES < 128, brighter, VALUES))


def brightness(pixels: Pixels, factor: float) -> Pixels:
  """Blends with black: factor 0 is black, 1 the picture, 2 twice as bright."""
  return look_up(pixels, _away_from(0, factor))


def contrast(pixels: Pixels, factor: float) -> Pixels:
  """Blends with the mean of its grey version: factor 0 is flat grey, 1 the picture."""
  grey = as_pixels(as_image(pixels).convert('L'))
  counts = histograms(grey)[0]
  mean = int(counts @ VALUES / counts.sum() + 0.5)
  return look_up(pixels, _away_from(mean, factor))


def _away_from(value: int, factor: float) -> np.ndarray:
  """The table of a blend with one value; by Pillow itself, whose rounding is the compiler's."""
  every = Image.fromarray(VALUES.astype(np.uint8)[None])
  return np.asarray(Image.blend(Image.new('L', every.size, value), every, factor))[0]


def saturation(pixels: Pixels, factor: float) -> Pixels:
  """Blends with its grey version: factor 0 is grey, 1 the picture. A grey picture stays."""
  if pixels.shape[-1] == 1:
    return pixels
  image = as_image(pixels)
  return as_pixels(Image.blend(image.convert('L').convert('RGB'), image, factor))


def sharpness(pixels: Pixels, factor: float) -> Pixels:
  """Blends with its smoothed version: factor 0 is smooth, 1 the picture, 2 sharpened."""
  return as_pixels(Image.blend(as_image(smooth(pixels)), as_image(pixels), factor))


def smooth(pixels: Pixels) -> Pixels:
  """Pillow's SMOOTH, the mean of 3 x 3 pixels with the centre counting 5, in a tenth of its time.

  The outermost pixels stay. Sums are whole, so that a thirteenth of one is never half-way.
  """
  import cv2

  weights = np.ones((3, 3), np.float32)
  weights[1, 1] = 5
  sums = cv2.filter2D(pixels, cv2.CV_16S, weights)
  smoothed = cv2.convertScaleAbs(sums, alpha=1 / 13).reshape(pixels.shape)
  out = pixels.copy()
  out[1:-1, 1:-1] = smoothed[1:-1, 1:-1]
  return out


JITTERED: tuple[Callable[[Pixels, float], Pixels], ...] = (brightness, contrast, saturation)


def jitter(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
  """Random brightness, contrast and saturation, in random order; torchvision's ColorJitter.

  Args:
    strength: each factor is uniform in max(0, 1 - strength)..1 + strength; 0: nothing is changed.
  """
  if not strength:
    return pixels
  for i in rng.permutation(len(JITTERED)):
    pixels = JITTERED[i](pixels, rng.uniform(max(0.0, 1 - strength), 1 + strength))
  return pixels
