"""DeiT: a ViT with a second token that learns from a teacher (arXiv:2012.12877).

The distilled ones have the tokens [class, distillation, patches] and a head on each of the first
two; their logits are the mean of both heads'. The others are ViTs that begin and compute as timm's.
"""

from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import vit, vit_sizes
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.runtime.choices import check_choice

DISTILLED = '-distilled'
# Paper, table 1; a smaller one for the digits is ours.
VARIANTS = [
  f'{size}/16{kind}' for kind in ('', DISTILLED) for size in ('Ti', 'S', 'B')
]  # fmt: skip
OFFICIAL = vit.OFFICIAL | dict(variant='B/16-distilled', gelu='exact', readout=None, mlp='plain')
AVERAGES = ('logits', 'probabilities')
BOTH = 'class_and_distillation'  # the readout of two heads


class DistilledTransformer(vit.VisionTransformer):
  """A ViT with a distillation token after the class token.

  With the readout 'class_and_distillation' the head reads the class token and `head_dist` the
  other; both tell their logits by name, 'logits_class_token' and 'logits_distillation_token'. Any
  other readout has one head, as a ViT.

  Attributes:
    average: of the two heads: of their 'logits', as the published code, or of their
      'probabilities', as the paper says; logits are then logarithms.
  """

  average: str = 'logits'

  @staticmethod
  def prefix_of(class_token: bool, registers: int) -> tuple[str, ...]:
    """Both tokens, whatever a section says (one without the other is no DeiT), then registers."""
    del class_token
    return 'class_token', 'distillation_token', *vit_sizes.register_names(registers)

  @property
  def two_heads(self) -> bool:
    """Whether each of the two tokens has a head."""
    return self.readout.is_pair and bool(self.num_classes)

  @property
  def heads(self) -> tuple[str, ...]:
    """The tokens whose own logits are outputs, 'logits_' and the name."""
    return self.readout.needs if self.two_heads else ()

  @property
  def log_probabilities(self) -> bool:
    """Whether the probabilities of two heads are averaged."""
    return self.two_heads and self.average == 'probabilities'

  def layer_groups(self) -> tuple[str, ...]:
    """As a ViT's; the second head belongs to the task."""
    return *super().layer_groups()[:-1], '(head|head_dist|pre_logits|readout)/.*'

  def resampled(self) -> dict[str, str]:
    """As a ViT's, and the second token."""
    return super().resampled() | {'dist': 'prefix'}

  def setup(self):
    super().setup()
    initial = INITIALISERS[self.initialisers]
    self.dist = self.param('dist', initial('cls', self.width), (1, 1, self.width))
    if self.two_heads:
      self.head_dist = self.make_head()

  def prefix_tokens(self) -> list[Float[Array, '1 n D']]:
    return [self.cls, self.dist, *self.register_tokens()]

  def read(self, tokens: Float[Array, 'B T D']) -> tuple[Float[Array, 'B ... K'], dict[str, Array]]:
    """Tokens -> logits in float32; features and the logits of each head by name."""
    if not self.two_heads:
      return super().read(tokens)
    features = self.readout(tokens).astype(jnp.float32)
    first, second = jnp.split(features, 2, axis=-1)
    own, taught = self.head(first), self.head_dist(second)
    logits = together(own, taught, self.average)
    apart = {'logits_class_token': own, 'logits_distillation_token': taught}
    return logits, apart | {'features': features, 'pre_logits': features, 'logits': logits}


def together(
  first: Float[Array, '... K'], second: Float[Array, '... K'], average: str
) -> Float[Array, '... K']:
  """One answer of two heads: the mean of their logits, or the logarithm of that of softmaxes."""
  if average == 'logits':
    return (first + second) / 2
  apart = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
  return jnp.logaddexp(*apart) - jnp.log(2.0)


def decide(section: dict[str, Any]) -> dict[str, Any]:
  """What a complete section leaves to the variant: the readout, and that both tokens are there."""
  distilled = section['variant'].endswith(DISTILLED)
  readout = section['readout'] or (BOTH if distilled else 'class_token')
  return section | {'readout': readout}


def build(*, variant: str, image_size: tuple[int, int], **section) -> vit.VisionTransformer:
  """A DeiT such as 'B/16' or 'B/16-distilled'; the other arguments are those of `vit.build`.

  Raises:
    ValueError: no such variant, or a value that does not fit.
  """
  check_choice('config.model.average', section['average'], AVERAGES)
  size, patch = vit_sizes.decode_variant(variant.removesuffix(DISTILLED))
  if not variant.endswith(DISTILLED):
    return vit.assemble(vit.VisionTransformer, size, patch, image_size, section)
  for key, value in (('class_token', True), ('pre_logits', None)):
    if section[key] != value:
      raise ValueError(f'config.model.{key}={section[key]}: a distilled DeiT has {key}={value}')
  return vit.assemble(DistilledTransformer, size, patch, image_size, section)


def section_of(facts: dict[str, Any]) -> dict[str, Any]:
  """The part of a section that a weight file decides, from what its arrays say."""
  section = vit.section_of(facts)
  return section | {'variant': section['variant'] + DISTILLED}
