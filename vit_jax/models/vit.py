"""The Vision Transformer: patches -> class token, registers, positions, blocks -> readout -> head.

"An Image is Worth 16x16 Words" (arXiv:2010.11929). The parameter tree is the layout of the
published `.npz` files, odd numbers included, so official weights need no table of names.
"""

from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import arithmetic, encoder, layers, position
from vit_jax.models import readout as readouts
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.normalisation import LayerNorm
from vit_jax.models.protocol import Model
from vit_jax.models.vit_sizes import (
  SIZES,
  SWIGLU,
  VARIANTS,
  decode_variant,
  name_of,
  register_names,
  sizes_of,
)
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

__all__ = ['OFFICIAL', 'SIZES', 'VARIANTS', 'VisionTransformer', 'assemble', 'build', 'section_of']

# What a key that is None means where no weights say otherwise: as in the official code.
OFFICIAL = dict(
  variant='B/16', gelu='tanh', epsilon=1e-6, readout='class_token', readout_weights='free',
  patch_index=1, class_token=True, qkv_bias=True, embedding_norm=False, qk_scale=None,
  layer_scale=0.0, positions='learned', position_at='input', registers=0,
)  # fmt: skip
RATES = ('dropout', 'attention_dropout', 'projection_dropout', 'drop_path')


class VisionTransformer(Model):
  """A Vision Transformer in three stages, each callable alone: `embed`, `encode`, `read`.

  Calling it returns the logits and a dictionary of everything computed on the way, by name: jit
  prunes whatever nobody uses. `build` makes one from a section and checks the values.
  """

  patch_size: int
  width: int
  Transformer: encoder.Encoder  # The published name of the encoder.
  readout: Any  # a Readout, or one between norms
  class_token: bool = True
  registers: int = 0
  pre_logits: int | None = None
  embedding_norm: bool = False
  head_bias: float = 0.0
  epsilon: float = 1e-6
  dtype: str = 'float32'
  initialisers: str = 'official'

  @property
  def grid(self) -> tuple[int, int]:
    """The patches as (height, width)."""
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  @property
  def prefix(self) -> tuple[str, ...]:
    """The tokens before the patches: ('class_token', 'register_1', ...), or none."""
    return self.prefix_of(self.class_token, self.registers)

  @staticmethod
  def prefix_of(class_token: bool, registers: int) -> tuple[str, ...]:
    """Names of the tokens before the patches, as a section decides them."""
    return *('class_token',) * class_token, *register_names(registers)

  @staticmethod
  def encoder_of(section: dict[str, Any], prefix: int, grid: tuple[int, int]) -> encoder.Encoder:
    """The encoder of a complete section, for so many tokens before the grid."""
    return encoder.build(section, prefix, grid)

  @property
  def embedding_side(self) -> int:
    """The patch side on what `stem` returns."""
    return self.patch_size

  def normalise(self, params: dict[str, Any], tokens: Any) -> Float[Array, '*B T D']:
    """Tokens `B T D` of any block, as the norm after the last one makes them."""
    return self.Transformer.normalise(params['Transformer'], tokens)

  def layer_groups(self) -> tuple[str, ...]:
    """Patterns for the embedding, each block (the last with the norm after it), and the task."""
    last = len(self.Transformer.blocks) - 1
    blocks = [f'Transformer/encoderblock_{i}/.*' for i in range(last)]
    top = f'Transformer/(encoderblock_{last}|encoder_norm)/.*'
    return '.*', *blocks, top, '(head|pre_logits|readout)/.*'

  def position_embeddings(self, params: dict[str, Any]) -> Any:
    """What is added to each token, learned or fixed: `T D`; None where nothing is."""
    return self.Transformer.places(params['Transformer'], self.sizes()['num_tokens'], self.width)

  def perturbation(self, block: int) -> str:
    """The name of what is added to the attention weights of a block, from 0."""
    return f'Transformer/encoderblock_{block}/MultiHeadDotProductAttention_1/attention_weights'

  def replacement(self, block: int) -> str:
    """The name of what replaces tokens before a block, from 0."""
    return f'Transformer/encoderblock_{block}'

  def resampled(self) -> dict[str, str]:
    """The positions, the tokens of the prefix, and the kernel that sees the pixels."""
    positions = {f'Transformer/{name}': how for name, how in self.Transformer.resampled().items()}
    return positions | {'embedding/kernel': 'channels', 'cls': 'prefix', 'reg': 'prefix'}

  def sizes(self) -> dict[str, Any]:
    """The patch side, tokens, width, depth, heads and MLP width."""
    block: Any = self.Transformer.blocks[0]
    return {
      'num_tokens': len(self.prefix) + self.grid[0] * self.grid[1],
      'width': self.width,
      'patch_size': self.patch_size,
      'depth': len(self.Transformer.blocks),
      'num_heads': block.attention.num_heads,
      'mlp_dim': block.mlp.mlp_dim,
    }

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image, by part (`arithmetic.of_transformer`)."""
    return arithmetic.of_transformer(self, self.channels)

  def summary(self) -> str:
    """The grid, the tokens and the images, in a line."""
    tokens = [name for name in self.prefix if not name.startswith('register_')]
    also = ''.join(f' and a {name.replace("_", " ")}' for name in tokens)
    also += f' and {self.registers} registers' * bool(self.registers)
    height, width = self.image_size
    return (
      f'tokens: {self.grid[0]} x {self.grid[1]} patches of {self.patch_size} px{also} = '
      f'{self.sizes()["num_tokens"]}, from images of {height} x {width} x {self.channels}'
    )

  def setup(self):
    initial, side = INITIALISERS[self.initialisers], self.embedding_side
    self.embedding = layers.PatchEmbedding(self.width, side, self.dtype, self.initialisers)
    if self.embedding_norm:
      self.patch_norm = LayerNorm(self.epsilon, dtype=self.dtype, name='embedding_norm')
    if self.class_token:
      self.cls = self.param('cls', initial('cls', self.width), (1, 1, self.width))
    if self.registers:  # Random: alike, they would stay alike.
      draw = initial('position', self.width)
      self.reg = self.param('reg', draw, (1, self.registers, self.width))
    if self.pre_logits:
      kernel, bias = (initial(role, self.width) for role in ('pre_logits', 'pre_logits_bias'))
      self.pre_logits_layer = layers.Dense(
        self.pre_logits, kernel_init=kernel, bias_init=bias, name='pre_logits'
      )
    if self.num_classes:
      self.head = self.make_head()

  def make_head(self) -> layers.Dense:
    """A head as the model's initialisers and `head_bias` begin one."""
    initial, start = INITIALISERS[self.initialisers], self.head_bias
    bias = nn.initializers.constant(start) if start else initial('head_bias', self.width)
    return layers.Dense(self.num_classes, kernel_init=initial('head', self.width), bias_init=bias)

  def stem(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w c']:
    """The map that is cut into patches: the image itself; a hybrid has a ResNet here."""
    return images

  def embed(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B N D']:
    """Normalised images -> patch embeddings, row by row.

    Raises:
      ValueError: the images are not of the model's size and channels.
    """
    self.check_images(images)
    tokens = self.embedding(self.stem(images))
    return self.patch_norm(tokens) if self.embedding_norm else tokens

  def encode(
    self, patches: Float[Array, 'B N D'], *, train: bool = False
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    """Patch embeddings -> normalised tokens of the last block, the prefix first."""
    x = patches
    if self.prefix:
      first = jnp.concatenate(self.prefix_tokens(), axis=1).astype(x.dtype)
      first = jnp.broadcast_to(first, (x.shape[0], *first.shape[1:]))
      x = jnp.concatenate([first, x], axis=1)
    return self.Transformer(x, train)

  def prefix_tokens(self) -> list[Float[Array, '1 n D']]:
    """The learned tokens of the prefix, in its order."""
    return [*([self.cls] if self.class_token else []), *self.register_tokens()]

  def register_tokens(self) -> list[Float[Array, '1 n D']]:
    """The registers, which nothing reads but attention (arXiv:2309.16588), in one array or none."""
    return [self.reg] if self.registers else []

  def read(self, tokens: Float[Array, 'B T D']) -> tuple[Float[Array, 'B ... K'], dict[str, Array]]:
    """Tokens -> logits in float32; features and pre-logits by name."""
    features = x = self.readout(tokens).astype(jnp.float32)
    if self.pre_logits:
      x = jnp.tanh(self.pre_logits_layer(x))
    logits = self.head(x) if self.num_classes else x
    return logits, {'features': features, 'pre_logits': x, 'logits': logits}

  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B ... K'], dict[str, Array]]:
    patches = self.embed(images)
    tokens, encoded = self.encode(patches, train=train)
    logits, read = self.read(readouts.with_earlier(self, tokens, encoded))
    return logits, {'patches': patches, **encoded, **read}


def decide(section: dict[str, Any]) -> dict[str, Any]:
  """What a complete section leaves to the variant: the kind of MLP."""
  size = section['variant'].partition('/')[0]
  return section | {'mlp': section['mlp'] or ('swiglu' if size in SWIGLU else 'plain')}


def build(*, variant: str, image_size: tuple[int, int], **section) -> VisionTransformer:
  """A ViT of `variant` such as 'B/16' for images of (height, width).

  The rest of the section goes to the parts, each of which takes what it has a field for; `width`,
  `depth`, `num_heads` and `mlp_dim` replace the variant's own. `num_classes=0`: no head.

  Raises:
    ValueError: a size that does not fit: patch and image, heads and width, patch index and grid.
  """
  return assemble(VisionTransformer, *decode_variant(variant), image_size, section)


def assemble(
  make: type[VisionTransformer],
  size: str,
  patch_size: int,
  image_size: tuple[int, int],
  section: dict[str, Any],
) -> Any:
  """A ViT, or a class `make` that is one, from a named size and a section, every value checked."""
  section = section | {
    key: value if section[key] is None else section[key] for key, value in SIZES[size].items()
  }
  if section['projection_dropout'] is None:
    section['projection_dropout'] = section['dropout']
  check_values(section)
  if any(side % patch_size or side < patch_size for side in image_size):
    raise ValueError(
      f'patches of {patch_size} x {patch_size} do not divide images of {image_size[0]} x '
      f'{image_size[1]}; change image_size or the patch side in variant={size}/{patch_size}'
    )
  prefix = make.prefix_of(section['class_token'], section['registers'])
  grid = (image_size[0] // patch_size, image_size[1] // patch_size)
  reader = readouts.of_model(section, prefix, grid)
  section['normed'] = readouts.earlier_of(section['readout'])
  parts = dict(readout=reader, Transformer=make.encoder_of(section, len(prefix), grid))
  return take(make, section, image_size=image_size, patch_size=patch_size, **parts)


def check_values(section: dict[str, Any]) -> None:
  """Raises a ValueError for names, rates and sizes that cannot be."""
  check_choice('config.model.dtype', section['dtype'], layers.DTYPES)
  check_choice('config.model.mlp', section['mlp'], layers.MLPS)
  check_choice('config.model.initialisers', section['initialisers'], INITIALISERS)
  check_choice('config.model.readout_weights', section['readout_weights'], readouts.WEIGHTS)
  for key in RATES:
    if not 0 <= section[key] < 1:
      raise ValueError(f'config.model.{key}={section[key]} must be in [0, 1)')
  for key in ('width', 'depth', 'num_heads', 'mlp_dim'):
    if section[key] < 1:
      raise ValueError(f'config.model.{key}={section[key]} must be at least 1')
  width, num_heads = section['width'], section['num_heads']
  if width % num_heads:
    raise ValueError(f'{num_heads=} must divide {width=}')
  for key in ('layer_scale', 'registers', 'pre_logits'):
    if (section.get(key) or 0) < 0:
      raise ValueError(f'config.model.{key}={section[key]} must be at least 0: none')
  check_choice('config.model.remat', section['remat'], encoder.REMAT)
  position.check(section)


def section_of(facts: dict[str, Any]) -> dict[str, Any]:
  """The part of a section that a weight file decides, from what its arrays say.

  Args:
    facts: as `formats/weights.py` finds them.
  """
  named = name_of(facts)
  patch = facts['embedding_side']
  section = {key: facts[key] for key in FROM_FILES} | ({} if named else sizes_of(facts))
  section['variant'] = f'{named or "B"}/{patch}'
  section['image_size'] = tuple(patch * cells for cells in facts['grid'])
  return section


FROM_FILES = (
  'class_token', 'pre_logits', 'readout', 'embedding_norm', 'qkv_bias', 'gelu', 'epsilon',
  'channels', 'num_classes', 'layer_scale', 'registers', 'mlp',
)  # fmt: skip
