"""Masked patch prediction: learn without labels what hidden patches look like.

The ViT paper's self-supervision (arXiv:2010.11929, appendix B.1.2): patch embeddings are corrupted,
and the output of each corrupted patch tells what was there.
"""

import functools
import math
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from vit_jax.objectives.patch_targets import TARGETS, Target
from vit_jax.objectives.protocol import Objective
from vit_jax.runtime.choices import check_choice

# Shares of the corrupted patches: the mask; another patch of the image. The rest stay as they are.
MASKED, MOVED = 0.8, 0.1


class Corruption(NamedTuple):
  """Which patches of images are corrupted, and what stands in their place.

  Attributes:
    places: `B c`, the corrupted patches of each image, no one twice, counted from 0.
    sources: `B c`, the patches whose embeddings stand there where no mask does: others, or their
      own.
    masked: `B c`, whether the mask stands there.
  """

  places: Int[Array, '...']
  sources: Int[Array, '...']
  masked: Bool[Array, '...']


class MaskedPatches(Objective):
  """Predicts corrupted patches; the loss is a mean over those of an image, then over the batch.

  Of each image an exact number of patch embeddings is corrupted, `corruption` of them, rounded to
  the nearest (the paper does not say whether it is exact). Each of these is, by a draw of its own,
  the learned mask (80 %), the uncorrupted embedding of another patch of the same image (10 %), or
  unchanged (10 %); all three count in the loss. Positions are added afterwards, and the class token
  is left alone. A hybrid's patches have seen their neighbours before any is hidden.

  The mask and the head of predictions lie beside the model, which stays an ordinary one; its own
  head is there, zero, and not trained. Predictions start at zero: a loss of log(512) for colours.

  Attributes:
    target: a row of TARGETS. `mean_colour`: of the patch, 512 classes; `colours`: of its 4 x 4
      parts, 16 x 512; `pixels`: all of them, mean squared error.
    corruption: share of the patches of an image; the paper has 0.5, and tried 0.15.
  """

  target: str = 'mean_colour'
  corruption: float = 0.5
  streams: ClassVar[tuple[str, ...]] = ('dropout', 'corruption')
  trains_head: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.objective.target', self.target, TARGETS)
    if not 0 < self.corruption <= 1:
      raise ValueError(f'config.objective.corruption={self.corruption} must be in (0, 1]')
    if not self.model.has_stages:
      raise ValueError(
        f'config.objective.name=masked_patches hides patches between the stages of a model, and a '
        f'{type(self.model).__name__} has none; take a model of patches: config.model.name=vit, say'
      )
    if self.num_patches < 2:
      raise ValueError(
        'config.objective.name=masked_patches needs at least two patches an image; take smaller '
        'ones (config.model.variant) or larger images (config.data.image_size)'
      )
    self.kind  # Refuses patches that it cannot cut.  # noqa: B018

  @property
  def kind(self) -> Target:
    """What is predicted, of patches of this model."""
    side, channels = self.model.sizes()['patch_size'], self.model.channels
    return TARGETS[self.target](side=side, channels=channels, normalise=self.normalise)

  @property
  def metrics(self) -> tuple[str, ...]:
    """The accuracy of colours, over corrupted patches; pixels have none."""
    return self.kind.metrics

  @property
  def num_patches(self) -> int:
    """Patches of an image."""
    return math.prod(self.model.grid or (0,))

  @property
  def num_corrupted(self) -> int:
    """Corrupted patches of an image."""
    return max(1, math.floor(self.corruption * self.num_patches + 0.5))

  def batch_shapes(
    self, image_shape: tuple[int, int, int], batch_size: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What is read of a batch: no labels, so that any data will do."""
    shapes = super().batch_shapes(image_shape, batch_size)
    return {name: shape for name, shape in shapes.items() if name != 'label'}

  def setup(self):
    self.mask_token = self.param(
      'mask_token', nn.initializers.normal(0.02), (self.model.sizes()['width'],)
    )
    self.predict = nn.Dense(self.kind.outputs, kernel_init=nn.initializers.zeros)

  def __call__(
    self, batch: dict[str, Array], constants: Any, *, train: bool
  ) -> tuple[Float[Array, ''], dict[str, Array]]:
    del constants  # It needs none.
    keys = jax.random.split(self.make_rng('corruption'), len(batch['image']))
    values, _ = self.judge(batch['image'], keys, train=train)
    means = {name: (x.mean(-1) * batch['weight']).mean() for name, x in values.items()}
    return means.pop('loss'), means

  def judge(
    self, images: UInt8[Array, 'B H W C'], keys: Any, *, train: bool = False
  ) -> tuple[dict[str, Float[Array, 'B c']], Array]:
    """Loss (and accuracy) of each corrupted patch, and what was to be predicted, `B c ...`.

    Args:
      keys: a random key for each image, `B`.
    """
    drawn, outputs = self.predict_patches(images, keys, train=train)
    targets = pick(self.kind.targets(images), drawn.places)
    return self.kind.judge(outputs, targets), targets

  def predict_patches(
    self, images: Num[Array, 'B H W C'], keys: Any, *, train: bool = False
  ) -> tuple[Corruption, Float[Array, 'B c O']]:
    """What is corrupted, and the outputs of the head for it, in float32.

    Args:
      images: pixel values in 0..255.
      keys: a random key for each image, `B`.
    """
    draw_each = functools.partial(draw, count=self.num_patches, corrupted=self.num_corrupted)
    drawn = jax.vmap(draw_each)(keys)
    patches = hide(self.model.embed(self.normalise(images)), self.mask_token, drawn)
    tokens, _ = self.model.encode(patches, train=train)
    if self.is_initializing():
      self.model.read(tokens)  # Its head exists from the start, as in any other run.
    seen = pick(tokens[:, len(self.model.prefix) :], drawn.places)
    return drawn, self.predict(seen.astype(jnp.float32))


def draw(key: Array, count: int, corrupted: int) -> Corruption:
  """The corruption of one image: `corrupted` of its `count` patches, as a function of the key."""
  which, how, whence = jax.random.split(key, 3)
  places = jnp.argsort(jax.random.uniform(which, (count,)))[:corrupted]
  others = (places + jax.random.randint(whence, (corrupted,), 1, count)) % count
  kind = jax.random.uniform(how, (corrupted,))
  moved = (kind >= MASKED) & (kind < MASKED + MOVED)
  return Corruption(places, jnp.where(moved, others, places), kind < MASKED)


def hide(
  patches: Float[Array, 'B N D'], mask: Float[Array, 'D'], drawn: Corruption
) -> Float[Array, 'B N D']:
  """Patch embeddings of which the drawn ones are corrupted."""
  seen = pick(patches, drawn.sources)
  seen = jnp.where(drawn.masked[..., None], mask.astype(patches.dtype), seen)
  return jax.vmap(lambda own, places, new: own.at[places].set(new))(patches, drawn.places, seen)


def pick(x: Array, places: Int[Array, 'B c']) -> Array:
  """Some of the patches of each image, `B N ...` -> `B c ...`."""
  return jax.vmap(lambda own, some: own[some])(x, places)
