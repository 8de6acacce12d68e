"""Mean attention distance of every head (ViT paper, figures 7 right and 11).

For each patch as a query, the distance in pixels to every patch, weighed by attention; averaged
over queries and images. Rows and columns of the prefix (class token) are dropped, and so is the
start of an iGPT, whose pixels are read from the places that they are told at. By default the rest
is not renormalised, as in sayakpaul/probing-vits: what a patch gives to the class token counts as
distance 0. `--renormalise` makes its rows sum to 1.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax import figures
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.interpret.query import attending
from vit_jax.predict import Predictor

Numbers = Array | np.ndarray


class Distance(Picture):
  """Mean attention distance in pixels of each head against depth, over many images."""

  sees = 'images'
  count = 128  # as in the paper

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
      '--renormalise', action='store_true', help='rows over patches sum to 1 without the prefix'
    )

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    blocks, model = attending(predictor), predictor.model
    renormalise = options.renormalise
    pixels = {one.block: distances(one.grid, model.image_size) for one in blocks}

    def heads(outputs):
      return {
        one.block: mean_distance(
          model.by_source(model.attention_map(outputs, one.block)), pixels[one.block], renormalise
        )
        for one in blocks
      }

    found = predictor.measure(images, heads)
    means = [found[one.block].mean(0) for one in blocks]
    uniform = [of_uniform(model, pixels[one.block], renormalise) for one in blocks]
    prefix = [name.replace('_', ' ') for name in model.sources]
    without = f'{" and ".join(prefix)} dropped' if prefix else 'all tokens are patches'
    how = 'rows renormalised' if renormalise else 'rows not renormalised'
    seen = f'{len(images)} images' if len(images) > 1 else '1 image'
    title = f'mean attention distance, {seen}; {without}, {how}'
    content = {
      'images': len(images), 'image_size': list(model.image_size), 'unit': 'pixels',
      'dropped': list(model.sources), 'renormalised': renormalise,
      'layers': [one.layer for one in blocks], 'grids': [list(one.grid) for one in blocks],
      'distance': [rounded(x) for x in means],
      'standard_deviation_over_images': [rounded(found[one.block].std(0)) for one in blocks],
      'uniform_attention': rounded(uniform),
    }  # fmt: skip
    return [Measured(content, title)]

  def scale(self, found: Sequence[Measured]) -> tuple[float, int]:
    """The upper ends of both axes: pixels and layers."""
    numbers = [one.numbers for one in found]
    highest = max(max(*map(max, x['distance']), *x['uniform_attention'], 0.0) for x in numbers)
    return max(1.06 * highest, 1e-6), max(max(x['layers']) for x in numbers)

  def size(self, measured: Measured) -> tuple[float, float]:
    del measured
    return 5.6, 3.6

  def draw(self, figure: Any, measured: Measured, scale: tuple[float, int]) -> None:
    axis, content = figure.subplots(), measured.numbers
    layers, values = content['layers'], content['distance']
    places = [layer for layer, row in zip(layers, values, strict=True) for _ in row]
    axis.scatter(places, np.concatenate(values), s=22, color=figures.COLOURS[0], alpha=0.75,
                 label='a head', zorder=3)  # fmt: skip
    axis.plot(layers, [np.mean(row) for row in values], color=figures.COLOURS[1], label='mean')
    axis.plot(layers, content['uniform_attention'], color='0.4', ls='--', label='uniform attention')
    axis.set(xlabel='layer', ylabel='mean attention distance, pixels')
    axis.set_xlim(0.5, scale[1] + 0.5)
    axis.set_ylim(0, scale[0])
    axis.set_xticks(range(1, scale[1] + 1, 1 + scale[1] // 16))
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside lower center', ncols=3,
                  frameon=False, fontsize=9)  # fmt: skip


def distances(grid: tuple[int, int], image_size: tuple[int, int]) -> Float[np.ndarray, 'N N']:
  """Pixels between the centres of any two patches, row by row: P sqrt(rows^2 + columns^2)."""
  sides = [size / count for size, count in zip(image_size, grid, strict=True)]
  y, x = (axis.reshape(-1) * side for axis, side in zip(np.indices(grid), sides, strict=True))
  return np.hypot(y[:, None] - y, x[:, None] - x)


def mean_distance(
  weights: Float[Numbers, '*B T S'], pixels: Float[Numbers, 'N N'], renormalise: bool
) -> Float[Array, '*B']:
  """Attention-weighted distance, averaged over the patches as queries.

  Args:
    weights: patches are the last N of queries and of keys; what is before them is dropped.
    pixels: from patch to patch.
    renormalise: whether what is left of a row is divided by its sum.
  """
  inside = jnp.asarray(weights)[..., -len(pixels) :, -len(pixels) :]
  far = (inside * jnp.asarray(pixels, jnp.float32)).sum(-1)
  if renormalise:
    far = far / jnp.maximum(inside.sum(-1), 1e-30)
  return far.mean(-1)


def of_uniform(model: Any, pixels: Float[np.ndarray, 'N N'], renormalise: bool) -> float:
  """The distance of attention that gives every token that it may see the same weight."""
  count = len(model.prefix) + len(pixels)
  seen = np.tri(count) if model.is_causal else np.ones((count, count))
  weights = model.by_source(seen / seen.sum(-1, keepdims=True))
  return float(mean_distance(weights, pixels, renormalise))
