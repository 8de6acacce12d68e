"""Shears and shifts along one axis, equal to Pillow's bit by bit in half of its time.

Pillow filters in both directions whatever the map; along one axis the other direction changes
nothing. What is left is the same operations on float64 in the same order, for all pixels at once.
"""

import threading
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from vit_jax.data import colour

Pixels = UInt8[np.ndarray, 'H W C']
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def move(pixels: Pixels, axis: int, slope: float, offset: float, **outside: Any) -> Pixels:
  """Takes pixels from `slope * (place on the other axis) + offset` further on.

  Args:
    axis: 1: along the rows, so to the left for positive numbers; 0: along the columns.
    outside: `resample`, a filter of Pillow, and `fillcolor`, as Pillow takes them.
  """
  given = pixels if axis == 1 else _transpose(pixels)
  moved = None
  if outside['resample'] in (BILINEAR, BICUBIC):
    moved = _move_rows(given, slope, offset, **outside)
  if moved is None:
    image = colour.as_image(given)
    rows = (1.0, slope, offset, 0.0, 1.0, 0.0)
    moved = image.transform(image.size, Image.Transform.AFFINE, rows, **outside)
    moved = colour.as_pixels(moved)
  return moved if axis == 1 else _transpose(moved)


def _transpose(pixels: UInt8[np.ndarray, 'H W C']) -> UInt8[np.ndarray, 'W H C']:
  import cv2

  height, width, channels = pixels.shape
  return cv2.transpose(pixels).reshape(width, height, channels)


def _move_rows(
  pixels: Pixels, slope: float, offset: float, resample: Image.Resampling, fillcolor: Any
) -> Pixels | None:
  """The moved rows; None where rounding gives a row no one whole offset: then only Pillow knows."""
  height, width, channels = pixels.shape
  place, left = _scratch('places', (2, height, width), np.float64)
  np.add(np.arange(width) + 0.5, slope * (np.arange(height) + 0.5)[:, None], out=place)
  place += offset
  outside = np.flatnonzero((place < 0) | (place >= width))
  place -= 0.5
  first = np.floor(place, out=left)[:, :1].copy()
  place -= left
  left -= np.arange(width)
  if not (left == first).all():
    return None
  taps = 4 if resample == BICUBIC else 2
  value, share = _scratch('values', (2, height, width * channels), np.float64)
  share.reshape(pixels.shape)[:] = place[..., None]
  rows = _neighbours(pixels, first + 1 - taps // 2, width + taps - 1)
  near = [rows[:, i * channels :][:, : width * channels] for i in range(taps)]
  (_cubic if taps == 4 else _linear)(near, share, value)
  out = value.astype(np.uint8).reshape(pixels.shape)  # Cut, not rounded, as in Pillow.
  out.reshape(-1, channels)[outside] = fillcolor
  return out


def _neighbours(pixels: Pixels, first: np.ndarray, count: int) -> np.ndarray:
  """`count` pixels of each row from `first` on, edges repeated: int16 `H count*C`."""
  import cv2

  height, width, channels = pixels.shape
  # Further out than `count` there is the edge alone.
  framed = cv2.copyMakeBorder(pixels, 0, 0, count, count, cv2.BORDER_REPLICATE).ravel()
  starts = (first.ravel().clip(-count, width) + count).astype(int)
  starts = (starts + np.arange(height) * (width + 2 * count)) * channels
  windows = np.lib.stride_tricks.sliding_window_view(framed, count * channels)
  rows = _scratch('rows', (height, count * channels), np.int16)
  rows[:] = windows[starts]
  return rows


def _cubic(
  near: list[np.ndarray], share: Float[np.ndarray, 'H N'], value: Float[np.ndarray, 'H N']
) -> None:
  """Pillow's bicubic (a = -1) between the second and third of four values."""
  v1, v2, v3, v4 = near
  fall, bend = _scratch('steps', (2, *share.shape), np.int16)
  np.subtract(v2, v1, out=fall)
  np.subtract(v4, v3, out=bend)
  bend += fall
  np.multiply(share, bend, out=value)
  bend += fall  # Minus the coefficient of the square.
  value -= bend
  value *= share
  value += np.subtract(v3, v1, out=bend)
  value *= share
  value += v2
  value.clip(0, 255, out=value)


def _linear(
  near: list[np.ndarray], share: Float[np.ndarray, 'H N'], value: Float[np.ndarray, 'H N']
) -> None:
  """Pillow's bilinear between two values."""
  rise = _scratch('steps', share.shape, np.int16)
  np.multiply(share, np.subtract(near[1], near[0], out=rise), out=value)
  value += near[0]


_memory = threading.local()


def _scratch(name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
  """An array that this thread uses again: its pages are mapped once.

  Without it a picture of 224 pixels takes 1,200 page faults, and three times as long.
  """
  size, kept = int(np.prod(shape)), getattr(_memory, name, None)
  if kept is None or kept.size < size:
    kept = np.empty(size, kind)
    setattr(_memory, name, kept)
  return kept[:size].reshape(shape)
