"""Readouts: what the classifier sees of the encoder's tokens. A new idea is a class and one line.

Patches are numbered row by row and from 1, as in the readout study. Before them stand the tokens of
the model's `prefix`, such as the class token. `mean`, `sum`, `max` and the learned mixes read
patches only; names that end in `_all` read the prefix too.
"""

from functools import partial
import math
from typing import Any, ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import layers
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

WEIGHTS = ('free', 'softmax')


class Readout(nn.Module):
  """What turns the tokens of the last block into the features that the head reads.

  Attributes:
    prefix: names of the tokens before the patches.
    grid: (height, width) of the patches.
    needs: tokens of the prefix without which it cannot read.
    numbered: whether it stands for one readout a patch, which `patch_index` chooses.
    heavy: whether its activations are as large as the model's, so that few fit into memory at once.
    is_pair: whether it reads two tokens that may have a head each.
  """

  prefix: tuple[str, ...]
  grid: tuple[int, int]
  needs: ClassVar[tuple[str, ...]] = ()
  numbered: ClassVar[bool] = False
  heavy: ClassVar[bool] = False
  is_pair: ClassVar[bool] = False

  def shape(self, width: int) -> tuple[int, ...]:
    """The shape of the features of one image, from tokens of this width."""
    return (width,)

  def multiply_adds(self, width: int) -> int:
    """Multiply-adds of the products in it, for one image and tokens of this width."""
    del width
    return 0

  def patches(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B N D']:
    return tokens[:, len(self.prefix) :]

  def token(self, tokens: Float[Array, 'B T D'], name: str) -> Float[Array, 'B D']:
    """A token of the prefix by its name."""
    return tokens[:, self.prefix.index(name)]


class ClassToken(Readout):
  """The class token alone, as in the paper (equation 4)."""

  needs: ClassVar[tuple[str, ...]] = ('class_token',)

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return self.token(tokens, 'class_token')


class DistillationToken(Readout):
  """The distillation token alone (arXiv:2012.12877)."""

  needs: ClassVar[tuple[str, ...]] = ('distillation_token',)

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return self.token(tokens, 'distillation_token')


class ClassAndDistillation(Readout):
  """Class and distillation token side by side; a DeiT has a head for each half."""

  needs: ClassVar[tuple[str, ...]] = ('class_token', 'distillation_token')
  is_pair: ClassVar[bool] = True

  def shape(self, width: int) -> tuple[int, ...]:
    return (2 * width,)

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B F']:
    return jnp.concatenate([self.token(tokens, name) for name in self.needs], axis=-1)


class Patch(Readout):
  """One patch token; `patch_index` is 1 for the top left patch and N for the bottom right one."""

  patch_index: int = 1
  numbered: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    height, width = self.grid
    if not 1 <= self.patch_index <= height * width:
      raise ValueError(
        f'patch_index={self.patch_index} lies outside the grid of {height} x {width} patches; '
        f'choose 1 (top left) to {height * width} (bottom right), row by row'
      )

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return self.patches(tokens)[:, self.patch_index - 1]


class Pool(Readout):
  """A fixed reduction over the patches."""

  reduce: str = 'mean'

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return getattr(jnp, self.reduce)(self.patches(tokens), axis=1)


class PoolAll(Pool):
  """A fixed reduction over all tokens, those of the prefix included."""

  needs: ClassVar[tuple[str, ...]] = ('class_token',)

  def patches(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    return tokens


class WeightedMix(Readout):
  """Learned weights over the patches, joined with the class token by `add` or `concat`.

  `readout_weights='free'` starts at 1/N without constraint; 'softmax' keeps them positive with
  sum 1.
  """

  join: str = 'add'
  readout_weights: str = 'free'
  needs: ClassVar[tuple[str, ...]] = ('class_token',)

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.model.readout_weights', self.readout_weights, WEIGHTS)

  def shape(self, width: int) -> tuple[int, ...]:
    return (width if self.join == 'add' else 2 * width,)

  def multiply_adds(self, width: int) -> int:
    return math.prod(self.grid) * width

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B F']:
    patches, token = self.patches(tokens), self.token(tokens, 'class_token')
    count, softmax = patches.shape[1], self.readout_weights == 'softmax'
    start = nn.initializers.constant(0.0 if softmax else 1 / count)
    weights = self.param('weights', start, (count,)).astype(tokens.dtype)
    mixed = jnp.einsum('bnd,n->bd', patches, jax.nn.softmax(weights) if softmax else weights)
    return token + mixed if self.join == 'add' else jnp.concatenate([token, mixed], 1)


class AttentionPool(Readout):
  """A learned query attends to the patches (MAP head: arXiv:1810.00825, big_vision's names).

  Attributes:
    num_heads: None: of 64 numbers each, or fewer heads where that does not divide the width.
    mlp_dim: None: four times the width.
  """

  num_heads: int | None = None
  mlp_dim: int | None = None
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  heavy: ClassVar[bool] = True

  def multiply_adds(self, width: int) -> int:
    patches, hidden = math.prod(self.grid), self.mlp_dim or 4 * width
    # Query and output of one token; keys, values and both products of all patches; the MLP.
    return 2 * (1 + patches) * width**2 + 2 * patches * width + 2 * width * hidden

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    batch, _, width = patches.shape
    fitting = (heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))
    attend = nn.MultiHeadDotProductAttention(
      self.num_heads or next(fitting),
      kernel_init=nn.initializers.xavier_uniform(),
      name='MultiHeadDotProductAttention_0',
    )
    x = attend(jnp.tile(probe.astype(tokens.dtype), (batch, 1, 1)), patches)
    y = nn.LayerNorm(self.epsilon, name='LayerNorm_0')(x)
    mlp = layers.MlpBlock(self.mlp_dim or 4 * width, gelu=self.gelu, name='MlpBlock_0')
    return (x + mlp(y, False))[:, 0]


class Unread(Readout):
  """The absence of a readout: every token goes to the head, so logits are `B T K`."""

  def shape(self, width: int) -> tuple[int, ...]:
    return (len(self.prefix) + math.prod(self.grid), width)

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    return tokens


READOUTS: dict[str, Any] = {
  'class_token': ClassToken,
  'distillation_token': DistillationToken,
  'class_and_distillation': ClassAndDistillation,
  'patch': Patch,
  'sum': partial(Pool, reduce='sum'),
  'sum_all': partial(PoolAll, reduce='sum'),
  'mean': partial(Pool, reduce='mean'),
  'mean_all': partial(PoolAll, reduce='mean'),
  'max': partial(Pool, reduce='max'),
  'weighted_add': partial(WeightedMix, join='add'),
  'weighted_add_softmax': partial(WeightedMix, join='add', readout_weights='softmax'),
  'weighted_concat': partial(WeightedMix, join='concat'),
  'weighted_concat_softmax': partial(WeightedMix, join='concat', readout_weights='softmax'),
  'attention_pool': AttentionPool,
  'none': Unread,
}


def class_of(name: str) -> type[Readout]:
  """The class behind a row of the table."""
  row: Any = READOUTS[name]
  return row.func if isinstance(row, partial) else row  # pyright: ignore[reportReturnType]


def fits(name: str, prefix: tuple[str, ...]) -> bool:
  """Whether every token that a readout needs is there."""
  return set(class_of(name).needs) <= set(prefix)


def refusal(name: str, prefix: tuple[str, ...]) -> str:
  """Why a readout cannot read a model of these tokens, and what to do."""
  missing = sorted(set(class_of(name).needs) - set(prefix))
  tokens = ' and '.join(missing).replace('_', ' ')
  if 'distillation_token' in missing:
    return (
      f'readout={name!r} reads the {tokens}, which the model has not; take a distilled one, '
      "config.model.name=deit with variant='S/16-distilled' say, or another readout"
    )
  return (
    f'readout={name!r} reads the {tokens}, but {", ".join(f"{token}=False" for token in missing)}; '
    f"set {missing[0]}=True or choose a readout of patches such as 'mean'"
  )


def build(
  name: str, section: dict[str, Any], *, prefix: tuple[str, ...], grid: tuple[int, int]
) -> Readout:
  """The readout `name`; it takes those keys of a model's section that it has fields for.

  Raises:
    ValueError: the readout needs a token that is not there, or a patch outside the grid.
  """
  check_choice('config.model.readout', name, READOUTS)
  if not fits(name, prefix):
    raise ValueError(refusal(name, prefix))
  given = {key: value for key, value in section.items() if value is not None}
  return take(READOUTS[name], given, prefix=prefix, grid=grid)
