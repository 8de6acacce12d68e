"""Cosine similarity of position embeddings, one tile a patch (ViT paper, figure 7, centre)."""

import argparse
from typing import Any

from jaxtyping import Float, Num
import numpy as np

from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.predict import Predictor

GAP = 1  # cells between two tiles
MAP = 'viridis'
APART = 1.5  # inches for the tokens of the prefix


class Positions(Picture):
  """How alike position embeddings are: the tile of a patch shows its cosine with every patch."""

  sees = 'weights'

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    grid, prefix = predictor.model.grid, predictor.model.prefix
    embeddings = predictor.model.position_embeddings(predictor.params)
    if embeddings is None or grid is None:
      name = predictor.passport.model['name']
      raise ValueError(f'a {name} has no position embeddings; give the weights of a ViT')
    cosines = similarity(np.asarray(embeddings, np.float64))
    first = len(prefix)
    between = cosines[first:, first:]
    title = f'cosine similarity of position embeddings, {grid[0]} x {grid[1]} patches'
    if prefix:
      title += '; ' + ', '.join(name.replace('_', ' ') for name in prefix) + ' apart'
    content = {
      'grid': list(grid), 'prefix': list(prefix), 'tokens_of_prefix_in_tiles': False,
      'mean_of_patches': mean_off_diagonal(between),
      'mean_of_neighbours': neighbours(between, grid),
      'prefix_with_patches': {name: rounded(cosines[i, first:].reshape(grid), 4)
                              for i, name in enumerate(prefix)},
      'prefix_with_prefix': rounded(cosines[:first, :first], 4),
    }  # fmt: skip
    return [Measured(content, title, {'similarity': cosines.astype(np.float32)})]

  def size(self, measured: Measured) -> tuple[float, float]:
    height, width = measured.numbers['grid']
    side = min(10.0, max(4.5, 0.06 * max(height, width) ** 2 / 2))
    apart = APART if measured.numbers['prefix'] else 0.0
    return side * min(1.0, width / height) + apart + 1.5, side * min(1.0, height / width) + 0.4

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    prefix, grid = measured.numbers['prefix'], tuple(measured.numbers['grid'])
    ratios = [self.size(measured)[0] - APART, APART] if prefix else [1.0]
    parts = figure.subfigures(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    first, cosines = len(prefix), measured.arrays['similarity']
    axis = parts[0].subplots()
    drawn = axis.imshow(tiled(cosines[first:, first:], grid), cmap=MAP, vmin=-1, vmax=1,
                        interpolation='nearest')  # fmt: skip
    number_tiles(axis, grid)
    parts[0].colorbar(drawn, ax=axis, label='cosine similarity', shrink=0.8)
    # Squares from the top on, however high the figure is.
    for i, axis in enumerate(parts[-1].subplots(max(2, first), 1) if prefix else ()):
      axis.axis('off')
      axis.set_anchor('N')
      if i < first:
        axis.imshow(cosines[i, first:].reshape(grid), cmap=MAP, vmin=-1, vmax=1)
        axis.set_title(f'{prefix[i].replace("_", " ")}\nwith patches', fontsize=9)


def similarity(x: Num[np.ndarray, 'T D']) -> Float[np.ndarray, 'T T']:
  """The cosine of the angle between any two rows; 0 for a row of zeros."""
  unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  return unit @ unit.T


def mean_off_diagonal(x: Float[np.ndarray, 'N N']) -> float:
  """The mean over pairs of different patches; 1 where there is one patch."""
  count = len(x)
  return round(float((x.sum() - np.trace(x)) / (count * (count - 1))), 6) if count > 1 else 1.0


def neighbours(x: Float[np.ndarray, 'N N'], grid: tuple[int, int]) -> dict[str, float | None]:
  """The mean over pairs side by side in a row, and one above the other in a column."""
  cells = x.reshape(*grid, *grid)
  beside = [cells[r, c, r, c + 1] for r in range(grid[0]) for c in range(grid[1] - 1)]
  above = [cells[r, c, r + 1, c] for r in range(grid[0] - 1) for c in range(grid[1])]
  return {
    'row': round(float(np.mean(beside)), 6) if beside else None,
    'column': round(float(np.mean(above)), 6) if above else None,
  }


def tiled(x: Float[np.ndarray, 'N N'], grid: tuple[int, int]) -> np.ndarray:
  """Rows of similarities as tiles at the places of their patches, gaps (NaN) between them."""
  height, width = grid
  cells = np.full((height, height + GAP, width, width + GAP), np.nan, np.float32)
  cells[:, :height, :, :width] = x.reshape(height, width, height, width).transpose(0, 2, 1, 3)
  return cells.reshape(height * (height + GAP), -1)[:-GAP, :-GAP]


def number_tiles(axis: Any, grid: tuple[int, int]) -> None:
  """Rows and columns of patches, from 1, at the middles of their tiles."""
  for count, ticks in ((grid[1], axis.set_xticks), (grid[0], axis.set_yticks)):
    every = max(1, count // 7)
    places = np.arange(0, count, every)
    ticks(places * (count + GAP) + (count - 1) / 2, (places + 1).tolist())
  axis.set(xlabel='patch column', ylabel='patch row')
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
