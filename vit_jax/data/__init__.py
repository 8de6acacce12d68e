"""Data sets by name: splits, class names, and batches that are a pure function of (seed, step).

A new one is a loader in `sources.py` and one line here.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from vit_jax.data import augment, pipeline, preprocess, sources

DATASETS: dict[str, Callable[..., tuple[sources.Splits, tuple[str, ...]]]] = {
  'digits': sources.digits
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The splits of a data set and how its pictures become the model's input."""

  splits: sources.Splits
  class_names: tuple[str, ...]
  preprocess: preprocess.Preprocess
  augment: augment.Affine

  def batch_at(self, step: int, *, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """The training batch of a step counted from 1: 'image' uint8 `B H W C`, 'label' int32 `B`."""
    return pipeline.batch_at(
      self.splits['train'], step, batch_size, seed, self.preprocess, self.augment
    )

  def epoch(self, split: str, batch_size: int):
    """One pass over a split in order; the last batch is padded, 'mask' says which rows are real."""
    return pipeline.epoch(self.splits[split], batch_size, self.preprocess)


def build(
  name: str,
  *,
  image_size: tuple[int, int],
  channels: int,
  resize: str,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  rotate: float,
  scale: float,
  shear: float,
  translate: float,
  **source,
) -> Dataset:
  """The data set `name`; what is left of its section goes to its loader in `sources.py`."""
  splits, class_names = DATASETS[name](**source)
  return Dataset(
    splits,
    class_names,
    preprocess.Preprocess(
      (image_size[0], image_size[1]), channels, resize, tuple(mean), tuple(std)
    ),
    augment.Affine(rotate, scale, shear, translate),
  )
