"""A figure of how healthy tokens are: norms, outliers, rank, similarity, entropy, CKA by depth."""

from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.evaluation.token_health import Health

SIZE = (12.0, 7.2)  # inches


def draw(figure: Any, health: Health) -> None:
  """Draws six panels into a figure or a part of one, which has no axes yet."""
  axes = figure.subplots(2, 3)
  depths = np.arange(len(health.norms))
  draw_norms(axes[0, 0], health, depths)
  draw_positions(figure, axes[0, 1], health)
  draw_outliers(axes[0, 2], health, depths)
  draw_rank(axes[1, 0], health, depths)
  draw_likeness(axes[1, 1], health, depths)
  drawn = axes[1, 2].imshow(health.cka, vmin=0, vmax=1, cmap='viridis', origin='lower')
  ticks = range(0, len(depths), 1 + len(depths) // 9)
  axes[1, 2].set(title='linear CKA between depths', xlabel='block', ylabel='block', xticks=ticks,
                 yticks=ticks)  # fmt: skip
  figure.colorbar(drawn, ax=axes[1, 2], shrink=0.8)
  for axis in axes.flat:
    if axis not in (axes[0, 1], axes[1, 2]):
      axis.set_xlabel('block (0: the input)')
      axis.set_xticks(ticks)
      axis.grid(alpha=0.3)


def draw_norms(axis: Any, health: Health, depths: np.ndarray) -> None:
  """Norms of patches with their middle 90 per cent, and of each token of the prefix."""
  low, middle, high = np.quantile(health.patches, (0.05, 0.5, 0.95), axis=(1, 2))
  axis.fill_between(depths, low, high, color=figures.COLOURS[0], alpha=0.25, lw=0)
  axis.plot(depths, middle, color=figures.COLOURS[0], label='patches (5 to 95 %)')
  axis.plot(depths, health.patches.max((1, 2)), color=figures.COLOURS[0], ls=':',
            label='largest patch')  # fmt: skip
  shown = [*enumerate(name for name in health.prefix if not name.startswith('register_'))]
  for (i, name), colour in zip(shown, figures.COLOURS[1:], strict=False):
    axis.plot(depths, health.norms[:, :, i].mean(1), color=colour, label=name.replace('_', ' '))
  registers = [i for i, name in enumerate(health.prefix) if name.startswith('register_')]
  for i in registers:
    label = 'registers' if i == registers[0] else None
    axis.plot(depths, health.norms[:, :, i].mean(1), color='0.4', ls='--', lw=1, label=label)
  axis.set(title='norm of tokens', ylabel='norm')
  axis.set_yscale('log')
  axis.legend(frameon=False, fontsize=8)


def draw_positions(figure: Any, axis: Any, health: Health) -> None:
  """The mean norm of the patch at each place, after the block with the most outliers."""
  depth = widest(health)
  values = health.patches[depth].mean(0).reshape(health.grid)
  drawn = axis.imshow(values, cmap='viridis', interpolation='nearest')
  axis.set(title=f'mean norm at each place, block {depth}', xticks=[], yticks=[])
  figure.colorbar(drawn, ax=axis, shrink=0.8)


def widest(health: Health) -> int:
  """The depth with the most outliers; the last one where there are none."""
  shares = health.outliers.mean((1, 2))
  return int(shares.argmax()) if shares.any() else len(shares) - 1


def draw_outliers(axis: Any, health: Health, depths: np.ndarray) -> None:
  """The share of patches that are outliers."""
  axis.plot(depths, 100 * health.outliers.mean((1, 2)), color=figures.COLOURS[1], marker='o', ms=3)
  axis.set(title=f'outliers: norm above {health.factor:g} medians', ylabel='% of patches')
  axis.set_ylim(bottom=0)


def draw_rank(axis: Any, health: Health, depths: np.ndarray) -> None:
  """The effective rank of patches."""
  axis.plot(depths, health.rank, color=figures.COLOURS[2], marker='o', ms=3)
  axis.set(title=f'effective rank of patches (width {health.width})', ylabel='RankMe')
  axis.set_ylim(bottom=0)


def draw_likeness(axis: Any, health: Health, depths: np.ndarray) -> None:
  """Similarity of patches, and entropy of attention as a share of the largest, both in 0..1."""
  axis.plot(depths, health.similarity.mean(1), color=figures.COLOURS[3], marker='o', ms=3,
            label='cosine of two patches')  # fmt: skip
  if health.entropy is not None:
    most = np.log(health.norms.shape[-1])
    heads = health.entropy.mean(1) / most  # L-1 h
    axis.plot(depths[1:], heads.mean(1), color=figures.COLOURS[4], marker='s', ms=3,
              label='entropy of attention / ln T')  # fmt: skip
    axis.fill_between(depths[1:], heads.min(1), heads.max(1), color=figures.COLOURS[4], alpha=0.25,
                      lw=0, label='all heads')  # fmt: skip
  axis.set_title('similarity and attention')
  axis.set_ylim(top=1.02)
  axis.legend(frameon=False, fontsize=8)
