"""Nearest neighbours of frozen features: cosine similarity, votes weighted as in DINO.

Of the k training examples that are most similar, each votes for its class with exp(similarity /
temperature) (arXiv:2104.14294, appendix A; Wu et al., arXiv:1805.01978); without a temperature, 0,
every vote counts once. Nothing is trained.
"""

import dataclasses
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from vit_jax import figures
from vit_jax.evaluation.frozen import Classifier, Frozen
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.views import Features

CHOOSING = 5000  # training examples that choose k and temperature, each without itself
CHUNK = 2**27  # similarities at once, in bytes


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """The training examples, and how they vote."""

  features: Float[np.ndarray, 'N F']  # of length 1
  labels: Int[np.ndarray, 'N']
  num_classes: int
  ways: dict[str, tuple[int, float]]  # (k, temperature) by name
  details: dict[str, Any] = dataclasses.field(default_factory=dict)

  def predict(
    self, features: np.ndarray, without: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Classes `n` for features `n F`, by the name of each way.

    Args:
      without: the training example that each of them is, and that does not vote.
    """
    x, size = normalise(features), max(1, CHUNK // (4 * len(self.labels)))
    parts = []
    for start in range(0, len(x), size):
      some = slice(start, start + size)
      near = self.nearest(x[some], None if without is None else without[some])
      parts.append({name: self.vote(*near, *way) for name, way in self.ways.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in self.ways}

  def nearest(
    self, x: np.ndarray, without: np.ndarray | None
  ) -> tuple[Float[np.ndarray, 'n k'], Int[np.ndarray, 'n k']]:
    """Similarities and labels of the nearest, the most similar first."""
    similarity = x @ self.features.T
    if without is not None:
      similarity[np.arange(len(x)), without] = -np.inf
    k = max(k for k, _ in self.ways.values())
    rows = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(similarity, rows, axis=1)
    order = np.argsort(-found, axis=1, kind='stable')
    return np.take_along_axis(found, order, 1), self.labels[np.take_along_axis(rows, order, 1)]

  def vote(
    self, similarity: np.ndarray, labels: np.ndarray, k: int, temperature: float
  ) -> Int[np.ndarray, 'n']:
    """The class with most votes; of equal ones the first."""
    votes = np.zeros((len(labels), self.num_classes))
    near = similarity[:, :k].astype(np.float64)
    # Less the largest, which changes no winner: at low temperatures all would be 0.
    nearest = near - near[:, :1]
    weights = np.exp(nearest / temperature) if temperature else np.ones_like(near)
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[:, :k]), weights)
    return votes.argmax(1)


class NearestNeighbours(Frozen):
  """Accuracy of the k nearest neighbours, for each k and temperature, and of the chosen pair.

  `knn` is the pair that tells training examples best from all others but themselves.

  Args:
    neighbours: values of k.
    temperatures: 0 for votes that count once.
  """

  name = 'knn'

  def __init__(
    self,
    subject: Subject,
    *,
    neighbours: tuple[int, ...],
    temperatures: tuple[float, ...],
    layers: str,
    readout: str,
  ):
    if min(neighbours, default=0) < 1 or min(temperatures, default=-1) < 0:
      raise ValueError(
        f'config.evaluation.knn: {neighbours=} must be at least one, above 0, and {temperatures=} '
        'at least one, not below 0'
      )
    largest, count = max(neighbours), len(subject.data.splits['train'])
    if 0 < count <= largest:  # Of a plan's data that are not here nothing is known.
      raise ValueError(
        f'config.evaluation.knn.neighbours={largest} must be below {count}, the training examples'
      )
    several = len(temperatures) > 1
    self._ways = {
      f'knn_{k}' + f'_{t:g}' * several: (k, t) for k in neighbours for t in temperatures
    }
    super().__init__(subject, ['knn', *self._ways], layers, readout)

  def fit(self, train: Features) -> list[Classifier]:
    """Keeps the features, and chooses how they vote."""
    everything = train.read(np.arange(len(train.labels)))
    return [self.choose(normalise(x), train.labels) for x in everything]

  def choose(self, x: np.ndarray, labels: np.ndarray) -> Classifier:
    """The neighbours of one view, with the pair that training examples choose."""
    given = Neighbours(x, labels, self.num_classes, self._ways)
    count = len(labels)
    rows = np.sort(np.random.default_rng(0).permutation(count)[:CHOOSING])
    found = given.predict(x[rows], without=rows)
    right = {name: float((found[name] == labels[rows]).mean()) for name in self._ways}
    best = max(right, key=lambda name: right[name])
    k, temperature = self._ways[best]
    details = {'neighbours': k, 'temperature': temperature, 'train': right}
    return dataclasses.replace(given, ways={'knn': self._ways[best]} | self._ways, details=details)

  def draw(self, rows: list[dict[str, Any]]) -> Any:
    """Accuracy against k, a line a layer and temperature."""
    lines, ks = {}, sorted({k for k, _ in self._ways.values()})
    for row in rows:
      for temperature in dict.fromkeys(t for _, t in self._ways.values()):
        names = {k: name for name, (k, t) in self._ways.items() if t == temperature}
        label = row['layer'] + f', temperature {temperature:g}'
        lines[label] = [row[names[k]] for k in ks]
    return figures.lines(ks, lines, 'neighbours', 'test accuracy')


def normalise(x: np.ndarray) -> Float[np.ndarray, 'n F']:
  """Vectors of length 1, in float32."""
  x = x.astype(np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
