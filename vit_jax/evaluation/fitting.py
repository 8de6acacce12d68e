"""Trains probes on cached tokens, every seed in an order of its own, and tests them."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.data.pipeline import prefetch
from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens
from vit_jax.runtime import sharding
from vit_jax.runtime.progress import track


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What training left.

  Attributes:
    loss, accuracy: `E S R L`: of training, a mean over the examples of each epoch.
    test_loss, test_accuracy: `E S R L`: on the other examples after each epoch (`E`: all epochs, or
      the last alone).
    predictions: `S R L n`: of the other examples, after the last epoch.
    weights: of each learned mix, `S L N`: its weight of each patch.
  """

  loss: np.ndarray
  accuracy: np.ndarray
  test_loss: np.ndarray
  test_accuracy: np.ndarray
  predictions: np.ndarray
  weights: dict[str, np.ndarray]

  @staticmethod
  def join(parts: 'Sequence[Fitted]') -> 'Fitted':
    """Readouts that were trained apart, as if together."""
    names = ('loss', 'accuracy', 'test_loss', 'test_accuracy')
    arrays = {name: np.concatenate([getattr(p, name) for p in parts], axis=2) for name in names}
    predictions = np.concatenate([part.predictions for part in parts], axis=1)
    weights = {name: value for part in parts for name, value in part.weights.items()}
    return Fitted(**arrays, predictions=predictions, weights=weights)


def fit(
  probes: Probes,
  train: Tokens,
  rows: np.ndarray,
  other: Tokens,
  other_rows: np.ndarray,
  rates: Float[np.ndarray, 'R L'],
  seeds: Sequence[int],
  every_epoch: bool = True,
  what: str = 'training probes',
) -> Fitted:
  """Trains on rows of `train`, and evaluates on rows of `other`.

  Args:
    rates: the learning rates of each candidate.
    every_epoch: evaluate after each epoch, or after the last one alone.
  """
  history: dict[str, list] = {'loss': [], 'accuracy': [], 'test_loss': [], 'test_accuracy': []}
  last, predictions, params = probes.settings.epochs - 1, np.zeros(0), None
  for epoch, (params, means) in enumerate(epochs(probes, train, rows, rates, seeds, what)):
    for key, value in means.items():
      history[key].append(value)
    if every_epoch or epoch == last:
      losses, predictions = evaluate(probes, params, other, other_rows)
      history['test_loss'].append(losses)
      history['test_accuracy'].append((predictions == other.labels[other_rows]).mean(-1))
  arrays = {key: np.array(value) for key, value in history.items()}
  return Fitted(**arrays, predictions=predictions, weights=probes.weights(params))


def epochs(
  probes: Probes,
  train: Tokens,
  rows: np.ndarray,
  rates: Float[np.ndarray, 'R L'],
  seeds: Sequence[int],
  what: str,
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
  """Trains on rows of `train`; after each epoch the parameters, and its mean loss and accuracy.

  The parameters are those of the next step too, which takes their memory: use them at once.
  """
  params = jax.tree.map(lambda *x: jnp.stack(x), *(probes.init(s, rates.shape[1]) for s in seeds))
  start = params, probes.rule.init(params)
  params, moments = jax.device_put(start, sharding.replicated(probes.mesh))
  steps = -(-len(rows) // min(probes.settings.batch_size, len(rows)))
  total = steps * probes.settings.epochs
  values, weights = [], []
  for i, batch in enumerate(track(batches(probes, train, rows, seeds), total, what, 'steps')):
    now = jnp.asarray(rates * factor(probes.settings.schedule, i / total), jnp.float32)
    params, moments, value = probes.step(params, moments, now, place(batch, probes.mesh))
    values.append(value)
    weights.append(batch['mask'].sum())
    if (i + 1) % steps == 0:
      read = jax.device_get(values)
      names = ('loss', 'accuracy')
      means = {k: np.average([v[k] for v in read], axis=0, weights=weights) for k in names}
      yield params, means
      values, weights = [], []


def place(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.Array]:
  """Puts a step's batch on the devices, its examples cut over them."""
  axes = {'tokens': 1, 'label': 2, 'random': 1, 'mask': 0}  # of the examples: `S B`, `S R B`, `B`
  return {key: sharding.cut(value, axes[key], mesh) for key, value in batch.items()}


def factor(schedule: str, progress: float) -> float:
  """The factor by which the schedule scales the learning rate at `progress` in 0..1."""
  return 1.0 if schedule == 'constant' else (1 + np.cos(np.pi * progress)) / 2


def batches(
  probes: Probes, tokens: Tokens, rows: np.ndarray, seeds: Sequence[int]
) -> Iterator[dict]:
  """Each step's batch, every seed in an order of its own: tokens `S B T D`, and the rest."""
  size, n = min(probes.settings.batch_size, len(rows)), len(rows)
  width = sharding.round_up(size, probes.mesh)
  steps = -(-n // size)
  random = probes.random(tokens)
  labels = np.stack([probes.training_labels(tokens, seed) for seed in seeds])  # S R N

  @functools.lru_cache(maxsize=4)
  def order(epoch: int) -> np.ndarray:
    return np.stack([np.random.default_rng((s, epoch)).permutation(rows) for s in seeds])

  def make(step: int) -> dict[str, np.ndarray]:
    epoch, i = divmod(step, steps)
    view = epoch % len(tokens.values)
    places = i * size + np.arange(width)
    real = places < min(n, (i + 1) * size)
    chosen = order(epoch)[:, np.where(real, places, 0)]
    return {
      'tokens': np.asarray(tokens.values[view, chosen]),
      'label': np.stack([mine[:, rows] for mine, rows in zip(labels, chosen, strict=True)]),
      'random': random[view, chosen],
      'mask': real.astype(np.float32),
    }

  return prefetch(make, range(probes.settings.epochs * steps))


def evaluate(
  probes: Probes, params, tokens: Tokens, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Mean losses `S R L` and predictions `S R L n` on the rows of an untouched view.

  Predictions are as small as the classes allow: a grid of many readouts makes millions.
  """
  size = sharding.round_up(min(probes.settings.batch_size, len(rows)), probes.mesh)
  random = probes.random(tokens)[0]
  total, predictions = np.zeros(()), []
  for start in range(0, len(rows), size):
    some = rows[start : start + size]
    padded = np.concatenate([some, np.full(size - len(some), rows[0])])
    given = np.asarray(tokens.values[0, padded]), random[padded], tokens.labels[padded]
    found = probes.evaluate_batch(params, *(sharding.cut(x, 0, probes.mesh) for x in given))
    loss, prediction = (np.asarray(x)[..., : len(some)] for x in found)
    total = total + loss.sum(-1, dtype=np.float64)
    predictions.append(prediction.astype(np.min_scalar_type(probes.num_classes - 1)))
  return total / len(rows), np.concatenate(predictions, -1)
