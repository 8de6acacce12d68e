"""What the train step may know of an objective, whatever it trains for."""

from collections.abc import Callable
from typing import Any, ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp


class Objective(nn.Module):
  """A module around the model: `objective(batch, constants, train=...) -> (loss, metrics)`.

  The batch holds what `batch_shapes` names, images as uint8, and 'weight', of mean 1: rows that
  only fill a batch up weigh 0. What the objective adds to the parameters lies beside the model.

  Attributes:
    model: what is trained.
    normalise: uint8 images -> the model's input, for objectives that feed it pixels.
    streams: names of the random streams that training draws from; each is a function of
      `(seed, step)`.
    metrics: names of the numbers beside the loss.
    predictions: how logits become probabilities: softmax, or sigmoid.
    forwards: of each of `sources`, `forward(params, pixels) -> (logits, outputs by name)`.
    trains_head: whether the model's own head learns; where it does not it starts, and stays, zero,
      and no evaluator may judge it.
  """

  model: nn.Module
  normalise: Callable
  forwards: Any = None
  streams: ClassVar[tuple[str, ...]] = ('dropout',)
  metrics: ClassVar[tuple[str, ...]] = ()
  trains_head: ClassVar[bool] = True

  @property
  def predictions(self) -> str:
    """How logits become probabilities."""
    return 'softmax'

  def batch_shapes(
    self, image_shape: tuple[int, int, int], batch_size: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What is read of a batch of the data, for images `(H, W, C)`."""
    shape = jax.ShapeDtypeStruct
    return {
      'image': shape((batch_size, *image_shape), jnp.uint8),
      'label': shape((batch_size,), jnp.int32),
      'mask': shape((batch_size,), jnp.bool_),
    }

  def check_labels(self, multi_label: bool) -> None:
    """Refuses data whose labels are not those that the loss reads.

    Args:
      multi_label: whether a picture of the data may have several labels, or none.

    Raises:
      ValueError: the loss reads one label a picture and these have several, or the reverse.
    """
    label = self.batch_shapes((1, 1, 1), 1).get('label')
    if label is None or (len(label.shape) == 2) == multi_label:
      return
    if multi_label:
      raise ValueError(
        'the data have several labels a picture, and the loss reads one: set config.objective.name='
        'classification, config.objective.multi_label=True and config.objective.loss=sigmoid'
      )
    raise ValueError(
      'config.objective.multi_label=True, and the data have one label a picture: leave it out, or '
      'take data with several'
    )

  @property
  def sources(self) -> dict[str, str]:
    """Weights that the loss reads and nothing trains, such as a teacher's: name -> path or address.

    `constants[name]` are then their parameters: an argument of the compiled step, sharded like the
    state, never donated, without gradient; `forwards[name](params, pixels in 0..255)` is
    their model, which resizes and normalises as its own passport says.
    """
    return {}
