"""Few-shot accuracy of frozen features: regularised least squares on some examples a class.

The protocol of big_vision (evaluators/fewshot_lsr): a seeded choice of examples, features
standardised by them, targets -1 and 1, a closed form, so that nothing is tuned. The ViT paper's
curves ("ImageNet 5-shot") are made so; which ridge it took is not known.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.data import sources
from vit_jax.evaluation import least_squares, views
from vit_jax.evaluation.frozen import Classifier, Frozen
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.views import Features

HELD_OUT = 10  # further examples a class that choose among several ridges

Head = tuple[np.ndarray, np.ndarray]  # kernel `F K`, bias `K`


@dataclasses.dataclass(frozen=True)
class Heads:
  """A head for each number of shots and each seed."""

  by_name: dict[str, Head]  # 'fewshot_5/0'
  details: dict[str, Any]

  def predict(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """Classes `n` for features `n F`."""
    x = features.astype(np.float64)
    return {name: (x @ kernel + bias).argmax(-1) for name, (kernel, bias) in self.by_name.items()}


class FewShot(Frozen):
  """Accuracy with a few training examples of each class, a mean over seeds.

  Args:
    shots: numbers of examples a class.
    seeds: how many choices of examples.
    ridges: one; or several, of which 10 further training examples a class choose one for each
      number of shots.
  """

  name = 'fewshot'

  def __init__(
    self,
    subject: Subject,
    *,
    shots: tuple[int, ...],
    seeds: int,
    ridges: tuple[float, ...],
    layers: str,
    readout: str,
  ):
    if not shots or min(shots) < 1 or seeds < 1 or not ridges or min(ridges) <= 0:
      raise ValueError(
        f'config.evaluation.fewshot: {shots=}, {seeds=} and {ridges=} must be at least one, above 0'
      )
    self._shots, self._seeds, self._ridges = tuple(sorted({*shots})), seeds, tuple(ridges)
    self._wanted = self._shots[-1] + (HELD_OUT if len(self._ridges) > 1 else 0)
    super().__init__(subject, [f'fewshot_{n}' for n in self._shots], layers, readout)
    check_enough(subject.data.splits['train'], self._wanted, self._shots[-1],
                 subject.data.class_names)  # fmt: skip

  def fit(self, train: Features) -> list[Classifier]:
    """Solves for every seed and number of shots, each with its ridge."""
    largest = self._shots[-1]
    picks = [pick(train.labels, self._wanted, seed, self.num_classes)
             for seed in range(self._seeds)]  # fmt: skip
    # Each example once, whichever seeds chose it.
    rows, places = np.unique(np.stack(picks), return_inverse=True)
    places = places.reshape(self._seeds, self.num_classes, -1)
    labels = train.labels[rows]
    return [self.solve(x, labels, places, largest) for x in train.read(rows)]

  def solve(
    self, x: np.ndarray, labels: np.ndarray, places: np.ndarray, largest: int
  ) -> Classifier:
    """The heads of one view.

    Args:
      x, labels: of all examples that are used.
      places: `S K n`: which of them, by seed and class, the shots first.
      largest: number of shots; the rest chooses ridges.
    """
    heads: dict[str, Head] = {}
    chosen: dict[str, float] = {}
    for shots in self._shots:
      solved = [self.heads(x, labels, own[:, :shots].ravel()) for own in places]
      best = 0
      if len(self._ridges) > 1:
        held = [own[:, largest:].ravel() for own in places]
        right = [
          [((x[rows] @ kernel + bias).argmax(-1) == labels[rows]).mean() for kernel, bias in own]
          for own, rows in zip(solved, held, strict=True)
        ]
        best = int(np.mean(right, axis=0).argmax())
      chosen[str(shots)] = self._ridges[best]
      heads |= {f'fewshot_{shots}/{seed}': own[best] for seed, own in enumerate(solved)}
    return Heads(heads, {'ridge': chosen, 'seeds': self._seeds})

  def heads(self, x: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[Head]:
    """A head for each ridge, from some examples."""
    return least_squares.fit(x[rows], labels[rows], self.num_classes, self._ridges)

  def scores(self, found: dict[str, float]) -> dict[str, float]:
    """The mean over the seeds for each number of shots."""
    names = [f'fewshot_{n}' for n in self._shots]
    return {name: float(np.mean(self._by_seed(found, name))) for name in names}

  def _by_seed(self, found: dict[str, float], name: str) -> list[float]:
    return [found[f'{name}/{seed}'] for seed in range(self._seeds)]

  def draw(self, rows: list[dict[str, Any]]) -> Any:
    """Accuracy against the number of shots, a line a layer."""
    lines = {row['layer']: [row[f'fewshot_{n}'] for n in self._shots] for row in rows}
    return figures.lines(self._shots, lines, 'training examples a class', 'test accuracy')


def pick(labels: np.ndarray, shots: int, seed: int, num_classes: int) -> np.ndarray:
  """Rows of examples by class, `K shots`; of fewer shots the first ones are chosen."""
  rng = np.random.default_rng(seed)
  rows = [np.flatnonzero(labels == label) for label in range(num_classes)]
  return np.stack([rng.permutation(own)[:shots] for own in rows])


def check_enough(source: sources.Source, wanted: int, shots: int, names: tuple[str, ...]) -> None:
  """Raises a ValueError that names a class with fewer examples than `wanted`.

  No more labels are read than that takes. Of a plan's data that are not here nothing is known.

  Args:
    shots: the most that train; the others choose among ridges.
  """
  counts = np.zeros(len(names), int)
  for labels in views.parts_of_labels(source) if len(source) else ():
    counts += np.bincount(labels, minlength=len(names))
    if counts.min() >= wanted:
      return
  if counts.any():
    least = int(counts.argmin())
    more = f' to train, {wanted - shots} to choose among ridges' * (wanted > shots)
    raise ValueError(
      f'config.evaluation.fewshot: {wanted} examples of each class are wanted ({shots} shots{more}'
      f'), and {names[least]} has {counts[least]}; ask for fewer shots'
    )
