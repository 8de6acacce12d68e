"""Plain readouts: a token, a fixed reduction, a learned weight for each patch; what all share.

Patches are numbered row by row and from 1, as in the readout study. Before them stand the tokens of
the model's `prefix`, such as the class token. `mean`, `sum`, `max` and the learned mixes read
patches only; names that end in `_all` read the prefix too.
"""

from functools import partial
import math
from typing import ClassVar

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.extremes import largest
from vit_jax.runtime.choices import check_choice

WEIGHTS = ('free', 'softmax')
REDUCTIONS = {'mean': partial(jnp.mean, axis=1), 'sum': partial(jnp.sum, axis=1), 'max': largest}


class Readout(nn.Module):
  """What turns the tokens of the last block into the features that the head reads.

  Attributes:
    prefix: names of the tokens before the patches.
    grid: (height, width) of the patches.
    needs: tokens of the prefix without which it cannot read.
    numbered: whether it stands for one readout a patch, which `patch_index` chooses.
    is_pair: whether it reads two tokens that may have a head each.
    pools: whether it treats patches alike, so that the prefix may be among them (`+all`).
    published: whether it is a probe of the literature, in the lab's group `probes`, not in `all`.
  """

  prefix: tuple[str, ...]
  grid: tuple[int, int]
  needs: ClassVar[tuple[str, ...]] = ()
  numbered: ClassVar[bool] = False
  is_pair: ClassVar[bool] = False
  pools: ClassVar[bool] = False
  published: ClassVar[bool] = False

  @property
  def heavy(self) -> bool:
    """Whether its activations are as large as the model's, so that few fit into memory at once."""
    return False

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
  pools: ClassVar[bool] = True

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    return REDUCTIONS[self.reduce](self.patches(tokens))


class PoolAll(Pool):
  """A fixed reduction over all tokens, those of the prefix included."""

  needs: ClassVar[tuple[str, ...]] = ('class_token',)
  pools: ClassVar[bool] = False

  def patches(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B N D']:
    return tokens[:, sum(is_earlier(name) for name in self.prefix) :]


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
    weights = self.param('weights', start, (count,))
    weights = (jax.nn.softmax(weights) if softmax else weights).astype(tokens.dtype)
    mixed = jnp.einsum('bnd,n->bd', patches, weights)
    return token + mixed if self.join == 'add' else jnp.concatenate([token, mixed], 1)


class AverageAndMax(Readout):
  """Half the mean and the maximum of the patches: (max + mean) / 2 (timm's `avgmax`).

  No parameters.
  """

  pools: ClassVar[bool] = True
  published: ClassVar[bool] = True

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    patches = self.patches(tokens)
    return (largest(patches) + patches.mean(1)) / 2


class GeneralisedMean(Readout):
  """The power mean of the patches, (mean max(x, 1e-6)^p)^(1/p) (GeM, arXiv:1711.02512).

  Parameters: 1, the power, which starts at 3. What is negative in a token counts as 1e-6.
  """

  floor: float = 1e-6
  pools: ClassVar[bool] = True
  published: ClassVar[bool] = True

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once: powers of all patches."""
    return True

  @nn.compact
  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    power = self.param('power', nn.initializers.constant(3.0), (1,))
    x = jnp.maximum(self.patches(tokens).astype(jnp.float32), self.floor)
    # Of one logarithm probes of all learning rates make use. Powers themselves would leave float32:
    # 1e-6^8 is 0, whose root has no gradient.
    total = jax.nn.logsumexp(power * jnp.log(x), axis=1)
    return jnp.exp((total - math.log(x.shape[1])) / power)


class ClassTokens(Readout):
  """The class tokens of the last blocks side by side, the oldest first; the mean of patches after.

  Each passes the encoder's last norm (DINOv2's eval/linear.py; DINO's for the small models). No
  parameters; `blocks + mean` times the width for the head.

  Attributes:
    blocks: how many blocks give their class token.
    mean: whether the mean of the last block's patches follows.
  """

  blocks: int = 1
  mean: bool = False
  needs: ClassVar[tuple[str, ...]] = ('class_token',)
  published: ClassVar[bool] = True

  def shape(self, width: int) -> tuple[int, ...]:
    return ((self.blocks + self.mean) * width,)

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B F']:
    names = (*earlier(self.blocks - 1), 'class_token')
    parts = [self.token(tokens, name) for name in names]
    return jnp.concatenate(parts + [self.patches(tokens).mean(1)] * self.mean, axis=-1)


def earlier(count: int) -> tuple[str, ...]:
  """Names of the class tokens of so many blocks before the last, the oldest first.

  Where a readout reads them they stand in front of the tokens of the last block.
  """
  return tuple(f'class_token_{k}_before' for k in range(count, 0, -1))


def is_earlier(name: str) -> bool:
  """Whether a token is one of `earlier`."""
  return name.startswith('class_token_') and name.endswith('_before')


class Unread(Readout):
  """The absence of a readout: every token goes to the head, so logits are `B T K`."""

  def shape(self, width: int) -> tuple[int, ...]:
    return (len(self.prefix) + math.prod(self.grid), width)

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    return tokens
