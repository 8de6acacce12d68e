"""Cosine similarity of the tokens before the patches, block by block (arXiv:2012.12877, section 4).

DeiT's class and distillation token begin far apart (0.06) and end near each other (0.93).
"""

import dataclasses
import json
import pathlib
from typing import Any

from jax import numpy as jnp
import numpy as np

from vit_jax import figures
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.whole_split import WholeSplit
from vit_jax.models.tokens import block_names
from vit_jax.runtime import atomic, distributed


@dataclasses.dataclass(frozen=True)
class Result:
  """The similarities of every example, `N L`: at the input and after each block."""

  similarity: np.ndarray

  def scores(self) -> dict[str, float]:
    """The means over the examples, by depth."""
    return {f'similarity_{i}': float(x) for i, x in enumerate(self.similarity.mean(0))}


class Similarity(WholeSplit):
  """The mean cosine similarity of the first two tokens, at the input and after each block.

  Args:
    subject: its model has at least two tokens before the patches, and names its blocks.

  Raises:
    ValueError: the model has fewer tokens before its patches.
  """

  reads_head = False

  def __init__(self, subject: Subject):
    model, forward = subject.model, subject.forward
    if len(model.prefix) < 2:
      raise ValueError(
        f'config.evaluators: similarity compares two tokens before the patches, and the model has '
        f'{len(model.prefix)}; take a distilled one (config.model.name=deit) or leave it out'
      )
    self._tokens = model.prefix[:2]

    def rows(params, batch):
      _, outputs = forward(params, batch['image'])
      layers = [outputs[name] for name in ('embedded', *block_names([*outputs]))]
      found = jnp.stack([cosine(x[:, 0], x[:, 1]) for x in layers], -1)
      return {'similarity': found, 'mask': batch['mask'], 'index': batch['index']}

    keys = [f'similarity_{i}' for i in range(model.sizes()['depth'] + 1)]
    super().__init__(rows, keys, subject)

  def evaluate(self, params: Any, split: str) -> Result:
    """The similarities of every example of a split."""
    return Result(**self.collect(params, split))

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Measures the test split; process 0 writes `similarity.json` and its picture."""
    values = [round(x, 4) for x in self.evaluate(params, 'test').scores().values()]
    report = about | {'tokens': list(self._tokens), 'similarity': values}
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      atomic.write_text(folder / 'similarity.json', json.dumps(report, indent=2) + '\n')
      title = ' and '.join(self._tokens).replace('_', ' ')
      figures.by_block(values, 'cosine similarity', title).savefig(folder / 'similarity.png')
    return report


def cosine(x: Any, y: Any) -> Any:
  """The cosine of the angle between two vectors `... D`, in float32."""
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
  return (x * y).sum(-1) / jnp.maximum(lengths, 1e-12)
