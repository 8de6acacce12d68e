"""Next-pixel prediction: each pixel's colour from those before it, row by row (iGPT)."""

from typing import Any

from jaxtyping import Array, Float, UInt8

from vit_jax.objectives.pixels import PixelObjective, cross_entropy_of_colours


class Autoregressive(PixelObjective):
  """The mean surprise of an image's pixels, each told from those before it; needs a causal model.

  It starts at the logarithm of the number of colours, as what tells them starts at zero.
  """

  def judge(
    self, images: UInt8[Array, 'B H W C'], keys: Any, *, train: bool = False
  ) -> tuple[Float[Array, 'B'], Float[Array, 'B K']]:
    """The loss of each image, in nats a pixel, and the logits of its classes."""
    del keys  # Nothing is drawn.
    pixels = self.normalise(images)
    tokens, _ = self.model.encode(self.model.embed(pixels), train=train)
    logits, named = self.model.read(tokens)
    losses = cross_entropy_of_colours(named['colour_logits'], self.model.colours_of(pixels))
    return losses.mean(-1), logits
