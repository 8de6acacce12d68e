"""How an exploration chooses learning rates, decays and epochs: our rule, and those of papers.

Ours, `held_out`, keeps the test examples out of it. The others are what published protocols do, so
that their numbers can be compared with like; two of them choose on the very examples that are
reported, which makes the number too good (by how much, the same run with `held_out` shows).
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from vit_jax.data import stratified


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule of selection.

  Attributes:
    on_test: whether test examples choose.
    best_epoch: whether they choose the epoch too; else the last is taken.
    refit: whether probes are then trained on all training examples; else on those that did not
      choose.
    careful: take, of what is within a standard error of the best accuracy, the lowest loss; else
      the best accuracy.
    words: what the report says.
  """

  on_test: bool
  best_epoch: bool
  refit: bool
  careful: bool
  words: str


SELECTION_SEEDS = 2  # that try every learning rate; the one chosen is trained with all seeds
NAMES = {'adam': 'Adam', 'sgd': 'SGD with momentum', 'lars': 'LARS'}
BATCH_NORM = (
  'Batch norm (+batch, +batch_before) has no affine map: in training a step takes the statistics '
  'of its own examples, in evaluation each probe an average of those over training.'
)
OPTIMISTIC = 'so that the accuracy is the best of several on these very examples, and too good'
SELECTIONS = {
  'held_out': Rule(False, False, True, True, 'no test example had a say'),
  # CAPI: the best on a part of train, tested as it is.
  'held_out_best': Rule(False, False, False, False, 'no test example had a say'),
  # DINOv2, DINOv3, V-JEPA 2: the best of all heads after the last iteration.
  'test': Rule(True, False, True, False, f'chosen on the test examples, {OPTIMISTIC}'),
  # EP, MAE, DINO: the best epoch too.
  'test_epoch': Rule(True, True, True, False, f'the epoch is the best one on test, {OPTIMISTIC}'),
}


def points(options: Any) -> np.ndarray:
  """The grid of (learning rate, weight decay), rates first: `G 2`.

  Args:
    options: `config.explore`.
  """
  return np.array(
    [*itertools.product(sorted(options.learning_rates), sorted(options.weight_decays))]
  )


def choose(rule: Rule, accuracy: np.ndarray, loss: np.ndarray, count: int) -> np.ndarray:
  """The setting of each readout, by its accuracy and loss `R G` on `count` examples: `R`."""
  return prefer(accuracy, loss, count) if rule.careful else accuracy.argmax(1)


def prefer(accuracy: np.ndarray, loss: np.ndarray, count: int) -> np.ndarray:
  """The rate of each readout: `R G` -> `R`.

  Of those within one standard error of the best accuracy, the one of the lowest loss: on a few
  hundred examples the very best may be luck (a rate of 0.1 for the sum of digits' tokens, say, with
  a loss of 8).
  """
  best, loss = accuracy.max(1, keepdims=True), np.nan_to_num(loss, nan=np.inf)
  eligible = accuracy >= best - np.sqrt(best * (1 - best) / count)
  return np.where(eligible, loss, np.inf).argmin(1)


def hold_out(
  labels: np.ndarray, fraction: float, seed: int, asked: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Rows to train on and rows to choose on, with the same share of every class, rounded.

  Args:
    asked: what asks for it, in words; None: `config.explore.validation_fraction`.

  Raises:
    ValueError: a part would be empty or smaller than the number of classes, or a class has one
      example alone.
  """
  try:
    rest, held = stratified.split(len(labels), fraction, seed, labels)
  except ValueError as error:
    asked = asked or f'config.explore.validation_fraction={fraction}'
    raise ValueError(f'{asked} cannot split {len(labels)} training examples: {error}') from None
  return np.sort(rest), np.sort(held)


def training(options: Any) -> str:
  """How the heads of an exploration are trained, in words.

  Args:
    options: `config.explore`.
  """
  warmup = f' after {options.warmup_epochs:g} epochs of warm-up' if options.warmup_epochs else ''
  clip = f', gradients clipped to {options.clip_norm:g}' if options.clip_norm else ''
  return (
    f'{NAMES[options.optimizer]}, batches of {options.batch_size}, {options.epochs} epochs, '
    f'{options.schedule} learning rate{warmup}{clip}'
  )


def seeds_of(options: Any) -> str:
  """How many seeds try every learning rate, in words."""
  return 'one seed' if min(options.seeds, SELECTION_SEEDS) == 1 else f'{SELECTION_SEEDS} seeds'


def choosing(options: Any, rule: Rule | None = None) -> str:
  """From what learning rates and weight decays were chosen, and how, in words.

  Args:
    options: `config.explore`.
    rule: that chose; None: the one that they name.
  """
  rule = rule or SELECTIONS[options.selection]
  grid = ', '.join(f'{rate:g}' for rate in options.learning_rates)
  if any(options.weight_decays):
    grid += f' with weight decay {", ".join(f"{decay:g}" for decay in options.weight_decays)}'
  if len(options.learning_rates) * len(options.weight_decays) == 1:
    return f'{grid} for all'
  if rule.on_test:
    return f'for each readout the best of {grid} ({seeds_of(options)})'
  plain = ' as evaluation sees them' if options.views else ''
  how = (
    'of those within a standard error of the best accuracy, the one of the lowest loss'
    if rule.careful
    else 'the best accuracy'
  )
  after = ', then all of them were used' if rule.refit else ', the rest of which trained'
  return (
    f'chosen for each readout from {grid} on {options.validation_fraction:.0%} of the training '
    f'examples{plain} ({seeds_of(options)}; {how}){after}'
  )
