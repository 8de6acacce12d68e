"""BiT: ResNet version 2 with group norm and standardised kernels (Big Transfer, arXiv:1912.11370).

Parameters carry the names of the published `.npz` files, without their prefix `resnet/`.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import arithmetic, resnet
from vit_jax.models.layers import DTYPES
from vit_jax.models.protocol import Model
from vit_jax.runtime.choices import check_choice

VARIANTS = ['R8x1', 'R26x1', 'R50x1', 'R50x3', 'R101x1', 'R101x3', 'R152x2', 'R152x4', 'R200x3']
OFFICIAL = dict(
  variant='R50x1', standardise='bit', group_norm_epsilon=1e-5, pool_padding='zero', root_kernel=7
)
POOL_PADDING = {'zero': 0.0, 'infinite': -jnp.inf}
HEADS = {'zero': nn.initializers.zeros, 'random': nn.initializers.lecun_normal()}
REMAT = ('none', 'blocks')  # What the backward pass computes again: nothing, or units.


class Conv(nn.Module):
  """A standardised convolution under the published name."""

  features: int
  size: int
  stride: int
  standardise: str
  dtype: str

  def setup(self):
    self.standardized_conv2d = resnet.StandardisedConv(
      self.features, self.size, self.stride, self.size // 2, self.standardise, self.dtype
    )

  def __call__(self, x: Float[Array, 'B H W I']) -> Float[Array, 'B h w O']:
    return self.standardized_conv2d(x)


class NormConv(nn.Module):
  """A group norm, ReLU and convolution; also returns what lies between, for the shortcut."""

  features: int
  size: int
  stride: int
  standardise: str
  epsilon: float
  dtype: str
  shortcut: int | None = None  # Its features, where it is projected.
  shortcut_stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W I']) -> tuple[Array, Array]:
    names = ('gamma', 'beta')
    x = nn.relu(resnet.GroupNorm(self.epsilon, names, name='group_norm')(x))
    settings = (self.standardise, self.dtype)
    y = resnet.StandardisedConv(
      self.features, self.size, self.stride, self.size // 2, *settings, name='standardized_conv2d'
    )(x)
    if self.shortcut:
      x = Conv(self.shortcut, 1, self.shortcut_stride, *settings, name='proj')(x)
    return y, x


class PreUnit(nn.Module):
  """A bottleneck that normalises before each convolution."""

  width: int
  stride: int
  standardise: str
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    settings = (self.standardise, self.epsilon, self.dtype)
    out = 4 * self.width
    projected = x.shape[-1] != out or self.stride > 1
    shortcut = out if projected else None
    y, pre = NormConv(self.width, 1, 1, *settings, shortcut, self.stride, name='a')(x)
    y, _ = NormConv(self.width, 3, self.stride, *settings, name='b')(y)
    y, _ = NormConv(out, 1, 1, *settings, name='c')(y)
    return y + (pre if projected else x)


class Stage(nn.Module):
  """A stage of units of one width; the first one may halve the grid."""

  count: int
  width: int
  stride: int
  settings: tuple[str, float, str]
  remat: bool
  unit: Any = PreUnit  # Made as one is.

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    make: Any = nn.remat(self.unit) if self.remat else self.unit
    for i in range(self.count):
      stride = 1 if i else self.stride
      x = make(self.width, stride, *self.settings, name=f'unit{i + 1:02}')(x)
    return x


class Head(nn.Module):
  """The head from mean features to logits; stored as a 1 x 1 convolution."""

  num_classes: int
  start: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B D']) -> Float[Array, 'B K']:
    shape = (1, 1, x.shape[-1], self.num_classes)
    kernel, bias = Parameters(shape, self.start, name='conv2d')()
    return x @ kernel[0, 0] + bias


class Parameters(nn.Module):
  """The kernel and bias of the head."""

  shape: tuple[int, ...]
  start: str

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    kernel = self.param('kernel', HEADS[self.start], self.shape)
    return kernel, self.param('bias', nn.initializers.zeros, self.shape[-1:])


class BigTransfer(Model):
  """A ResNet from normalised images to logits in float32; everything on the way by name."""

  depth: int
  width_factor: int
  head: str
  standardise: str
  group_norm_epsilon: float
  pool_padding: str
  root_kernel: int
  remat: str
  dtype: str

  @property
  def units(self) -> tuple[int, ...]:
    """The number of units in each stage."""
    return resnet.UNITS[self.depth]

  @property
  def middle(self) -> Any:
    """The arithmetic of a unit's middle, as `arithmetic.of_resnet` takes it; None: 3 x 3."""
    return None

  @property
  def unit(self) -> Any:
    """What makes a unit, of (width, stride, standardise, epsilon, dtype)."""
    return PreUnit

  @property
  def width(self) -> int:
    """The number of features that the head reads."""
    return 4 * 64 * 2 ** (len(self.units) - 1) * self.width_factor

  @property
  def grid(self) -> tuple[int, int]:
    """The (height, width) of the last map: every halving rounded up."""
    side = resnet.stride_of(self.units, self.root_kernel)
    return -(-self.image_size[0] // side), -(-self.image_size[1] // side)

  def layer_groups(self) -> tuple[str, ...]:
    """The root, each unit of each stage (the last one with the norm after it), and the head."""
    units = [
      f'block{stage}/unit{unit:02}/.*'
      for stage, count in enumerate(self.units, 1)
      for unit in range(1, count + 1)
    ]
    return '.*', *units[:-1], f'{units[-1]}|group_norm/.*', 'head/.*'

  def resampled(self) -> dict[str, str]:
    """The kernel that sees the pixels."""
    return {'root_block/standardized_conv2d/kernel': 'channels'}

  def sizes(self) -> dict[str, Any]:
    """The depth in layers, as in the name, and the width of the features."""
    return {'width': self.width, 'depth': self.depth}

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image: the root, each stage, the head."""
    width = 64 * self.width_factor
    found = arithmetic.of_resnet(
      self.image_size, self.channels, width, self.units, self.middle, self.root_kernel
    )
    return found | {'head': arithmetic.of_head((self.width,), 0, self.num_classes)}

  def summary(self) -> str:
    """The depth, the last map and the images, in a line."""
    height, width = self.image_size
    return (
      f'ResNet of {self.depth} layers: last map of {self.grid[0]} x {self.grid[1]} x {self.width}, '
      f'from images of {height} x {width} x {self.channels}'
    )

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    del train  # It has no dropout.
    x = self.root(images)
    outputs = {'root': x}
    width = 64 * self.width_factor
    settings = (self.standardise, self.group_norm_epsilon, self.dtype)
    for i, count in enumerate(self.units):
      stride = 2 if i else 1
      again = self.remat == 'blocks'
      make = Stage(count, width * 2**i, stride, settings, again, self.unit, name=f'block{i + 1}')
      x = make(x)
      outputs[f'block_{i}/tokens'] = x
    norm = resnet.GroupNorm(self.group_norm_epsilon, ('gamma', 'beta'), name='group_norm')
    x = nn.relu(norm(x))
    features = logits = x.astype(jnp.float32).mean((1, 2))
    if self.num_classes:
      logits = Head(self.num_classes, self.head, name='head')(features)
    read = {'features': features, 'pre_logits': features, 'logits': logits}
    return logits, outputs | {'tokens': x} | read

  def root(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    """The first two layers: 7 x 7 convolution and max-pool, each in steps of 2; or a small one."""
    step, settings = resnet.ROOTS[self.root_kernel], (self.standardise, self.dtype)
    width = 64 * self.width_factor
    x = Conv(width, self.root_kernel, step, *settings, name='root_block')(images)
    if step == 1:
      return x
    border = POOL_PADDING[self.pool_padding]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=border)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'VALID')


def build(*, variant: str, **section) -> BigTransfer:
  """A BiT ResNet such as 'R50x1': depth and width factor.

  Raises:
    ValueError: no such variant or value.
  """
  return assemble(BigTransfer, variant, section)


def assemble(make: Any, variant: str, section: dict[str, Any]) -> Any:
  """A ResNet, or a class `make` that is one, from a section whose every value is checked."""
  depth, _, factor = variant.removeprefix('R').partition('x')
  known = depth.isdecimal() and int(depth) in resnet.UNITS and factor.isdigit() and int(factor)
  if not known:
    check_choice('config.model.variant', variant, VARIANTS)
  check_choice('config.model.head', section['head'], HEADS)
  check_choice('config.model.standardise', section['standardise'], resnet.STANDARDISE)
  check_choice('config.model.pool_padding', section['pool_padding'], POOL_PADDING)
  if section['root_kernel'] not in resnet.ROOTS:
    known = ' or '.join(map(str, resnet.ROOTS))
    raise ValueError(f'config.model.root_kernel={section["root_kernel"]} must be {known}')
  check_choice('config.model.dtype', section['dtype'], DTYPES)
  check_choice('config.model.remat', section['remat'], REMAT)
  return make(depth=int(depth), width_factor=int(factor), **section)


def section_of(facts: dict[str, Any]) -> dict[str, Any]:
  """The part of a section that a weight file decides, from what its arrays say."""
  return {key: value for key, value in facts.items() if key != 'kind'}
