"""Where heads that attend by offset look, and how far (arXiv:1911.03584, figure 3).

The centre of a head is the mean offset from query to key of its attention, without content and as
if the map had no border; the ellipse around it has one standard deviation along each of its axes.
Nine heads around a square are a 3 x 3 convolution.
"""

import argparse
from collections.abc import Sequence
import math
from typing import Any

from jaxtyping import Float
import numpy as np

from vit_jax import figures
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.predict import Predictor

FLAT = 1e-12  # The smallest eigenvalue of a precision that is told from 0.


class Centres(Picture):
  """Centres and spreads of heads that attend by offset, block by block."""

  sees = 'weights'

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    del images, options
    model = predictor.model
    found = [
      (np.asarray(centres, np.float64), *axes_of(np.asarray(precision, np.float64)))
      for centres, precision in model.attention_gaussians(predictor.params)
    ]
    degenerate = model.degenerate_heads(predictor.params)
    content = {
      'unit': 'tokens: rows down, columns right, from query to key',
      'grid': list(model.grid or ()),
      'centres': [rounded(centres) for centres, _, _ in found],
      'radii': [rounded(radii) for _, radii, _ in found],
      'axes': [rounded(axes) for _, _, axes in found],
      'degenerate_heads': [[head + 1 for head in heads] for heads in degenerate],
    }
    count = sum(map(len, degenerate))
    title = f'centres of attention by offset, with one standard deviation; {count} degenerate heads'
    return [Measured(content, title)]

  def scale(self, found: Sequence[Measured]) -> float:
    """The largest offset that is shown: of all centres, and two tokens more."""
    furthest = [np.abs(np.array(x)).max() for one in found for x in one.numbers['centres']]
    return max(3.0, math.ceil(max(furthest)) + 2.0)

  def size(self, measured: Measured) -> tuple[float, float]:
    blocks = len(measured.numbers['centres'])
    return 2.5 * min(3, blocks) + 0.3, 2.6 * math.ceil(blocks / 3) + 0.3

  def draw(self, figure: Any, measured: Measured, scale: float) -> None:
    blocks = len(measured.numbers['centres'])
    columns = min(3, blocks)
    axes = figure.subplots(math.ceil(blocks / columns), columns, squeeze=False).flat
    for i, axis in enumerate(axes):
      axis.set_visible(i < blocks)
      if i < blocks:
        draw_block(axis, measured.numbers, i, scale)


def axes_of(
  precision: Float[np.ndarray, 'h 2 2'],
) -> tuple[Float[np.ndarray, 'h 2'], Float[np.ndarray, 'h 2 2']]:
  """Standard deviations along the axes of each ellipse, and these axes as columns."""
  values, axes = np.linalg.eigh(precision)
  return 1 / np.sqrt(np.maximum(values, FLAT)), axes


def draw_block(axis: Any, found: dict[str, Any], block: int, scale: float) -> None:
  """The query in the middle, and each head of a block around it."""
  from matplotlib.patches import Ellipse

  gone = found['degenerate_heads'][block]
  rows = zip(found['centres'][block], found['radii'][block], found['axes'][block], strict=True)
  for head, (centre, radii, axes) in enumerate(rows):
    colour = '0.5' if head + 1 in gone else figures.COLOURS[head % len(figures.COLOURS)]
    across = np.minimum(radii, 4 * scale) * 2  # What is wider fills the picture either way.
    angle = np.degrees(np.arctan2(axes[0][0], axes[1][0]))
    axis.add_patch(
      Ellipse(centre[::-1], across[0], across[1], angle=angle, fc=colour, ec=colour, alpha=0.15)
    )
    axis.plot(centre[1], centre[0], 'x' if head + 1 in gone else 'o', color=colour, ms=4)
    axis.annotate(str(head + 1), centre[::-1], (2, 2), textcoords='offset points', fontsize=7)
  axis.plot(0, 0, 's', mfc='none', mec='black', ms=9)
  axis.set(xlim=(-scale, scale), ylim=(scale, -scale), title=f'block {block + 1}')
  axis.set_aspect('equal')
  axis.tick_params(labelsize=7)
  axis.grid(alpha=0.3)
