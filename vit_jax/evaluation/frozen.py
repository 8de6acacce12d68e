"""Evaluators that train a classifier on features of a frozen model: what they share."""

import abc
from collections.abc import Collection, Sequence
import json
import pathlib
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np

from vit_jax import figures
from vit_jax.evaluation import views
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.views import Features, View
from vit_jax.evaluation.whole_split import metric_names
from vit_jax.runtime import atomic, distributed


@runtime_checkable
class Classifier(Protocol):
  """What training on the features of one view left."""

  @property
  def details(self) -> dict[str, Any]:
    """What JSON says of it beside its accuracies."""
    ...

  def predict(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """Classes `n` for features `n F`, by the name of each way to predict."""
    ...


class Frozen(abc.ABC):
  """An evaluator of frozen features: classifiers are trained on train, and judged on other splits.

  Args:
    keys: names of its numbers of one view.
    layers, readout: as in `views.views_of`; of '4+8' the features stand side by side.

  Raises:
    ValueError: the data have several labels a picture, or the model cannot be read so.
  """

  name: ClassVar[str]
  reads_head: ClassVar[bool] = False

  def __init__(self, subject: Subject, keys: Sequence[str], layers: str, readout: str):
    if subject.data.multi_label:
      raise ValueError(
        f'config.evaluators: {self.name} needs one label a picture, and these data have several; '
        "take config.evaluators=('multi_label',)"
      )
    self.subject, self.num_classes = subject, len(subject.data.class_names)
    self.read = self.views = views.views_of(subject, layers, readout)
    if '+' in layers:
      check_joined(layers)
      self.views = (View('', '+'.join(view.output for view in self.read)),)
    named = [f'{key}{view.suffix}' for view in self.views for key in keys]
    self.metrics = metric_names(subject.data, named)
    self._collect = views.make_collector(subject, self.read)
    self._labels: dict[str, np.ndarray] = {}

  @abc.abstractmethod
  def fit(self, train: Features) -> list[Classifier]:
    """A classifier for each view."""

  def scores(self, found: dict[str, float]) -> dict[str, float]:
    """The numbers of one view, from the accuracy of each way to predict."""
    return found

  @abc.abstractmethod
  def draw(self, rows: list[dict[str, Any]]) -> Any:
    """A figure of what the report says of each view."""

  def run(self, params: Any, groups: Collection[str]) -> dict[str, float]:
    """The numbers of the splits among `groups`; features are computed, and not kept."""
    splits = [name for name in self.subject.data.splits if name != 'train' and name in groups]
    classifiers = self.fit(self._computed(params, 'train')) if splits else []
    found = {}
    for split in splits:
      for view, rows in zip(self.views, self.judge(classifiers, self._computed(params, split)),
                            strict=True):  # fmt: skip
        found |= {f'{split}/{k}{view.suffix}': x for k, x in self.scores(rows).items()}
    return found

  def _computed(self, params: Any, split: str) -> Features:
    if split not in self._labels:  # The same whatever the weights are.
      self._labels[split] = views.labels_of(self.subject.data.splits[split])
    labels = self._labels[split]
    return self._together(
      views.Computed(self.subject, self.read, self._collect, params, split, labels)
    )

  def _together(self, found: Features) -> Features:
    return found if self.read is self.views else views.Joined(found)

  def judge(self, classifiers: list[Classifier], other: Features) -> list[dict[str, float]]:
    """For each view the accuracy of every way to predict."""
    right: list[dict[str, int]] = [{} for _ in self.views]
    count = len(other.labels)
    for start in range(0, count, views.ROWS):
      rows = np.arange(start, min(start + views.ROWS, count))
      for sums, one, x in zip(right, classifiers, other.read(rows), strict=True):
        for key, classes in one.predict(x).items():
          sums[key] = sums.get(key, 0) + int((classes == other.labels[rows]).sum())
    return [{key: n / count for key, n in sums.items()} for sums in right]

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Judges on test; process 0 writes `NAME.json`, `NAME.png`, and of several blocks a line over
    them, `NAME_by_block.png`.

    Features come from the token cache beside `folder`; of several processes, which have no disk in
    common, each computes its own.
    """
    if jax.process_count() > 1:
      train, test = self._computed(params, 'train'), self._computed(params, 'test')
    else:
      kept = views.store(self.subject, self.read, params, folder.parent / 'cache')
      train, test = (self._together(kept[split]) for split in ('train', 'test'))
    classifiers = self.fit(train)
    judged = [self.scores(found) for found in self.judge(classifiers, test)]
    rows = [
      {'layer': view.output, **scores, **one.details}
      for view, one, scores in zip(self.views, classifiers, judged, strict=True)
    ]
    report = about | {'n_train': len(train.labels), 'n_test': len(test.labels), 'layers': rows}
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      atomic.write_text(folder / f'{self.name}.json', json.dumps(report, indent=2) + '\n')
      self.draw(rows).savefig(folder / f'{self.name}.png')
      if len(rows) > 1:
        self.draw_layers(judged).savefig(folder / f'{self.name}_by_block.png')
    return report

  def draw_layers(self, judged: list[dict[str, float]]) -> Any:
    """The accuracy on test after each block that is read, a line a number."""
    places = [view.suffix.rpartition('_')[2] for view in self.views]
    lines = {key: [scores[key] for scores in judged] for key in judged[0]}
    return figures.lines([int(place) for place in places], lines, 'block', 'accuracy on test')


def check_joined(layers: str) -> None:
  """Raises a ValueError where blocks are both told apart and put together."""
  if ',' in layers or len({*layers.split('+')}) < 2:
    raise ValueError(
      f'config.evaluation: layers={layers}: give blocks with commas between, each by itself '
      "('4,8'), or with + between, side by side ('4+8')"
    )
