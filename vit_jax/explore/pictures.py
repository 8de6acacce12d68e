"""Pictures of an exploration: arrays in, figures out, readable at half a page's width."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from vit_jax.figures import COLOURS, new_figure, plain

Shape = tuple[int, int]


def ranking(
  names: Sequence[str],
  accuracy: np.ndarray,
  intervals: np.ndarray,
  best: int,
  label: str = 'test accuracy, % (95 % interval over examples and seeds)',
) -> Any:
  """Accuracies with their intervals, one readout a row, the best on top.

  Args:
    names, accuracy, intervals: `R`, `R`, `R 2`, in the order of the rows.
    best: the row whose interval is shaded.
  """
  figure, axes = new_figure(7.0, 1.2 + 0.3 * len(names))
  axis, rows = axes[0, 0], np.arange(len(names))
  axis.axvspan(*(100 * intervals[best]), color=COLOURS[5], alpha=0.2, lw=0)
  errors = 100 * np.abs(intervals.T - accuracy)
  axis.errorbar(100 * accuracy, rows, xerr=errors, fmt='o', color=COLOURS[0], capsize=3)
  axis.set_yticks(rows, [plain(name) for name in names])
  axis.set_ylim(len(names) - 0.4, -0.6)  # The first on top.
  axis.set(xlabel=label)
  axis.grid(axis='x', alpha=0.3)
  return figure


def patch_map(accuracy: np.ndarray, reference: float | None, label: str) -> Any:
  """The accuracy of each patch at its place: `h w`; `reference` is the class token's."""
  height, width = accuracy.shape
  figure, axes = new_figure(6.2, 1.4 + 4.4 * height / max(width, 1))
  axis = axes[0, 0]
  percent = 100 * accuracy
  picture = axis.imshow(percent, cmap='viridis')
  bar = figure.colorbar(picture, ax=axis, shrink=0.85)
  bar.set_label('test accuracy, %')
  if max(height, width) <= 10:
    middle = (percent.min() + percent.max()) / 2
    digits = 1 if percent.max() - percent.min() < 10 else 0
    for (row, column), value in np.ndenumerate(percent):
      colour = 'black' if value > middle else 'white'
      axis.text(
        column, row, f'{value:.{digits}f}', ha='center', va='center', color=colour, fontsize=9
      )
  number_axes(axis, (height, width))
  also = '' if reference is None else f'; class token {reference:.1%}'
  axis.set_title(f'{label}: {percent.min():.1f} to {percent.max():.1f} %{also}', fontsize=10)
  return figure


def number_axes(axis: Any, grid: Shape) -> None:
  """Rows and columns of patches, from 1."""
  for size, ticks, name in (
    (grid[1], axis.set_xticks, 'column'),
    (grid[0], axis.set_yticks, 'row'),
  ):
    every = max(1, size // 7)
    ticks(range(0, size, every), range(1, size + 1, every))
    (axis.set_xlabel if name == 'column' else axis.set_ylabel)(f'patch {name}')


def distance(distances: np.ndarray, accuracy: np.ndarray, intervals: np.ndarray, title: str) -> Any:
  """Accuracy of each patch against its distance from the centre: `N`, `N`, `N 2`."""
  figure, axes = new_figure(6.2, 4.2)
  axis = axes[0, 0]
  errors = 100 * np.abs(intervals.T - accuracy)
  # Beside one another: many patches have the same distance.
  places = distances + np.random.default_rng(0).uniform(-0.1, 0.1, len(distances))
  axis.errorbar(places, 100 * accuracy, yerr=errors, fmt='o', color=COLOURS[0], ms=4,
                ecolor=COLOURS[5], elinewidth=0.6)  # fmt: skip
  axis.set(xlabel='distance from the centre, patches', ylabel='test accuracy, %')
  axis.set_title(title, fontsize=10)
  axis.grid(alpha=0.3)
  return figure


def curves(names: Sequence[str], train: np.ndarray, test: np.ndarray, what: str) -> Any:
  """A small panel for each readout: training and test against the epoch, all seeds: `E S R`.

  Where training diverged, and the loss is no finite number, a line ends.
  """
  columns = min(4, len(names))
  rows = math.ceil(len(names) / columns)
  figure, axes = new_figure(2.6 * columns + 0.4, 2.1 * rows + 0.5, rows, columns)
  epochs = np.arange(1, len(train) + 1)
  low, high = limits(np.r_[train.ravel(), test.ravel()])
  for axis, r in zip(axes.flat, range(len(names)), strict=False):
    for values, colour, label in ((train, COLOURS[1], 'train'), (test, COLOURS[0], 'test')):
      axis.plot(epochs, values[:, :, r], color=colour, alpha=0.3, lw=0.8)
      axis.plot(epochs, values[:, :, r].mean(1), color=colour, lw=1.8, label=label)
    axis.set_title(names[r], fontsize=9)
    if what == 'loss':  # A sum's is a hundred times a mean's.
      axis.set_yscale('log')
      axis.set_ylim(0.8 * max(low, 1e-4), 1.3 * high)
    else:
      axis.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axis.grid(alpha=0.3)
  for axis in axes.flat[len(names) :]:
    axis.axis('off')
  for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
    axis.set_xlabel('epoch')
  for row in axes:
    row[0].set_ylabel(what)
  axes.flat[0].legend(frameon=False, fontsize=8)
  return figure


def limits(values: np.ndarray) -> tuple[float, float]:
  """The lowest of the finite values and the 99th percentile; 0 and 1 where none is finite."""
  finite = values[np.isfinite(values)]
  return (float(finite.min()), float(np.percentile(finite, 99))) if finite.size else (0.0, 1.0)


def all_patches(test: np.ndarray, distances: np.ndarray) -> Any:
  """Test accuracy of every single patch against the epoch, coloured by distance: `E N`, `N`."""
  from matplotlib import colormaps
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import Normalize

  figure, axes = new_figure(6.2, 4.2)
  axis, scale = axes[0, 0], Normalize(distances.min(), max(distances.max(), 1e-9))
  colours = colormaps['viridis_r']
  epochs = np.arange(1, len(test) + 1)
  for column, far in zip(100 * test.T, distances, strict=True):
    axis.plot(epochs, column, color=colours(scale(far)), lw=0.8)
  axis.set(xlabel='epoch', ylabel='test accuracy, %')
  axis.grid(alpha=0.3)
  bar = figure.colorbar(ScalarMappable(scale, 'viridis_r'), ax=axis)
  bar.set_label('distance from the centre, patches')
  return figure


def weight_maps(maps: dict[str, np.ndarray]) -> Any:
  """What each learned mix gives to each patch: name -> `h w`, a mean over seeds."""
  figure, axes = new_figure(3.3 * len(maps) + 0.3, 3.2, 1, len(maps))
  for axis, (name, values) in zip(axes.flat, maps.items(), strict=True):
    limit = float(np.abs(values).max()) or 1.0
    signed = values.min() < 0
    colours = dict(cmap='PuOr_r', vmin=-limit, vmax=limit) if signed else dict(cmap='viridis')
    picture = axis.imshow(values, **colours)
    figure.colorbar(picture, ax=axis, shrink=0.8, format='%.3g')
    axis.set_title(name, fontsize=9)
    number_axes(axis, values.shape)
  return figure


def depth(blocks: Sequence[int], lines: dict[str, np.ndarray]) -> Any:
  """Accuracy of some readouts against the block that they read: name -> one number a block."""
  figure, axes = new_figure(6.8, 4.2)
  axis = axes[0, 0]
  markers = 'osD^vPX*<>'
  for i, (name, values) in enumerate(lines.items()):
    axis.plot(blocks, 100 * values, color=COLOURS[i % len(COLOURS)], marker=markers[i % 10], ms=5,
              ls=('-', '--', ':')[i // len(COLOURS) % 3], label=name)  # fmt: skip
  axis.set(xlabel='block', ylabel='test accuracy, %')
  axis.set_xticks(blocks)
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.01, 1), loc='upper left')
  return figure


def depth_maps(blocks: Sequence[int], maps: Sequence[np.ndarray]) -> Any:
  """The map of patch accuracies after each block, on one scale: `h w` each."""
  columns = min(6, len(maps))
  rows = math.ceil(len(maps) / columns)
  figure, axes = new_figure(2.1 * columns + 0.9, 2.3 * rows + 0.3, rows, columns)
  low, high = 100 * min(m.min() for m in maps), 100 * max(m.max() for m in maps)
  picture = None
  for axis in axes.flat:
    axis.axis('off')
  for axis, block, values in zip(axes.flat, blocks, maps, strict=False):
    picture = axis.imshow(100 * values, cmap='viridis', vmin=low, vmax=high)
    axis.set_title(f'block {block}', fontsize=9)
  figure.colorbar(picture, ax=axes.ravel().tolist(), label='test accuracy, %', shrink=0.8)
  return figure
