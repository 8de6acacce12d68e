"""Parts of ResNets with group norm and standardised kernels, for the hybrids and for BiT.

Weight standardisation: arXiv:1903.10520; group norm: arXiv:1803.08494, 32 groups throughout.
"""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

GROUPS = 32
# How a kernel is divided by its standard deviation, over height, width and input channels.
STANDARDISE = {
  'official': lambda mean, std, w: (w - mean) / (std + 1e-5),  # google-research/vision_transformer
  'bit': lambda mean, std, w: (w - mean) / jnp.sqrt(std**2 + 1e-10),  # big_transfer, big_vision
  'timm': lambda mean, std, w: (w - mean) / jnp.sqrt(std**2 + 1e-8),
}
# Steps of the root by the side of its kernel: 7 x 7 before a pool, each in steps of 2, as
# published; or 3 x 3 alone, as ResNets of pictures of 32 pixels have (arXiv:1512.03385, 4.2).
ROOTS = {7: 2, 3: 1}
# Units of each stage by depth in layers, three a unit and two more; up to 20 they are ours, small.
UNITS = {
  5: (1,),
  8: (1, 1),
  14: (1, 1, 1, 1),
  20: (2, 2, 2),
  26: (2, 2, 2, 2),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}


class StandardisedConv(nn.Module):
  """A convolution whose kernel has mean 0 and variance 1 for each output channel; no bias."""

  features: int
  size: int
  stride: int = 1
  padding: str | int = 'SAME'
  standardise: str = 'official'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W I']) -> Float[Array, 'B h w O']:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    axes = (0, 1, 2)
    mean, std = kernel.mean(axes, keepdims=True), kernel.std(axes, keepdims=True)
    kernel = STANDARDISE[self.standardise](mean, std, kernel)
    padding = self.padding
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      padding if isinstance(padding, str) else [(padding, padding)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def stride_of(units: tuple[int, ...], root: int) -> int:
  """Pixels from one place of the last map to the next: each stage after the first one halves it."""
  return ROOTS[root] ** 2 * 2 ** max(0, len(units) - 1)


class GroupNorm(nn.Module):
  """A normalisation over 32 groups of channels and all places; statistics in float32.

  `names` are those of scale and bias: BiT's files call them gamma and beta.
  """

  epsilon: float
  names: tuple[str, str] = ('scale', 'bias')
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B H W C']:
    channels = x.shape[-1]
    scale = self.param(self.names[0], nn.initializers.constant(self.scale), (channels,))
    bias = self.param(self.names[1], nn.initializers.zeros, (channels,))
    groups = x.astype(jnp.float32).reshape(*x.shape[:3], GROUPS, -1)
    mean = groups.mean((1, 2, 4), keepdims=True)
    centred = groups - mean
    variance = jnp.square(centred).mean((1, 2, 4), keepdims=True)
    y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
    return (y * scale + bias).astype(x.dtype)


class PostUnit(nn.Module):
  """A bottleneck that normalises after each convolution (ResNet version 1), as the hybrids have."""

  width: int
  stride: int
  standardise: str
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B H W C']
  ) -> tuple[Float[Array, 'B h w D'], dict[str, Array]]:
    shortcut, out = x, 4 * self.width
    if x.shape[-1] != out or self.stride > 1:
      shortcut = self.convolve(out, 1, self.stride, 'conv_proj')(x)
      shortcut = GroupNorm(self.epsilon, name='gn_proj')(shortcut)
    y = self.convolve(self.width, 1, 1, 'conv1')(x)
    y = nn.relu(GroupNorm(self.epsilon, name='gn1')(y))
    y, named = self.middle(y)
    y = nn.relu(GroupNorm(self.epsilon, name='gn2')(y))
    y = self.convolve(out, 1, 1, 'conv3')(y)
    return nn.relu(shortcut + GroupNorm(self.epsilon, scale=0.0, name='gn3')(y)), named

  def middle(self, x: Float[Array, 'B H W C']) -> tuple[Float[Array, 'B h w C'], dict[str, Array]]:
    """What sees more than one place, and what it computed on the way, by name."""
    return self.convolve(self.width, 3, self.stride, 'conv2')(x), {}

  def convolve(self, features: int, size: int, stride: int, name: str) -> StandardisedConv:
    return StandardisedConv(features, size, stride, 'SAME', self.standardise, self.dtype, name=name)


class PostStage(nn.Module):
  """A stage of units of one width; the first one may halve the grid."""

  count: int
  width: int
  stride: int
  standardise: str
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    for i in range(self.count):
      stride = 1 if i else self.stride
      settings = (self.standardise, self.epsilon, self.dtype)
      x, _ = PostUnit(self.width, stride, *settings, name=f'unit{i + 1}')(x)
    return x
