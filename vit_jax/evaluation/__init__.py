"""Evaluators by name, as `config.evaluators` lists them: numbers of weights, and reports.

A new one is a file, its section in `vit_jax/defaults.py`, and one line here. It is made with a
`Subject`, the model and the data, and its own section, and has

  metrics            names of all its numbers, 'test/accuracy'; the first word is their group
  run(params, groups) -> {metric: number}, of some of the groups
  report(params, folder, about) -> what JSON says of the weights; files go into `folder`
  reads_head         False where it does not judge the head, which may then be all zero
  reads_objective    True where `params` are all of the objective's: the model's, in 'model', and
                     what the objective adds; else they are the model's alone
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
  masked_patches,
  multi_label,
  pixels,
  real,
  similarity,
)
from vit_jax.evaluation.subject import Subject
from vit_jax.objectives import Objective
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
  'masked_patches': masked_patches.MaskedPatches,
  'pixels': pixels.Pixels,
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
    return any(map(reads_head, self.by_name.values()))

  @property
  def read_objective(self) -> bool:
    """Whether any of them reads what the objective adds to the model."""
    return any(map(reads_objective, self.by_name.values()))

  def run(self, params: Any, groups: Collection[str]) -> dict[str, float]:
    """The numbers of some groups, of every evaluator that has one of them.

    Args:
      params: all of the objective's: the model's, in 'model', and what the objective adds, which
        may be missing unless `read_objective`.
    """
    found: dict[str, float] = {}
    for one in self.by_name.values():
      if {metric.partition('/')[0] for metric in one.metrics} & {*groups}:
        found |= one.run(part_for(one, params), groups)
    return found

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """What each evaluator reports; of several, by their names. `params` as in `run`."""
    found = {
      name: one.report(part_for(one, params), folder, about) for name, one in self.by_name.items()
    }
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


def reads_head(one: Evaluator) -> bool:
  """Whether an evaluator judges the head of the model."""
  return getattr(one, 'reads_head', True)


def reads_objective(one: Evaluator) -> bool:
  """Whether an evaluator is given all parameters of the objective."""
  return getattr(one, 'reads_objective', False)


def part_for(one: Evaluator, params: Any) -> Any:
  """The parameters that an evaluator is given: all of the objective's, or those of the model."""
  return params if reads_objective(one) else params['model']


def build(names: tuple[str, ...], section: dict[str, Any], **given: Any) -> Evaluators:
  """The evaluators `names`.

  Args:
    section: `config.evaluation`: what all share, and a section for each by its name.
    given: the model, forward, passport, data, mesh and objective of a `Subject`.

  Raises:
    ValueError: an unknown name, a value that is impossible, or a head to judge that nobody trains.
  """
  if not names:
    raise ValueError(f'config.evaluators is empty; choose from {", ".join(EVALUATORS)}')
  for name in names:
    check_choice('name in config.evaluators', name, EVALUATORS)
  shared = {key: value for key, value in section.items() if not isinstance(value, dict)}
  subject = Subject(**given, **shared)
  found = {name: EVALUATORS[name](subject, **section[name]) for name in names}
  check_heads(found, subject.objective)
  return Evaluators(found)


def check_heads(found: dict[str, Evaluator], objective: Objective | None) -> None:
  """Raises a ValueError where an evaluator judges a head that the objective does not train."""
  judges = [name for name, one in found.items() if reads_head(one)]
  if judges and objective is not None and not objective.trains_head:
    raise ValueError(
      f'config.evaluators: {judges[0]} judges the head of the model, which config.objective does '
      "not train; take config.evaluators=('masked_patches',), or of a model of pixels ('pixels',), "
      "which judges its own predictions, or 'fewshot', 'knn' or 'linear', which train heads of "
      'their own'
    )
