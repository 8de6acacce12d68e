"""What is predicted of a patch that is hidden: its colour, sixteen colours, or its pixels.

The three targets of the ViT paper's appendix B.1.2 (arXiv:2010.11929). Colours are told from raw
pixel values, before anything is normalised.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt8
import numpy as np
import optax

LEVELS = 8  # bins a channel: 3 bits
VALUES = 256 // LEVELS  # pixel values in a bin
MOST = 4  # channels: 8 ** 4 = 4,096 classes


def cut(images: Num[Array, 'B H W C'], side: int) -> Num[Array, 'B N P P C']:
  """The patches of images, row by row, as a patch embedding sees them."""
  batch, height, width, channels = images.shape
  cells = images.reshape(batch, height // side, side, width // side, side, channels)
  return cells.swapaxes(2, 3).reshape(batch, -1, side, side, channels)


@dataclasses.dataclass(frozen=True)
class Colours:
  """The mean colour of a patch, or of each of its parts, as one of 8 ** channels classes.

  Each channel's mean lies in 0..255 and falls into a bin of 32 values, floor(mean / 32). That is
  computed in whole numbers, floor(sum / (32 * pixels)), so the mean is never rounded. The class has
  the bins as digits, the first channel's the highest: 64 r + 8 g + b; grey pictures have 8 classes.

  Attributes:
    side: of a patch, pixels.
    channels: of the images.
    normalise: not needed here.
    parts: along each side: 1 for the whole patch, 4 for sixteen parts, predicted in parallel.

  Raises:
    ValueError: the parts do not divide the side, or there are too many channels for classes.
  """

  side: int
  channels: int
  normalise: Callable
  parts: int = 1
  metrics: ClassVar[tuple[str, ...]] = ('accuracy',)

  def __post_init__(self):
    if self.side % self.parts:
      raise ValueError(
        f'config.objective.target=colours cuts a patch into {self.parts} x {self.parts} parts, '
        f'which do not divide its side of {self.side} px: take patches of 4, 8, 16, ... px '
        '(config.model.variant) or config.objective.target=mean_colour'
      )
    if self.channels > MOST:
      raise ValueError(
        f'colours of {self.channels} channels are {LEVELS} ** {self.channels} classes; at most '
        f'{MOST} channels have such: set config.objective.target=pixels'
      )

  @property
  def classes(self) -> int:
    """Classes of a colour."""
    return LEVELS**self.channels

  @property
  def outputs(self) -> int:
    """Numbers that a head tells of a patch: logits of each part, one part after another."""
    return self.parts**2 * self.classes

  @property
  def powers(self) -> Int[Array, 'C']:
    """What a bin of each channel counts in the number of a class."""
    return jnp.array([LEVELS**i for i in reversed(range(self.channels))])

  def targets(self, images: UInt8[Array, 'B H W C']) -> Int[Array, 'B N S']:
    """The class of each part of each patch, parts row by row."""
    patches = cut(images, self.side).astype(jnp.int32)
    size = self.side // self.parts
    cells = patches.reshape(*patches.shape[:2], self.parts, size, self.parts, size, self.channels)
    bins = cells.sum((3, 5)) // (size * size * VALUES)
    return (bins * self.powers).sum(-1).reshape(*patches.shape[:2], -1)

  def judge(
    self, outputs: Float[Array, 'B c O'], targets: Int[Array, 'B c S']
  ) -> dict[str, Float[Array, 'B c']]:
    """The softmax cross-entropy and accuracy of each patch, means over its parts."""
    logits = outputs.reshape(*targets.shape, self.classes)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    return {'loss': loss.mean(-1), 'accuracy': right.mean(-1)}

  def summarise(self, targets: Int[Array, 'B c S']) -> Int[Array, 'B c S']:
    """What `baseline` needs of each image, small enough to be kept of a whole split."""
    return targets.astype(jnp.int16)

  def baseline(self, kept: Int[np.ndarray, 'n c S']) -> float:
    """The entropy of the targets in nats, a mean over parts: the least loss of a blind guess."""
    parts = kept.reshape(-1, kept.shape[-1]).T
    return float(np.mean([entropy(np.bincount(part)) for part in parts]))

  def decide(self, outputs: Float[Array, 'B c O']) -> Int[Array, 'B c S']:
    """The likeliest classes, in the form of targets."""
    return outputs.reshape(*outputs.shape[:2], self.parts**2, self.classes).argmax(-1)

  def paint(self, targets: Int[Array, 'B c S']) -> UInt8[Array, 'B c P P C']:
    """Patches whose parts have the middle of their bins as colours."""
    bins = targets[..., None] // self.powers % LEVELS
    colours = (bins * VALUES + VALUES // 2).astype(jnp.uint8)
    size = self.side // self.parts
    cells = colours.reshape(*targets.shape[:2], self.parts, self.parts, self.channels)
    return cells.repeat(size, axis=2).repeat(size, axis=3)


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Every pixel of a patch as the model would see it, normalised: a regression, mean squared error.

  Attributes:
    side: of a patch, pixels.
    channels: of the images.
    normalise: uint8 images -> the model's input, linear in the pixels.
  """

  side: int
  channels: int
  normalise: Callable
  metrics: ClassVar[tuple[str, ...]] = ()

  @property
  def outputs(self) -> int:
    """Numbers that a head tells of a patch."""
    return self.side**2 * self.channels

  def targets(self, images: UInt8[Array, 'B H W C']) -> Float[Array, 'B N O']:
    """The normalised pixels of each patch, row by row."""
    patches = cut(self.normalise(images), self.side)
    return patches.reshape(*patches.shape[:2], -1)

  def judge(
    self, outputs: Float[Array, 'B c O'], targets: Float[Array, 'B c O']
  ) -> dict[str, Float[Array, 'B c']]:
    """The squared error of each patch, a mean over its pixels and channels."""
    return {'loss': ((outputs - targets) ** 2).mean(-1)}

  def summarise(self, targets: Float[Array, 'B c O']) -> Float[Array, 'B 2 O']:
    """Mean and mean square over the patches of each image."""
    return jnp.stack([targets.mean(1), (targets**2).mean(1)], axis=1)

  def baseline(self, kept: Float[np.ndarray, 'n 2 O']) -> float:
    """The variance of the targets around their mean patch: the least loss of a blind guess."""
    first, second = kept.astype(np.float64).mean(0)
    return float((second - first**2).mean())

  def decide(self, outputs: Float[Array, 'B c O']) -> Float[Array, 'B c O']:
    """The outputs as they are: they have the form of targets."""
    return outputs

  def paint(self, targets: Float[Array, 'B c O']) -> UInt8[Array, 'B c P P C']:
    """Patches of these pixels, as pixel values."""
    ends = (self.normalise(jnp.full((1, 1, 1, self.channels), end)) for end in (0.0, 255.0))
    low, high = (end.reshape(-1) for end in ends)
    cells = targets.reshape(*targets.shape[:2], self.side, self.side, self.channels)
    return jnp.clip(jnp.rint((cells - low) / (high - low) * 255), 0, 255).astype(jnp.uint8)


Target = Colours | Pixels
TARGETS: dict[str, Callable[..., Target]] = {
  'mean_colour': Colours,
  'colours': lambda **given: Colours(**given, parts=4),
  'pixels': Pixels,
}


def entropy(counts: Int[np.ndarray, 'K']) -> float:
  """The entropy of a histogram, in nats."""
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log(shares)).sum())
