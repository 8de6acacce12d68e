"""Classification: softmax or sigmoid cross-entropy of the logits, label smoothing, mixup."""

from typing import Any, ClassVar

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
import optax

from vit_jax.objectives.protocol import Objective
from vit_jax.runtime.choices import check_choice

LOSSES = ('softmax', 'sigmoid')


class Classification(Objective):
  """Images, labels and weights of mean 1 -> loss and accuracy, each a mean over the batch.

  `loss='sigmoid'` sums independent binary losses over the classes, as the paper's ImageNet-21k
  pre-training does. With `mixup` above 0, training sees mixtures of two pictures (`mix`).
  """

  loss: str = 'softmax'
  label_smoothing: float = 0.0
  mixup: float = 0.0
  streams: ClassVar[tuple[str, ...]] = ('dropout', 'mixup')
  metrics: ClassVar[tuple[str, ...]] = ('accuracy',)

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.objective.loss', self.loss, LOSSES)
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f'config.objective.label_smoothing={self.label_smoothing} must be in [0, 1)')
    if self.mixup < 0:
      raise ValueError(f'config.objective.mixup={self.mixup} must be at least 0 (0: none)')

  @property
  def predictions(self) -> str:
    """A head is read as it was trained."""
    return self.loss

  def __call__(
    self, batch: dict[str, Array], constants: Any, *, train: bool
  ) -> tuple[Float[Array, ''], dict[str, Array]]:
    del constants  # It needs none.
    images, share = self.normalise(batch['image']), 1.0
    if self.mixup and train:
      images, share = mix(self.make_rng('mixup'), images, self.mixup)
    logits, _ = self.model(images, train=train)
    if logits.ndim != 2:
      raise ValueError(
        f'classification needs one output an image, not {logits.shape[1:]}: readout={"none"!r} has '
        'one a token; choose another readout'
      )
    losses = cross_entropy(logits, batch['label'], self.loss, self.label_smoothing)
    if self.mixup and train:  # Cross-entropy is linear in its targets.
      partner = jnp.roll(batch['label'], 1)
      other = cross_entropy(logits, partner, self.loss, self.label_smoothing)
      losses = share * losses + (1 - share) * other
    correct = logits.argmax(-1) == batch['label']
    weight = batch['weight']
    return (losses * weight).mean(), {'accuracy': (correct * weight).mean()}


def mix(
  key: Array, images: Float[Array, 'B H W C'], alpha: float
) -> tuple[Float[Array, 'B H W C'], Float[Array, '']]:
  """Mixup (arXiv:1710.09412) as BiT and big_vision do it: one share for a batch.

  Returns:
    share * image + (1 - share) * the image before it, and the share: Beta(alpha, alpha), turned so
    that it is at least 1/2.
  """
  share = jax.random.beta(key, alpha, alpha)
  share = jnp.maximum(share, 1 - share)
  return share * images + (1 - share) * jnp.roll(images, 1, axis=0), share


def cross_entropy(
  logits: Float[Array, 'B K'], labels: Int[Array, 'B'], loss: str, smoothing: float = 0.0
) -> Float[Array, 'B']:
  """The loss of each example, in float32."""
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  if loss == 'softmax':
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def probabilities(logits: Float[Array, '... K'], predictions: str) -> Float[Array, '... K']:
  """Logits as probabilities: of one class among all (softmax), or of each class (sigmoid)."""
  return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[predictions](logits)
