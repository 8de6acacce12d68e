"""How patches become a sequence: the step that flattens them."""

import argparse
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.interpret.patches import about, cut, side_of
from vit_jax.interpret.picture import Measured, Picture
from vit_jax.predict import Predictor

SHOWN = 8  # patches in the first row


class Flattening(Picture):
  """The first patches in a row, and all of them as rows of numbers: `N (P P C)`."""

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    del options
    side, found = side_of(predictor), []
    for image in images:
      means = cut(image, side).reshape(-1, side * side * image.shape[-1]).mean(1)
      found += [Measured(about(predictor) | {'mean_of_patches': means.round(3).tolist()},
                         image=image)]  # fmt: skip
    return found

  def size(self, measured: Measured) -> tuple[float, float]:
    del measured
    return 9.0, 5.4

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    side, image = measured.numbers['patch_size'], measured.pixels
    cells = cut(image, side)
    rows = cells.reshape(len(cells), -1)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 3))
    for i, axis in enumerate(np.atleast_1d(top.subplots(1, min(SHOWN, len(cells))))):
      figures.show(axis, cells[i])
      axis.set_title(f'patch {i + 1}', fontsize=9)
    axis = bottom.subplots()
    drawn = axis.imshow(rows, cmap='gray', vmin=0, vmax=255, aspect='auto', interpolation='nearest')
    bottom.colorbar(drawn, ax=axis, label='pixel value')
    axis.set(xlabel=f'{side} x {side} x {image.shape[-1]} = {rows.shape[1]} values, flattened',
             ylabel=f'{len(rows)} patches, row by row')  # fmt: skip
