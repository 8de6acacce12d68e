"""Arrays in, pictures out: curves, confusion matrix, galleries, patch grids.

Functions return a Matplotlib figure, which the caller saves or shows, or draw into (a part of) one
that they are given. Matplotlib loads on first use. Colours are Okabe and Ito's, which colour-blind
readers can tell apart.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = 'osD^vPX*<>'
LINES = ('-', '--', ':', '-.')
SHARP = 1000  # pixels to which a picture that is drawn apart is enlarged, at most
GAP = 0.08  # between patches, of their side


def style(number: int) -> dict[str, Any]:
  """A colour, a marker and a line for a series, by its place."""
  return {
    'color': COLOURS[number % len(COLOURS)],
    'marker': MARKERS[number % len(MARKERS)],
    'ls': LINES[number // len(COLOURS) % len(LINES)],
    'ms': 6,
  }


def blank(width: float, height: float) -> Any:
  """A figure of so many inches without a window system, and without axes."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), dpi=120, layout='constrained')


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
  """A figure of so many inches without a window system, and its axes as an array."""
  figure = blank(width, height)
  return figure, figure.subplots(rows, columns, squeeze=False)


def plain(text: str) -> str:
  """A text that a person chose, such as a class's name: '$' stands for itself, not for TeX.

  A legend would leave out what begins with '_': a space stands before it.
  """
  text = text.encode('utf-8', 'replace').decode()  # Of a folder whose name is no UTF-8.
  return ' ' * text.startswith('_') + text.replace('$', r'\$')


def curves(rows: list[dict[str, Any]]) -> Any:
  """Loss and accuracy of every split, and the learning rate, against the step."""
  panels = {'loss': 'loss', 'accuracy': 'accuracy', 'learning_rate': 'learning rate'}
  figure, axes = new_figure(13.0, 3.8, 1, len(panels))
  splits = list(dict.fromkeys(key.split('/')[0] for row in rows for key in row if '/' in key))
  for axis, (metric, label) in zip(axes[0], panels.items(), strict=True):
    for split, colour in zip(splits, COLOURS * 2, strict=False):
      points = [
        (row['step'], row[f'{split}/{metric}']) for row in rows if f'{split}/{metric}' in row
      ]
      if points:
        marker = 'o' if len(points) < 20 else None
        axis.plot(*zip(*points, strict=True), color=colour, label=split, marker=marker, ms=4)
    axis.set(xlabel='step', ylabel=label)
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend(frameon=False)
  return figure


def confusion_size(names: Sequence[str]) -> tuple[float, float]:
  """Inches that a confusion matrix of so many classes needs: width and height."""
  side = min(14.0, max(4.5, 0.5 * len(names) + 1.5))
  return side + 0.8, side


def confusion(counts: np.ndarray, names: Sequence[str]) -> Any:
  """True classes down, predicted classes across; numbers where they fit."""
  figure = blank(*confusion_size(names))
  draw_confusion(figure, counts, names)
  return figure


def draw_confusion(figure: Any, counts: np.ndarray, names: Sequence[str]) -> None:
  """Draws a confusion matrix into a figure, or a part of one; shares are coloured from 0 to 1."""
  axis = figure.subplots()
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  picture = axis.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  figure.colorbar(picture, ax=axis, label='share of the true class', shrink=0.8)
  axis.set(xlabel='predicted', ylabel='true')
  if len(names) <= 30:
    rotation = 0 if max(map(len, names)) <= 3 else 60
    axis.set_xticks(range(len(names)), map(plain, names), rotation=rotation)
    axis.set_yticks(range(len(names)), map(plain, names))
    for (row, column), count in np.ndenumerate(counts):
      if count:
        colour = 'white' if shares[row, column] > 0.5 else 'black'
        axis.text(column, row, str(count), ha='center', va='center', color=colour, fontsize=9)


def gallery(images: Sequence[np.ndarray], titles: Sequence[str], heading: str = '') -> Any:
  """Pictures in rows of eight, each under its title."""
  columns = min(8, max(4, len(images)))
  rows = max(1, math.ceil(len(images) / columns))
  figure, axes = new_figure(1.6 * columns, 1.95 * rows + 0.4, rows, columns)
  for axis in axes.flat:
    axis.axis('off')
  for axis, image, title in zip(axes.flat, images, titles, strict=False):
    show(axis, image)
    axis.set_title(plain(title), fontsize=8)
  figure.suptitle(plain(heading), fontsize=10)
  return figure


def pairs(
  first: Sequence[np.ndarray],
  second: Sequence[np.ndarray],
  titles: Sequence[str],
  heading: str = '',
) -> Any:
  """Pairs of pictures, one above the other under one title; eight pairs in a row."""
  columns = min(8, max(3, len(first)))
  rows = max(1, math.ceil(len(first) / columns))
  figure, axes = new_figure(1.7 * columns, 3.9 * rows + 0.5, 2 * rows, columns)
  for axis in axes.flat:
    axis.axis('off')
  for i, (above, below, title) in enumerate(zip(first, second, titles, strict=True)):
    row, column = 2 * (i // columns), i % columns
    show(axes[row, column], above)
    show(axes[row + 1, column], below)
    axes[row, column].set_title(plain(title), fontsize=8)
  figure.suptitle(plain(heading), fontsize=10)
  return figure


def patches(image: np.ndarray, patch_size: int) -> Any:
  """An image, and the same image cut into its grid of patches."""
  figure = blank(10.0, 5.0)
  draw_patches(figure, image, patch_size)
  return figure


def draw_patches(figure: Any, image: np.ndarray, patch_size: int) -> None:
  """Draws an image, and the same cut into its patches, into a figure or a part of one."""
  grid = (image.shape[0] // patch_size, image.shape[1] // patch_size)
  left, right = figure.subfigures(1, 2)
  axis = left.subplots()
  show(axis, image)
  axis.set_title(f'{image.shape[0]} x {image.shape[1]} pixels')
  right.suptitle(
    f'{grid[0]} x {grid[1]} = {grid[0] * grid[1]} patches of {patch_size} x {patch_size}'
  )
  show(right.subplots(), apart(image, patch_size))


def apart(image: np.ndarray, patch_size: int) -> np.ndarray:
  """The patches of an image at their places, thin white gaps between them; enlarged, as uint8.

  One picture: axes of their own take 0.06 s a patch.
  """
  by = max(1, SHARP // max(image.shape[:2]))
  large, side = image.repeat(by, 0).repeat(by, 1), by * patch_size
  rows = [
    [large[top : top + side, left : left + side] / 255
     for left in range(0, large.shape[1] - side + 1, side)]
    for top in range(0, large.shape[0] - side + 1, side)
  ]  # fmt: skip
  return np.rint(255 * mosaic(rows, max(1, round(GAP * side)))).astype(np.uint8)


def mosaic(rows: Sequence[Sequence[np.ndarray]], gap: int) -> np.ndarray:
  """Pictures `h w C` in 0..1 in rows and columns, white between them and where a row is shorter."""
  height, width, channels = rows[0][0].shape
  columns = max(len(row) for row in rows)
  canvas = np.ones((len(rows), height + gap, columns, width + gap, channels))
  for r, row in enumerate(rows):
    for c, picture in enumerate(row):
      canvas[r, :height, c, :width] = picture
  return canvas.reshape(len(rows) * (height + gap), -1, channels)[:-gap, :-gap]


def show(axis: Any, image: np.ndarray) -> None:
  """A uint8 picture on axes without ticks: RGB, RGBA, or in grey the mean of other channels."""
  axis.axis('off')
  coloured = image.shape[-1] in (3, 4)
  shown, colours = (image, None) if coloured else (image.mean(-1), 'gray')
  axis.imshow(shown, cmap=colours, vmin=0, vmax=255)


def by_block(values: Sequence[float], label: str, title: str) -> Any:
  """A number at the input and after each block."""
  figure, axes = new_figure(5.2, 3.4)
  axis = axes[0, 0]
  axis.plot(range(len(values)), values, color=COLOURS[0], marker='o', ms=4)
  axis.set(xlabel='block (0: the input)', ylabel=label, title=title)
  axis.set_xticks(range(0, len(values), 1 + len(values) // 16))
  axis.grid(alpha=0.3)
  return figure


def lines(
  places: Sequence[int | float], values: dict[str, list[float]], xlabel: str, ylabel: str
) -> Any:
  """Lines of shares in 0..1 by name over a few places, which stand at equal distances."""
  figure, axes = new_figure(5.6, 3.6)
  axis, at = axes[0, 0], range(len(places))
  shades = COLOURS if len(values) <= len(COLOURS) else ramp(len(values))
  for (name, line), colour in zip(values.items(), shades, strict=False):
    axis.plot(at, line, color=colour, marker='o', ms=4, label=name)
  axis.set_xticks(at, [f'{place:g}' for place in places])
  axis.set(xlabel=xlabel, ylabel=ylabel)
  axis.set_ylim(top=min(1.01, axis.get_ylim()[1]))
  axis.grid(alpha=0.3)
  if len(values) > 1:
    figure.legend(frameon=False, fontsize=7, loc='outside right upper')
  return figure


def ramp(count: int) -> list[Any]:
  """Colours from dark to light for an order, such as that of blocks."""
  from matplotlib import colormaps

  return [colormaps['viridis'](0.9 * i / max(1, count - 1)) for i in range(count)]
