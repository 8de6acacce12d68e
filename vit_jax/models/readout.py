"""Readouts: what the classifier sees of the encoder's tokens. A new idea is a class and one line.

A name is a row of READOUTS, and words behind it: `mean`, `ep+batch`, `aim+all+batch_before`.

  +all            the tokens before the patches are read too, as if they were patches
  +before         each token is normalised first: mean 0, deviation 1 over its width
  +after          so are the features; both without learned scale, which a linear head can do itself
  +batch_before   each channel of the tokens is, over all tokens that are read of a batch
  +batch          each channel of the features is, over a batch: batch norm without affine

What is over a batch needs statistics for evaluation, which a model's parameters have no place for:
these two words are for probes of frozen weights alone (vit_jax/evaluation/probes.py).
"""

import dataclasses
from functools import partial
import math
from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import tokens as rows
from vit_jax.models.attentive_readouts import (
  EfficientProbe,
  KeyValuePool,
  MultipleInstances,
  PositionedPool,
  Refinement,
  SimPool,
)
from vit_jax.models.block_readouts import AttentionPool, AttentivePooler, ClassAttention
from vit_jax.models.plain_readouts import (
  WEIGHTS,
  AverageAndMax,
  ClassAndDistillation,
  ClassToken,
  ClassTokens,
  DistillationToken,
  GeneralisedMean,
  Patch,
  Pool,
  PoolAll,
  Readout,
  Unread,
  WeightedMix,
  earlier,
  is_earlier,
)
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

__all__ = [
  'READOUTS', 'WEIGHTS', 'AttentionPool', 'Normalised', 'Patch', 'Readout', 'Spec', 'WeightedMix',
  'build', 'class_of', 'earlier', 'earlier_of', 'fits', 'is_earlier', 'of_model', 'parse',
  'refusal', 'with_earlier',
]  # fmt: skip

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
  'avgmax': AverageAndMax,
  'gem': GeneralisedMean,
  'prr': Refinement,
  'class_and_mean': partial(ClassTokens, blocks=1, mean=True),
  'class_of_4': partial(ClassTokens, blocks=4, mean=False),
  'class_of_4_and_mean': partial(ClassTokens, blocks=4, mean=True),
  'ep': EfficientProbe,
  'aim': partial(KeyValuePool, head_width=128, use_bias=False),
  'capi': partial(KeyValuePool, head_width=64, use_bias=True),
  'vjepa': AttentivePooler,
  'jepa': partial(AttentivePooler, projection=True),
  'vjepa2': partial(AttentivePooler, self_attention=3),
  'abmilp': MultipleInstances,
  'abmilp_tanh': partial(MultipleInstances, hidden=True),
  'abmilp_attention': partial(MultipleInstances, hidden=True, mixing=True),
  'simpool': SimPool,
  'simpool_gamma': partial(SimPool, gamma=1.25),
  'cait': partial(ClassAttention, depth=2, scale=1e-4),
  'cait_one': partial(ClassAttention, depth=1, scale=1e-5),
  'clip': PositionedPool,
  'none': Unread,
}
WORDS = ('all', 'before', 'batch_before', 'after', 'batch')
BATCH = ('batch_before', 'batch')


@dataclasses.dataclass(frozen=True)
class Spec:
  """A name of a readout, read.

  Attributes:
    row: of READOUTS.
    words: what stands behind it, in the order of WORDS.
  """

  row: str
  words: tuple[str, ...] = ()

  @property
  def suffix(self) -> str:
    """The words as a name has them."""
    return ''.join(f'+{word}' for word in self.words)


def parse(name: str, what: str = 'config.model.readout', known: Any = READOUTS) -> Spec:
  """A row and the words behind it.

  Args:
    what: what a person wrote the name for, named in errors.
    known: the rows that there are.

  Raises:
    ValueError: no such row or word, two words for one place, or `+all` of what reads no patches.
  """
  row, *words = name.split('+')
  check_choice(what, row, known)
  for word in words:
    check_choice(f'word of {what}={name!r}', word, WORDS)
  for pair in (('before', 'batch_before'), ('after', 'batch')):
    if {*pair} <= {*words}:
      raise ValueError(f'{what}={name!r}: +{pair[0]} or +{pair[1]}, not both')
  return Spec(row, tuple(word for word in WORDS if word in words))


def class_of(name: str) -> type[Readout]:
  """The class behind a row of the table; words behind it change nothing."""
  row: Any = READOUTS[name.partition('+')[0]]
  return row.func if isinstance(row, partial) else row  # pyright: ignore[reportReturnType]


def earlier_of(name: str) -> int:
  """How many blocks before the last a readout takes the class token of."""
  row: Any = READOUTS[name.partition('+')[0]]
  return row.keywords['blocks'] - 1 if class_of(name) is ClassTokens else 0


def needs(name: str) -> tuple[str, ...]:
  """The tokens without which a readout cannot read."""
  return (*earlier(earlier_of(name)), *class_of(name).needs)


def fits(name: str, prefix: tuple[str, ...]) -> bool:
  """Whether every token that a readout needs is there."""
  return {*needs(name)} <= {*prefix}


def refusal(name: str, prefix: tuple[str, ...]) -> str:
  """Why a readout cannot read a model of these tokens, and what to do."""
  missing = sorted({*needs(name)} - {*prefix})
  tokens = ' and '.join(missing).replace('_', ' ')
  if 'distillation_token' in missing:
    return (
      f'readout={name!r} reads the {tokens}, which the model has not; take a distilled one, '
      "config.model.name=deit with variant='S/16-distilled' say, or another readout"
    )
  if 'class_token' not in missing:
    return (
      f'readout={name!r} reads the class tokens of the last {earlier_of(name) + 1} blocks, and '
      'here those of the last one are at hand; choose class_and_mean or class_token'
    )
  return (
    f'readout={name!r} reads the class token, but class_token=False; '
    "set class_token=True or choose a readout of patches such as 'mean'"
  )


class Normalised(nn.Module):
  """A readout with a layer norm without affine before it, after it, or both.

  Attributes:
    pool: the readout.
  """

  pool: Readout
  before: bool
  after: bool

  def __call__(self, tokens: Float[Array, 'B T D']) -> Float[Array, 'B ...']:
    features = self.pool(rows.standardise(tokens) if self.before else tokens)
    return rows.standardise(features) if self.after else features

  @property
  def prefix(self) -> tuple[str, ...]:
    """The tokens before the patches."""
    return self.pool.prefix

  @property
  def heavy(self) -> bool:
    """Whether few fit into memory at once."""
    return self.pool.heavy

  @property
  def is_pair(self) -> bool:
    """Whether it reads two tokens that may have a head each."""
    return self.pool.is_pair

  @property
  def needs(self) -> tuple[str, ...]:
    """The tokens that it cannot do without."""
    return self.pool.needs

  def shape(self, width: int) -> tuple[int, ...]:
    """The shape of the features of one image, from tokens of this width."""
    return self.pool.shape(width)

  def multiply_adds(self, width: int) -> int:
    """Multiply-adds of the products in it, for one image and tokens of this width."""
    return self.pool.multiply_adds(width)


def build(
  name: str,
  section: dict[str, Any],
  *,
  prefix: tuple[str, ...],
  grid: tuple[int, int],
  probing: bool = False,
) -> Any:
  """The readout `name`; it takes those keys of a model's section that it has fields for.

  Args:
    probing: whether the caller normalises over batches itself, where the name says so.

  Raises:
    ValueError: the readout needs a token that is not there, a patch outside the grid, or
      statistics of a batch.
  """
  spec = parse(name)
  if not fits(name, prefix):
    raise ValueError(refusal(name, prefix))
  if {*BATCH} & {*spec.words} and not probing:
    raise ValueError(
      f'config.model.readout={name!r}: batch norm takes statistics of the training set into '
      'evaluation, and weights have no place for them; take +after or +before, or probe frozen '
      'weights with config.run=explore'
    )
  if 'all' in spec.words:
    if not class_of(name).pools:
      raise ValueError(f'{name!r}: {spec.row} does not treat patches alike; leave out +all')
    kept = tuple(filter(is_earlier, prefix))
    prefix, grid = kept, (1, len(prefix) - len(kept) + math.prod(grid))
  given = {key: value for key, value in section.items() if value is not None}
  made = take(READOUTS[spec.row], given, prefix=prefix, grid=grid)
  before, after = 'before' in spec.words, 'after' in spec.words
  return Normalised(made, before, after) if before or after else made


def of_model(section: dict[str, Any], prefix: tuple[str, ...], grid: tuple[int, int]) -> Any:
  """The readout of a model from its complete section.

  Raises:
    ValueError: no such readout, or it reads tokens or blocks that the model has not.
  """
  name, depth = section['readout'], section['depth']
  parse(name)
  count = earlier_of(name)
  if count >= depth:
    raise ValueError(
      f'config.model.readout={name!r} reads the last {count + 1} blocks, and the model has '
      f'{depth}; choose class_and_mean or class_token, or a deeper variant'
    )
  first = earlier(count) if 'class_token' in prefix else ()
  return build(name, section, prefix=first + prefix, grid=grid)


def with_earlier(
  model: Any, tokens: Float[Array, 'B T D'], encoded: dict[str, Array]
) -> Float[Array, 'B S D']:
  """The tokens with the class tokens of earlier blocks before them, where the readout reads them.

  Args:
    model: has `prefix`, `readout` and `sizes()`.
    encoded: what the encoder computed on the way.
  """
  count = sum(map(is_earlier, model.readout.prefix))
  if not count:
    return tokens
  last, place = model.sizes()['depth'] - 1, model.prefix.index('class_token')
  blocks = [encoded[f'block_{i}/normed'] for i in range(last - count, last)]
  return jnp.concatenate([*(x[:, place : place + 1] for x in blocks), tokens], axis=1)
