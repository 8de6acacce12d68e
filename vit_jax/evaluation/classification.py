"""Accuracy, loss, per-class results and confusion of a classifier over a whole split."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
from typing import Any

from jax import numpy as jnp
import numpy as np

from vit_jax import figures, metrics
from vit_jax.data import Dataset
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.models import Model
from vit_jax.objectives.classification import cross_entropy, probabilities
from vit_jax.runtime import atomic, distributed

HEAD = 'head/'  # before the name of a head, among the columns of an evaluation


@dataclasses.dataclass(frozen=True)
class Result:
  """The results of an evaluation: one row an example, in the order of the split."""

  label: np.ndarray
  prediction: np.ndarray
  probability: np.ndarray  # of the prediction
  loss: np.ndarray
  top5: np.ndarray
  num_classes: int
  heads: dict[str, np.ndarray]  # of a model with several: whether each alone is right

  def scores(self) -> dict[str, float]:
    """The numbers that a curve shows."""
    apart = {f'accuracy_{name}': float(right.mean()) for name, right in self.heads.items()}
    return {'loss': float(self.loss.mean()), 'accuracy': float(self.correct.mean())} | apart

  @property
  def correct(self) -> np.ndarray:
    return self.label == self.prediction

  def confusion(self) -> np.ndarray:
    """The confusion matrix: a row for each true class, a column for each predicted one."""
    counts = np.zeros((self.num_classes, self.num_classes), int)
    np.add.at(counts, (self.label, self.prediction), 1)
    return counts

  def report(self, class_names: tuple[str, ...]) -> dict[str, Any]:
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
      'accuracy_top5': float(self.top5.mean()) if self.num_classes >= 6 else None,
      **{f'accuracy_{name}': float(right.mean()) for name, right in self.heads.items()},
      'loss': float(self.loss.mean()),
      'per_class': per_class,
      'confusion': counts.tolist(),
    }


class Classification(WholeSplit):
  """Accuracy and loss of a classifier, on all devices; the last batch is padded and masked.

  Args:
    model: what is evaluated; of one with several heads each is also told alone.
    forward: `(params, uint8 images) -> (logits, outputs)`.
    predictions: softmax or sigmoid: the loss, and how logits become probabilities.
    data: the splits.
    mesh: the devices.
    batch_size: of all devices together.
    mistakes: how many are shown in the report.

  Raises:
    ValueError: the data have several labels a picture.
  """

  def __init__(
    self,
    *,
    model: Model,
    forward: Callable,
    predictions: str,
    data: Dataset,
    mesh: Any,
    batch_size: int,
    mistakes: int,
  ):
    if data.multi_label:
      raise ValueError(
        'config.evaluators: classification needs one label a picture, and these data have several; '
        "take config.evaluators=('multi_label',)"
      )
    self._num_classes, self._mistakes = len(data.class_names), mistakes

    def rows(params, batch):
      logits, outputs = forward(params, batch['image'])
      apart = {name: outputs[f'logits_{name}'].argmax(-1) for name in model.heads}
      ranked = jnp.argsort(-logits, axis=-1, stable=True)[:, :5]
      return {
        'label': batch['label'],
        'prediction': ranked[:, 0],
        'probability': probabilities(logits, predictions).max(-1),
        'loss': cross_entropy(logits, batch['label'], predictions),
        'top5': (ranked == batch['label'][:, None]).any(-1),
        **{HEAD + name: found == batch['label'] for name, found in apart.items()},
        'mask': batch['mask'],
        'index': batch['index'],
      }

    keys = ('loss', 'accuracy', *(f'accuracy_{name}' for name in model.heads))
    super().__init__(rows, keys, data, mesh, batch_size)

  def evaluate(self, params: Any, split: str) -> Result:
    """Evaluates every example of a split, exactly once.

    Raises:
      RuntimeError: fewer or more examples were seen than the split has.
    """
    columns = self.collect(params, split)
    heads = {k.removeprefix(HEAD): columns.pop(k) for k in [*columns] if k.startswith(HEAD)}
    return Result(**columns, num_classes=self._num_classes, heads=heads)

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Evaluates the test split; process 0 writes JSON, confusion and mistakes, as pictures."""
    result = self.evaluate(params, 'test')
    if not distributed.is_first():
      return {}
    return write_report(folder, result, self.data, 'test', about, self._mistakes)


def write_report(
  folder: pathlib.Path,
  result: Result,
  data: Dataset,
  split: str,
  about: dict[str, Any],
  mistakes: int,
) -> dict[str, Any]:
  """Writes `evaluation.json`, the confusion matrix and the most confident mistakes as pictures."""
  folder.mkdir(parents=True, exist_ok=True)
  report = about | {'split': split} | result.report(data.class_names)
  atomic.write_text(folder / 'evaluation.json', json.dumps(report, indent=2) + '\n')
  figures.confusion(result.confusion(), data.class_names).savefig(folder / 'confusion.png')
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
  return report
