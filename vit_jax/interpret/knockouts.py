"""Knock-outs: what becomes of the answer when some tokens are replaced before a block.

Setting a token to 0 leaves what the network has ever seen, and overstates what the token carries;
so three controls stand beside it: the mean of that token over all images, noise of the same mean
and deviation, and the same token of another image.
"""

import argparse
from collections.abc import Sequence
import math
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax import figures
from vit_jax.evaluation import token_health
from vit_jax.evaluation.similarity import cosine
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.objectives.classification import probabilities
from vit_jax.predict import Predictor

METHODS = ('zero', 'mean', 'noise', 'shuffle')
BATCH = 8


class Knockouts(Picture):
  """What the answer loses when tokens are zero, their mean, noise, or those of another image."""

  sees = 'images'
  count = 64

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--block', type=int, help='before which block, from 1; else the middle one')
    parser.add_argument('--patches', type=int, help='of each image; else 2 per cent, at least one')
    parser.add_argument('--seed', type=int, default=0, help='of noise and of random patches')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    if len(images) < 2:
      raise ValueError('knockouts compares images: give two or more (--count=64)')
    predictor = predictor.computed(scan=False)
    before, block, count = place(predictor, options)
    moments = predictor.measure(images, lambda named: named[before].astype(jnp.float32))
    mean, deviation = moments.mean(0), moments.std(0)
    kinds = kinds_of(predictor.model.prefix)
    # No batch of one: every image has another one behind it.
    sizes = range(min(BATCH, len(images)), 1, -1)
    size = next(size for size in sizes if len(images) % size != 1)
    found = predictor.stream(
      images, program(predictor, before, block, count, (mean, deviation), options.seed), size
    )
    content = {
      'images': len(images), 'before_block': block + 1, 'patches_of_an_image': count,
      'methods': list(METHODS),
      'cosine_of_features': table(kinds, found['cosine'].mean(0)),
    }  # fmt: skip
    if 'same' in found:
      content |= {
        'same_answer': table(kinds, found['same'].mean(0)),
        'probability_kept': table(kinds, found['kept'].mean(0)),
      }
    title = f'tokens replaced before block {block + 1} of {predictor.model.sizes()["depth"]}'
    return [Measured(content, f'{title}, {len(images)} images')]

  def size(self, measured: Measured) -> tuple[float, float]:
    kinds = measured.numbers['cosine_of_features']
    panels = 2 if 'same_answer' in measured.numbers else 1
    return panels * (1.6 + 0.75 * len(kinds)), 3.6

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    content = measured.numbers
    shown = {
      'same_answer': 'images with the same answer',
      'cosine_of_features': 'cosine of features',
    }
    shown = {key: label for key, label in shown.items() if key in content}
    for axis, (key, label) in zip(
      figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
      bars(axis, content[key], label)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside lower center', ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip


def bars(axis: Any, rows: dict[str, dict[str, float]], label: str) -> None:
  """A group of bars for each kind of token, one for each way to replace it."""
  places = np.arange(len(rows))
  for i, (method, colour) in enumerate(zip(METHODS, figures.COLOURS, strict=False)):
    values = [row[method] for row in rows.values()]
    axis.bar(places + (i - 1.5) * 0.2, values, 0.19, color=colour, label=method)
  axis.set_xticks(places, [name.replace('_', '\n') for name in rows], fontsize=8)
  axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.02)
  axis.set_title(label, fontsize=9)


def table(kinds: Sequence[str], values: np.ndarray) -> dict[str, dict[str, float]]:
  """Numbers by kind of token and way to replace it, from `kinds x METHODS` in a row."""
  rows = values.reshape(len(kinds), len(METHODS))
  return {kind: dict(zip(METHODS, rounded(row, 4), strict=True))
          for kind, row in zip(kinds, rows, strict=True)}  # fmt: skip


def place(predictor: Predictor, options: argparse.Namespace) -> tuple[str, int, int]:
  """The output that is replaced, the block behind it, from 0, and how many patches.

  Raises:
    ValueError: the family offers no replacement, or there is no such block or number.
  """
  model, name = predictor.model, predictor.passport.model['name']
  depths = token_health.depths_of(model, token_health.shapes_of(predictor), name)
  if model.replacement(0) is None:
    raise ValueError(f'a {name} has no tokens that could be replaced: give the weights of a ViT')
  total, patches = len(depths) - 1, math.prod(model.grid or ())
  block = total // 2 + 1 if options.block is None else options.block
  if not 1 <= block <= total:
    raise ValueError(f'--block={block}: give a block from 1 to {total}')
  count = max(1, round(0.02 * patches)) if options.patches is None else options.patches
  if not 1 <= count <= patches // 2:
    raise ValueError(f'--patches={count}: give 1 to {max(1, patches // 2)}, half of the grid')
  return depths[block - 1], block - 1, count


def kinds_of(prefix: tuple[str, ...]) -> list[str]:
  """What is knocked out in turn: tokens of the prefix, all registers together, patches."""
  own = [name for name in prefix if not name.startswith('register_')]
  registers = ['registers'] * (len(own) < len(prefix))
  return [*own, *registers, 'largest_patches', 'random_patches']


def masks(prefix: tuple[str, ...], norms: Float[Array, 'B T'], count: int, key: jax.Array) -> Array:
  """Which tokens each kind has, `kinds B T`."""
  batch, length = norms.shape
  first, places = len(prefix), jnp.arange(length)
  rows = []
  for kind in kinds_of(prefix)[:-2]:
    wanted = [i for i, name in enumerate(prefix) if name == kind or
              (kind == 'registers' and name.startswith('register_'))]  # fmt: skip
    rows.append(jnp.broadcast_to(jnp.isin(places, jnp.array(wanted)), (batch, length)))
  largest = strongest(norms[:, first:], count)
  # Never one of the largest.
  draws = jax.random.uniform(key, largest.shape) - 2 * largest
  for mask in (largest, strongest(draws, count)):
    rows.append(jnp.pad(mask, ((0, 0), (first, 0))))
  return jnp.stack(rows)


def strongest(scores: Float[Array, 'B N'], count: int) -> Array:
  """Whether each score is among the `count` highest of its row."""
  order = jnp.argsort(-scores, axis=-1)
  return jnp.argsort(order, axis=-1) < count


def program(
  predictor: Predictor, before: str, block: int, count: int, moments: Any, seed: int
) -> Any:
  """`(params, images) -> numbers B V` of each kind of token, and of each way to replace it."""
  model = predictor.model
  mean, deviation = (jnp.asarray(x) for x in moments)
  keys = jax.random.split(jax.random.key(seed))

  def run(params, images):
    logits, named = predictor.forward(params, images)
    x = named[before].astype(jnp.float32)
    chosen = masks(model.prefix, jnp.linalg.norm(x, axis=-1), count, keys[0])
    noise = mean + deviation * jax.random.normal(keys[1], x.shape)
    filled = jnp.stack([
      jnp.zeros_like(x), jnp.broadcast_to(mean, x.shape), noise, jnp.roll(x, -1, axis=0)
    ])  # fmt: skip

    def one(which):
      change = {'mask': chosen[which // len(METHODS)][..., None],
                'tokens': filled[which % len(METHODS)]}  # fmt: skip
      tree = traverse_util.unflatten_dict({model.replacement(block): change}, sep='/')
      other, found = predictor.forward(params, images, replacements=tree)
      return compare(predictor, (logits, named['features']), (other, found['features']))

    found = jax.lax.map(one, jnp.arange(len(chosen) * len(METHODS)))
    return jax.tree.map(lambda x: x.T, found)

  return run


def compare(predictor: Predictor, before: Any, after: Any) -> dict[str, Array]:
  """How alike features `B ...` are; whether the answer is the same, and its probability kept."""
  flat = [x.reshape(len(x), -1) for x in (before[1], after[1])]
  found = {'cosine': cosine(*flat)}
  if predictor.model.num_classes and before[0].ndim == 2:
    answer, kind = before[0].argmax(-1), predictor.passport.predictions
    shares = [
      jnp.take_along_axis(probabilities(x, kind), answer[:, None], 1)[:, 0]
      for x in (before[0], after[0])
    ]
    found |= {'same': after[0].argmax(-1) == answer, 'kept': shares[1] / shares[0]}
  return found
