"""Attention rollout: attention multiplied through the layers (ViT paper, figures 6 and 14).

As Abnar and Zuidema (arXiv:2005.00928): heads are averaged, the residual stream counts as attention
to oneself, and layers are multiplied from the input on,

  A~_l = (1 - r) mean_h A_l + r I,   R_1 = A~_1,   R_l = A~_l R_(l-1),   r = 0.5,

so that every row of R sums to 1. What is drawn is the row of the class token (or of another query)
over the patches. `gradients.py` says what `--weighted=gradient` puts in the place of mean_h A_l.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax import figures
from vit_jax.interpret import gradients, overlay
from vit_jax.interpret.attention import add_query
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.interpret.query import Attending, Query, attending, query_of
from vit_jax.predict import Predictor
from vit_jax.runtime.choices import check_choice

WEIGHTED = ('none', 'gradient')


class Rollout(Picture):
  """Attention rollout from the class token, or any query, over the image."""

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    add_query(parser)
    parser.add_argument(
      '--residual', type=float, default=0.5, help='share of the residual stream in a layer'
    )
    parser.add_argument(
      '--weighted', default='none', help='none, or gradient: by the gradient of a class'
    )
    parser.add_argument('--target_class', help='with --weighted=gradient; else the predicted one')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    blocks = attending(predictor)
    query = query_of(predictor.model, options.query, one_grid(blocks))
    check(options)
    classes: list[dict[str, str]] = [{}] * len(images)
    if options.weighted == 'none':
      rows = plain(predictor, images, blocks, query, options.residual)
    else:
      target = gradients.target_of(predictor, options.target_class)
      classes = gradients.about(predictor, images, target)
      maps = gradients.by_batch(predictor, images, blocks, target)
      rows = np.concatenate([weighted(batch, blocks, query, options.residual) for batch in maps])
    return [
      measured(image, row, query, vars(options) | known)
      for image, row, known in zip(images, rows, classes, strict=True)
    ]

  def scale(self, found: Sequence[Measured]) -> overlay.Limits:
    """Colours from 0 to the largest value, but at least to twice the mean patch."""
    return 0.0, max(2.0, *(float(relative(one).max()) for one in found))

  def size(self, measured: Measured) -> tuple[float, float]:
    height, width = measured.pixels.shape[:2]
    return 7.0, max(2.2, 2.9 * height / width)

  def draw(self, figure: Any, measured: Measured, scale: overlay.Limits) -> None:
    left, right = figure.subplots(1, 2)
    figures.show(left, measured.pixels)
    size = overlay.fitting(measured.pixels, 384)
    right.imshow(overlay.blend(measured.pixels, relative(measured), scale, size))
    right.axis('off')
    overlay.colour_bar(figure, right, scale, 'times the mean patch', shrink=0.85)


def check(options: argparse.Namespace) -> None:
  """Raises a ValueError for values that cannot be, or that would be ignored."""
  check_choice('--weighted', options.weighted, WEIGHTED)
  if not 0 <= options.residual < 1:
    raise ValueError(f'--residual={options.residual} must be in [0, 1): 1 sees no attention')
  if options.target_class is not None and options.weighted == 'none':
    raise ValueError('--target_class belongs to --weighted=gradient: plain rollout has no class')


def one_grid(blocks: list[Attending]) -> tuple[int, int]:
  """The grid of all blocks.

  Raises:
    ValueError: they have several, so that their attention cannot be multiplied.
  """
  grids = sorted({one.grid for one in blocks})
  if len(grids) > 1:
    raise ValueError(f'rollout multiplies blocks of one grid, and these have several: {grids}')
  return grids[0]


def layer(
  weights: Float[Array, 'B T T'], residual: float, before: Float[Array, 'B T T'] | None
) -> Float[Array, 'B T T']:
  """The product after one more layer, whose attention is the mean over heads."""
  mixed = (1 - residual) * weights + residual * jnp.eye(weights.shape[-1])
  exact = jax.lax.Precision.HIGHEST  # Accelerators would round factors to bfloat16.
  return mixed if before is None else jnp.matmul(mixed, before, precision=exact)


def plain(
  predictor: Predictor, images: np.ndarray, blocks: list[Attending], query: Query, residual: float
) -> Float[np.ndarray, 'N L S']:
  """The query's row of the product after each layer; rows sum to 1."""
  return predictor.measure(images, rows_of(predictor.model, blocks, query, residual))


def rows_of(
  model: Any, blocks: list[Attending], query: Query, residual: float
) -> Callable[[dict[str, Any]], Any]:
  """`outputs by name -> B L S`, which `plain` measures."""

  def rows(outputs):
    product, found = None, []
    for one in blocks:
      weights = model.attention_map(outputs, one.block).mean(1)
      product = layer(weights, residual, product)
      found.append(query.of(product, one.grid))
    return jnp.stack(found, 1)

  return rows


def weighted(
  maps: Iterable[np.ndarray], blocks: list[Attending], query: Query, residual: float
) -> Float[np.ndarray, 'B L S']:
  """The query's row of the product of weighted maps, `B T T` each, less the identity's part."""
  product, found = None, []
  for depth, (values, one) in enumerate(zip(maps, blocks, strict=True), 1):
    product = layer(jnp.asarray(values), residual, product)
    rest = product - residual**depth * jnp.eye(product.shape[-1])
    found.append(np.asarray(query.of(rest, one.grid)))
  return np.stack(found, 1)


def measured(
  image: np.ndarray, rows: Float[np.ndarray, 'L S'], query: Query, given: dict[str, Any]
) -> Measured:
  """What is told of one image."""
  first = len(query.before)
  maps = rows[:, first:].reshape(-1, *query.grid)
  content = {
    'query': query.name, 'grid': list(query.grid), 'layers': len(rows),
    'residual': given['residual'], 'weighted': given['weighted'],
    **{key: given[key] for key in ('target_class', 'predicted') if given.get(key)},
    'on_prefix': dict(zip(query.before, rounded(rows[-1, :first]), strict=True)),
    'map': rounded(maps[-1]),
  }  # fmt: skip
  kind = 'attention rollout'
  if given['weighted'] == 'gradient':
    kind = f'gradient-weighted rollout for {given["target_class"]}'
  title = f'{kind} from {query.words}, {len(rows)} layers, residual {given["residual"]:g}'
  return Measured(content, title, {'map': maps[-1], 'by_layer': maps}, image)


def relative(measured: Measured) -> np.ndarray:
  """The final map in units of its mean."""
  x = measured.arrays['map'].astype(np.float64)
  return x / max(x.mean(), 1e-30)
