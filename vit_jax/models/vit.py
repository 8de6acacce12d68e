"""The Vision Transformer: patches -> class token, positions, blocks -> readout -> head.

"An Image is Worth 16x16 Words" (arXiv:2010.11929). The parameter tree is the layout of the
published `.npz` files, odd numbers included, so official weights need no table of names.
"""

import difflib
from typing import TypeVar

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.choices import choose
from vit_jax.models import encoder, initialisers, layers
from vit_jax.models import readout as readouts
from vit_jax.models.initialisers import INITIALISERS

# Paper, table 1; Ti and S from DeiT; g and G from arXiv:2106.04560; digits and cifar are ours.
SIZES = {
  'digits': dict(width=64, depth=4, mlp_dim=128, num_heads=4),
  'cifar': dict(width=192, depth=9, mlp_dim=768, num_heads=3),
  'mu': dict(width=32, depth=1, mlp_dim=128, num_heads=2),
  'Ti': dict(width=192, depth=12, mlp_dim=768, num_heads=3),
  'S': dict(width=384, depth=12, mlp_dim=1536, num_heads=6),
  'B': dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
  'L': dict(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  'H': dict(width=1280, depth=32, mlp_dim=5120, num_heads=16),
  'g': dict(width=1408, depth=40, mlp_dim=6144, num_heads=16),
  'G': dict(width=1664, depth=48, mlp_dim=8192, num_heads=16),
}
# Any size goes with any patch side ('S/4'); these are the ones that are listed.
VARIANTS = ['digits/2', 'cifar/4', 'mu/16']
VARIANTS += [f'{size}/{patch}' for size in ['Ti', 'S', 'B', 'L', 'H'] for patch in (8, 14, 16, 32)]
VARIANTS += ['g/14', 'G/14']


OFFICIAL = dict(variant='B/16', gelu='tanh', epsilon=1e-6)


class VisionTransformer(nn.Module):
  """ViT in three stages, each callable alone: `embed`, `encode`, `read`.

  Calling it returns the logits and a dictionary of everything computed on the way, by name: jit
  prunes whatever nobody uses. `build` makes one from a variant and checks the values.
  """

  image_size: tuple[int, int]
  channels: int
  patch_size: int
  width: int
  num_classes: int
  Transformer: encoder.Encoder  # The published name of the encoder.
  readout: readouts.Readout
  class_token: bool = True
  pre_logits: int | None = None
  embedding_norm: bool = False
  head_bias: float = 0.0
  dtype: str = 'float32'
  initial: layers.Init = initialisers.official

  @property
  def grid(self) -> tuple[int, int]:
    """Patches as (height, width)."""
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  @property
  def embedding_side(self) -> int:
    """The patch side on what `stem` returns."""
    return self.patch_size

  @property
  def num_tokens(self) -> int:
    return self.grid[0] * self.grid[1] + self.class_token

  def setup(self):
    side = self.embedding_side
    self.embedding = layers.PatchEmbedding(self.width, side, self.dtype, self.initial)
    if self.embedding_norm:
      self.patch_norm = nn.LayerNorm(
        self.Transformer.epsilon, dtype=self.dtype, name='embedding_norm'
      )
    if self.class_token:
      self.cls = self.param('cls', self.initial('cls', self.width), (1, 1, self.width))
    if self.pre_logits:
      kernel, bias = (self.initial(role, self.width) for role in ('pre_logits', 'pre_logits_bias'))
      self.pre_logits_layer = layers.Dense(
        self.pre_logits, kernel_init=kernel, bias_init=bias, name='pre_logits'
      )
    if self.num_classes:
      kernel, bias = (self.initial(role, self.width) for role in ('head', 'head_bias'))
      if self.head_bias:
        bias = nn.initializers.constant(self.head_bias)
      self.head = layers.Dense(self.num_classes, kernel_init=kernel, bias_init=bias)

  def stem(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w c']:
    """What is cut into patches; a hybrid has a ResNet here."""
    return images

  def embed(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B N D']:
    """Normalised images -> patch embeddings, row by row.

    Raises:
      ValueError: the images are not of the model's size and channels.
    """
    expected = (*self.image_size, self.channels)
    if images.shape[1:] != expected:
      raise ValueError(
        f'images of (height, width, channels) {images.shape[1:]} given to a model of {expected}'
      )
    tokens = self.embedding(self.stem(images))
    return self.patch_norm(tokens) if self.embedding_norm else tokens

  def encode(
    self, patches: Float[Array, 'B N D'], *, train: bool = False
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    """Patch embeddings -> normalised tokens of the last block, class token first."""
    x = patches
    if self.class_token:
      cls = jnp.broadcast_to(self.cls.astype(x.dtype), (x.shape[0], 1, self.width))
      x = jnp.concatenate([cls, x], axis=1)
    return self.Transformer(x, train)

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
    logits, read = self.read(tokens)
    return logits, {'patches': patches, **encoded, **read}


Made = TypeVar('Made', bound=VisionTransformer)


def build(
  *,
  variant: str,
  image_size: tuple[int, int],
  channels: int,
  num_classes: int,
  width: int | None,
  depth: int | None,
  num_heads: int | None,
  mlp_dim: int | None,
  readout: str,
  patch_index: int,
  readout_weights: str,
  class_token: bool,
  pre_logits: int | None,
  head_bias: float,
  dropout: float,
  attention_dropout: float,
  projection_dropout: float | None,
  drop_path: float,
  qkv_bias: bool,
  qk_scale: float | None,
  embedding_norm: bool,
  gelu: str,
  epsilon: float,
  attention: str,
  remat: bool,
  dtype: str,
  initialisers: str,
  make: type[Made] = VisionTransformer,
  **more,
) -> Made:
  """A ViT of `variant` such as 'B/16' for images of (height, width) and `channels`.

  `make` is the class, and `more` what it has beyond VisionTransformer's fields. `width`, `depth`,
  `num_heads` and `mlp_dim` replace the variant's own. `num_classes=0`: no head.

  Raises:
    ValueError: a size that does not fit: patch and image, heads and width, patch index and grid.
  """
  choose('config.model.gelu', gelu, layers.GELU)
  choose('config.model.attention', attention, layers.ATTENTION)
  choose('config.model.dtype', dtype, layers.DTYPES)
  choose('config.model.initialisers', initialisers, INITIALISERS)
  projection_dropout = dropout if projection_dropout is None else projection_dropout
  rates = dict(
    dropout=dropout,
    attention_dropout=attention_dropout,
    projection_dropout=projection_dropout,
    drop_path=drop_path,
  )
  for key, rate in rates.items():
    if not 0 <= rate < 1:
      raise ValueError(f'config.model.{key}={rate} must be in [0, 1)')
  size, patch_size = decode_variant(variant)
  given = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim)
  size = SIZES[size] | {key: value for key, value in given.items() if value is not None}
  width, num_heads = size['width'], size['num_heads']
  height_over, width_over = image_size[0] % patch_size, image_size[1] % patch_size
  if height_over or width_over or 0 in image_size:
    raise ValueError(
      f'patches of {patch_size} x {patch_size} do not divide images of {image_size[0]} x '
      f'{image_size[1]}; change image_size or the patch side in variant={variant!r}'
    )
  if width % num_heads:
    raise ValueError(f'{num_heads=} must divide {width=}')
  layers.uses_cudnn(attention, dtype, width // num_heads, attention_dropout)
  return make(
    **more,
    image_size=(image_size[0], image_size[1]),
    channels=channels,
    patch_size=patch_size,
    width=width,
    num_classes=num_classes,
    class_token=class_token,
    pre_logits=pre_logits,
    embedding_norm=embedding_norm,
    head_bias=head_bias,
    dtype=dtype,
    initial=INITIALISERS[initialisers],
    readout=readouts.build(
      readout,
      class_token=class_token,
      grid=(image_size[0] // patch_size, image_size[1] // patch_size),
      patch_index=patch_index,
      weights=readout_weights,
      num_heads=num_heads,
      mlp_dim=size['mlp_dim'],
      gelu=gelu,
      epsilon=epsilon,
    ),
    Transformer=encoder.Encoder(
      depth=size['depth'],
      num_heads=num_heads,
      mlp_dim=size['mlp_dim'],
      dropout=dropout,
      attention_dropout=attention_dropout,
      projection_dropout=projection_dropout,
      drop_path=drop_path,
      qkv_bias=qkv_bias,
      qk_scale=qk_scale,
      gelu=gelu,
      epsilon=epsilon,
      attention=attention,
      remat=remat,
      dtype=dtype,
      initial=INITIALISERS[initialisers],
    ),
  )


def decode_variant(variant: str) -> tuple[str, int]:
  """'B/16' -> ('B', 16).

  Raises:
    ValueError: no such size, or no patch side.
  """
  size, _, patch = variant.partition('/')
  if size not in SIZES or not patch.isdigit() or not int(patch):
    near = difflib.get_close_matches(variant, VARIANTS, n=1, cutoff=0.0)[0]
    raise ValueError(
      f'unknown variant {variant!r}; write SIZE/PATCH with SIZE one of {", ".join(SIZES)} and '
      f'PATCH the side in pixels; did you mean {near!r}?'
    )
  return size, int(patch)
