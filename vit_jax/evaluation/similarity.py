"""Cosine similarity of the tokens before the patches, block by block (arXiv:2012.12877, section 4).

DeiT's class and distillation token begin far apart (0.06) and end near each other (0.93).
"""

from collections.abc import Callable, Collection
import json
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax import figures
from vit_jax.data import Dataset
from vit_jax.models import Model
from vit_jax.models.tokens import block_names
from vit_jax.runtime import atomic, distributed, sharding


class Similarity:
  """The mean cosine similarity of the first two tokens, at the input and after each block.

  Args:
    model: has at least two tokens before the patches, and names its blocks.
    forward: `(params, uint8 images) -> (logits, outputs)`.
    data: the splits.
    mesh: the devices.
    batch_size: of all devices together.
    examples: how many of a split are read, from its beginning; 0: all.

  Raises:
    ValueError: the model has fewer tokens before its patches.
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
    examples: int,
  ):
    del predictions
    if len(model.prefix) < 2:
      raise ValueError(
        f'config.evaluators: similarity compares two tokens before the patches, and the model has '
        f'{len(model.prefix)}; take a distilled one (config.model.name=deit) or leave it out'
      )
    self._data, self._mesh, self._tokens = data, mesh, model.prefix[:2]
    self._batch_size = sharding.round_up(batch_size, mesh)
    self._examples = examples
    depth = model.sizes()['depth']
    self.metrics = tuple(
      f'{split}/similarity_{i}'
      for split in data.splits if split != 'train'
      for i in range(depth + 1)
    )  # fmt: skip

    def rows(params, batch):
      _, outputs = forward(params, batch['image'])
      layers = [outputs[name] for name in ('embedded', *block_names([*outputs]))]
      return jnp.stack([cosine(x[:, 0], x[:, 1]) for x in layers], -1), batch['mask']

    self._rows = sharding.jit_on(mesh, rows, out_shardings=sharding.replicated(mesh))

  def run(self, params: Any, groups: Collection[str]) -> dict[str, float]:
    """The similarities of the splits among `groups`, from the input on."""
    found = {}
    for split in self._data.splits:
      if split != 'train' and split in groups:
        for i, value in enumerate(self.measure(params, split)):
          found[f'{split}/similarity_{i}'] = float(value)
    return found

  def measure(self, params: Any, split: str) -> np.ndarray:
    """The mean over a split, at the input and after each block."""
    count = len(self._data.splits[split])
    wanted = min(count, self._examples or count)
    found: list[np.ndarray] = []
    for batch in self._data.epoch(split, self._batch_size):
      rows, mask = jax.device_get(self._rows(params, sharding.place_batch(batch, self._mesh)))
      found.append(rows[mask])
      if sum(map(len, found)) >= wanted:
        break
    return np.concatenate(found)[:wanted].mean(0)

  def report(self, params: Any, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    """Measures the test split; process 0 writes `similarity.json` and its picture."""
    values = self.measure(params, 'test').round(4).tolist()
    report = about | {'tokens': list(self._tokens), 'similarity': values}
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      atomic.write_text(folder / 'similarity.json', json.dumps(report, indent=2) + '\n')
      figures.by_block(
        values, 'cosine similarity', ' and '.join(self._tokens).replace('_', ' ')
      ).savefig(folder / 'similarity.png')
    return report


def cosine(x: Any, y: Any) -> Any:
  """The cosine of the angle between two vectors `... D`, in float32."""
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
  return (x * y).sum(-1) / jnp.maximum(lengths, 1e-12)
