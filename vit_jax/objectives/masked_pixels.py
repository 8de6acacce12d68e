"""Hidden pixels told from all others: iGPT's BERT objective."""

from typing import Any, ClassVar

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from vit_jax.objectives.pixels import PixelObjective, cross_entropy_of_colours


class MaskedPixels(PixelObjective):
  """The mean surprise of an image's hidden pixels; needs a model that is not causal.

  Each pixel is hidden by a draw of its own; its embedding then is zero, with no learned mask, and
  its position is added as ever. Hidden pixels alone are in the loss: a mean over those of an image,
  then over the batch, as the published code has it (the paper sums over an image).

  Attributes:
    masking: the chance of a pixel to be hidden; the paper has 0.15, and more than 0.2 hurts.
  """

  masking: float = 0.15
  causal: ClassVar[bool] = False
  streams: ClassVar[tuple[str, ...]] = ('dropout', 'masking')

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.masking <= 1:
      raise ValueError(f'config.objective.masking={self.masking} must be in (0, 1]')

  def keys(self, count: int) -> Any:
    """A random key for each image of a batch."""
    return jax.random.split(self.make_rng('masking'), count)

  def draw(self, keys: Any, count: int) -> Bool[Array, 'B N']:
    """Which of the `count` pixels of each image are hidden."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, self.masking, (count,)))(keys)

  def judge(
    self, images: UInt8[Array, 'B H W C'], keys: Any, *, train: bool = False
  ) -> tuple[Float[Array, 'B'], Float[Array, 'B K']]:
    """The loss of each image, in nats a hidden pixel, and the logits of its classes.

    Args:
      keys: a random key for each image, `B`.
    """
    pixels = self.normalise(images)
    patches = self.model.embed(pixels)
    hidden = self.draw(keys, patches.shape[1])
    tokens, _ = self.model.encode(jnp.where(hidden[..., None], 0, patches), train=train)
    logits, named = self.model.read(tokens)
    losses = cross_entropy_of_colours(named['colour_logits'], self.model.colours_of(pixels))
    return (losses * hidden).sum(-1) / jnp.maximum(hidden.sum(-1), 1), logits
