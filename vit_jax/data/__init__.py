"""Data sets by name: splits, class names, and batches that are a pure function of (seed, step).

A new one is a loader and one line here.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax.data import folder, pipeline, sources, tfds
from vit_jax.data.augment import Augment
from vit_jax.data.preprocess import Preprocess

DATASETS: dict[str, Callable[..., tuple[sources.Splits, tuple[str, ...]]]] = {
  'digits': sources.digits,
  'folder': folder.load,
  'tfds': tfds.load,
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The splits of a data set and how its pictures become the model's input.

  Attributes:
    whole_epochs: whether an epoch ends with a smaller batch instead of in the middle of one.
    threads: that decode; None: one a core.
  """

  splits: sources.Splits
  class_names: tuple[str, ...]
  preprocess: Preprocess
  augment: Augment
  whole_epochs: bool = False
  threads: int | None = None

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the model's input."""
    return (*self.preprocess.image_size, self.preprocess.channels)

  def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the global training batch."""
    shape = jax.ShapeDtypeStruct
    return {
      'image': shape((batch_size, *self.image_shape), jnp.uint8),
      'label': shape((batch_size,), jnp.int32),
      'mask': shape((batch_size,), jnp.bool_),
    }

  def batch_at(self, step: int, *, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """The training batch of a step counted from 1, this process's rows: 'image' uint8 `B H W C`,
    'label' int32 `B`, 'mask' bool `B`: which rows are real."""
    return pipeline.training_batch(
      self.splits['train'],
      step,
      batch_size=batch_size,
      seed=seed,
      whole_epochs=self.whole_epochs,
      shape=self.image_shape,
      threads=self.threads,
      make=lambda picture, rng: self.augment(picture, rng, self.preprocess),
    )

  def epoch(
    self, split: str, batch_size: int, *, first: int = 0, view: tuple[int, int] | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split in order; the last batch is padded, 'mask' says which rows are real.

    Args:
      first: the batch to begin with, from 0.
      view: (seed, number): pictures changed as in training, by these and the example's index.
    """
    source = self.splits[split]

    def make(picture, index: int):
      if view is None:
        return self.preprocess(picture)
      return self.augment(picture, np.random.default_rng((*view, index)), self.preprocess)

    batch = functools.partial(
      pipeline.evaluation_batch,
      source,
      batch_size=batch_size,
      shape=self.image_shape,
      threads=self.threads,
      make=make,
    )
    return pipeline.prefetch(batch, range(first, -(-len(source) // batch_size)))

  def picture(self, split: str, index: int) -> np.ndarray:
    """One picture as evaluation sees it."""
    found, _ = self.splits[split].read(np.array([index]))
    return self.preprocess(found[0])


def build(
  name: str,
  *,
  image_size: tuple[int, int],
  channels: int,
  fit: str,
  resize_small: int | None,
  resize: str,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  crop: str,
  crop_area: tuple[float, float],
  crop_ratio: tuple[float, float],
  crop_resize: str,
  crop_padding: int,
  crop_from: tuple[int, ...],
  flip: bool,
  rotate: float,
  scale: float,
  shear: float,
  translate: float,
  whole_epochs: bool,
  threads: int | None,
  **source,
) -> Dataset:
  """The data set `name`; what is left of its section goes to its loader."""
  if threads is not None and threads < 1:
    raise ValueError(f'config.data.threads={threads} must be at least 1')
  size = (image_size[0], image_size[1])
  mean, std = mean or (0.5,), std or (0.5,)
  preprocess = Preprocess(size, channels, resize, tuple(mean), tuple(std), fit, resize_small)
  augment = Augment(
    crop,
    (crop_area[0], crop_area[1]),
    (crop_ratio[0], crop_ratio[1]),
    crop_resize,
    crop_padding,
    (crop_from[0], crop_from[1]) if crop_from else None,
    flip,
    rotate,
    scale,
    shear,
    translate,
  )
  if crop == 'squashed':
    augment.squashed_size(size)
  splits, class_names = DATASETS[name](**source)
  return Dataset(splits, class_names, preprocess, augment, whole_epochs, threads)
