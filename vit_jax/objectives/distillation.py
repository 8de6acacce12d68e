"""Distillation: labels and a teacher that sees the same changed pictures (arXiv:2012.12877)."""

from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Num
import optax

from vit_jax.objectives import classification
from vit_jax.runtime.choices import check_choice

KINDS = ('hard', 'soft')
DIVERGENCES = ('batch', 'official')


class Distillation(classification.Classification):
  """(1 - share) * loss against labels + share * loss against a teacher.

  Of a model with two heads the first learns the labels and the second the teacher; of a model with
  one head, both ('usual' distillation). 'hard' is the cross-entropy with the teacher's class,
  'soft' temperature^2 * KL(teacher || student), both softened by the temperature. Label smoothing
  softens the true labels alone. The teacher does not move and has no gradient.

  Attributes:
    teacher: weights of any model of the same classes.
    distillation: hard or soft.
    teacher_share: lambda; the paper has 0.1 for soft and 0.5 for hard distillation.
    temperature: tau of soft distillation.
    divergence: 'batch', the mean over examples; 'official' also over classes, as the published
      code divides, which makes the teacher's part smaller by the number of classes.
  """

  teacher: str | None = None
  distillation: str = 'hard'
  teacher_share: float = 0.5
  temperature: float = 3.0
  divergence: str = 'batch'

  def __post_init__(self):
    super().__post_init__()
    if self.multi_label:
      raise ValueError(
        'config.objective.multi_label=True: distillation learns one label a picture; set '
        'config.objective.name=classification'
      )
    check_choice('config.objective.distillation', self.distillation, KINDS)
    check_choice('config.objective.divergence', self.divergence, DIVERGENCES)
    if not self.teacher:
      raise ValueError(
        'config.objective.teacher is not set: distillation needs a run, a weight file or an address'
      )
    if not 0 <= self.teacher_share <= 1:
      raise ValueError(f'config.objective.teacher_share={self.teacher_share} must be in 0..1')
    if not self.temperature > 0:
      raise ValueError(f'config.objective.temperature={self.temperature} must be above 0')

  @property
  def sources(self) -> dict[str, str]:
    """The teacher."""
    return {'teacher': self.teacher or ''}

  def losses(
    self,
    heads: list[Float[Array, 'B K']],
    targets: Float[Array, 'B K'],
    images: Num[Array, 'B H W C'],
    constants: Any,
  ) -> Float[Array, 'B']:
    """The loss of each example; without constants that of the labels alone."""
    own = classification.against(heads[0], targets, self.loss)
    if constants is None:
      return own
    known, _ = self.forwards['teacher'](constants['teacher'], images)
    taught = self.from_teacher(heads[-1], jax.lax.stop_gradient(known))
    return (1 - self.teacher_share) * own + self.teacher_share * taught

  def from_teacher(
    self, student: Float[Array, 'B K'], teacher: Float[Array, 'B K']
  ) -> Float[Array, 'B']:
    """The teacher's part of the loss of each example."""
    if self.distillation == 'hard':
      return optax.softmax_cross_entropy_with_integer_labels(student, teacher.argmax(-1))
    ours, theirs = (jax.nn.log_softmax(x / self.temperature) for x in (student, teacher))
    divergence = (jnp.exp(theirs) * (theirs - ours)).sum(-1) * self.temperature**2
    return divergence / (student.shape[-1] if self.divergence == 'official' else 1)
