"""Random changes of training pictures: each is `(image, rng) -> image`, chosen in the config."""

import dataclasses
import math

from jaxtyping import UInt8
import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Affine:
  """A random rotation, scaling, shear and shift about the centre, bilinear, black outside.

  Attributes:
    rotate: largest angle in degrees, either way.
    scale: largest relative change of size, for each axis.
    shear: largest shear in degrees.
    translate: largest shift as a fraction of the side, for each axis.
  """

  rotate: float = 0.0
  scale: float = 0.0
  shear: float = 0.0
  translate: float = 0.0

  def __call__(
    self, image: UInt8[np.ndarray, 'H W C'], rng: np.random.Generator
  ) -> UInt8[np.ndarray, 'H W C']:
    if not (self.rotate or self.scale or self.shear or self.translate):
      return image
    height, width, _ = image.shape
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
      for plane in np.moveaxis(image, -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
