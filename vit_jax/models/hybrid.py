"""Hybrids: a ResNet's feature map instead of pixels goes into the Transformer (paper, section 3.1).

Parameters carry the names of the published `.npz` files: the ResNet lies beside `Transformer`.
"""

from typing import Any, NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.models import arithmetic, resnet, vit, vit_sizes
from vit_jax.runtime.choices import check_choice


class Stem(NamedTuple):
  """The ResNet before a Transformer.

  Attributes:
    units: of each stage.
    side: of a patch on the feature map.
    root: side of the first kernel, a key of `resnet.ROOTS`.
  """

  units: tuple[int, ...]
  side: int = 1
  root: int = 7

  @property
  def stride(self) -> int:
    """Pixels from one place of the feature map to the next."""
    return resnet.stride_of(self.units, self.root)


# '/16' moves the last stage's units into the third one (paper, section 4.1); 'R+' is the root
# alone, in steps of 32 pixels in spite of its name (the official configs). R5 and R20 are ours.
HYBRIDS = {
  'R5+digits/4': Stem(resnet.UNITS[5]),
  'R20+cifar/4': Stem(resnet.UNITS[20], root=3),
  'R+Ti/16': Stem((), side=8),
  'R26+S/32': Stem(resnet.UNITS[26]),
  'R50+B/16': Stem((3, 4, 9)),
  'R50+B/32': Stem(resnet.UNITS[50]),
  'R50+L/16': Stem((3, 4, 9)),
  'R50+L/32': Stem(resnet.UNITS[50]),
}
VARIANTS = list(HYBRIDS)
OFFICIAL = vit.OFFICIAL | dict(
  variant='R50+B/16', mlp='plain', standardise='official', group_norm_epsilon=1e-6,
)  # fmt: skip


class HybridVisionTransformer(vit.VisionTransformer):
  """A ViT on the feature map of a ResNet (version 1, group norm, standardised kernels)."""

  units: tuple[int, ...] = ()
  root: int = 7
  standardise: str = 'official'
  group_norm_epsilon: float = 1e-6

  @property
  def stride(self) -> int:
    """Pixels from one place of the feature map to the next."""
    return resnet.stride_of(self.units, self.root)

  @property
  def embedding_side(self) -> int:
    return self.patch_size // self.stride

  def resampled(self) -> dict[str, str]:
    """The positions, and the kernel of the root: the embedding sees features, not colours."""
    kinds = super().resampled() | {'conv_root/kernel': 'channels'}
    return {name: kind for name, kind in kinds.items() if name != 'embedding/kernel'}

  def sizes(self) -> dict[str, Any]:
    """Those of a ViT, and the side of the first kernel."""
    return super().sizes() | {'root_kernel': self.root}

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image: of the ResNet, then as a ViT's."""
    stem = arithmetic.of_resnet(self.image_size, self.channels, 64, self.units, root=self.root)
    features = 64 * 2 ** (len(self.units) + 1) if self.units else 64
    return stem | arithmetic.of_transformer(self, features)

  def setup(self):
    super().setup()
    settings = (self.standardise, self.group_norm_epsilon, self.dtype)
    self.conv_root = resnet.StandardisedConv(
      64, self.root, resnet.ROOTS[self.root], 'SAME', self.standardise, self.dtype
    )
    self.gn_root = resnet.GroupNorm(self.group_norm_epsilon)
    self.stages = [
      resnet.PostStage(count, 64 * 2**i, 2 if i else 1, *settings, name=f'block{i + 1}')
      for i, count in enumerate(self.units)
    ]

  def stem(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w c']:
    x = nn.relu(self.gn_root(self.conv_root(images)))
    if resnet.ROOTS[self.root] > 1:
      x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for stage in self.stages:
      x = stage(x)
    return x


def build(*, variant: str, image_size: tuple[int, int], **section) -> HybridVisionTransformer:
  """A hybrid such as 'R50+B/16'; the other arguments are those of `vit.build`.

  Raises:
    ValueError: no such variant, or a size that does not fit.
  """
  check_choice('config.model.variant', variant, HYBRIDS)
  check_choice('config.model.standardise', section['standardise'], resnet.STANDARDISE)
  section['units'], section['root'] = HYBRIDS[variant].units, HYBRIDS[variant].root
  size, patch = size_of(variant), patch_of(variant)
  return vit.assemble(HybridVisionTransformer, size, patch, image_size, section)


def section_of(facts: dict[str, Any]) -> dict[str, Any]:
  """The part of a section that a weight file decides, from what its arrays say.

  Raises:
    ValueError: no hybrid that is known has these stages and sizes.
  """
  named = vit_sizes.name_of(facts)
  found = Stem(facts['units'], facts['embedding_side'], facts['root'])
  known = {stem: name for name, stem in HYBRIDS.items() if size_of(name) == named}
  if found not in known:
    raise ValueError(
      f'a hybrid of {found} and {vit_sizes.sizes_of(facts)}; known of these sizes: {known}'
    )
  more = ('standardise', 'group_norm_epsilon')
  patch = patch_of(known[found])
  return vit.section_of(facts) | {key: facts[key] for key in more} | {
    'variant': known[found], 'image_size': tuple(patch * cells for cells in facts['grid'])
  }  # fmt: skip


def size_of(variant: str) -> str:
  """The size of the Transformer in a variant: 'R50+B/16' -> 'B'."""
  return variant.partition('+')[2].partition('/')[0]


def patch_of(variant: str) -> int:
  """Pixels from one patch to the next."""
  return HYBRIDS[variant].side * HYBRIDS[variant].stride
