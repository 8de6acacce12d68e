"""Classification: softmax or sigmoid cross-entropy of logits; smoothed, mixed, erased examples."""

from typing import Any, ClassVar

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
import optax

from vit_jax.objectives import mixing
from vit_jax.objectives.protocol import Objective
from vit_jax.runtime.choices import check_choice

LOSSES = ('softmax', 'sigmoid')


class Classification(Objective):
  """Images, labels and weights of mean 1 -> loss and accuracy, each a mean over the batch.

  `loss='sigmoid'` sums independent binary losses over the classes, as the paper's ImageNet-21k
  pre-training does. Training sees the examples that `examples` makes: pictures partly erased, then
  mixed with one another, and soft labels. A model of several heads learns the labels in each.

  With `multi_label` a picture has any number of labels, float32 `B K`, and the loss is sigmoid. Its
  accuracy is the share of pictures whose highest logit is among their labels; those without any
  count as wrong.
  """

  loss: str = 'softmax'
  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  mix_probability: float = 1.0
  switch_probability: float = 0.5
  erasing: float = 0.0
  multi_label: bool = False
  streams: ClassVar[tuple[str, ...]] = ('dropout', 'mixup', 'erasing')
  metrics: ClassVar[tuple[str, ...]] = ('accuracy',)

  def __post_init__(self):
    super().__post_init__()
    check_choice('config.objective.loss', self.loss, LOSSES)
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f'config.objective.label_smoothing={self.label_smoothing} must be in [0, 1)')
    if not 0 <= self.erasing <= 1:
      raise ValueError(f'config.objective.erasing={self.erasing} must be in 0..1')
    self.mixing()  # Checks its numbers.
    if self.loss == 'sigmoid' and self.model.log_probabilities:
      raise ValueError(
        'config.model.average=probabilities is a mean of softmaxes, and config.objective.loss='
        'sigmoid trains heads that are none; set config.model.average=logits'
      )
    if self.multi_label:
      self.check_multi_label()

  def check_multi_label(self) -> None:
    """Raises a ValueError for what has no meaning where a picture has several labels."""
    if self.loss != 'sigmoid':
      raise ValueError(
        f'config.objective.multi_label=True with config.objective.loss={self.loss}, whose '
        'probabilities are of one class among all; set config.objective.loss=sigmoid'
      )
    if self.label_smoothing:
      raise ValueError(
        f'config.objective.label_smoothing={self.label_smoothing} with config.objective.multi_label'
        '=True: it shares one label among all classes; set it to 0'
      )

  @property
  def predictions(self) -> str:
    """A head is read as it was trained."""
    return self.loss

  def batch_shapes(
    self, image_shape: tuple[int, int, int], batch_size: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What is read of a batch of the data, for images `(H, W, C)`."""
    shapes = super().batch_shapes(image_shape, batch_size)
    if not self.multi_label:
      return shapes
    several = jax.ShapeDtypeStruct((batch_size, self.model.num_classes), jnp.float32)
    return shapes | {'label': several}

  def mixing(self) -> mixing.Mixing:
    """How pictures are mixed."""
    return mixing.Mixing(self.mixup, self.cutmix, self.mix_probability, self.switch_probability)

  def examples(
    self, batch: dict[str, Array], keys: dict[str, Array]
  ) -> tuple[Num[Array, 'B H W C'], Float[Array, 'B K']]:
    """The pictures, as pixel values in 0..255, and the soft labels that training sees.

    Args:
      keys: random keys by the names of `streams`; without them nothing is erased or mixed.
    """
    images, mix = batch['image'], self.mixing()
    targets = batch['label']
    if not self.multi_label:
      targets = soft_labels(targets, self.model.num_classes, self.label_smoothing)
    if self.erasing and keys:
      pixels = images.astype(jnp.float32)
      images = mixing.erase(keys['erasing'], pixels, self.erasing, self.normalise)
    if mix and keys:
      images, share = mix(keys['mixup'], images.astype(jnp.float32))
      targets = share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)
    return images, targets

  def __call__(
    self, batch: dict[str, Array], constants: Any, *, train: bool
  ) -> tuple[Float[Array, ''], dict[str, Array]]:
    keys = {name: self.make_rng(name) for name in ('mixup', 'erasing')} if train else {}
    images, targets = self.examples(batch, keys)
    logits, outputs = self.model(self.normalise(images), train=train)
    if logits.ndim != 2:
      raise ValueError(
        f'classification needs one output an image, not {logits.shape[1:]}: readout={"none"!r} has '
        'one a token; choose another readout'
      )
    heads = [outputs[f'logits_{name}'] for name in self.model.heads] or [logits]
    losses = self.losses(heads, targets, images, constants if train else None)
    correct = is_correct(logits, batch['label'])
    weight = batch['weight']
    return (losses * weight).mean(), {'accuracy': (correct * weight).mean()}

  def losses(
    self,
    heads: list[Float[Array, 'B K']],
    targets: Float[Array, 'B K'],
    images: Num[Array, 'B H W C'],
    constants: Any,
  ) -> Float[Array, 'B']:
    """The loss of each example: the mean over the model's heads."""
    del images, constants  # It needs none.
    return jnp.stack([against(logits, targets, self.loss) for logits in heads]).mean(0)


def soft_labels(labels: Int[Array, 'B'], count: int, smoothing: float) -> Float[Array, 'B K']:
  """Labels as probabilities: 1 - smoothing of the class's own, the rest over all classes alike."""
  return optax.smooth_labels(jax.nn.one_hot(labels, count), smoothing)


def is_correct(
  logits: Float[Array, 'B K'], labels: Int[Array, 'B'] | Float[Array, 'B K']
) -> Bool[Array, 'B']:
  """Whether the highest logit is that of a picture's label; or of one of its labels, `B K`."""
  best = logits.argmax(-1)
  if labels.ndim == 1:
    return best == labels
  return jnp.take_along_axis(labels, best[:, None], axis=-1)[:, 0] > 0


def against(
  logits: Float[Array, 'B K'], targets: Float[Array, 'B K'], loss: str
) -> Float[Array, 'B']:
  """The loss of each example against soft labels, in float32."""
  if loss == 'softmax':
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def cross_entropy(
  logits: Float[Array, 'B K'], labels: Int[Array, 'B'], loss: str
) -> Float[Array, 'B']:
  """The loss of each example, in float32."""
  return against(logits, soft_labels(labels, logits.shape[-1], 0.0), loss)


def probabilities(logits: Float[Array, '... K'], predictions: str) -> Float[Array, '... K']:
  """Logits as probabilities: of one class among all (softmax), or of each class (sigmoid)."""
  return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[predictions](logits)
