"""The principal components of the kernels that see the pixels (ViT paper, figure 7, left).

Every output channel of the first convolution is a vector of its `h w C` weights, as stored. Their
mean is taken off, and what is left is decomposed by its singular values. The paper does not say
more than "principal components".
"""

import argparse
import math
from typing import Any

from jaxtyping import Float, Num
import numpy as np

from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.models.protocol import parameter
from vit_jax.predict import Predictor

COLUMNS = 7  # as in the paper, which shows 28
RANGE = 2.5  # in root mean squares of a component: black and white


class Filters(Picture):
  """The first principal components of the kernels that see the pixels, as tiles of colour."""

  sees = 'weights'

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--components', type=int, default=28, help='how many, at most')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    name, kernel = kernel_of(predictor)
    parts, variance = components(kernel, options.components)
    share = variance[: len(parts)] / variance.sum()
    title = (
      f'principal components 1 to {len(parts)} of {name} ({kernel.shape[-1]} filters less their '
      f'mean) and their share of the variance: {share.sum():.0%} together; grey is 0'
    )
    content = {
      'kernel': name, 'shape': list(kernel.shape), 'centred': True, 'components': len(parts),
      'explained_variance': variance[: len(parts)].tolist(),
      'explained_variance_share': rounded(share), 'total_variance': float(variance.sum()),
    }  # fmt: skip
    return [Measured(content, title, {'components': parts, 'variance': variance})]

  def size(self, measured: Measured) -> tuple[float, float]:
    height, width = measured.numbers['shape'][:2]
    rows = math.ceil(measured.numbers['components'] / COLUMNS)
    return 0.95 * COLUMNS, rows * (0.85 * height / width + 0.25)

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    parts, share = measured.arrays['components'], measured.numbers['explained_variance_share']
    axes = figure.subplots(math.ceil(len(parts) / COLUMNS), COLUMNS, squeeze=False)
    for axis in axes.flat:
      axis.axis('off')
    for i, (axis, part) in enumerate(zip(axes.flat, parts, strict=False)):
      axis.imshow(tile(part), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
      axis.set_title(f'{i + 1}: {share[i]:.1%}', fontsize=8, pad=2)


def kernel_of(predictor: Predictor) -> tuple[str, np.ndarray]:
  """The kernel that sees the pixels, `h w C D`, and its name.

  Raises:
    ValueError: the model does not say which one does.
  """
  kinds = predictor.model.resampled()
  name = next((name for name, kind in kinds.items() if kind == 'channels'), None)
  if name is None:
    raise ValueError(f'a {predictor.passport.model["name"]} has no kernel that sees the pixels')
  return name, np.asarray(parameter(predictor.params, name))


def components(
  kernel: Num[np.ndarray, 'h w C D'], count: int
) -> tuple[Float[np.ndarray, 'K h w C'], Float[np.ndarray, 'R']]:
  """Principal components of the D filters, and the variance along every one of them.

  At most `count`, and as many as have a variance; each has length 1, and its largest weight is
  positive, as the sign of a component says nothing.

  Raises:
    ValueError: fewer than one is asked for, or all filters are alike.
  """
  if count < 1:
    raise ValueError(f'--components={count} must be at least 1')
  rows = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)
  _, values, parts = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
  rank = int((values > 1e-6 * max(values[0], 1e-12)).sum())
  if not rank:
    raise ValueError('the filters are all alike, so they have no principal components')
  parts = parts[: min(count, rank)]
  largest = np.take_along_axis(parts, np.abs(parts).argmax(1)[:, None], 1)
  parts = (parts * np.sign(largest)).reshape(-1, *kernel.shape[:3])
  return parts, values**2 / max(1, len(rows) - 1)


def tile(part: Float[np.ndarray, 'h w C']) -> np.ndarray:
  """A component as a picture in 0..1, RGB or grey; of other channels their mean.

  Its root mean square is always the same, so tiles of any patch side compare.
  """
  values = np.clip(part * math.sqrt(part.size) / RANGE, -1, 1) / 2 + 0.5
  return values if part.shape[-1] == 3 else values.mean(-1)
