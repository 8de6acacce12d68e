"""Regularised least squares on frozen features, in closed form: nothing to tune, nothing random.

The few-shot protocol of big_vision (evaluators/fewshot_lsr): features standardised by mean and
standard deviation + 1e-5, a constant feature of 100, targets -1 and 1, ridge 2**10.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens

CONSTANT = 100.0


@dataclasses.dataclass(frozen=True)
class Moments:
  """Sums over examples, in float64, for each of `R` readouts."""

  count: int
  total: np.ndarray  # R D
  gram: np.ndarray  # R D D
  cross: np.ndarray  # R D K
  classes: np.ndarray  # R K: sums of the targets


def accumulate(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Moments:
  """The sums over a batch of features `R B D` with labels `R B`."""
  x = features.astype(np.float64)
  turned = np.swapaxes(x, 1, 2)
  targets = 2.0 * np.eye(num_classes)[labels] - 1
  return Moments(x.shape[1], x.sum(1), turned @ x, turned @ targets, targets.sum(1))


def add(a: Moments, b: Moments) -> Moments:
  """The sums over both."""
  return Moments(*(getattr(a, f.name) + getattr(b, f.name) for f in dataclasses.fields(a)))


def solve(moments: Moments, ridge: float) -> tuple[np.ndarray, np.ndarray]:
  """Kernel `R D K` and bias `R K`, for features as they are."""
  n, mean = moments.count, moments.total / moments.count
  covariance = moments.gram / n - mean[:, :, None] * mean[:, None]
  scale = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0)) + 1e-5
  gram = n * covariance / (scale[:, :, None] * scale[:, None])
  cross = (moments.cross - mean[:, :, None] * moments.classes[:, None]) / scale[:, :, None]
  # Standardised features are orthogonal to the constant one, so that it is solved by itself.
  kernel = np.linalg.solve(gram + ridge * np.eye(gram.shape[1]), cross) / scale[:, :, None]
  constant = CONSTANT**2 / (n * CONSTANT**2 + ridge) * moments.classes
  return kernel, constant - np.einsum('rd,rdk->rk', mean, kernel)


def fit(
  features: np.ndarray, labels: np.ndarray, num_classes: int, ridges: tuple[float, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Kernel `F K` and bias `K` for each ridge, from a few examples `n F` that fit into memory.

  One eigendecomposition serves all ridges: of `F x F`, or of `n x n` where examples are fewer.
  """
  x = features.astype(np.float64)
  mean, scale = x.mean(0), x.std(0) + 1e-5
  x = (x - mean) / scale
  targets = 2.0 * np.eye(num_classes)[labels] - 1
  dual = len(x) < x.shape[1]
  values, vectors = np.linalg.eigh(x @ x.T if dual else x.T @ x)
  left = x.T @ vectors if dual else vectors
  right = vectors.T @ (targets if dual else x.T @ targets)
  found = []
  for ridge in ridges:
    kernel = left @ (right / (values + ridge)[:, None]) / scale[:, None]
    constant = CONSTANT**2 / (len(x) * CONSTANT**2 + ridge) * targets.sum(0)
    found.append((kernel, constant - mean @ kernel))
  return found


def accuracy(probes: Probes, train: Tokens, test: Tokens, ridge: float) -> np.ndarray:
  """The test accuracy of each fixed readout, `R`, trained on all views of the training examples.

  The readouts of `probes` have no parameters and features of one width.
  """
  total, labels = None, probes.training_labels(train, probes.settings.seed)
  for view in range(len(train.values)):
    for features, rows in batches(probes, train, view):
      now = accumulate(features, labels[:, rows], probes.num_classes)
      total = now if total is None else add(total, now)
  assert total is not None  # A split is never empty.
  kernel, bias = solve(total, ridge)
  correct = np.zeros(len(kernel))
  for features, rows in batches(probes, test, 0):
    logits = features.astype(np.float64) @ kernel + bias[:, None]
    correct += (logits.argmax(-1) == test.labels[rows]).sum(1)
  return correct / len(test.labels)


def batches(probes: Probes, tokens: Tokens, view: int) -> Iterator[tuple[np.ndarray, slice]]:
  """Features `R B D` of all examples, and which examples they are of."""
  random, count = probes.random(tokens)[view], len(tokens.labels)
  size = max(1, min(count, 2**24 // (len(probes.candidates) * probes.candidates[0].width)))
  for start in range(0, count, size):
    rows = slice(start, min(start + size, count))
    yield probes.read(np.asarray(tokens.values[view, rows]), random[rows]), rows
