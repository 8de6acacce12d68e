"""Average precision, accuracy and loss where a picture has any number of labels, or none."""

import dataclasses
import json
import pathlib
from typing import Any

from jax import numpy as jnp
import numpy as np

from vit_jax import metrics
from vit_jax.data import Dataset
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.objectives.classification import against, is_correct
from vit_jax.runtime import atomic, distributed

KEYS = ('loss', 'accuracy', 'mean_average_precision')


@dataclasses.dataclass(frozen=True)
class Result:
  """The results of an evaluation: one row an example, in the order of the split.

  Attributes:
    label: `N K`: 1 for each class in a picture and else 0.
    logits: `N K`.
    loss: `N`: the binary losses, summed over classes.
    correct: `N`: whether the highest logit is among the labels.
  """

  label: np.ndarray
  logits: np.ndarray
  loss: np.ndarray
  correct: np.ndarray

  @property
  def counted(self) -> np.ndarray:
    """`correct` of the pictures with a label: of the others nothing is right (ReaL's rule)."""
    return self.correct[self.label.any(1)]

  def average_precision(self) -> list[float | None]:
    """scikit-learn's average precision of each class; None of one that does not occur.

    Logits are ranked: probabilities near 1 would be equal in float32.
    """
    from sklearn.metrics import average_precision_score

    return [
      float(average_precision_score(label, logits)) if label.any() else None
      for label, logits in zip(self.label.T, self.logits.T, strict=True)
    ]

  def scores(self) -> dict[str, float]:
    """The numbers that a curve shows, by the names in KEYS."""
    precision = [value for value in self.average_precision() if value is not None]
    numbers = self.loss.mean(), self.counted.mean(), np.mean(precision)
    return {key: float(value) for key, value in zip(KEYS, numbers, strict=True)}

  def report(self, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The content of `reports/multi_label.json`; the interval is Wilson's, 95 %."""
    right, count = int(self.counted.sum()), len(self.counted)
    rows = zip(class_names, self.label.sum(0), self.average_precision(), strict=True)
    return {
      'n_examples': len(self.label),
      'n_without_label': len(self.label) - count,  # Which the accuracy leaves out.
      **self.scores(),
      'accuracy_interval': list(metrics.wilson(right, count)),
      'per_class': [
        {'class': name, 'n_examples': int(n), 'average_precision': value} for name, n, value in rows
      ],
    }


class MultiLabel(WholeSplit):
  """Mean average precision, accuracy and loss, on all devices; the last batch is masked.

  Args:
    subject: its model is judged as it answers with all heads; its data have labels `B K`.

  Raises:
    ValueError: the data have one label a picture, other classes than the head, or the head was not
      trained for several.
  """

  def __init__(self, subject: Subject):
    forward, predictions = subject.forward, subject.passport.predictions
    check(subject.data, predictions)
    subject.check_classes('multi_label')

    def rows(params, batch):
      logits = forward(params, batch['image'])[0].astype(jnp.float32)
      return {
        'label': batch['label'],
        'logits': logits,
        'loss': against(logits, batch['label'], predictions),
        'correct': is_correct(logits, batch['label']),
        'mask': batch['mask'],
        'index': batch['index'],
      }

    super().__init__(rows, KEYS, subject)

  def evaluate(self, params: Any, split: str) -> Result:
    """Evaluates every example of a split, exactly once.

    Raises:
      RuntimeError: fewer or more examples were seen than the split has.
      ValueError: no picture of the split has a label.
    """
    found = Result(**self.collect(params, split))
    if not found.label.any():
      raise ValueError(f'{split}: no picture has a label, so there is no average precision')
    return found

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Evaluates the test split; process 0 writes `multi_label.json`."""
    result = self.evaluate(params, 'test')
    if not distributed.is_first():
      return {}
    report = about | {'split': 'test'} | result.report(self.data.class_names)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / 'multi_label.json', json.dumps(report, indent=2) + '\n')
    return report


def check(data: Dataset, predictions: str) -> None:
  """Refuses data with one label a picture, and heads whose probabilities are of one class."""
  if not data.multi_label:
    raise ValueError(
      'config.evaluators: multi_label needs data with several labels a picture, and these have '
      "one; take config.evaluators=('classification',)"
    )
  if predictions != 'sigmoid':
    raise ValueError(
      f'config.evaluators: multi_label reads sigmoids, and this head is {predictions}; train it '
      'with config.objective.multi_label=True and config.objective.loss=sigmoid'
    )
