"""What a layer sees: channels of the patch embedding, or of any layer's tokens, at their places."""

import argparse
from typing import Any

from jaxtyping import Float
import numpy as np

from vit_jax import figures
from vit_jax.interpret.patches import REMEDY
from vit_jax.interpret.picture import Measured, Picture, numbers
from vit_jax.models import tokens
from vit_jax.predict import Predictor

COUNT = 5  # as in the token-readout study
PATCHES = 'patches'  # the output of the patch convolution


class FeatureMaps(Picture):
  """Five channels as maps over the grid: `--channels`, else those that vary most over the image."""

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--channels', type=numbers, help='channels, from 0: 0,7')
    parser.add_argument(
      '--layers', help='last, all, or blocks from 1; else the patch convolution, or all blocks'
    )

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    names = layers_of(predictor, options.layers)
    outputs = predictor.measure(images, lambda named: {name: named[name] for name in names})
    found = []
    for i, image in enumerate(images):
      layers = {
        name: chosen(on_grid(predictor.model, name, outputs[name][i : i + 1]), options.channels)
        for name in names
      }
      content = {'layer': names[0], **layers[names[0]]} if len(names) == 1 else {'layers': layers}
      found.append(Measured(content, image=image))
    return found

  def size(self, measured: Measured) -> tuple[float, float]:
    layers = layers_in(measured)
    columns = 1 + max(len(layer['channels']) for layer in layers.values())
    return 2.3 * columns, 0.5 + 2.1 * len(layers)

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    layers = layers_in(measured)
    columns = 1 + max(len(layer['channels']) for layer in layers.values())
    axes = figure.subplots(len(layers), columns, squeeze=False)
    for axis in axes.flat:
      axis.axis('off')
    figures.show(axes[0, 0], measured.pixels)
    axes[0, 0].set_title('image', fontsize=9)
    for row, (name, layer) in zip(axes, layers.items(), strict=True):
      for axis, (channel, values) in zip(row[1:], layer['maps'].items(), strict=False):
        drawn = axis.imshow(values, cmap='viridis')
        figure.colorbar(drawn, ax=axis, shrink=0.7)
        block = '' if name == PATCHES else f'{label(name)}, '
        axis.set_title(f'{block}channel {channel}', fontsize=9)


def layers_of(predictor: Predictor, wanted: str | None) -> tuple[str, ...]:
  """Names of the outputs that are shown.

  Raises:
    ValueError: the model has no map to show, or no such layer.
  """
  names = predictor.output_names
  if not predictor.model.grid or not {PATCHES, 'tokens'} & {*names}:
    raise ValueError(f'a {predictor.passport.model["name"]} has no patches to show: {REMEDY}')
  if wanted is None and PATCHES in names:
    return (PATCHES,)
  return tokens.layer_names(names, 'all' if wanted is None else wanted)


def on_grid(model: Any, name: str, x: np.ndarray) -> Float[np.ndarray, 'h w D']:
  """The values of one image, `1 N D`, `1 T D` or `1 h w D`, at their places.

  Raises:
    ValueError: they are on no grid that is known.
  """
  if x.ndim == 4:
    return x[0].astype(np.float32)
  x = x if name == PATCHES else tokens.choose(model, x, 'patches')
  if x.shape[1] != model.grid[0] * model.grid[1]:
    raise ValueError(f'{name}: {x.shape[1]} values are on no grid of {model.grid[0]} x '
                     f'{model.grid[1]}; give other --layers')  # fmt: skip
  return x[0].reshape(*model.grid, -1).astype(np.float32)


def chosen(x: Float[np.ndarray, 'h w D'], channels: list[int] | None) -> dict[str, Any]:
  """Some channels of a layer as JSON has them.

  Raises:
    ValueError: no such channel.
  """
  height, width, depth = x.shape
  spread = x.reshape(-1, depth).std(0)
  shown = channels or [int(i) for i in np.argsort(-spread, kind='stable')[:COUNT]]
  wrong = [channel for channel in shown if not 0 <= channel < depth]
  if wrong:
    raise ValueError(f'--channels: {wrong[0]} is not among the channels 0 to {depth - 1}')
  maps = {str(channel): x[..., channel].tolist() for channel in shown}
  return {'grid': [height, width], 'channels': shown, 'maps': maps}


def layers_in(measured: Measured) -> dict[str, dict[str, Any]]:
  """What was measured, by layer."""
  found = measured.numbers
  return found['layers'] if 'layers' in found else {found['layer']: found}


def label(name: str) -> str:
  """'block_0/tokens' -> 'block 1'; 'tokens' -> 'last'."""
  block = name.partition('/')[0].removeprefix('block_')
  return f'block {int(block) + 1}' if block.isdecimal() else 'last'
