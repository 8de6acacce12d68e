"""Swin: attention in windows that are shifted from block to block (arXiv:2103.14030).

Four stages, each on half the grid of the one before; every block attends within windows, and every
second one within windows that are shifted by half of one. A map of any size is filled up to whole
windows. Blocks carry the names of a ViT's.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from vit_jax.models import attention, layers
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.protocol import Model
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

# Paper, section 3.3; digits is ours. Each head is 32 wide, of the digits 16.
SIZES = {
  'digits': dict(width=32, depths=(2, 2), heads=(2, 4)),
  'T': dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
  'S': dict(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
  'B': dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
  'L': dict(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}
VARIANTS = ['digits/1', 'T/4', 'S/4', 'B/4', 'L/4']
OFFICIAL = dict(variant='T/4', window=7, gelu='exact', epsilon=1e-5, qkv_bias=True)
REMAT = ('none', 'blocks')
FAR = -100.0  # added to logits of tokens that are neighbours by the shift alone


@dataclasses.dataclass(frozen=True)
class Windows:
  """How a map is cut: sizes of the map and of a window, and by how much windows are shifted.

  An axis that is no longer than a window is one, and is not shifted.
  """

  grid: tuple[int, int]
  size: tuple[int, int]
  shift: tuple[int, int]

  @classmethod
  def of(cls, grid: tuple[int, int], window: int, shifted: bool) -> 'Windows':
    """Windows of `window` x `window` on a map, in every second block shifted by half of one."""
    size = (min(window, grid[0]), min(window, grid[1]))
    shift = [window // 2 if shifted and side > window else 0 for side in grid]
    return cls(grid, size, (shift[0], shift[1]))

  @property
  def filled(self) -> tuple[int, int]:
    """The map's sides, filled up to whole windows."""
    (height, width), (h, w) = self.grid, self.size
    return -(-height // h) * h, -(-width // w) * w

  @property
  def count(self) -> tuple[int, int]:
    """Windows along each axis."""
    return self.filled[0] // self.size[0], self.filled[1] // self.size[1]

  def cut(self, x: Any) -> Any:
    """A map `B H W D` as windows `Bn t D`, filled up with zeros and shifted."""
    (height, width), (h, w), (rows, columns) = self.filled, self.size, self.count
    batch, depth = x.shape[0], x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)))
    if any(self.shift):
      x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
    x = x.reshape(batch, rows, h, columns, w, depth).swapaxes(2, 3)
    return x.reshape(batch * rows * columns, h * w, depth)

  def join(self, x: Any) -> Any:
    """Windows `Bn t D` as the map `B H W D`: what `cut` did, undone."""
    (height, width), (h, w), (rows, columns) = self.filled, self.size, self.count
    x = x.reshape(-1, rows, columns, h, w, x.shape[-1]).swapaxes(2, 3)
    x = x.reshape(-1, height, width, x.shape[-1])
    if any(self.shift):
      x = jnp.roll(x, self.shift, (1, 2))
    return x[:, : self.grid[0], : self.grid[1]]

  def offsets(self) -> np.ndarray:
    """For each query and key of a window the row of the table of relative positions: `t t`."""
    h, w = self.size
    y, x = (axis.reshape(-1) for axis in np.mgrid[:h, :w])
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)

  def apart(self) -> np.ndarray | None:
    """Pairs that do not belong together: `n t t`; None where nothing is shifted.

    After the roll a window may hold regions of the map that lie far from each other.
    """
    if not any(self.shift):
      return None
    axes = []
    for side, size, shift in zip(self.filled, self.size, self.shift, strict=True):
      places = np.arange(side)
      axes.append((places >= side - size).astype(int) + (places >= side - shift) * bool(shift))
    region = axes[0][:, None] * 3 + axes[1]
    (h, w), (rows, columns) = self.size, self.count
    cells = region.reshape(rows, h, columns, w).swapaxes(1, 2).reshape(rows * columns, h * w)
    return cells[:, :, None] != cells[:, None]


class WindowAttention(attention.Attention):
  """Self-attention within windows, with a learned bias for each offset and head (equation 4)."""

  windows: Windows = dataclasses.field(default_factory=lambda: Windows((1, 1), (1, 1), (0, 0)))

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], Float32[Array, 'B n h t t']]:
    batch, length, width = x.shape
    cut = self.windows.cut(x.reshape(batch, *self.windows.grid, width))
    heads, head_dim = self.num_heads, width // self.num_heads
    qkv = self.project(cut, False).reshape(*cut.shape[:2], 3, heads, head_dim)
    weights = self.weights(qkv, head_dim**-0.5, batch)
    value = qkv[:, :, 2].swapaxes(1, 2)
    y = jnp.matmul(weights.reshape(-1, *weights.shape[2:]).astype(self.dtype), value)
    out = attention.HeadProjection((heads, head_dim, width), 2, True, self.initialisers, name='out')
    kernel, bias = out()
    y = y.swapaxes(1, 2).reshape(-1, width)
    y = layers.product(y, kernel.reshape(-1, width).astype(self.dtype)) + bias.astype(self.dtype)
    return self.windows.join(y.reshape(cut.shape)).reshape(batch, length, width), weights

  def weights(
    self, qkv: Float[Array, 'Bn t 3 h d'], scale: float, batch: int
  ) -> Float32[Array, 'B n h t t']:
    """Softmax of q k^T / sqrt(d) + bias, of each window; nothing across the shift's borders."""
    query, key, _ = qkv.transpose(2, 0, 3, 1, 4)
    logits = jnp.einsum('bhtd,bhsd->bhts', query * scale, key, preferred_element_type=jnp.float32)
    size = (2 * self.windows.size[0] - 1) * (2 * self.windows.size[1] - 1)
    initial = nn.initializers.truncated_normal(0.02)
    table = self.param('relative_position_bias_table', initial, (size, self.num_heads))
    logits = logits + table[self.windows.offsets()].transpose(2, 0, 1)
    logits = logits.reshape(batch, -1, *logits.shape[1:])
    apart = self.windows.apart()
    if apart is not None:
      logits = logits + jnp.where(apart, FAR, 0.0)[:, None]
    return jax.nn.softmax(logits)


class PatchMerging(nn.Module):
  """Four neighbours side by side, normalised, and mapped to twice the width."""

  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(jnp.concatenate(quarters, -1))
    kernel = nn.initializers.truncated_normal(0.02)
    return layers.Dense(x.shape[-1] // 2, False, self.dtype, kernel, name='reduction')(x)


class Stage(nn.Module):
  """Blocks on one map `B H W D`; all stages but the first begin by merging patches.

  Attributes:
    blocks: as `layers.Block`, of `WindowAttention`.
    merging: what halves the map; None: nothing.
    again: whether the backward pass computes blocks again instead of keeping what they made.
  """

  blocks: tuple[layers.Block, ...]
  merging: PatchMerging | None
  again: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B H W C'], train: bool
  ) -> tuple[Float[Array, 'B h w D'], dict[str, Array]]:
    if self.merging is not None:
      x = self.merging.copy(name='merging')(x)
    shape, outputs = x.shape, {}
    x = x.reshape(shape[0], -1, shape[-1])
    for i, block in enumerate(self.blocks):
      call: Any = nn.remat(layers.Block.__call__, static_argnums=(2,)) if self.again else None
      named_block = block.copy(name=f'block_{i}')
      x, named = call(named_block, x, train) if call else named_block(x, train)
      outputs |= {f'unit_{i}/{key}': value for key, value in named.items() if key != 'tokens'}
    return x.reshape(shape), outputs


class SwinTransformer(Model):
  """A Swin Transformer from normalised images to logits in float32; everything on the way by name.

  `block_0/tokens` to `block_3/tokens` are the maps `B h w C` after each stage, for dense tasks;
  `block_0/unit_1/attention_weights`, `B n h t t`, are those of a block in its windows.

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
    return grids(self.image_size, self.patch_size, len(self.stages))[-1]

  def names(self) -> list[str]:
    """The blocks by the names of their parameters."""
    return [
      f'stage_{i}/block_{j}'
      for i, stage in enumerate(self.stages)
      for j in range(len(stage.blocks))
    ]

  def layer_groups(self) -> tuple[str, ...]:
    """The embedding, each block (the first of a stage with the merging before it), and the head."""
    groups = [
      f'{name}/.*' if not name.endswith('block_0') else f'{name[:-7]}(merging|block_0)/.*'
      for name in self.names()
    ]
    return '.*', *groups[:-1], f'{groups[-1]}|norm/.*', 'head/.*'

  def resampled(self) -> dict[str, str]:
    """The kernel that sees the pixels, and tables of offsets, which follow the window."""
    tables = {
      f'{name}/MultiHeadDotProductAttention_1/relative_position_bias_table': 'offsets'
      for name in self.names()
    }
    return tables | {'embedding/kernel': 'channels'}

  def sizes(self) -> dict[str, Any]:
    """The width of the features, blocks, heads of the last stage, patch side and window."""
    last: Any = self.stages[-1].blocks[0].attention
    return {
      'width': self.width * 2 ** (len(self.stages) - 1),
      'depth': len(self.names()),
      'num_heads': last.num_heads,
      'patch_size': self.patch_size,
      'window': self.window,
    }

  def summary(self) -> str:
    """The maps and the windows on them, in a line."""
    maps = grids(self.image_size, self.patch_size, len(self.stages))
    height, width = self.image_size
    return (
      f'windows of {self.window} x {self.window} on maps of '
      f'{", ".join(f"{h} x {w}" for h, w in maps)}, from images of {height} x {width} x '
      f'{self.channels}'
    )

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    x = self.embed(images)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    outputs: dict[str, Array] = {}
    for i, stage in enumerate(self.stages):
      x, named = stage.copy(name=f'stage_{i}')(x, train)
      outputs |= {f'block_{i}/{key}': value for key, value in named.items()}
      outputs[f'block_{i}/tokens'] = x
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(x)
    features = logits = x.astype(jnp.float32).mean((1, 2))
    if self.num_classes:
      initial, width = INITIALISERS[self.initialisers], features.shape[-1]
      kernel, bias = initial('head', width), initial('head_bias', width)
      head = layers.Dense(self.num_classes, kernel_init=kernel, bias_init=bias, name='head')
      logits = head(features)
    read = {'features': features, 'pre_logits': features, 'logits': logits}
    return logits, outputs | {'tokens': x} | read

  def embed(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    """The first map: patches, which fill up an image that they do not divide, and a norm."""
    side = self.patch_size
    border = [(0, -length % side) for length in images.shape[1:3]]
    images = jnp.pad(images, ((0, 0), *border, (0, 0)))
    make = layers.PatchEmbedding(self.width, side, self.dtype, self.initialisers, name='embedding')
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='embedding_norm')(make(images))
    return x.reshape(len(x), images.shape[1] // side, images.shape[2] // side, self.width)


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
  if size not in SIZES or not patch.isdigit() or not int(patch):
    check_choice('config.model.variant', variant, VARIANTS)
  sizes = SIZES[size]
  depths, heads, width = sizes['depths'], sizes['heads'], sizes['width']
  rates = list(np.linspace(0, section['drop_path'], sum(depths)))
  stages, first = [], 0
  for i, grid in enumerate(grids(image_size, int(patch), len(depths))):
    own = rates[first : first + depths[i]]
    stages.append(stage_of(section, width * 2**i, heads[i], grid, own, merge=bool(i)))
    first += depths[i]
  own: Any = dict(width=width, patch_size=int(patch), stages=tuple(stages))
  return take(SwinTransformer, section, image_size=image_size, **own)


def stage_of(
  section: dict[str, Any],
  width: int,
  num_heads: int,
  grid: tuple[int, int],
  rates: list[float],
  merge: bool,
) -> Stage:
  """A stage of so many blocks as there are rates of drop path."""
  norm = nn.LayerNorm(section['epsilon'], dtype=section['dtype'])
  mlp = take(layers.MlpBlock, section, mlp_dim=4 * width)
  blocks = []
  for j, rate in enumerate(rates):
    windows = Windows.of(grid, section['window'], shifted=bool(j % 2))
    attend = WindowAttention(
      num_heads, section['qkv_bias'], dtype=section['dtype'], windows=windows,
      initialisers=section['initialisers'],
    )  # fmt: skip
    blocks.append(layers.Block(attend, mlp, norm, section['dropout'], drop_path=float(rate)))
  merging = PatchMerging(section['epsilon'], section['dtype']) if merge else None
  return Stage(tuple(blocks), merging, section['remat'] == 'blocks')


def check_values(section: dict[str, Any]) -> None:
  """Raises a ValueError for names, rates and sizes that cannot be."""
  check_choice('config.model.dtype', section['dtype'], layers.DTYPES)
  check_choice('config.model.initialisers', section['initialisers'], INITIALISERS)
  check_choice('config.model.remat', section['remat'], REMAT)
  if section['window'] < 1:
    raise ValueError(f'config.model.window={section["window"]} must be at least 1')
  for key in ('dropout', 'drop_path'):
    if not 0 <= section[key] < 1:
      raise ValueError(f'config.model.{key}={section[key]} must be in [0, 1)')
