"""How an image becomes a sequence: the grid of patches, and the step that flattens them."""

import argparse
from typing import Any

from jaxtyping import UInt8
import numpy as np

from vit_jax import figures
from vit_jax.predict import Predictor

REMEDY = 'give the weights of a ViT or a hybrid'
SHOWN = 8  # patches in the row of the flattening


def side_of(predictor: Predictor) -> int:
  """Pixels of a patch's side.

  Raises:
    ValueError: the model has no patches.
  """
  side = predictor.model.sizes().get('patch_size')
  if side is None or not predictor.model.grid:
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


def patches(
  predictor: Predictor, image: UInt8[np.ndarray, 'H W C'], _: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
  """The image, and the image cut into its grid."""
  return figures.patches(image, side_of(predictor)), about(predictor)


def cut(image: UInt8[np.ndarray, 'H W C'], side: int) -> UInt8[np.ndarray, 'N P P C']:
  """The patches of an image, row by row."""
  height, width, channels = image.shape
  grid = image.reshape(height // side, side, width // side, side, channels)
  return grid.swapaxes(1, 2).reshape(-1, side, side, channels)


def flattening(
  predictor: Predictor, image: UInt8[np.ndarray, 'H W C'], _: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
  """The first patches in a row, and all of them as rows of numbers: `N (P P C)`."""
  side = side_of(predictor)
  cells = cut(image, side)
  rows = cells.reshape(len(cells), -1)
  count = min(SHOWN, len(cells))
  figure = figures.new_figure(9.0, 5.4)[0]
  figure.clear()
  top, bottom = figure.subfigures(2, 1, height_ratios=(1, 3))
  for i, axis in enumerate(np.atleast_1d(top.subplots(1, count))):
    figures.show(axis, cells[i])
    axis.set_title(f'patch {i + 1}', fontsize=9)
  axis = bottom.subplots()
  drawn = axis.imshow(rows, cmap='gray', vmin=0, vmax=255, aspect='auto', interpolation='nearest')
  bottom.colorbar(drawn, ax=axis, label='pixel value')
  axis.set(xlabel=f'{side} x {side} x {image.shape[-1]} = {rows.shape[1]} values, flattened',
           ylabel=f'{len(rows)} patches, row by row')  # fmt: skip
  return figure, about(predictor) | {'mean_of_patches': rows.mean(1).round(3).tolist()}
