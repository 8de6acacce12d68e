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
from vit_jax.evaluation import batch_norm
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
    predictions: `S R L n`: of the other examples, after the last epoch; or, where that was asked
      for, after the epoch that predicts them best.
    weights: of each learned mix, `S L N`: its weight of each patch.
  """

  loss: np.ndarray
  accuracy: np.ndarray
  test_loss: np.ndarray
  test_accuracy: np.ndarray
  predictions: np.ndarray
  weights: dict[str, np.ndarray]

  @staticmethod
  def join(parts: 'Sequence[Fitted]', axis: int = 1) -> 'Fitted':
    """Readouts that were trained apart, as if together; with `axis=2` learning rates were."""
    names = ('loss', 'accuracy', 'test_loss', 'test_accuracy')
    arrays = {
      name: np.concatenate([getattr(p, name) for p in parts], axis=axis + 1) for name in names
    }
    predictions = np.concatenate([part.predictions for part in parts], axis=axis)
    weights = {name: value for part in parts for name, value in part.weights.items()}
    if axis == 2:
      weights = {name: np.concatenate([p.weights[name] for p in parts], 1) for name in weights}
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
  decays: Float[np.ndarray, 'R L'] | None = None,
  best_epoch: bool = False,
) -> Fitted:
  """Trains on rows of `train`, and evaluates on rows of `other`.

  Args:
    rates: the learning rates of each candidate.
    every_epoch: evaluate after each epoch, or after the last one alone.
    decays: weight decay at each of them; None: none.
    best_epoch: keep the predictions of the epoch that is best on those very rows; the last else.
  """
  history: dict[str, list] = {'loss': [], 'accuracy': [], 'test_loss': [], 'test_accuracy': []}
  last, predictions, params = probes.settings.epochs - 1, np.zeros(0), None
  trained = epochs(probes, train, rows, rates, seeds, what, decays)
  for epoch, (params, means) in enumerate(trained):
    for key, value in means.items():
      history[key].append(value)
    if every_epoch or epoch == last:
      losses, found = evaluate(probes, params, other, other_rows, len(seeds))
      history['test_loss'].append(losses)
      history['test_accuracy'].append((found == other.labels[other_rows]).mean(-1))
      before = history['test_accuracy'][:-1]
      if best_epoch and before:
        better = history['test_accuracy'][-1] > np.max(before, axis=0)
        found = np.where(better[..., None], found, predictions)
      predictions = found
  arrays = {key: np.array(value) for key, value in history.items()}
  return Fitted(**arrays, predictions=predictions, weights=probes.weights(params))


def epochs(
  probes: Probes,
  train: Tokens,
  rows: np.ndarray,
  rates: Float[np.ndarray, 'R L'],
  seeds: Sequence[int],
  what: str,
  decays: Float[np.ndarray, 'R L'] | None = None,
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
  """Trains on rows of `train`; after each epoch the parameters, and its mean loss and accuracy.

  The parameters are those of the next step too, which takes their memory: use them at once.
  """
  params = jax.tree.map(lambda *x: jnp.stack(x), *(probes.init(s, rates.shape[1]) for s in seeds))
  everywhere = sharding.replicated(probes.mesh)
  params, moments = jax.device_put((params, probes.moments(params)), everywhere)
  total, decays = None, np.zeros_like(rates) if decays is None else decays
  steps, parts = divide(probes, len(rows), len(seeds))
  count = steps * parts * probes.settings.epochs
  values, weights = [], []
  for i, batch in enumerate(track(batches(probes, train, rows, seeds), count, what, 'steps')):
    step, part = divmod(i, parts)
    rate, decay = probes.settings.factors(step / (count // parts))
    now = (jnp.asarray(rates * rate, jnp.float32), jnp.asarray(decays * decay, jnp.float32))
    params, moments, total, value = probes.step(
      params, moments, total, *now, place(batch, probes.mesh), part == 0, part == parts - 1
    )
    values.append(value)
    weights.append(batch['mask'].sum())
    if (i + 1) % (steps * parts) == 0:
      read = jax.device_get(values)
      names = ('loss', 'accuracy')
      means = {k: np.average([v[k] for v in read], axis=0, weights=weights) for k in names}
      yield params, means
      values, weights = [], []


def divide(probes: Probes, count: int, seeds: int) -> tuple[int, int]:
  """Batches of an epoch of `count` examples, and the parts in which memory allows each."""
  size = min(probes.settings.batch_size, count)
  return -(-count // size), -(-size // probes.at_once(seeds))


def place(batch: dict[str, Any], mesh: Any) -> dict[str, jax.Array]:
  """Puts a step's batch on the devices, its examples cut over them; numbers stay numbers."""
  axes = {'tokens': 1, 'label': 2, 'random': 1, 'mask': 0}  # of the examples: `S B`, `S R B`, `B`
  cut = {key: sharding.cut(batch[key], axis, mesh) for key, axis in axes.items()}
  return batch | cut


def batches(
  probes: Probes, tokens: Tokens, rows: np.ndarray, seeds: Sequence[int]
) -> Iterator[dict]:
  """Each batch in its parts, every seed in an order of its own: tokens `S B T D`, and the rest."""
  size, n = min(probes.settings.batch_size, len(rows)), len(rows)
  steps, parts = divide(probes, n, len(seeds))
  whole = -(-size // parts)
  width = sharding.round_up(whole, probes.mesh)
  random = probes.random(tokens)
  labels = np.stack([probes.training_labels(tokens, seed) for seed in seeds])  # S R N

  @functools.lru_cache(maxsize=4)
  def order(epoch: int) -> np.ndarray:
    return np.stack([np.random.default_rng((s, epoch)).permutation(rows) for s in seeds])

  def make(number: int) -> dict[str, Any]:
    step, part = divmod(number, parts)
    epoch, i = divmod(step, steps)
    view = epoch % len(tokens.values)
    start, end = i * size + part * whole, min((i + 1) * size, n)
    places = start + np.arange(width)
    mask = ((places < end) & (places < start + whole)).astype(np.float32)
    chosen = order(epoch)[:, np.where(mask > 0, places, 0)]
    return {
      'tokens': np.asarray(tokens.values[view, chosen]),
      'label': np.stack([mine[:, rows] for mine, rows in zip(labels, chosen, strict=True)]),
      'random': random[view, chosen],
      'mask': mask,
      'share': mask.sum() / np.float32(end - i * size),  # of the examples of the whole batch
      'blend': np.float32(batch_norm.weight(number, float(mask.sum()) / whole)),
    }

  return prefetch(make, range(probes.settings.epochs * steps * parts))


def evaluate(
  probes: Probes, params, tokens: Tokens, rows: np.ndarray, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
  """Mean losses `S R L` and predictions `S R L n` on the rows of an untouched view.

  Predictions are as small as the classes allow: a grid of many readouts makes millions.
  """
  size = min(probes.settings.batch_size, len(rows), probes.at_once(seeds))
  size = sharding.round_up(size, probes.mesh)
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
