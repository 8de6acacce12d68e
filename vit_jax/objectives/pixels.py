"""What iGPT's two objectives share: a loss of pixels, and beside it that of labels.

Chen et al., "Generative Pretraining from Pixels" (ICML 2020), sections 2.2 and 3.4: fine-tuning
minimises L_gen + L_clf.
"""

import math
from typing import Any, ClassVar

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import optax

from vit_jax.objectives.classification import cross_entropy
from vit_jax.objectives.protocol import Objective


class PixelObjective(Objective):
  """Tells colours of a palette; a subclass says of which pixels: `judge`.

  The loss is that of pixels, in nats, plus `classification_weight` times the cross-entropy of the
  labels. Everything that is trained belongs to the model; its head learns with such a weight alone.

  Attributes:
    classification_weight: 0: no label is read, so that any data will do; the paper's fine-tuning
      has 1.
    causal: whether its model must tell pixels from those before them, or may not.
  """

  classification_weight: float = 0.0
  causal: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    if self.classification_weight < 0:
      raise ValueError(
        f'config.objective.classification_weight={self.classification_weight} must be at least 0'
      )
    if not self.model.clusters:
      raise ValueError(
        f'{type(self).__name__} tells colours of a palette, and a {type(self.model).__name__} has '
        'none; set config.model.name=igpt'
      )
    if self.model.is_causal != self.causal:
      raise ValueError(
        f'config.model.causal={self.model.is_causal}: {type(self).__name__} needs a model whose '
        f'pixels see {"those before them alone" if self.causal else "each other"}; set '
        f'config.model.causal={self.causal}'
      )

  @property
  def trains_head(self) -> bool:
    """Whether labels are read, so that the model's head learns."""
    return self.classification_weight > 0

  @property
  def metrics(self) -> tuple[str, ...]:
    """Bits a pixel; with labels the accuracy, too."""
    return ('bits_per_pixel', *('accuracy',) * self.trains_head)

  def batch_shapes(
    self, image_shape: tuple[int, int, int], batch_size: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What is read of a batch; labels where they count."""
    shapes = super().batch_shapes(image_shape, batch_size)
    return {name: x for name, x in shapes.items() if name != 'label' or self.trains_head}

  def keys(self, count: int) -> Any:
    """A random key for each image of a batch; None where nothing is drawn."""
    del count

  def judge(
    self, images: UInt8[Array, 'B H W C'], keys: Any, *, train: bool = False
  ) -> tuple[Float[Array, 'B'], Float[Array, 'B K']]:
    """The loss of pixels of each image, in nats a pixel, and the logits of its classes.

    Args:
      keys: a random key for each image, `B`, where something is drawn.
    """
    raise NotImplementedError

  def colours_of(self, images: UInt8[Array, 'B H W C']) -> Int[Array, 'B N']:
    """The number of each pixel's colour, row by row."""
    return self.model.colours_of(self.normalise(images))

  def __call__(
    self, batch: dict[str, Array], constants: Any, *, train: bool
  ) -> tuple[Float[Array, ''], dict[str, Array]]:
    del constants  # It needs none.
    images, weight = batch['image'], batch['weight']
    losses, logits = self.judge(images, self.keys(len(images)), train=train)
    loss = (losses * weight).mean()
    values = {'bits_per_pixel': loss / math.log(2)}
    if not self.trains_head:
      return loss, values
    correct = logits.argmax(-1) == batch['label']
    labels = (cross_entropy(logits, batch['label'], 'softmax') * weight).mean()
    values['accuracy'] = (correct * weight).mean()
    return loss + self.classification_weight * labels, values


def cross_entropy_of_colours(
  logits: Float[Array, 'B N K'], colours: Int[Array, 'B N']
) -> Float[Array, 'B N']:
  """The surprise of each pixel's colour, in nats."""
  return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), colours)
