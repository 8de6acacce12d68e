"""Image GPT: pixels as colours of a palette, in a row, each told from those before it.

"Generative Pretraining from Pixels" (Chen et al., ICML 2020; openai/image-gpt). A pre-norm
Transformer without biases; its norms divide by the root of the mean square and subtract nothing.
The matrix that tells colours is not that which embeds them, and starts at zero.
"""

from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.models import encoder, layers, vit
from vit_jax.models.igpt_sizes import SIZES
from vit_jax.models.initialisers import igpt as initial
from vit_jax.models.protocol import Model
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

VARIANTS = [*SIZES]
IMAGE_SIZE = 32  # for which tables list it; others are listed at 224
OFFICIAL = dict(variant='S', clusters=512, causal=True, gelu='quick', epsilon=1e-5)
# What its blocks leave of a ViT's settings.
FIXED = dict(
  positions='learned', position_at='input', layer_scale=0.0, qk_scale=None, qkv_bias=False,
  mlp='plain', registers=0,
  output_bias=False, mlp_bias=False, readout_weights='free', initialisers='igpt', norm=nn.RMSNorm,
)  # fmt: skip
Palette = tuple[tuple[float, ...], ...]


class ImageGPT(Model):
  """A Transformer over pixels in three stages, each callable alone: `embed`, `encode`, `read`.

  A causal model puts a learned start before the first pixel and leaves the last one out: the token
  of a place has seen the pixels before that place, and `predict` tells the colour there. One that
  is not causal sees each pixel at its own place. Features are the mean of all tokens.

  Attributes:
    palette: the colours, in the model's own (normalised) pixel values.
  """

  width: int
  palette: Palette
  Transformer: encoder.Encoder
  dtype: str = 'float32'

  @property
  def grid(self) -> tuple[int, int]:
    """The pixels as (height, width)."""
    return self.image_size

  @property
  def clusters(self) -> int:
    """Colours of the palette."""
    return len(self.palette)

  @property
  def is_causal(self) -> bool:
    """Whether a token sees those before its own place alone."""
    return self._attention.causal

  @property
  def _attention(self) -> Any:
    block: Any = self.Transformer.blocks[0]
    return block.attention

  def layer_groups(self) -> tuple[str, ...]:
    """Patterns for the embedding, each block (the last with what tells colours), and the head."""
    last = len(self.Transformer.blocks) - 1
    blocks = [f'Transformer/encoderblock_{i}/.*' for i in range(last)]
    top = f'Transformer/(encoderblock_{last}|encoder_norm)/.*|predict/.*'
    return '.*', *blocks, top, 'head/.*'

  def resampled(self) -> dict[str, str]:
    """The positions."""
    return {f'Transformer/{name}': how for name, how in self.Transformer.resampled().items()}

  def normalise(self, params: dict[str, Any], tokens: Any) -> Float[Array, '*B N D']:
    """Tokens `B N D` of any block, as the norm after the last one makes them."""
    return self.Transformer.normalise(params['Transformer'], tokens)

  @property
  def sources(self) -> tuple[str, ...]:
    """The start, which the first place of a causal model is fed."""
    return ('start',) * self.is_causal

  def by_source(self, weights: Any) -> Any:
    """Weights over keys, `... T`, by start and pixels, `... S`.

    Each place of a causal model is fed the pixel before it; the last pixel, which none is fed, has
    0. Places of one that is not causal are fed their own.
    """
    later = len(self.sources)
    return jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, later)])

  def perturbation(self, block: int) -> str:
    """The name of what is added to the attention weights of a block, from 0."""
    return f'Transformer/encoderblock_{block}/MultiHeadDotProductAttention_1/attention_weights'

  def sizes(self) -> dict[str, Any]:
    """Tokens, width, depth, heads and MLP width; patches are pixels."""
    block: Any = self.Transformer.blocks[0]
    return {
      'num_tokens': self.grid[0] * self.grid[1],
      'width': self.width,
      'patch_size': 1,
      'depth': len(self.Transformer.blocks),
      'num_heads': block.attention.num_heads,
      'mlp_dim': block.mlp.mlp_dim,
    }

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image, by part; a causal mask saves none of them.

    `prediction` tells the colours, which a classifier has no use for.
    """
    sizes, width = self.sizes(), self.width
    depth, tokens = sizes['depth'], sizes['num_tokens']
    return {
      'projections': depth * tokens * 4 * width**2,
      'attention': depth * tokens * 2 * tokens * width,
      'mlp': depth * tokens * 2 * width * sizes['mlp_dim'],
      'prediction': tokens * width * self.clusters,
      'head': width * self.num_classes,
    }

  def summary(self) -> str:
    """The pixels, the palette and what a token sees, in a line."""
    height, width = self.grid
    seen = 'those before it' if self.is_causal else 'all of them'
    return (
      f'{height} x {width} pixels = {height * width} tokens of {self.clusters} colours of '
      f'{self.channels} channels, each seeing {seen}'
    )

  def setup(self):
    shape = (self.clusters, self.width)
    self.token_embedding = self.param('token_embedding', initial('embedding', 1), shape)
    if self.is_causal:
      self.start = self.param('start', initial('cls', 1), (1, 1, self.width))
    zeros = nn.initializers.zeros
    self.prediction = layers.Dense(self.clusters, False, kernel_init=zeros, name='predict')
    if self.num_classes:
      self.head = layers.Dense(self.num_classes, False, kernel_init=zeros)

  def colours_of(self, images: Float[Array, 'B H W C']) -> Int[Array, 'B N']:
    """Normalised images -> the number of each pixel's nearest colour, row by row.

    Raises:
      ValueError: the images are not of the model's size and channels.
    """
    self.check_images(images)
    pixels = images.reshape(images.shape[0], -1, 1, self.channels).astype(jnp.float32)
    distances = ((pixels - jnp.asarray(self.palette, jnp.float32)) ** 2).sum(-1)
    return distances.argmin(-1)

  def embed(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B N D']:
    """Normalised images -> the embedding of each pixel's colour, row by row, without positions.

    Raises:
      ValueError: the images are not of the model's size and channels.
    """
    return self.embed_colours(self.colours_of(images))

  def embed_colours(self, colours: Int[Array, 'B N']) -> Float[Array, 'B N D']:
    """Numbers of colours -> their embeddings."""
    return self.token_embedding.astype(self.dtype)[colours]

  def encode(
    self, patches: Float[Array, 'B N D'], *, train: bool = False
  ) -> tuple[Float[Array, 'B N D'], dict[str, Array]]:
    """Pixel embeddings -> normalised tokens of the last block, at the places that they tell of."""
    x = patches
    if self.is_causal:
      start = jnp.broadcast_to(self.start.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
      x = jnp.concatenate([start, x[:, :-1]], axis=1)
    return self.Transformer(x, train)

  def predict(self, tokens: Float[Array, 'B N D']) -> Float[Array, 'B N K']:
    """Tokens of the last block -> logits of the palette's colours, in float32."""
    return self.prediction(tokens.astype(jnp.float32))

  def read(self, tokens: Float[Array, 'B N D']) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    """Tokens -> logits of classes in float32; features and logits of colours by name."""
    features = logits = tokens.astype(jnp.float32).mean(1)
    if self.num_classes:
      logits = self.head(features)
    read = {'features': features, 'pre_logits': features, 'logits': logits}
    return logits, read | {'colour_logits': self.predict(tokens)}

  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    patches = self.embed(images)
    tokens, encoded = self.encode(patches, train=train)
    logits, read = self.read(tokens)
    return logits, {'patches': patches, **encoded, **read}


def build(
  *, variant: str, image_size: tuple[int, int], colours: Palette | None = None, **section
) -> ImageGPT:
  """An iGPT of `variant` such as 'S' for images of (height, width).

  Args:
    colours: the palette; None: evenly spaced greys, enough where no picture is seen.
    section: `width`, `depth`, `num_heads` and `mlp_dim` replace the variant's own; `palette`, where
      the colours come from, changes nothing any more.

  Raises:
    ValueError: no such variant, or a value that does not fit.
  """
  check_choice('config.model.variant', variant, SIZES)
  sizes = {key: value for key, value in SIZES[variant].items() if section[key] is None}
  section |= FIXED | sizes | {'projection_dropout': section['dropout']}
  section['output_fan'] = section['depth']
  vit.check_values(section)
  palette = colours or greys(section['clusters'], section['channels'])
  check_palette(palette, section['clusters'], section['channels'])
  parts = dict(Transformer=encoder.build(section, 0, image_size), palette=palette)
  return take(ImageGPT, section, image_size=image_size, **parts)


def greys(clusters: int, channels: int) -> Palette:
  """Evenly spaced greys from -1 to 1."""
  return tuple((2 * i / max(1, clusters - 1) - 1,) * channels for i in range(clusters))


def check_palette(palette: Palette, clusters: int, channels: int) -> None:
  """Raises a ValueError for a palette of another size than the model's."""
  if len(palette) != clusters:
    raise ValueError(
      f'a palette of {len(palette)} colours and a model of {clusters}; set '
      f'config.model.clusters={len(palette)}, or take another palette'
    )
  if clusters < 2:
    raise ValueError(f'config.model.clusters={clusters} must be at least 2')
  found = {len(colour) for colour in palette}
  if found != {channels}:
    raise ValueError(
      f'a palette of {" and ".join(map(str, sorted(found)))} channels and images of {channels}; '
      f'set config.data.channels={min(found)}, or take another palette'
    )


def section_of(facts: dict[str, Any]) -> dict[str, Any]:
  """The part of a section that a weight file decides, from what its arrays say."""
  known = ('width', 'depth', 'num_heads', 'mlp_dim')
  numbers = {key: facts[key] for key in known}
  named = next((name for name, size in SIZES.items() if size == numbers), None)
  rest = {key: value for key, value in facts.items() if key != 'kind' and key not in known}
  return rest | {'variant': named or 'S'} | ({} if named else numbers)
