"""Where on the image the tokens are that a classifier may read."""

import argparse
from typing import Any

from jaxtyping import UInt8
import numpy as np

from vit_jax import figures
from vit_jax.interpret.patches import grid_of, side_of
from vit_jax.models.tokens import centre, check_patch, corners
from vit_jax.predict import Predictor


def readouts(
  predictor: Predictor, image: UInt8[np.ndarray, 'H W C'], options: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
  """Patches marked by their numbers, from 1: `--tokens`, else the corners and the centre.

  Raises:
    ValueError: no patches, or a number outside of the grid, which is shown.
  """
  from matplotlib.patches import Rectangle

  side, grid = side_of(predictor), grid_of(predictor)
  numbers = options.tokens or sorted({*corners(grid), *centre(grid)})
  for number in numbers:
    check_patch(f'patch_{number}', grid)
  figure, axes = figures.new_figure(6.0, 6.0 * grid[0] / grid[1] + 0.4)
  axis = axes[0, 0]
  figures.show(axis, image)
  for line in range(1, grid[0]):
    axis.axhline(line * side - 0.5, color='white', lw=0.4, alpha=0.6)
  for line in range(1, grid[1]):
    axis.axvline(line * side - 0.5, color='white', lw=0.4, alpha=0.6)
  marked = []
  for i, number in enumerate(numbers):
    row, column = divmod(number - 1, grid[1])
    corner = (column * side - 0.5, row * side - 0.5)
    colour = figures.COLOURS[i % len(figures.COLOURS)]
    axis.add_patch(Rectangle(corner, side, side, fill=False, ec=colour, lw=2.5))
    axis.text(corner[0] + side / 2, corner[1] + side / 2, str(number), color='white', fontsize=8,
              ha='center', va='center', bbox=dict(fc=colour, ec='none', pad=1.5))  # fmt: skip
    box = [row * side, column * side, (row + 1) * side, (column + 1) * side]
    marked.append({'patch': number, 'row': row, 'column': column, 'pixels': box})
  prefix = predictor.model.prefix
  also = ''.join(f'; token {i} is the {x.replace("_", " ")}' for i, x in enumerate(prefix))
  axis.set_title(f'{grid[0]} x {grid[1]} patches, numbered row by row from 1{also}', fontsize=10)
  return figure, {
    'grid': list(grid),
    'class_token': 'class_token' in prefix,
    'prefix': list(prefix),
    'marked': marked,
  }
