"""Where on the image the tokens are that a classifier may read."""

import argparse
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.interpret.patches import grid_of, side_of
from vit_jax.interpret.picture import Measured, Picture, numbers
from vit_jax.models.tokens import centre, check_patch, corners
from vit_jax.predict import Predictor


class Readouts(Picture):
  """Patches marked by their numbers, from 1: `--tokens`, else the corners and the centre."""

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--tokens', type=numbers, help='patches to mark, from 1: 1,14,91')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    side, grid = side_of(predictor), grid_of(predictor)
    chosen = options.tokens or sorted({*corners(grid), *centre(grid)})
    for number in chosen:
      check_patch(f'patch_{number}', grid)
    prefix = predictor.model.prefix
    found = {
      'grid': list(grid),
      'class_token': 'class_token' in prefix,
      'prefix': list(prefix),
      'marked': [place(number, grid, side) for number in chosen],
    }
    also = ''.join(f'; token {i} is the {x.replace("_", " ")}' for i, x in enumerate(prefix))
    title = f'{grid[0]} x {grid[1]} patches, numbered row by row from 1{also}'
    return [Measured(found, title, image=image) for image in images]

  def size(self, measured: Measured) -> tuple[float, float]:
    height, width = measured.numbers['grid']
    return 6.0, 6.0 * height / width + 0.2

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    from matplotlib.patches import Rectangle

    axis, marked = figure.subplots(), measured.numbers['marked']
    figures.show(axis, measured.pixels)
    side = marked[0]['pixels'][2] - marked[0]['pixels'][0]
    for line in range(1, measured.numbers['grid'][0]):
      axis.axhline(line * side - 0.5, color='white', lw=0.4, alpha=0.6)
    for line in range(1, measured.numbers['grid'][1]):
      axis.axvline(line * side - 0.5, color='white', lw=0.4, alpha=0.6)
    for i, one in enumerate(marked):
      top, left = one['pixels'][:2]
      colour = figures.COLOURS[i % len(figures.COLOURS)]
      corner = (left - 0.5, top - 0.5)
      axis.add_patch(Rectangle(corner, side, side, fill=False, ec=colour, lw=2.5))
      axis.text(left - 0.5 + side / 2, top - 0.5 + side / 2, str(one['patch']), color='white',
                fontsize=8, ha='center', va='center',
                bbox=dict(fc=colour, ec='none', pad=1.5))  # fmt: skip


def place(number: int, grid: tuple[int, int], side: int) -> dict[str, Any]:
  """A patch, from 1: its row and column, from 0, and its pixels: top, left, bottom, right."""
  row, column = divmod(number - 1, grid[1])
  box = [row * side, column * side, (row + 1) * side, (column + 1) * side]
  return {'patch': number, 'row': row, 'column': column, 'pixels': box}
