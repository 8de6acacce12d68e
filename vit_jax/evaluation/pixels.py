"""How well a model of pixels tells them, beside a guess that sees no picture."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.objectives.masked_pixels import MaskedPixels
from vit_jax.objectives.patch_targets import entropy
from vit_jax.objectives.pixels import PixelObjective
from vit_jax.runtime import atomic, distributed


@dataclasses.dataclass(frozen=True)
class Result:
  """The pixels of a split, one row an example.

  Attributes:
    loss: nats a pixel.
    counts: `n K`, how many pixels have each colour.
    right: whether most answers, one a mask, are right; None: nobody classifies under masks.
  """

  loss: np.ndarray
  counts: np.ndarray
  right: np.ndarray | None = None

  @property
  def baseline(self) -> float:
    """The entropy of the colours in bits: the least loss of a guess that is always the same."""
    return entropy(self.counts.sum(0)) / math.log(2)

  def scores(self) -> dict[str, float]:
    """The numbers that a curve shows."""
    loss = float(self.loss.mean())
    found = {'pixel_loss': loss, 'pixel_bits': loss / math.log(2)}
    found['pixel_baseline_bits'] = self.baseline
    return found if self.right is None else found | {'modal_accuracy': float(self.right.mean())}


class Pixels(WholeSplit):
  """Nats and bits a pixel over a split, and the entropy of its colours, the bits of a blind guess.

  Bits are those of one colour of the palette, not of three channels. What `masked_pixels` hides is
  a function of the seed and of an example's place; where it also classifies, each picture is seen
  under several masks and the most frequent answer counts, as in the paper.

  Args:
    subject: its objective is autoregressive or masked_pixels.
    seed: of the masks.
    masks: that vote.

  Raises:
    ValueError: another objective, or no masks.
  """

  def __init__(self, subject: Subject, *, seed: int, masks: int):
    objective = subject.objective
    if not isinstance(objective, PixelObjective):
      raise ValueError(
        'config.evaluators: pixels judges what config.objective.name=autoregressive or '
        'masked_pixels tells; set one of these, or leave the evaluator out'
      )
    if masks < 1:
      raise ValueError(f'config.evaluation.pixels.masks={masks} must be at least 1')
    self.reads_head = isinstance(objective, MaskedPixels) and objective.trains_head
    self._objective, self._seed = objective, seed
    self._masks = masks if self.reads_head else 1
    keys = ['pixel_loss', 'pixel_bits', 'pixel_baseline_bits']
    super().__init__(self._rows, keys + ['modal_accuracy'] * self.reads_head, subject)

  def _judge(self, params: Any, batch: dict[str, Any], mask: int) -> Any:
    """(loss of pixels, logits) of each picture under one of the masks."""
    key = jax.random.key(self._seed + mask)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch['index'])
    given = {'params': {'model': params}}
    return self._objective.apply(given, batch['image'], keys, method='judge')

  def _rows(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What is kept of each picture."""
    loss, logits = self._judge(params, batch, 0)
    given = {'params': {'model': params}}
    colours: Any = self._objective.apply(given, batch['image'], method='colours_of')
    count = functools.partial(jnp.bincount, length=self._objective.model.clusters)
    found = {'loss': loss, 'counts': jax.vmap(count)(colours)}
    found |= {'mask': batch['mask'], 'index': batch['index']}
    if not self.reads_head:
      return found
    more = [self._judge(params, batch, mask)[1] for mask in range(1, self._masks)]
    votes: Any = sum(jax.nn.one_hot(x.argmax(-1), x.shape[-1]) for x in (logits, *more))
    return found | {'right': votes.argmax(-1) == batch['label']}

  def evaluate(self, params: Any, split: str) -> Result:
    """The pixels of every example of a split."""
    return Result(**self.collect(params, split))

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Judges the test split; process 0 writes `pixels.json`."""
    result = self.evaluate(params, 'test')
    about_it = {'split': 'test', 'seed': self._seed, 'masks': self._masks}
    counts = {'n_examples': len(result.loss), 'colours': result.counts.shape[1]}
    report = about | about_it | counts | result.scores()
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      atomic.write_text(folder / 'pixels.json', json.dumps(report, indent=2) + '\n')
    return report
