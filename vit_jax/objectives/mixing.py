"""Changes of a whole batch, inside the compiled step: mixup, cutmix, their mix, random erasing.

All are functions of a random key. Pictures are pixel values in 0..255, whatever their type.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

AREA = (0.02, 1 / 3)  # of an erased rectangle, as a share of the picture's (arXiv:1708.04896)
RATIO = (0.3, 1 / 0.3)  # its height over its width
TRIES = 10  # rectangles that may not fit before a picture is left as it is


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How the pictures of a batch are mixed with one another.

  Attributes:
    mixup: alpha of mixup's Beta distribution (arXiv:1710.09412); 0: no mixup.
    cutmix: alpha of cutmix's (arXiv:1905.04899); 0: no cutmix.
    probability: that a batch is mixed at all.
    switch_probability: with both, that a mixed batch has cutmix.
  """

  mixup: float = 0.0
  cutmix: float = 0.0
  probability: float = 1.0
  switch_probability: float = 0.5

  def __post_init__(self):
    for key in ('mixup', 'cutmix'):
      if getattr(self, key) < 0:
        raise ValueError(f'config.objective.{key}={getattr(self, key)} must be at least 0: none')
    for key, name in (('probability', 'mix_probability'), ('switch_probability',) * 2):
      if not 0 <= getattr(self, key) <= 1:
        raise ValueError(f'config.objective.{name}={getattr(self, key)} must be in 0..1')

  def __bool__(self) -> bool:
    return bool((self.mixup or self.cutmix) and self.probability)

  def __call__(
    self, key: Array, images: Float[Array, 'B H W C']
  ) -> tuple[Float[Array, 'B H W C'], Float[Array, '']]:
    """Each picture with the one before it in the batch, and the share of its own label.

    One draw for the batch, as BiT, big_vision and DeiT do it. The share is that of the pixels
    which are its own: for cutmix the exact one, after the rectangle was cut at the border.
    """
    kind, switch, draw = jax.random.split(key, 3)
    shares = self.shares(switch, draw, (images.shape[1], images.shape[2]))
    if self.probability < 1:
      shares = jnp.where(jax.random.uniform(kind) < self.probability, shares, 1.0)
    weights = shares[:, :, None]
    return weights * images + (1 - weights) * jnp.roll(images, 1, axis=0), shares.mean()

  def shares(self, switch: Array, draw: Array, size: tuple[int, int]) -> Float[Array, 'H W']:
    """The share of the picture itself at every place."""
    if not self.cutmix:
      return mixup_shares(draw, self.mixup, size)
    cut = cutmix_shares(draw, self.cutmix, size)
    if not self.mixup:
      return cut
    mixed = mixup_shares(draw, self.mixup, size)
    return jnp.where(jax.random.uniform(switch) < self.switch_probability, cut, mixed)


def mixup_shares(key: Array, alpha: float, size: tuple[int, int]) -> Float[Array, 'H W']:
  """One share everywhere: Beta(alpha, alpha), turned so that it is at least 1/2."""
  share = jax.random.beta(key, alpha, alpha)
  return jnp.full(size, jnp.maximum(share, 1 - share))


def cutmix_shares(key: Array, alpha: float, size: tuple[int, int]) -> Float[Array, 'H W']:
  """0 within a rectangle of the picture's form and 1 outside.

  Its area is 1 - Beta(alpha, alpha) of the picture's before the border cuts it; its centre lies
  anywhere.
  """
  area, centre = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(area, alpha, alpha))
  edges = jnp.array(size)
  cut = jnp.floor(edges * side).astype(int)
  start = jax.random.randint(centre, (2,), 0, edges) - cut // 2
  return 1.0 - rectangle(size, start, start + cut // 2 * 2)


def rectangle(size: tuple[int, int], start: Array, stop: Array) -> Bool[Array, 'H W']:
  """Which places lie in the rows and columns from `start` to before `stop`."""
  rows, columns = (
    (start[i] <= places) & (places < stop[i]) for i, places in enumerate(map(jnp.arange, size))
  )
  return rows[:, None] & columns


def erase(
  key: Array,
  images: Float[Array, 'B H W C'],
  probability: float,
  normalise: Callable[[Array], Array],
) -> Float[Array, 'B H W C']:
  """Random erasing in pixel mode (arXiv:1708.04896, timm): a rectangle becomes normal noise.

  Args:
    normalise: the model's, linear in the pixels: what it makes of the noise is of mean 0, std 1.
  """
  chosen, place, values = jax.random.split(key, 3)
  count, *size, channels = images.shape
  erased = jax.vmap(lambda key: erased_places(key, (size[0], size[1])))(
    jax.random.split(place, count)
  )
  erased &= (jax.random.uniform(chosen, (count,)) < probability)[:, None, None]
  low = normalise(jnp.zeros((1, 1, 1, channels)))
  high = normalise(jnp.full((1, 1, 1, channels), 255.0))
  # One draw for the batch: one for each picture took 17 ms of a CPU, a third of Ti/16's step.
  noise = (jax.random.normal(values, images.shape[1:]) - low) / (high - low) * 255
  return jnp.where(erased[..., None], noise, images)


def erased_places(key: Array, size: tuple[int, int]) -> Bool[Array, 'H W']:
  """A random rectangle: the first of ten that fits, else none."""
  area, ratio, place = jax.random.split(key, 3)
  areas = jax.random.uniform(area, (TRIES,), minval=AREA[0], maxval=AREA[1]) * size[0] * size[1]
  low, high = (jnp.log(edge) for edge in RATIO)
  ratios = jnp.exp(jax.random.uniform(ratio, (TRIES,), minval=low, maxval=high))
  sides = jnp.stack([jnp.sqrt(areas * ratios), jnp.sqrt(areas / ratios)], -1).round().astype(int)
  fits = (sides < jnp.array(size)).all(-1)
  chosen = sides[jnp.argmax(fits)]
  start = jax.random.randint(place, (2,), 0, jnp.maximum(jnp.array(size) - chosen + 1, 1))
  return rectangle(size, start, start + chosen) & fits.any()
