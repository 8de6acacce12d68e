"""What the patch convolution sees: channels of the patch embedding at their places."""

import argparse
from typing import Any

from jaxtyping import UInt8
import numpy as np

from vit_jax import figures
from vit_jax.interpret.patches import REMEDY
from vit_jax.predict import Predictor

COUNT = 5  # as in the token-readout study


def feature_maps(
  predictor: Predictor, image: UInt8[np.ndarray, 'H W C'], options: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
  """Five channels as maps over the grid: `--channels`, else those that vary most over the image.

  Raises:
    ValueError: the model has no patches, or no such channel.
  """
  grid = predictor.model.grid
  if 'patches' not in predictor.output_names or not grid:
    raise ValueError(f'a {predictor.passport.model["name"]} has no patches to show: {REMEDY}')
  embedded = predictor(image[None], ('patches',))['patches'][0]
  width = embedded.shape[-1]
  chosen = options.channels or np.argsort(-embedded.std(0), kind='stable')[:COUNT].tolist()
  wrong = [channel for channel in chosen if not 0 <= channel < width]
  if wrong:
    raise ValueError(f'--channels: {wrong[0]} is not among the channels 0 to {width - 1}')
  maps = embedded[:, chosen].T.reshape(-1, *grid)
  figure, axes = figures.new_figure(2.3 * (len(chosen) + 1), 2.6, 1, len(chosen) + 1)
  figures.show(axes[0, 0], image)
  axes[0, 0].set_title('image', fontsize=9)
  for axis, channel, values in zip(axes[0, 1:], chosen, maps, strict=True):
    axis.axis('off')
    drawn = axis.imshow(values, cmap='viridis')
    figure.colorbar(drawn, ax=axis, shrink=0.7)
    axis.set_title(f'channel {channel}', fontsize=9)
  numbers = {str(c): values.tolist() for c, values in zip(chosen, maps, strict=True)}
  return figure, {'grid': list(grid), 'channels': chosen, 'maps': numbers}
