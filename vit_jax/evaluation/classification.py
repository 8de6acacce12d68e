"""Accuracy, loss, calibration, per-class results and confusion of a classifier over a split."""

import dataclasses
import json
import pathlib
from typing import Any

from jax import numpy as jnp
import numpy as np

from vit_jax import figures, metrics
from vit_jax.data import Dataset
from vit_jax.evaluation import calibration
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.objectives.classification import cross_entropy, probabilities
from vit_jax.runtime import atomic, distributed

HEAD = 'head/'  # before the name of a head, among the columns of an evaluation


@dataclasses.dataclass(frozen=True)
class Result:
  """The results of an evaluation: one row an example, in the order of the split.

  Attributes:
    prediction: the likeliest class; `probability` is its own.
    rank: how many classes are likelier than the label's.
    heads: of a model with several: whether each alone is right.
    bins: of confidence, where a curve shows the calibration error; 0: it does not.
  """

  label: np.ndarray
  prediction: np.ndarray
  probability: np.ndarray
  loss: np.ndarray
  rank: np.ndarray
  num_classes: int
  heads: dict[str, np.ndarray]
  bins: int = 0

  def scores(self) -> dict[str, float]:
    """The numbers that a curve shows."""
    apart = {f'accuracy_{name}': float(right.mean()) for name, right in self.heads.items()}
    if self.bins:
      apart['calibration_error'] = self.calibration(self.bins).error
    return {'loss': float(self.loss.mean()), 'accuracy': float(self.correct.mean())} | apart

  @property
  def correct(self) -> np.ndarray:
    return self.label == self.prediction

  def confusion(self) -> np.ndarray:
    """The confusion matrix: a row for each true class, a column for each predicted one."""
    counts = np.zeros((self.num_classes, self.num_classes), int)
    np.add.at(counts, (self.label, self.prediction), 1)
    return counts

  def accuracy_within(self, k: int) -> float | None:
    """How often the label is among the `k` likeliest classes; None where there are no more."""
    return float((self.rank < k).mean()) if k < self.num_classes else None

  def calibration(self, bins: int) -> calibration.Calibration:
    """How confidence and accuracy agree."""
    return calibration.measure(self.probability, self.correct, bins)

  def report(
    self, class_names: tuple[str, ...], top: tuple[int, ...] = (5,), bins: int = 15
  ) -> dict[str, Any]:
    """The content of `reports/evaluation.json`; intervals are Wilson's, 95 %."""
    counts = self.confusion()
    per_class = [
      {'class': name, 'n_examples': int(row.sum()), 'correct': int(row[i])}
      | {'accuracy': row[i] / row.sum() if row.sum() else None}
      for i, (name, row) in enumerate(zip(class_names, counts, strict=True))
    ]
    return {
      'n_examples': len(self.label),
      'accuracy': float(self.correct.mean()),
      'accuracy_interval': list(metrics.wilson(int(self.correct.sum()), len(self.label))),
      **{f'accuracy_top{k}': self.accuracy_within(k) for k in top},
      **{f'accuracy_{name}': float(right.mean()) for name, right in self.heads.items()},
      'loss': float(self.loss.mean()),
      'calibration_error': self.calibration(bins).error,
      'per_class': per_class,
      'confusion': counts.tolist(),
    }


class Classification(WholeSplit):
  """Accuracy and loss of a classifier, on all devices; the last batch is padded and masked.

  Args:
    subject: of a model with several heads each is also told alone.
    mistakes: how many are shown in the report.
    top: numbers of classes: how often the label is among so many.
    bins: of confidence, for calibration.
    calibration: whether its error is among the numbers of every evaluation.

  Raises:
    ValueError: the data have several labels a picture, or other classes than the head.
  """

  def __init__(
    self,
    subject: Subject,
    *,
    mistakes: int,
    top: tuple[int, ...],
    bins: int,
    calibration: bool = False,
  ):
    if subject.data.multi_label:
      raise ValueError(
        'config.evaluators: classification needs one label a picture, and these data have several; '
        "take config.evaluators=('multi_label',)"
      )
    if bins < 1 or any(k < 1 for k in top):
      raise ValueError(f'config.evaluation.classification: {bins=} and {top=} must be at least 1')
    subject.check_classes('classification')
    self._num_classes, self._mistakes = len(subject.data.class_names), mistakes
    self._top, self._bins, self._curve = top, bins, bins if calibration else 0
    forward, model, predictions = subject.forward, subject.model, subject.passport.predictions

    def rows(params, batch):
      logits, outputs = forward(params, batch['image'])
      apart = {name: outputs[f'logits_{name}'].argmax(-1) for name in model.heads}
      place = jnp.argsort(-logits, axis=-1, stable=True)
      return {
        'label': batch['label'],
        'prediction': place[:, 0],
        'probability': probabilities(logits, predictions).max(-1),
        'loss': cross_entropy(logits, batch['label'], predictions),
        'rank': (place == batch['label'][:, None]).argmax(-1),
        **{HEAD + name: found == batch['label'] for name, found in apart.items()},
        'mask': batch['mask'],
        'index': batch['index'],
      }

    keys = ('loss', 'accuracy', *(f'accuracy_{name}' for name in model.heads))
    keys += ('calibration_error',) * calibration
    super().__init__(rows, keys, subject)

  def evaluate(self, params: Any, split: str) -> Result:
    """Evaluates every example of a split, exactly once.

    Raises:
      RuntimeError: fewer or more examples were seen than the split has.
    """
    columns = self.collect(params, split)
    heads = {k.removeprefix(HEAD): columns.pop(k) for k in [*columns] if k.startswith(HEAD)}
    return Result(**columns, num_classes=self._num_classes, heads=heads, bins=self._curve)

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Evaluates the test split; process 0 writes JSON, confusion and mistakes, as pictures."""
    result = self.evaluate(params, 'test')
    if not distributed.is_first():
      return {}
    folder.mkdir(parents=True, exist_ok=True)
    numbers = result.report(self.data.class_names, self._top, self._bins)
    report = about | {'split': 'test'} | numbers
    atomic.write_text(folder / 'evaluation.json', json.dumps(report, indent=2) + '\n')
    draw(folder, result, self.data, 'test', self._mistakes, self._bins)
    return report


def draw(
  folder: pathlib.Path, result: Result, data: Dataset, split: str, mistakes: int, bins: int
) -> None:
  """Draws confusion, calibration and the most confident mistakes, a picture each."""
  figures.confusion(result.confusion(), data.class_names).savefig(folder / 'confusion.png')
  calibration.draw(result.calibration(bins)).savefig(folder / 'calibration.png')
  wrong = np.flatnonzero(~result.correct)
  worst = wrong[np.argsort(-result.probability[wrong], kind='stable')][:mistakes]
  images = [data.picture(split, int(i)) for i in worst]
  titles = [
    f'{data.class_names[result.label[i]]} taken for {data.class_names[result.prediction[i]]}\n'
    f'at {result.probability[i]:.0%}'
    for i in worst
  ]
  heading = f'{len(wrong)} of {len(result.label)} wrong; the most confident mistakes first'
  figures.gallery(images, titles, heading).savefig(folder / 'mistakes.png')
