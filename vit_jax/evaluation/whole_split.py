"""One pass over a split on all devices, every example exactly once: what evaluators share."""

import abc
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from vit_jax.data import Dataset
from vit_jax.evaluation.subject import Subject
from vit_jax.runtime import sharding


class WholeSplit(abc.ABC):
  """An evaluator of whole splits; a subclass says what of a pass: `evaluate(params, split)`.

  What that returns has `scores()`, the numbers by `keys`.

  Attributes:
    data: the splits; all but 'train' are evaluated.
    metrics: names of all numbers, 'test/accuracy'.
  """

  def __init__(self, rows: Callable, keys: Collection[str], subject: Subject):
    """Takes `rows(params, batch)`: arrays `B ...` by name, the batch's 'mask' and 'index' too."""
    self.data = subject.data
    self.metrics = metric_names(self.data, keys)
    self._collect = Collector(rows, subject)

  @abc.abstractmethod
  def evaluate(self, params: Any, split: str) -> Any:
    """The result of a split, which has `scores()`."""

  def run(self, params: Any, groups: Collection[str]) -> dict[str, float]:
    """The numbers of the splits among `groups`."""
    splits = [split for split in self.data.splits if split != 'train' and split in groups]
    results = {split: self.evaluate(params, split).scores() for split in splits}
    return {f'{split}/{key}': x for split, row in results.items() for key, x in row.items()}

  def collect(self, params: Any, split: str) -> dict[str, np.ndarray]:
    """What `rows` makes of a split, an array a name, in the order of the split.

    Raises:
      RuntimeError: an example was not seen, or more than once.
    """
    return self._collect(params, self.data, split)


def metric_names(data: Dataset, keys: Collection[str]) -> tuple[str, ...]:
  """The names of numbers of all splits but train: 'test/accuracy'."""
  return tuple(f'{split}/{key}' for split in data.splits if split != 'train' for key in keys)


class Collector:
  """A pass over a split: what `rows(params, batch)` makes of each example, on all devices.

  Args:
    rows: as in `WholeSplit`.
  """

  def __init__(self, rows: Callable, subject: Subject):
    self._mesh = subject.mesh
    self._batch_size = sharding.round_up(subject.batch_size, subject.mesh)
    # Replicated outputs: every process sees every row.
    everywhere = sharding.replicated(subject.mesh)
    self._rows = sharding.jit_on(subject.mesh, rows, out_shardings=everywhere)

  def __call__(self, params: Any, data: Dataset, split: str) -> dict[str, np.ndarray]:
    """An array a name, in the order of the split; the last batch is padded and cut.

    Raises:
      RuntimeError: an example was not seen, or more than once.
    """
    found = []
    for batch in data.epoch(split, self._batch_size):
      outputs = jax.device_get(self._rows(params, sharding.place_batch(batch, self._mesh)))
      found.append({key: value[outputs['mask']] for key, value in outputs.items()})
    columns = {key: np.concatenate([row[key] for row in found]) for key in found[0]
               if key != 'mask'}  # fmt: skip
    expected, seen = len(data.splits[split]), columns.pop('index')
    if not np.array_equal(np.sort(seen), np.arange(expected)):
      raise RuntimeError(f'{split}: evaluated {len(np.unique(seen))} of {expected} examples')
    # Devices may hold a batch's rows in another order.
    return {key: value[np.argsort(seen)] for key, value in columns.items()}
