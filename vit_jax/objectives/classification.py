"""Classification: softmax or sigmoid cross-entropy of the model's logits, with label smoothing."""

from flax import linen as nn
import jax
from jaxtyping import Array, Float, Int
import optax

from vit_jax.choices import choose

LOSSES = ('softmax', 'sigmoid')


class Classification(nn.Module):
  """Images, labels and weights of mean 1 -> loss and accuracy, each a mean over the batch.

  `loss='sigmoid'` sums independent binary losses over the classes, as the paper's ImageNet-21k
  pre-training does.
  """

  model: nn.Module
  loss: str = 'softmax'
  label_smoothing: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    choose('config.objective.loss', self.loss, LOSSES)
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f'config.objective.label_smoothing={self.label_smoothing} must be in [0, 1)')

  def __call__(
    self, batch: dict[str, Array], *, train: bool
  ) -> tuple[Float[Array, ''], dict[str, Array]]:
    logits, _ = self.model(batch['image'], train=train)
    if logits.ndim != 2:
      raise ValueError(
        f'classification needs one output an image, not {logits.shape[1:]}: readout={"none"!r} has '
        'one a token; choose another readout'
      )
    losses = cross_entropy(logits, batch['label'], self.loss, self.label_smoothing)
    correct = logits.argmax(-1) == batch['label']
    weight = batch['weight']
    return (losses * weight).mean(), {'accuracy': (correct * weight).mean()}


def cross_entropy(
  logits: Float[Array, 'B K'], labels: Int[Array, 'B'], loss: str, smoothing: float = 0.0
) -> Float[Array, 'B']:
  """The loss of each example, in float32."""
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  if loss == 'softmax':
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
