"""What a model takes for granted of pictures: accuracy where things move, or parts change places.

A model that sees as a convolution does should mind a picture's translation little; one that sees a
bag of patches should not mind their order. Beside both stands how far units reach, after training
and before: what is built in and what is learned.
"""

import argparse
from collections.abc import Sequence
import math
from typing import Any

from jaxtyping import UInt8
import numpy as np

from vit_jax import figures
from vit_jax.interpret import images as test_images
from vit_jax.interpret import reach
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.predict import Predictor

MOST_CELLS = 16  # a side
REACHED = 16  # pictures whose gradients are taken


class Shift(Picture):
  """Accuracy against translation and shuffling of test pictures, and how far units reach."""

  sees = 'test'

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--pictures', type=int, default=256, help='test pictures, spread evenly')
    parser.add_argument('--most', type=int, help='furthest translation, pixels; else a quarter')
    parser.add_argument('--seed', type=int, default=0, help='of orders, signs and fresh weights')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    del images
    sides = predictor.model.image_size
    most = min(sides) // 4 if options.most is None else options.most
    check(options.pictures, most, min(sides))
    seen, labels = test_images.labelled(predictor, options.pictures, 'shift')
    pixels, cells = distances(most), counts(sides)

    def accuracy(changed: list[np.ndarray]) -> float:
      right = [predictor.measure(x, answers, 64) == labels for x in changed]
      return float(np.mean(right))

    moves = [accuracy([*moved(seen, step)]) for step in pixels]
    orders = [accuracy([shuffled(seen, count, options.seed)]) for count in cells]
    fresh = reach.untrained(predictor, options.seed)
    after, before = (reach.of_blocks(x, seen[:REACHED], options.seed) for x in (predictor, fresh))
    content = {
      'pictures': len(seen),
      'seed': options.seed,
      'side': min(sides),
      'chance': rounded(1 / predictor.model.num_classes),
      'translation': {'pixels': pixels, 'accuracy': rounded(moves)},
      'shuffling': {'cells_a_side': cells, 'accuracy': rounded(orders)},
      'reach': {
        'unit': 'pixels',
        'trained': after,
        'fresh': before,
        'pictures': len(seen[:REACHED]),
      },
    }
    title = (
      f'{len(seen)} test pictures, moved in four directions (edges repeated), or cut into cells '
      'that change places; reach of central units'
    )
    return [Measured(content, title)]

  def size(self, measured: Measured) -> tuple[float, float]:
    del measured
    return 10.5, 3.2

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    found = measured.numbers
    first, second, third = figure.subplots(1, 3)
    draw_accuracy(first, found['translation'], 'pixels', 'translation, pixels', found['chance'])
    draw_accuracy(second, found['shuffling'], 'cells_a_side', 'cells a side', found['chance'])
    third.set(xlabel='block', ylabel='reach, pixels')
    for i, name in enumerate(('trained', 'fresh')):
      values = [math.nan if x is None else x for x in found['reach'][name]]
      blocks = range(1, len(values) + 1)
      third.plot(blocks, values, color=figures.COLOURS[i], marker='o', ms=4, label=name)
    third.set_xticks(range(1, len(values) + 1, 1 + len(values) // 12))
    third.set_ylim(bottom=0)
    third.legend(frameon=False, fontsize=9)
    third.grid(alpha=0.3)

  def overlay(self, figure: Any, found: Sequence[Measured], labels: Sequence[str]) -> bool:
    """A line for each checkpoint; places by shares of the side, blocks by shares of the depth."""
    axes = figure.subplots(1, 3)
    for i, (measured, label) in enumerate(zip(found, labels, strict=True)):
      own, style = measured.numbers, figures.style(i)
      side, far = own['side'], own['reach']
      pixels = 100 * np.array(own['translation']['pixels']) / side
      axes[0].plot(pixels, own['translation']['accuracy'], label=label, **style)
      axes[1].plot(own['shuffling']['cells_a_side'], own['shuffling']['accuracy'], **style)
      for name, line in (('trained', '-'), ('fresh', ':')):
        reached = [math.nan if x is None else 100 * x / side for x in far[name]]
        depth = np.arange(1, len(reached) + 1) / len(reached)
        axes[2].plot(depth, reached, **style | {'ls': line})
    axes[1].set_xscale('log', base=2)
    axes[0].set(xlabel='translation, % of the side', ylabel='accuracy')
    axes[1].set(xlabel='cells a side, shuffled', ylabel='accuracy')
    axes[2].set(xlabel='depth (dotted: before training)', ylabel='reach, % of the side')
    for axis in axes:
      axis.set_ylim(bottom=0)
      axis.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=min(len(labels), 5), frameon=False, fontsize=9)
    return True


def answers(named: dict[str, Any]) -> Any:
  """The likeliest class of each picture.

  Raises:
    ValueError: the readout gives several answers a picture.
  """
  if named['logits'].ndim != 2:
    raise ValueError('shift needs a readout that gives one answer an image')
  return named['logits'].argmax(-1)


def check(pictures: int, most: int, side: int) -> None:
  """Raises a ValueError for numbers that cannot be."""
  if pictures < 1:
    raise ValueError(f'--pictures={pictures} must be at least 1')
  if not 0 <= most < side:
    raise ValueError(f'--most={most} must be at least 0 and below {side}, the side of the pictures')


def distances(most: int) -> list[int]:
  """Translations in pixels: 0, 1, 2, 4 and so on, and the furthest."""
  return sorted({0, most} | {2**i for i in range(most.bit_length()) if 2**i <= most})


def counts(sides: tuple[int, int]) -> list[int]:
  """Cells a side that pictures can be cut into: 1, and what divides both sides, by twos."""
  found = [2**i for i in range(MOST_CELLS.bit_length())]
  return [count for count in found if not any(side % count for side in sides)]


def moved(images: UInt8[np.ndarray, 'N H W C'], step: int) -> list[UInt8[np.ndarray, 'N H W C']]:
  """Pictures moved down, up, right and left by so many pixels; the edge is repeated behind them."""
  if not step:
    return [images]
  height, width = images.shape[1:3]
  padded = np.pad(images, ((0, 0), (step, step), (step, step), (0, 0)), mode='edge')
  starts = ((0, step), (2 * step, step), (step, 0), (step, 2 * step))
  return [padded[:, y : y + height, x : x + width] for y, x in starts]


def shuffled(
  images: UInt8[np.ndarray, 'N H W C'], count: int, seed: int
) -> UInt8[np.ndarray, 'N H W C']:
  """Pictures cut into `count` x `count` cells, which change places at random, each its own way."""
  number, height, width, channels = images.shape
  shape = (number, count, height // count, count, width // count, channels)
  cells = images.reshape(shape).swapaxes(2, 3).reshape(number, count**2, -1)
  rng = np.random.default_rng(seed)
  order = rng.permuted(np.tile(np.arange(count**2), (number, 1)), axis=1)
  cells = np.take_along_axis(cells, order[:, :, None], 1)
  cells = cells.reshape(number, count, count, height // count, width // count, channels)
  return cells.swapaxes(2, 3).reshape(images.shape)


def draw_accuracy(axis: Any, found: dict[str, Any], places: str, label: str, chance: float) -> None:
  """Accuracy over a few places at equal distances, and what chance has."""
  at = range(len(found[places]))
  axis.plot(at, found['accuracy'], color=figures.COLOURS[0], marker='o', ms=4)
  axis.axhline(chance, color='0.4', ls='--', lw=1)
  axis.set_xticks(at, found[places])
  axis.set(xlabel=label, ylabel='accuracy')
  axis.set_ylim(0, 1.02)
  axis.grid(alpha=0.3)
