"""Self-attention that can be a convolution (Cordonnier, Loukas and Jaggi, arXiv:1911.03584).

Patches of 2 x 2 pixels, blocks with the norm behind (as BERT's), heads that attend by offset, and
the mean of the tokens for the head: no positions at the input. The parts are in
`spatial_attention.py`; parameters are counted as the authors' code (epfml/attention-cnn) has them.
"""

from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax.models import arithmetic, layers, spatial_attention
from vit_jax.models.dropout import Dropout
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.normalisation import LayerNorm
from vit_jax.models.protocol import Model, parameter
from vit_jax.models.spatial_attention import Encoding, LearnedOffsets, Quadratic
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

# cifar is the paper's; digits ours.
SIZES = {
  'digits': dict(width=64, depth=3, num_heads=9, mlp_dim=128),
  'cifar': dict(width=400, depth=6, num_heads=9, mlp_dim=512),
}
VARIANTS = ['digits/1', 'cifar/2']
IMAGE_SIZE = 32
OFFICIAL = dict(
  variant='cifar/2', encoding='isotropic', content=False, heads='', gelu='exact', epsilon=1e-12
)
ENCODINGS: dict[str, Any] = {
  'isotropic': lambda heads, grid, width: Quadratic(heads, grid),
  'general': lambda heads, grid, width: Quadratic(heads, grid, general=True),
  'learned': lambda heads, grid, width: LearnedOffsets(heads, grid, width=width),
}
# A head is degenerate whose precision has a larger condition, or a smaller eigenvalue: it attends
# along a line, or everywhere (the authors' values).
CONDITION, EIGENVALUE = 1000.0, 1e-5


class ConvolvingTransformer(Model):
  """Heads that attend by offset, from normalised images to logits in float32.

  Attributes:
    patch_size: pixels of a patch's side.
    width: of the tokens, and of what each head reads.
  """

  patch_size: int
  width: int
  Transformer: spatial_attention.Stack
  dropout: float = 0.0
  dtype: str = 'float32'
  initialisers: str = 'deit'

  @property
  def grid(self) -> tuple[int, int]:
    """(height, width) of the patches."""
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  @property
  def encodings(self) -> list[Encoding]:
    """The encoding of each block."""
    return [block.attention.encoding for block in self.Transformer.blocks]

  def layer_groups(self) -> tuple[str, ...]:
    """The embedding, each block, and the head."""
    blocks = [f'Transformer/block_{i}/.*' for i in range(len(self.Transformer.blocks))]
    return '.*', *blocks, 'head/.*'

  def resampled(self) -> dict[str, str]:
    """The kernel that sees the pixels; tables of offsets fit one grid, quadratic ones any."""
    return {'embedding/kernel': 'channels'}

  def attention_gaussians(self, params: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Centre and precision of each head's attention by offset, block by block."""
    return [
      encoding.gaussians(parameter(params, f'Transformer/block_{i}/spatial/offsets'))
      for i, encoding in enumerate(self.encodings)
    ]

  def degenerate_heads(self, params: dict[str, Any]) -> list[list[int]]:
    """Heads of each block, from 0, that attend along a line or everywhere."""
    found = []
    for _, precision in self.attention_gaussians(params):
      values = np.linalg.eigvalsh(np.asarray(precision, np.float64))
      wide = values[:, 0] < EIGENVALUE
      narrow = values[:, 1] > CONDITION * np.maximum(values[:, 0], 1e-30)
      found.append(np.flatnonzero(wide | narrow).tolist())
    return found

  def without_heads(
    self, params: dict[str, Any], heads: list[list[int]]
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """What changes in the section, and the parameters, without some heads of each block, from 0.

    Raises:
      ValueError: a block would have no head left.
    """
    params, left = jax.tree.map(np.asarray, params), []
    for i, (encoding, gone) in enumerate(zip(self.encodings, heads, strict=True)):
      keep = [head for head in range(encoding.num_heads) if head not in gone]
      if not keep:
        raise ValueError(
          f'all {encoding.num_heads} heads of block {i + 1} are to go, and nothing would attend; '
          'keep one of them'
        )
      own = params['Transformer'][f'block_{i}']['spatial']
      params['Transformer'][f'block_{i}']['spatial'] = kept(own, keep, encoding.num_heads)
      left.append(str(len(keep)))
    return {'heads': ','.join(left)}, params

  def sizes(self) -> dict[str, Any]:
    """The patch side, tokens, width, depth, MLP width, and heads of each block."""
    block = self.Transformer.blocks[0]
    return {
      'num_tokens': self.grid[0] * self.grid[1],
      'width': self.width,
      'patch_size': self.patch_size,
      'depth': len(self.Transformer.blocks),
      'num_heads': max(encoding.num_heads for encoding in self.encodings),
      'heads': [encoding.num_heads for encoding in self.encodings],
      'mlp_dim': block.mlp.mlp_dim,
    }

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image, by part (`arithmetic.of_convolving`)."""
    return arithmetic.of_convolving(self)

  def summary(self) -> str:
    """The grid, the heads and the images, in a line."""
    (height, width), heads = self.image_size, self.sizes()['heads']
    return (
      f'tokens: {self.grid[0]} x {self.grid[1]} patches of {self.patch_size} px, '
      f'{", ".join(map(str, heads))} heads that attend by offset, from images of {height} x '
      f'{width} x {self.channels}'
    )

  def setup(self):
    self.embedding = layers.PatchEmbedding(
      self.width, self.patch_size, self.dtype, self.initialisers
    )
    self.embedding_dropout = Dropout(self.dropout)
    if self.num_classes:
      initial = INITIALISERS[self.initialisers]
      kernel, bias = (initial(role, self.width) for role in ('head', 'head_bias'))
      self.head = layers.Dense(self.num_classes, kernel_init=kernel, bias_init=bias)

  def embed(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B N D']:
    """Normalised images -> patch embeddings, row by row.

    Raises:
      ValueError: the images are not of the model's size and channels.
    """
    self.check_images(images)
    return self.embedding(images)

  def encode(
    self, patches: Float[Array, 'B N D'], *, train: bool = False
  ) -> tuple[Float[Array, 'B N D'], dict[str, Array]]:
    """Patch embeddings -> tokens of the last block, and everything on the way by name."""
    return self.Transformer(self.embedding_dropout(patches, train), train)

  def read(self, tokens: Float[Array, 'B N D']) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    """Tokens -> logits in float32 of their mean; features by name."""
    features = logits = tokens.astype(jnp.float32).mean(1)
    if self.num_classes:
      logits = self.head(features)
    return logits, {'features': features, 'pre_logits': features, 'logits': logits}

  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    patches = self.embed(images)
    tokens, encoded = self.encode(patches, train=train)
    logits, read = self.read(tokens)
    return logits, {'patches': patches, **encoded, **read}


def kept(spatial: dict[str, Any], keep: list[int], count: int) -> dict[str, Any]:
  """Parameters of a block's attention with some of its `count` heads alone."""
  offsets = {
    name: x if name in ('rows', 'columns') else x[:, keep] if name.endswith('_key') else x[keep]
    for name, x in spatial['offsets'].items()
  }
  kernel = spatial['value']['kernel']
  value = kernel.reshape(count, -1, kernel.shape[-1])[keep].reshape(-1, kernel.shape[-1])
  compared = {}
  for name in {'query', 'key'} & spatial.keys():
    kernel = spatial[name]['kernel']
    cut = kernel.reshape(len(kernel), count, -1)[:, keep]
    compared[name] = {'kernel': cut.reshape(len(kernel), -1)}
  changed = {'offsets': offsets, 'value': spatial['value'] | {'kernel': value}}
  return spatial | changed | compared


def build(*, variant: str, image_size: tuple[int, int], **section) -> ConvolvingTransformer:
  """A model such as 'cifar/2', size and patch side; sizes that are given replace its own.

  Raises:
    ValueError: no such variant, or a value that does not fit.
  """
  size, _, patch = variant.partition('/')
  if size not in SIZES or not patch.isdecimal() or not int(patch):
    check_choice('config.model.variant', variant, VARIANTS)
  section |= {key: value for key, value in SIZES[size].items() if section[key] is None}
  side = int(patch)
  check_values(section)
  if any(length % side for length in image_size):
    raise ValueError(
      f'patches of {side} x {side} do not divide images of {image_size[0]} x {image_size[1]}; '
      'choose another config.model.variant or config.data.image_size'
    )
  grid = image_size[0] // side, image_size[1] // side
  blocks = tuple(block_of(section, heads, grid) for heads in heads_of(section))
  own: Any = dict(patch_size=side, Transformer=spatial_attention.Stack(blocks))
  return take(ConvolvingTransformer, section, image_size=image_size, **own)


def block_of(section: dict[str, Any], heads: int, grid: tuple[int, int]) -> Any:
  """A block of so many heads; BERT's MLP has dropout behind it alone."""
  encoding = ENCODINGS[section['encoding']](heads, grid, section['width'])
  attention = take(spatial_attention.SpatialAttention, section, encoding=encoding)
  mlp = take(layers.MlpBlock, section, dropout=0.0)
  norm = LayerNorm(section['epsilon'], dtype=section['dtype'])
  return take(spatial_attention.PostBlock, section, attention=attention, mlp=mlp, norm=norm)


def heads_of(section: dict[str, Any]) -> list[int]:
  """How many heads each block has.

  Raises:
    ValueError: `heads` is no list of one positive number a block.
  """
  depth, words = section['depth'], str(section['heads']).split(',')
  if not section['heads']:
    return [section['num_heads']] * depth
  if len(words) != depth or any(not word.isdecimal() or not int(word) for word in words):
    raise ValueError(
      f'config.model.heads={section["heads"]}: give at least one head for each of {depth} blocks, '
      f"such as '{','.join(['9'] * depth)}'"
    )
  return [int(word) for word in words]


def check_values(section: dict[str, Any]) -> None:
  """Raises a ValueError for names, rates and sizes that cannot be."""
  check_choice('config.model.encoding', section['encoding'], ENCODINGS)
  check_choice('config.model.dtype', section['dtype'], layers.DTYPES)
  check_choice('config.model.initialisers', section['initialisers'], INITIALISERS)
  for key in ('width', 'depth', 'num_heads', 'mlp_dim'):
    if section[key] < 1:
      raise ValueError(f'config.model.{key}={section[key]} must be at least 1')
  for key in ('dropout', 'attention_dropout'):
    if not 0 <= section[key] < 1:
      raise ValueError(f'config.model.{key}={section[key]} must be in [0, 1)')
