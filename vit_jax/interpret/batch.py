"""What training sees: the first pictures of a run as they are changed, with their soft labels."""

import math
from typing import Any

import jax
import numpy as np

from vit_jax import experiment, figures, step
from vit_jax.defaults import Config
from vit_jax.interpret import images

SHOWN = 4  # classes under a picture: mixing makes two of one label each


def batch(config: Config, count: int) -> tuple[Any, dict[str, Any]]:
  """A figure of the first `count` pictures of a run's first batch, and their labels.

  They are cut, turned and coloured, erased and mixed as the run would; draws that concern a whole
  batch are made for these pictures alone.

  Raises:
    ValueError: the config is impossible, its objective makes no examples, or `count` is below 1.
  """
  images.check_count(count)
  exp = experiment.build(config)
  if not hasattr(exp.objective, 'examples'):
    raise ValueError(f'config.objective.name={config.objective.name} makes no examples to show')
  found = exp.data.batch_at(1, batch_size=count, seed=config.seed)
  keys = step.streams(exp.objective, jax.random.fold_in(jax.random.key(config.seed), 1))
  pixels, targets = exp.objective.apply({}, found, rngs=keys, method=examples)
  pixels, targets = np.asarray(pixels), np.asarray(targets)
  names = exp.data.class_names
  titles = [caption(row, names) for row in targets]
  shown = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  heading = f'the first {count} pictures of step 1, seed {config.seed}'
  numbers = {'labels': [labels(row, names) for row in targets], 'seed': config.seed}
  return figures.gallery(list(shown), titles, heading), numbers


def examples(objective: Any, found: dict[str, np.ndarray]) -> Any:
  """What the objective makes of a batch, with the keys that its call in training draws."""
  keys = {name: objective.make_rng(name) for name in ('mixup', 'erasing')}
  return objective.examples(jax.tree.map(jax.numpy.asarray, found), keys)


def labels(row: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
  """The share of each class above that which smoothing gives to all."""
  floor = min(float(row.min()), 1 / len(row)) + 1e-6  # Of all labels at once none is smoothing.
  order = np.argsort(-row, kind='stable')
  return {names[i]: round(float(row[i]), 4) for i in order if row[i] > floor}


def caption(row: np.ndarray, names: tuple[str, ...]) -> str:
  """The largest shares, in per cent, a line each."""
  shown = list(labels(row, names).items())[:SHOWN]
  return '\n'.join(f'{name}: {math.floor(100 * share + 0.5)} %' for name, share in shown)
