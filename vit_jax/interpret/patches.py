"""How an image becomes patches: the grid that it is cut into."""

import argparse
from typing import Any

from jaxtyping import UInt8
import numpy as np

from vit_jax import figures
from vit_jax.interpret.picture import Measured, Picture
from vit_jax.predict import Predictor

REMEDY = 'give the weights of a ViT or a hybrid'


class Patches(Picture):
  """The image, and the image cut into its grid of patches."""

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    del options
    return [Measured(about(predictor), image=image) for image in images]

  def size(self, measured: Measured) -> tuple[float, float]:
    del measured
    return 10.0, 5.0

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    figures.draw_patches(figure, measured.pixels, measured.numbers['patch_size'])


def side_of(predictor: Predictor) -> int:
  """Pixels of a patch's side.

  Raises:
    ValueError: the model has no patches.
  """
  side = predictor.model.sizes().get('patch_size')
  if side is None or not predictor.model.has_stages:
    raise ValueError(f'a {predictor.passport.model["name"]} has no patches to show: {REMEDY}')
  return side


def grid_of(predictor: Predictor) -> tuple[int, int]:
  """(height, width) of the patches.

  Raises:
    ValueError: the model has no patches.
  """
  side_of(predictor)
  return predictor.model.grid or (1, 1)  # `side_of` has refused a model without.


def about(predictor: Predictor) -> dict[str, Any]:
  """Sizes: 224 / 16 gives 14 x 14 = 196 patches of 16 * 16 * 3 = 768 values."""
  model, side, sizes = predictor.model, side_of(predictor), predictor.model.sizes()
  height, width = grid_of(predictor)
  return {
    'image_size': list(model.image_size),
    'patch_size': side,
    'grid': [height, width],
    'patches': height * width,
    'values_per_patch': side * side * model.channels,
    'tokens': sizes['num_tokens'],
    'width': sizes['width'],
  }


def cut(image: UInt8[np.ndarray, 'H W C'], side: int) -> UInt8[np.ndarray, 'N P P C']:
  """The patches of an image, row by row."""
  height, width, channels = image.shape
  grid = image.reshape(height // side, side, width // side, side, channels)
  return grid.swapaxes(1, 2).reshape(-1, side, side, channels)
