"""Batch norm without affine between frozen tokens and probes: what it measures, and what it holds.

In training each step takes the mean and variance of its own examples (of its part of a batch, where
that is looked at in parts), as every published probe does. For evaluation each probe, by seed and
learning rate, holds an average of them, of which a step's weighs 0.1 as in torch; the first step's
weighs all, so that nothing of a start is in it, and a smaller batch weighs less.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.evaluation.candidates import Candidate

EPSILON = 1e-6
MOMENTUM = 0.1

Statistics = dict[str, Array]  # mean, variance


class BatchNorm:
  """Normalises tokens and features of one seed; `found` gathers the statistics that did, by name.

  Args:
    held: those of evaluation, by name.
    mask: in training, which examples of the batch count: `B`; None: evaluation.
  """

  def __init__(self, held: Any, mask: Any):
    self._held, self._mask = held or {}, mask
    self.found: dict[str, Statistics] = {}

  def tokens(self, tokens: Float[Array, 'B T D'], candidate: Candidate) -> Float[Array, 'B T D']:
    """The tokens as a candidate reads them: each channel over all examples and tokens."""
    if 'batch_before' not in candidate.batch:
      return tokens
    name = f'tokens from {candidate.start}'
    self.found[name] = self._statistics(name, measure, tokens[:, candidate.start :])
    return apply(tokens, self.found[name])

  def features(self, name: str, features: Any, candidate: Candidate) -> Any:
    """The features `B F` of a candidate, or of a stack of them `R B F`, by the name of either."""
    if 'batch' not in candidate.batch:
      return features
    stacked = features.ndim == 3
    of_each = jax.vmap(measure, (0, None)) if stacked else measure
    self.found[name] = self._statistics(name, of_each, features)
    return (jax.vmap(apply) if stacked else apply)(features, self.found[name])

  def held_of(self, candidate: Candidate) -> Any:
    """What is held of a candidate, for each learning rate; None in training and without any."""
    return self._held.get(candidate.name) if self._mask is None else None

  def _statistics(self, name: str, function: Callable[..., Statistics], x: Array) -> Statistics:
    return self._held[name] if self._mask is None else function(x, self._mask)


def measure(x: Float[Array, 'B *N F'], mask: Float[Array, 'B']) -> Statistics:
  """Mean and variance of each channel over the examples that count."""
  axes = tuple(range(x.ndim - 1))
  weights = mask.reshape(-1, *(1,) * (x.ndim - 1)) / jnp.maximum(mask.sum(), 1)
  weights = weights * x.shape[0] / (x[..., :1].size)
  mean = (x * weights).sum(axes)
  return {'mean': mean, 'variance': (weights * (x - mean) ** 2).sum(axes)}


def apply(x: Float[Array, '*B F'], found: Statistics) -> Float[Array, '*B F']:
  """Each channel with mean 0 and variance 1, by statistics `F`."""
  return (x - found['mean']) * jax.lax.rsqrt(found['variance'] + EPSILON)


def blend(held: Any, found: Any, weight: Any) -> Any:
  """What is held after a step that found other statistics and weighs so much."""
  return jax.tree.map(lambda old, new: old + weight * (new - old), held, found)


def weight(step: int, share: float) -> float:
  """How much the statistics of a step, from 0, weigh; `share` of a whole batch was there."""
  return max(MOMENTUM, 1 / (step + 1)) * share
