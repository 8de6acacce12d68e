"""Readouts: what the classifier sees of the encoder's tokens. A new idea is a class and one line.

Patches are numbered row by row and from 1, as in the readout study; index 0 of the tokens is the
class token where there is one. `mean`, `sum`, `max` and the learned mixes read patches only; names
that end in `_all` read the class token too.
"""

from functools import partial
from typing import ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.choices import choose
from vit_jax.models import layers


class Readout(nn.Module):
  """Tokens -> features. `class_token` says whether the first token is a class token."""

  class_token: bool = True
  needs_class_token: ClassVar[bool] = False

  def patches(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B N D']:
    return tokens[:, 1:] if self.class_token else tokens


class ClassToken(Readout):
  """The class token, as in the paper (equation 4)."""

  needs_class_token: ClassVar[bool] = True

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return tokens[:, 0]


class Patch(Readout):
  """One patch token; `index` is 1 for the top left patch and N for the bottom right one."""

  index: int = 1

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return self.patches(tokens)[:, self.index - 1]


class Pool(Readout):
  """A fixed reduction over the patches."""

  reduce: str = 'mean'

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return getattr(jnp, self.reduce)(self.patches(tokens), axis=1)


class PoolAll(Pool):
  """The same over all tokens, the class token included."""

  needs_class_token: ClassVar[bool] = True

  def patches(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    return tokens


class WeightedMix(Readout):
  """Learned weights over the patches, joined with the class token by `add` or `concat`.

  `weights='free'` starts at 1/N without constraint; 'softmax' keeps them positive with sum 1.
  """

  weights: str = 'free'
  join: str = 'add'
  needs_class_token: ClassVar[bool] = True

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B F']:
    patches = self.patches(tokens)
    count = patches.shape[1]
    start = nn.initializers.constant(0.0 if self.weights == 'softmax' else 1 / count)
    weights = self.param('weights', start, (count,)).astype(tokens.dtype)
    if self.weights == 'softmax':
      weights = jax.nn.softmax(weights)
    mixed = jnp.einsum('bnd,n->bd', patches, weights)
    return tokens[:, 0] + mixed if self.join == 'add' else jnp.concatenate([tokens[:, 0], mixed], 1)


class AttentionPool(Readout):
  """A learned query attends to the patches (MAP head: arXiv:1810.00825, big_vision's names)."""

  num_heads: int = 12
  mlp_dim: int = 3072
  gelu: str = 'tanh'
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    batch, _, width = patches.shape
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))
    attend = nn.MultiHeadDotProductAttention(
      self.num_heads,
      kernel_init=nn.initializers.xavier_uniform(),
      name='MultiHeadDotProductAttention_0',
    )
    x = attend(jnp.tile(probe.astype(tokens.dtype), (batch, 1, 1)), patches)
    y = nn.LayerNorm(self.epsilon, name='LayerNorm_0')(x)
    mlp = layers.MlpBlock(self.mlp_dim, gelu=self.gelu, name='MlpBlock_0')
    return (x + mlp(y, False))[:, 0]


class Unread(Readout):
  """No readout: every token goes to the head, so logits are `B T K`."""

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    return tokens


READOUTS = {
  'class_token': ClassToken,
  'patch': Patch,
  'sum': partial(Pool, reduce='sum'),
  'mean': partial(Pool, reduce='mean'),
  'max': partial(Pool, reduce='max'),
  'sum_all': partial(PoolAll, reduce='sum'),
  'mean_all': partial(PoolAll, reduce='mean'),
  'weighted_add': partial(WeightedMix, join='add'),
  'weighted_concat': partial(WeightedMix, join='concat'),
  'attention_pool': AttentionPool,
  'none': Unread,
}
WEIGHTS = ('free', 'softmax')


def build(
  name: str,
  *,
  class_token: bool,
  grid: tuple[int, int],
  patch_index: int,
  weights: str,
  num_heads: int,
  mlp_dim: int,
  gelu: str,
  epsilon: float,
) -> Readout:
  """The readout `name` for tokens of a (height, width) `grid` of patches.

  Raises:
    ValueError: the readout needs a class token that is not there, or a patch outside the grid.
  """
  choose('config.model.readout', name, READOUTS)
  choose('config.model.readout_weights', weights, WEIGHTS)
  count = grid[0] * grid[1]
  if name == 'patch' and not 1 <= patch_index <= count:
    raise ValueError(
      f'patch_index={patch_index} lies outside the grid of {grid[0]} x {grid[1]} patches; choose 1 '
      f'(top left) to {count} (bottom right), row by row'
    )
  mix = {'weights': weights}
  options = {
    'patch': {'index': patch_index},
    'weighted_add': mix,
    'weighted_concat': mix,
    'attention_pool': dict(num_heads=num_heads, mlp_dim=mlp_dim, gelu=gelu, epsilon=epsilon),
  }
  readout = READOUTS[name](class_token=class_token, **options.get(name, {}))
  if readout.needs_class_token and not class_token:
    raise ValueError(
      f'readout={name!r} reads the class token, but class_token=False; set class_token=True or '
      "choose a readout of patches such as 'mean'"
    )
  return readout
