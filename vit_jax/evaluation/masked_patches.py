"""How well masked patch prediction works on a split, beside what a blind guess would reach."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.objectives import masked_patches
from vit_jax.objectives.patch_targets import Target
from vit_jax.runtime import atomic, distributed


@dataclasses.dataclass(frozen=True)
class Result:
  """The predictions of a split, one row an example.

  Attributes:
    means: `n`, of the corrupted patches of each example: 'loss', and 'accuracy' of colours.
    kept: `n ...`, what the target keeps of what was to be predicted.
  """

  means: dict[str, np.ndarray]
  kept: np.ndarray
  kind: Target

  @property
  def baseline(self) -> float:
    """The least loss of a prediction that is the same for every patch of every image."""
    return self.kind.baseline(self.kept)

  def scores(self) -> dict[str, float]:
    """The numbers that a curve shows."""
    means = {f'masked_{name}': float(x.mean()) for name, x in self.means.items()}
    return means | {'masked_baseline': self.baseline}


class MaskedPatches(WholeSplit):
  """Loss and accuracy over the corrupted patches of a split, and the loss of a blind guess.

  That guess, `masked_baseline`, is the best prediction which sees no picture: for colours it has
  the entropy of their histogram on the same split, for pixels their variance. Which patches are
  corrupted, and how, is a function of the seed and of an example's place in the split.

  Args:
    subject: its objective is masked patch prediction.
    seed: of the corruption.

  Raises:
    ValueError: another objective.
  """

  reads_head = False
  reads_objective = True

  def __init__(self, subject: Subject, *, seed: int):
    objective = subject.objective
    if not isinstance(objective, masked_patches.MaskedPatches):
      raise ValueError(
        'config.evaluators: masked_patches judges the predictions of '
        'config.objective.name=masked_patches; set that, or leave the evaluator out'
      )
    self._objective, self._kind, self._seed = objective, objective.kind, seed

    def rows(params, batch):
      keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(batch['index'])
      answer: Any = objective.apply({'params': params}, batch['image'], keys, method='judge')
      values, targets = answer
      means = {name: x.mean(-1) for name, x in values.items()}
      kept = self._kind.summarise(targets)
      return means | {'kept': kept, 'mask': batch['mask'], 'index': batch['index']}

    keys = [f'masked_{name}' for name in ('loss', *self._kind.metrics, 'baseline')]
    super().__init__(rows, keys, subject)

  def evaluate(self, params: Any, split: str) -> Result:
    """The predictions of every example of a split; `params` are all of the objective's."""
    columns = self.collect(params, split)
    kept = columns.pop('kept')
    return Result(columns, kept, self._kind)

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Judges the test split; process 0 writes `masked_patches.json`."""
    result, objective = self.evaluate(params, 'test'), self._objective
    about_it = {'target': objective.target, 'corruption': objective.corruption, 'seed': self._seed}
    counts = {
      'n_examples': len(result.kept), 'n_patches': objective.num_patches,
      'n_corrupted': objective.num_corrupted,
    }  # fmt: skip
    report = about | {'split': 'test'} | about_it | counts | result.scores()
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      atomic.write_text(folder / 'masked_patches.json', json.dumps(report, indent=2) + '\n')
    return report
