"""Accuracy against other labels than those of the data: any of several classes is right.

The labels lie in a JSON file. A list of lists is "ImageNet ReaL" (arXiv:2006.07159): row i is of
the picture whose file name has the number i + 1, 'ILSVRC2012_val_00000293.JPEG'. An object says for
a file name, or for a class of the data, which classes of the model are right; so ObjectNet's
folders are mapped to ImageNet's classes. Pictures without any such class do not count.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

from jax import numpy as jnp
import numpy as np

from vit_jax import metrics
from vit_jax.data import Dataset
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.views import labels_of
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.runtime import atomic, distributed
from vit_jax.runtime.choices import check_choice

KEYS = ('real_accuracy', 'real_accuracy_top5')


@dataclasses.dataclass(frozen=True)
class Result:
  """Whether each picture that has a label is right, in the order of the split.

  Attributes:
    first: whether the likeliest class is one of its labels.
    top5: whether one of the five likeliest is.
    left_out: how many pictures have no label.
  """

  first: np.ndarray
  top5: np.ndarray
  left_out: int

  def scores(self) -> dict[str, float]:
    """The numbers by the names in KEYS."""
    return dict(zip(KEYS, (float(self.first.mean()), float(self.top5.mean())), strict=True))


class Real(WholeSplit):
  """The share of test pictures whose likeliest class is one of their labels.

  Args:
    labels: the JSON file.

  Raises:
    ValueError: no such file, or its labels do not fit the pictures or the classes of the model.
  """

  def __init__(self, subject: Subject, *, labels: str | None):
    if not labels:
      raise ValueError(
        'config.evaluation.real.labels is not set: a JSON file, such as the real.json of '
        'google-research/reassessed-imagenet'
      )
    if subject.data.multi_label:
      raise ValueError(
        'config.evaluators: real needs one label a picture, and these data have several; take '
        "config.evaluators=('multi_label',)"
      )
    forward = subject.forward

    def rows(params, batch):
      logits = forward(params, batch['image'])[0]
      ranked = jnp.argsort(-logits, axis=-1, stable=True)[:, :5]
      return {'ranked': ranked, 'mask': batch['mask'], 'index': batch['index']}

    super().__init__(rows, KEYS, subject)
    tests = {split: x for split, x in self.data.splits.items() if split in ('train', 'test')}
    self.metrics = tuple(f'test/{key}' for key in KEYS)
    self.data = dataclasses.replace(self.data, splits=tests)
    self._path = pathlib.Path(labels).expanduser()
    self._labels = read_labels(self._path, self.data, subject.passport.class_names)

  def evaluate(self, params: Any, split: str) -> Result:
    """The result of the test split."""
    ranked = self.collect(params, split)['ranked']
    counted = [i for i, right in enumerate(self._labels) if right]
    hits = np.array([[k in self._labels[i] for k in ranked[i].tolist()] for i in counted])
    return Result(hits[:, 0], np.asarray(hits.any(1)), len(self._labels) - len(counted))

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Judges the test split; process 0 writes `real.json`. The interval is Wilson's, 95 %."""
    result = self.evaluate(params, 'test')
    right, count = int(result.first.sum()), len(result.first)
    report = about | {
      'labels': str(self._path),
      'n_examples': count,
      'n_without_label': result.left_out,
      **result.scores(),
      'real_accuracy_interval': list(metrics.wilson(right, count)),
    }
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      atomic.write_text(folder / 'real.json', json.dumps(report, indent=2) + '\n')
    return report


def read_labels(path: pathlib.Path, data: Dataset, classes: Sequence[str]) -> list[frozenset[int]]:
  """The classes of the model that are right for each test picture, in its order.

  Raises:
    ValueError: the file is damaged, names no picture or class of the data, or an unknown class.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise ValueError(f'config.evaluation.real.labels={path}: {error.strerror}') from None
  except ValueError as error:
    raise ValueError(f'config.evaluation.real.labels={path} is damaged: {error}') from None
  if not isinstance(content, list | dict):
    raise ValueError(
      f'config.evaluation.real.labels={path} holds {content!r:.60}, neither a list of lists nor an '
      'object from names to lists'
    )
  if not len(data.splits['test']):  # A plan of data that need not be here.
    return []
  listed = isinstance(content, list)
  rows = by_number(content, path, data) if listed else by_name(content, path, data)
  found = [frozenset(numbers_of(row, classes)) for row in rows]
  if not any(found):
    raise ValueError(f'config.evaluation.real.labels={path}: no test picture has a label')
  return found


def by_number(content: list, path: pathlib.Path, data: Dataset) -> list[Any]:
  """The row of each test picture by the number in its file name."""
  source, rows = data.splits['test'], []
  for index in range(len(source)):
    name = source.name(index)
    number = re.search(r'(\d+)\.\w+$', name)
    if number is None or not 1 <= int(number[1]) <= len(content):
      raise ValueError(
        f'config.evaluation.real.labels={path} is a list of {len(content)}, and {name} has no '
        "number from 1 to that in its file name, as 'ILSVRC2012_val_00000293.JPEG' has"
      )
    rows.append(content[int(number[1]) - 1])
  return rows


def by_name(content: dict[str, Any], path: pathlib.Path, data: Dataset) -> list[Any]:
  """The row of each test picture by its file name, else by its class; of others an empty one."""
  source = data.splits['test']
  names = [pathlib.PurePath(source.name(i)).name for i in range(len(source))]
  kinds = [data.class_names[label] for label in labels_of(source)]
  if not content.keys() & {*names, *kinds}:
    raise ValueError(
      f'config.evaluation.real.labels={path}: it names no picture and no class of the data, such '
      f'as {names[0]} or {kinds[0]}, but {", ".join([*content][:3])}'
    )
  return [content.get(name, content.get(kind, [])) for name, kind in zip(names, kinds, strict=True)]


def numbers_of(row: Any, classes: Sequence[str]) -> list[int]:
  """Classes of the model by number or name.

  Raises:
    ValueError: what should be a list of classes is none, or the model has no such class.
  """
  if not isinstance(row, list):
    raise ValueError(
      f'config.evaluation.real.labels: {row!r} is no list of classes; write [{json.dumps(row)}]'
    )
  numbers = []
  for one in row:
    if isinstance(one, str):
      check_choice('class in config.evaluation.real.labels', one, list(classes))
    elif type(one) is not int or not 0 <= one < len(classes):
      raise ValueError(
        f'config.evaluation.real.labels: {one!r} is not in 0..{len(classes) - 1}, whole numbers'
      )
    numbers.append(list(classes).index(one) if isinstance(one, str) else one)
  return numbers
