"""Maps over images: a value a patch, spread over the pixels, as a colour on the grey image."""

from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from vit_jax.data.resize import resize
from vit_jax.formats import resample

MAP = 'inferno'  # Dark to light, which colour-blind readers see too.
SHARE = 0.65  # of the colour, where it lies on the image
Limits = tuple[float, float]


def upsample(values: Float[np.ndarray, 'h w'], size: tuple[int, int]) -> Float[np.ndarray, 'H W']:
  """A value a patch -> a value a pixel, linear between the centres of patches."""
  rows, columns = (resample.linear(old, new) for old, new in zip(values.shape, size, strict=True))
  return rows @ values @ columns.T


def grey(image: UInt8[np.ndarray, 'H W C'], size: tuple[int, int]) -> Float[np.ndarray, 'h w']:
  """The brightness of an image at another size, 0 to 1; an enlarged one keeps its pixels."""
  larger = size[0] > image.shape[0]
  return resize(image, size, 'nearest' if larger else 'bilinear').mean(-1) / 255


def blend(
  image: UInt8[np.ndarray, 'H W C'],
  values: Float[np.ndarray, 'h w'],
  limits: Limits,
  size: tuple[int, int],
) -> Float[np.ndarray, 'y x 3']:
  """A map over an image, RGB in 0..1, of `size` (height, width)."""
  from matplotlib import colormaps

  spread = upsample(values.astype(np.float64), size)
  spread = np.clip((spread - limits[0]) / max(limits[1] - limits[0], 1e-12), 0, 1)
  return SHARE * colormaps[MAP](spread)[..., :3] + (1 - SHARE) * grey(image, size)[..., None]


def fitting(image: np.ndarray, side: int) -> tuple[int, int]:
  """The (height, width) of an image whose longer side has `side` pixels."""
  height, width = image.shape[:2]
  longer = max(height, width)
  return max(1, round(side * height / longer)), max(1, round(side * width / longer))


def colour_bar(figure: Any, axes: Any, limits: Limits, label: str, **where: Any) -> None:
  """The colours of maps on images, with what they mean."""
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import Normalize

  colours = ScalarMappable(Normalize(*limits), MAP)
  figure.colorbar(colours, ax=axes, label=label, **where)
