"""Evaluators by name, as `config.evaluators` lists them: numbers of weights, and reports.

A new one is a file, its section in `vit_jax/defaults.py`, and one line here. It is made with a
`Subject`, the model and the data, and its own section, and has

  metrics            names of all its numbers, 'test/accuracy'; the first word is their group
  run(params, groups) -> {metric: number}, of some of the groups
  report(params, folder, about) -> what JSON says of the weights; files go into `folder`
  reads_head         False where it does not judge the head, which may then be all zero
"""

from collections.abc import Callable, Collection
import dataclasses
import pathlib
from typing import Any, Protocol, runtime_checkable

from absl import logging

from vit_jax.evaluation import (
  classification,
  fewshot,
  knn,
  linear,
  multi_label,
  real,
  similarity,
)
from vit_jax.evaluation.subject import Subject
from vit_jax.runtime.choices import check_choice


@runtime_checkable
class Evaluator(Protocol):
  """What the train loop and `--mode=evaluate` may know of an evaluator."""

  metrics: tuple[str, ...]

  def run(self, params: Any, groups: Collection[str]) -> dict[str, float]:
    """The numbers whose first word is among `groups`."""
    ...

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Writes what there is to look at into `folder`; returns the numbers."""
    ...


EVALUATORS: dict[str, Callable[..., Evaluator]] = {
  'classification': classification.Classification,
  'multi_label': multi_label.MultiLabel,
  'similarity': similarity.Similarity,
  'fewshot': fewshot.FewShot,
  'knn': knn.NearestNeighbours,
  'linear': linear.LinearProbe,
  'real': real.Real,
}
DEFAULT_BEST = 'max:validation/accuracy'


@dataclasses.dataclass(frozen=True)
class Evaluators:
  """The evaluators of a run, by name."""

  by_name: dict[str, Evaluator]

  @property
  def metrics(self) -> tuple[str, ...]:
    """Every number that is computed."""
    return tuple(metric for one in self.by_name.values() for metric in one.metrics)

  @property
  def groups(self) -> tuple[str, ...]:
    """The first words of the numbers."""
    return tuple(dict.fromkeys(metric.partition('/')[0] for metric in self.metrics))

  @property
  def read_head(self) -> bool:
    """Whether any of them judges the head of the model."""
    return any(getattr(one, 'reads_head', True) for one in self.by_name.values())

  def run(self, params: Any, groups: Collection[str]) -> dict[str, float]:
    """The numbers of some groups, of every evaluator that has one of them."""
    found: dict[str, float] = {}
    for one in self.by_name.values():
      if {metric.partition('/')[0] for metric in one.metrics} & {*groups}:
        found |= one.run(params, groups)
    return found

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """What each evaluator reports; of several, by their names."""
    found = {name: one.report(params, folder, about) for name, one in self.by_name.items()}
    return found if len(found) > 1 else next(iter(found.values()))

  def choose_best(self, wanted: str | None) -> str | None:
    """`config.best`, checked; None chooses by validation accuracy where that is computed.

    Raises:
      ValueError: it is not max:NAME or min:NAME of a number that an evaluator computes.
    """
    if wanted is None:
      return DEFAULT_BEST if DEFAULT_BEST.partition(':')[2] in self.metrics else None
    mode, _, name = wanted.partition(':')
    if mode not in ('max', 'min'):
      raise ValueError(f'config.best={wanted!r} must be max:NAME or min:NAME, {DEFAULT_BEST!r} say')
    check_choice('number in config.best (config.evaluators compute none of that name)', name,
                 self.metrics)  # fmt: skip
    if name.startswith('test/'):
      logging.warning('config.best=%s: test examples choose, so their result is too good', wanted)
    return wanted


def build(names: tuple[str, ...], section: dict[str, Any], **given: Any) -> Evaluators:
  """The evaluators `names`.

  Args:
    section: `config.evaluation`: what all share, and a section for each by its name.
    given: the model, forward, passport, data and mesh of a `Subject`.

  Raises:
    ValueError: an unknown name, or a value that is impossible.
  """
  if not names:
    raise ValueError(f'config.evaluators is empty; choose from {", ".join(EVALUATORS)}')
  for name in names:
    check_choice('name in config.evaluators', name, EVALUATORS)
  shared = {key: value for key, value in section.items() if not isinstance(value, dict)}
  subject = Subject(**given, **shared)
  return Evaluators({name: EVALUATORS[name](subject, **section[name]) for name in names})
