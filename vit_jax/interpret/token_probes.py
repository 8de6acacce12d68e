"""Linear probes of single tokens: what outliers, other patches and the prefix know of the class.

As in arXiv:2309.16588 (table 1): of each image one token is read, and a linear classifier is fitted
to it in closed form (`evaluation/least_squares.py`), on training pictures of the checkpoint's data.
"""

import argparse
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax import figures, metrics
from vit_jax.evaluation import least_squares, token_health
from vit_jax.interpret.images import indices, own_data
from vit_jax.interpret.picture import Measured, Picture
from vit_jax.predict import Predictor

RIDGE = 1024.0
PATCHES = ('largest_patch', 'random_patch', 'mean_of_patches')


class TokenProbes(Picture):
  """Accuracy of linear probes of one token: the largest patch, another patch, mean, prefix."""

  sees = 'test'

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--examples', type=int, default=1000, help='at most, of train and of test')
    parser.add_argument('--seed', type=int, default=0, help='of the patch that is drawn')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    del images
    if options.examples < 2:
      raise ValueError(f'--examples={options.examples} must be at least 2')
    read = reader(predictor, options.seed)
    dataset = own_data(predictor, 'token_probes', head=False)
    (train, train_labels), (test, labels) = (
      tokens_of(predictor, dataset, split, options.examples, read) for split in ('train', 'test')
    )
    rows, classes = {}, len(dataset.class_names)
    for kind in (*predictor.model.prefix, *PATCHES):
      ((kernel, bias),) = least_squares.fit(train[kind], train_labels, classes, (RIDGE,))
      right = (test[kind] @ kernel + bias).argmax(-1) == labels
      low, high = metrics.wilson(int(right.sum()), len(right))
      rows[kind] = {'accuracy': round(float(right.mean()), 5),
                    'interval': [round(low, 5), round(high, 5)]}  # fmt: skip
    share = float((train['ratio'] > token_health.FACTOR).mean())
    content = {
      'n_train': len(train_labels), 'n_test': len(labels), 'ridge': RIDGE, 'probes': rows,
      'largest_patches_that_are_outliers': round(share, 5),
    }  # fmt: skip
    title = (
      f'linear probes of one token, {len(labels)} test pictures; of the largest patches '
      f'{share:.0%} are outliers'
    )
    return [Measured(content, title)]

  def size(self, measured: Measured) -> tuple[float, float]:
    return 5.6, 1.2 + 0.32 * len(measured.numbers['probes'])

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    axis, rows = figure.subplots(), measured.numbers['probes']
    accuracy = np.array([row['accuracy'] for row in rows.values()])
    ends = np.abs(np.array([row['interval'] for row in rows.values()]).T - accuracy)
    axis.errorbar(accuracy, range(len(rows)), xerr=ends, fmt='o', color=figures.COLOURS[0],
                  capsize=3)  # fmt: skip
    axis.set_yticks(range(len(rows)), [name.replace('_', ' ') for name in rows])
    axis.invert_yaxis()
    axis.set_xlabel('accuracy on test (95 %, Wilson)')
    axis.grid(alpha=0.3)


def tokens_of(
  predictor: Predictor, dataset: Any, split: str, most: int, read: Any
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """What is read of so many examples, spread over a split, and their labels."""
  source = dataset.splits[split]
  rows = np.array(indices(len(source), most, spread=True))
  parts, labels = [], []
  for start in range(0, len(rows), 64):
    pictures, found = source.read(rows[start : start + 64])
    seen = np.stack([predictor.preprocess(picture) for picture in pictures])
    parts.append(predictor.measure(seen, read, 64))
    labels.append(np.asarray(found))
  joined: Any = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  return joined, np.concatenate(labels)


def reader(predictor: Predictor, seed: int) -> Any:
  """From outputs to one token of each kind `B D`, and how large the largest norm is, in medians.

  Raises:
    ValueError: the model has no patches.
  """
  model, name = predictor.model, predictor.passport.model['name']
  depths = token_health.depths_of(model, token_health.shapes_of(predictor), name)
  first, key = len(model.prefix), jax.random.key(seed)

  def read(named):
    tokens = named['tokens'].astype(jnp.float32)
    norms = jnp.linalg.norm(named[depths[-1]].astype(jnp.float32), axis=-1)[:, first:]
    patches, largest = tokens[:, first:], norms.argmax(-1)
    draws = jax.random.uniform(key, norms.shape)
    draws = jnp.where(jnp.arange(norms.shape[1]) == largest[:, None], -1.0, draws)
    found = {name: tokens[:, i] for i, name in enumerate(model.prefix)}
    found['largest_patch'] = picked(patches, largest)
    found['random_patch'] = picked(patches, draws.argmax(-1))
    found['mean_of_patches'] = patches.mean(1)
    return found | {'ratio': norms.max(-1) / jnp.median(norms, axis=-1)}

  return read


def picked(patches: Any, which: Any) -> Any:
  """One patch of each image, `B D`."""
  return jnp.take_along_axis(patches, which[:, None, None], axis=1)[:, 0]
