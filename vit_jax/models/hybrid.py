"""Hybrids: a ResNet's feature map instead of pixels goes into the Transformer (paper, section 3.1).

Parameters carry the names of the published `.npz` files: the ResNet lies beside `Transformer`.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.choices import choose
from vit_jax.models import resnet, vit

# Units of each stage and the patch side on the feature map. '/16' moves the last stage's units
# into the third one (paper, section 4.1); 'R+' is the root alone, in steps of 32
# pixels in spite of its name (the official configs).
HYBRIDS = {
  'R+Ti/16': ((), 8),
  'R26+S/32': (resnet.UNITS[26], 1),
  'R50+B/16': ((3, 4, 9), 1),
  'R50+B/32': (resnet.UNITS[50], 1),
  'R50+L/16': ((3, 4, 9), 1),
  'R50+L/32': (resnet.UNITS[50], 1),
}
VARIANTS = list(HYBRIDS)
OFFICIAL = vit.OFFICIAL | dict(variant='R50+B/16', standardise='official', group_norm_epsilon=1e-6)


class HybridVisionTransformer(vit.VisionTransformer):
  """A ViT on the feature map of a ResNet (version 1, group norm, standardised kernels)."""

  units: tuple[int, ...] = ()
  standardise: str = 'official'
  group_norm_epsilon: float = 1e-6

  @property
  def stride(self) -> int:
    """Pixels from one place of the feature map to the next."""
    return 4 * 2 ** max(0, len(self.units) - 1)

  @property
  def embedding_side(self) -> int:
    return self.patch_size // self.stride

  def setup(self):
    super().setup()
    settings = (self.standardise, self.group_norm_epsilon, self.dtype)
    self.conv_root = resnet.StandardisedConv(64, 7, 2, 'SAME', self.standardise, self.dtype)
    self.gn_root = resnet.GroupNorm(self.group_norm_epsilon)
    self.stages = [
      resnet.PostStage(count, 64 * 2**i, 2 if i else 1, *settings, name=f'block{i + 1}')
      for i, count in enumerate(self.units)
    ]

  def stem(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w c']:
    x = nn.relu(self.gn_root(self.conv_root(images)))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for stage in self.stages:
      x = stage(x)
    return x


def build(
  *, variant: str, standardise: str, group_norm_epsilon: float, **section
) -> HybridVisionTransformer:
  """A hybrid such as 'R50+B/16'; the other arguments are those of `vit.build`.

  Raises:
    ValueError: no such variant, or a size that does not fit.
  """
  choose('config.model.variant', variant, HYBRIDS)
  choose('config.model.standardise', standardise, resnet.STANDARDISE)
  units, _ = HYBRIDS[variant]
  return vit.build(
    variant=f'{size_of(variant)}/{patch_of(variant)}',
    make=HybridVisionTransformer,
    units=units,
    standardise=standardise,
    group_norm_epsilon=group_norm_epsilon,
    **section,
  )


def size_of(variant: str) -> str:
  """The Transformer's: 'R50+B/16' -> 'B'."""
  return variant.partition('+')[2].partition('/')[0]


def patch_of(variant: str) -> int:
  """Pixels from one patch to the next."""
  units, side = HYBRIDS[variant]
  return side * 4 * 2 ** max(0, len(units) - 1)
