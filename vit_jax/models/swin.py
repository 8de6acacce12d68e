"""Swin: attention in windows that are shifted from block to block (arXiv:2103.14030).

Four stages, each on half the grid of the one before; every block attends within windows, and every
second one within windows that are shifted by half of one. A map of any size is filled up to whole
windows. Blocks carry the names of a ViT's.
"""

from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax.models import arithmetic, layers
from vit_jax.models.dropout import Dropout
from vit_jax.models.encoder import REMAT
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.normalisation import LayerNorm
from vit_jax.models.protocol import Model
from vit_jax.models.swin_stage import Stage, build_stage
from vit_jax.models.windows import over_map
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

# Paper, section 3.3; digits and cifar are ours. Each head is 32 wide, of ours 16.
SIZES = {
  'digits': dict(width=32, depths=(2, 2), heads=(2, 4)),
  'cifar': dict(width=48, depths=(2, 2), heads=(3, 6)),
  'T': dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
  'S': dict(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
  'B': dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
  'L': dict(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}
VARIANTS = ['digits/1', 'cifar/2', 'T/4', 'S/4', 'B/4', 'L/4']
OFFICIAL = dict(variant='T/4', window=7, gelu='exact', epsilon=1e-5, qkv_bias=True)


class SwinTransformer(Model):
  """A Swin Transformer from normalised images to logits in float32; everything on the way by name.

  `stage_0` to `stage_3` are the maps `B h w C` after each stage, for dense tasks; blocks are
  counted through all stages: `block_11/tokens` is the map after the last one of a Swin-T, and
  `block_11/window/attention_weights`, `B n h t t`, are its weights in each of its windows.

  Attributes:
    patch_size: pixels of the first patches' side.
    width: of the first stage.
    window: side of a window, in tokens of its stage.
  """

  patch_size: int
  width: int
  window: int
  stages: tuple[Stage, ...]
  dropout: float = 0.0
  epsilon: float = 1e-5
  dtype: str = 'float32'
  initialisers: str = 'deit'

  @property
  def grid(self) -> tuple[int, int]:
    """(height, width) of the last map."""
    return self.maps[-1]

  @property
  def maps(self) -> list[tuple[int, int]]:
    """(height, width) of the map of each stage."""
    return grids(self.image_size, self.patch_size, len(self.stages))

  @property
  def cached_pixels(self) -> int:
    """Half of a ViT's: its first stage has 16 times the tokens.

    Swin-T, 16 and 32 pictures on two devices: parts of 4 take 0.92 and 0.90 of the time of 8.
    """
    return 2**18

  def blocks(self) -> list[tuple[str, Any]]:
    """The blocks of all stages, each with the name of its parameters."""
    return [
      (f'stage_{i}/block_{j}', block)
      for i, stage in enumerate(self.stages)
      for j, block in enumerate(stage.blocks)
    ]

  def layer_groups(self) -> tuple[str, ...]:
    """The embedding, each block (the first of a stage with the merging before it), and the head."""
    groups = [
      f'{name}/.*' if not name.endswith('block_0') else f'{name[:-7]}(merging|block_0)/.*'
      for name, _ in self.blocks()
    ]
    return '.*', *groups[:-1], f'{groups[-1]}|norm/.*', 'head/.*'

  def attention_map(self, outputs: dict[str, Any], block: int) -> Any:
    """Attention of a block over its whole map, 0 between windows (`windows.over_map`)."""
    weights = outputs.get(f'block_{block}/window/attention_weights')
    if weights is None:
      return None
    return over_map(self.blocks()[block][1].attention.windows, weights)

  def attention_grid(self, block: int) -> tuple[int, int]:
    """The (height, width) of a block's map."""
    return self.blocks()[block][1].attention.windows.grid

  def resampled(self) -> dict[str, str]:
    """The kernel that sees the pixels, and tables of offsets, which follow the window."""
    tables = {
      f'{name}/MultiHeadDotProductAttention_1/relative_position_bias_table': 'offsets'
      for name, _ in self.blocks()
    }
    return tables | {'embedding/kernel': 'channels'}

  def sizes(self) -> dict[str, Any]:
    """The width of the features, blocks, heads of the last stage, patch side and window."""
    last: Any = self.stages[-1].blocks[0].attention
    return {
      'width': self.width * 2 ** (len(self.stages) - 1),
      'depth': len(self.blocks()),
      'num_heads': last.num_heads,
      'first_width': self.width,
      'depths': [len(stage.blocks) for stage in self.stages],
      'heads': [stage.blocks[0].attention.num_heads for stage in self.stages],  # pyright: ignore
      'patch_size': self.patch_size,
      'window': self.window,
    }

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image, by part (`arithmetic.of_swin`)."""
    return arithmetic.of_swin(self)

  def summary(self) -> str:
    """The maps and the windows on them, and where they do not fit, in a line."""
    height, width = self.image_size
    filled = [
      f'{h} x {w}'
      for (h, w), stage in zip(self.maps, self.stages, strict=True)
      if (windows := stage.blocks[0].attention.windows).filled != windows.grid
    ]
    return (
      f'windows of {self.window} x {self.window} on maps of '
      f'{", ".join(f"{h} x {w}" for h, w in self.maps)}, from images of {height} x {width} x '
      f'{self.channels}'
      + (f'; filled up with zeros to whole windows: {", ".join(filled)}' if filled else '')
    )

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    x = Dropout(self.dropout)(self.first_map(images), train)
    outputs: dict[str, Array] = {}
    blocks: list[dict[str, Array]] = []
    for i, stage in enumerate(self.stages):
      x, named = stage.copy(name=f'stage_{i}')(x, train)
      blocks += named
      outputs[f'stage_{i}'] = x
    for i, named in enumerate(blocks):
      outputs |= {f'block_{i}/{key}': value for key, value in named.items()}
    x = LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(x)
    features = logits = x.astype(jnp.float32).mean((1, 2))
    if self.num_classes:
      initial, width = INITIALISERS[self.initialisers], features.shape[-1]
      kernel, bias = initial('head', width), initial('head_bias', width)
      head = layers.Dense(self.num_classes, kernel_init=kernel, bias_init=bias, name='head')
      logits = head(features)
    read = {'features': features, 'pre_logits': features, 'logits': logits}
    return logits, outputs | {'tokens': x} | read

  def first_map(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    """The first map: patches, which fill up an image that they do not divide, and a norm."""
    side = self.patch_size
    border = [(0, -length % side) for length in images.shape[1:3]]
    images = jnp.pad(images, ((0, 0), *border, (0, 0)))
    make = layers.PatchEmbedding(self.width, side, self.dtype, self.initialisers, name='embedding')
    x = LayerNorm(self.epsilon, dtype=self.dtype, name='embedding_norm')(make(images))
    return x.reshape(x.shape[0], images.shape[1] // side, images.shape[2] // side, self.width)


def grids(image_size: tuple[int, int], patch_size: int, count: int) -> list[tuple[int, int]]:
  """(height, width) of the map of each stage, every halving rounded up."""
  height, width = (-(-side // patch_size) for side in image_size)
  return [(-(-height // 2**i), -(-width // 2**i)) for i in range(count)]


def build(*, variant: str, image_size: tuple[int, int], **section) -> SwinTransformer:
  """A Swin such as 'T/4' for images of (height, width), which need not be divided by anything.

  Raises:
    ValueError: no such variant, or a value that is impossible.
  """
  check_values(section)
  size, _, patch = variant.partition('/')
  if size not in SIZES or not patch.isdecimal() or not int(patch):
    check_choice('config.model.variant', variant, VARIANTS)
  sizes = SIZES[size]
  depths, heads, width = sizes['depths'], sizes['heads'], sizes['width']
  rates = [float(rate) for rate in np.linspace(0, section['drop_path'], sum(depths))]
  stages, first = [], 0
  for i, grid in enumerate(grids(image_size, int(patch), len(depths))):
    own = rates[first : first + depths[i]]
    stages.append(build_stage(section, width * 2**i, heads[i], grid, own, merge=bool(i)))
    first += depths[i]
  own: Any = dict(width=width, patch_size=int(patch), stages=tuple(stages))
  return take(SwinTransformer, section, image_size=image_size, **own)


def check_values(section: dict[str, Any]) -> None:
  """Raises a ValueError for names, rates and sizes that cannot be."""
  check_choice('config.model.dtype', section['dtype'], layers.DTYPES)
  check_choice('config.model.initialisers', section['initialisers'], INITIALISERS)
  check_choice('config.model.remat', section['remat'], REMAT)
  if section['window'] < 1:
    raise ValueError(f'config.model.window={section["window"]} must be at least 1')
  for key in ('dropout', 'attention_dropout', 'projection_dropout', 'drop_path'):
    if not 0 <= section[key] < 1:
      raise ValueError(f'config.model.{key}={section[key]} must be in [0, 1)')


def section_of(facts: dict[str, Any]) -> dict[str, Any]:
  """The part of a section that a weight file decides, from what its arrays say.

  Raises:
    ValueError: no Swin that is known has these blocks and heads.
  """
  found = {key: facts[key] for key in ('width', 'depths', 'heads')}
  named = next((name for name, known in SIZES.items() if known == found), None)
  if named is None:
    raise ValueError(f'a Swin of {found}; known: {SIZES}')
  kept = ('window', 'qkv_bias', 'gelu', 'epsilon', 'channels', 'num_classes', 'image_size')
  variant = {'variant': f'{named}/{facts["embedding_side"]}'}
  return variant | {key: facts[key] for key in kept}
