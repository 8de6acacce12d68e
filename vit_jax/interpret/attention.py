"""Attention of a query to the patches, head by head and layer by layer, over the image."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.interpret import overlay
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.interpret.query import Attending, Query, attending, query_of
from vit_jax.predict import Predictor

PANEL = 96  # pixels of the longer side of a map in the mosaic
MOST = 99.5  # per cent of all values lie within the colours
SIDES = 2.9  # inches beside the mosaic: the image, the names of layers, the colour bar


class Attention(Picture):
  """Attention from the class token or any patch, for each head and layer, over the image."""

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    add_query(parser)
    parser.add_argument('--layers', default='all', help='all, last, or blocks from 1: 1,6,12')
    parser.add_argument('--heads', default='all', help='all, mean, or heads from 1: 1,3')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    blocks = attending(predictor, options.layers)
    query = query_of(predictor.model, options.query, blocks[0].grid)
    heads = heads_of(options.heads, blocks)

    def rows(outputs):
      found = {}
      for one in blocks:
        row = query.of(predictor.model.attention_map(outputs, one.block), one.grid)
        shown = None if heads is None else np.array(heads[one.block])
        found[one.block] = row.mean(1, keepdims=True) if shown is None else row[:, shown]
      return found

    found = predictor.measure(images, rows)
    return [
      self.of_image(image, {one: found[one.block][i] for one in blocks}, query, heads)
      for i, image in enumerate(images)
    ]

  def of_image(
    self,
    image: np.ndarray,
    rows: dict[Attending, np.ndarray],
    query: Query,
    heads: dict[int, list[int]] | None,
  ) -> Measured:
    """The maps of one image, from the row of the query in each block: `h S`."""
    first = len(query.before)
    maps = {f'layer_{one.layer}': row[:, first:].reshape(-1, *one.grid)
            for one, row in rows.items()}  # fmt: skip
    content = {
      'query': query.name, 'grid': list(query.grid), 'layers': [one.layer for one in rows],
      'heads': 'mean' if heads is None else [h + 1 for h in max(heads.values(), key=len)],
      'tokens': len(query.model.prefix) + int(np.prod(query.grid)),
      'rows_sum_to_1_over': [*query.before, 'patches'],
      'on_prefix': {f'layer_{one.layer}': {name: rounded(row[:, i])
                    for i, name in enumerate(query.before)}
                    for one, row in rows.items()},
    }  # fmt: skip
    title = f'attention of {query.words} to the patches, by head and layer'
    return Measured(content, title, maps, image)

  def scale(self, found: Sequence[Measured]) -> overlay.Limits:
    """Colours from 0 to what nearly all values stay below, but at least to twice uniform."""
    values = np.concatenate([x.ravel() for one in found for x in relative(one).values()])
    return 0.0, max(float(np.percentile(values, MOST)), 2.0)

  def size(self, measured: Measured) -> tuple[float, float]:
    rows, columns = len(measured.arrays), max(len(x) for x in measured.arrays.values())
    height, width = overlay.fitting(measured.pixels, 1000)
    inches = min(0.9, 16 / columns)
    return SIDES + columns * inches * width / 1000, max(2.6, 0.6 + rows * inches * height / 1000)

  def draw(self, figure: Any, measured: Measured, scale: overlay.Limits) -> None:
    image, maps = measured.pixels, relative(measured)
    size = overlay.fitting(image, PANEL)
    rows = [[overlay.blend(image, one, scale, size) for one in layer] for layer in maps.values()]
    gap = PANEL // 16
    width, height = self.size(measured)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, width - 1.2))
    figures.show(left, image)
    left.set_title('image', fontsize=9)
    left.set_anchor('N')
    right.imshow(figures.mosaic(rows, gap), interpolation='bilinear')
    heads, layers = measured.numbers['heads'], measured.numbers['layers']
    for names, side, ticks in (
      (layers, size[0], right.set_yticks),
      (['mean'] if heads == 'mean' else heads, size[1], right.set_xticks),
    ):
      ticks([i * (side + gap) + side / 2 for i in range(len(names))], names)
    right.tick_params(length=0, labelsize=8)
    right.set(xlabel='head', ylabel='layer')
    right.spines[:].set_visible(False)
    overlay.colour_bar(
      figure, right, scale, 'times uniform attention', extend='max', aspect=30,
      shrink=min(1.0, 4.5 / height), anchor=(0.0, 1.0),
    )  # fmt: skip


def add_query(parser: argparse.ArgumentParser) -> None:
  """Declares the option `--query`."""
  parser.add_argument(
    '--query', help='class (where there is one, else mean), mean over patches, or a patch from 1'
  )


def relative(measured: Measured) -> dict[str, np.ndarray]:
  """The maps in units of uniform attention: 1 is the weight that all tokens alike would get."""
  first = measured.numbers['tokens'] - int(np.prod(measured.numbers['grid']))
  return {name: x * (first + x[0].size) for name, x in measured.arrays.items()}


def heads_of(wanted: str, blocks: list[Attending]) -> dict[int, list[int]] | None:
  """The heads that are shown of each block, from 0; None: the mean over all.

  Raises:
    ValueError: a block has no such head.
  """
  if wanted == 'mean':
    return None
  if wanted == 'all':
    return {one.block: list(range(one.heads)) for one in blocks}
  least = min(one.heads for one in blocks)
  words = wanted.split(',')
  if any(not word.isdecimal() or not 1 <= int(word) <= least for word in words):
    raise ValueError(f"--heads={wanted}: give all, mean, or heads from 1 to {least}, such as '1,2'")
  return {one.block: [int(word) - 1 for word in words] for one in blocks}
