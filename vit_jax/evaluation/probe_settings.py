"""How probes are trained: the optimizer, its schedule, and how heads start."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array
import numpy as np
import optax

from vit_jax.runtime.choices import check_choice

HEADS = ('zero', 'torch', 'normal_0.01', 'normal_0.02')
SCHEDULES = ('cosine', 'constant')


def lars() -> optax.GradientTransformation:
  """LARS (arXiv:1708.03888) as MAE and EP train: trust 0.001 before momentum 0.9.

  What is a vector, a bias say, keeps its gradient.
  """
  trusted = optax.scale_by_trust_ratio(trust_coefficient=0.001)
  matrices = functools.partial(jax.tree.map, lambda x: x.ndim > 1)
  return optax.chain(optax.masked(trusted, matrices), optax.trace(0.9))


RULES: dict[str, Callable[[float], optax.GradientTransformation]] = {
  'adam': lambda b2: optax.scale_by_adam(b2=b2),
  'sgd': lambda b2: optax.trace(0.9),
  'lars': lambda b2: lars(),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How probes are trained: on cross-entropy, whole epochs, the last batch smaller.

  Attributes:
    head: how heads start: zero; torch: uniform within 1/sqrt(F), as torch's Linear; or normal_0.01,
      normal_0.02: kernels normal with this deviation, biases 0.
    schedule: of the learning rate: cosine to 0, or constant.
    seed: of what the controls draw.
    optimizer: adam; sgd with momentum 0.9; or lars.
    b2: adam's memory of squared gradients.
    warmup_epochs: in which the learning rate rises from 0, before its schedule.
    decay_schedule: of weight decay: constant, or cosine to 0.
    clip_norm: largest norm of a probe's gradient; 0: no clipping.
  """

  epochs: int = 10
  batch_size: int = 128
  head: str = 'zero'
  schedule: str = 'cosine'
  seed: int = 0
  optimizer: str = 'adam'
  b2: float = 0.999
  warmup_epochs: float = 0.0
  decay_schedule: str = 'constant'
  clip_norm: float = 0.0

  def __post_init__(self):
    check_choice('optimizer of probes', self.optimizer, RULES)
    check_choice('config.explore.head', self.head, HEADS)
    check_choice('config.explore.schedule', self.schedule, SCHEDULES)
    check_choice('config.explore.decay_schedule', self.decay_schedule, SCHEDULES)
    for key in ('epochs', 'batch_size'):
      if getattr(self, key) < 1:
        raise ValueError(f'config.explore.{key}={getattr(self, key)} must be at least 1')
    if not 0 <= self.warmup_epochs < self.epochs or not 0 <= self.b2 < 1 or self.clip_norm < 0:
      raise ValueError(
        f'config.explore: warmup_epochs={self.warmup_epochs} must be at least 0 and below epochs='
        f'{self.epochs}, b2={self.b2} in [0, 1), and clip_norm={self.clip_norm} not below 0'
      )

  @property
  def rule(self) -> optax.GradientTransformation:
    """How the gradient of one probe becomes an update, before the learning rate."""
    rule = RULES[self.optimizer](self.b2)
    clip = optax.clip_by_global_norm(self.clip_norm)
    return optax.chain(clip, rule) if self.clip_norm else rule

  def move(self, params: Any, gradients: Any, state: Any, rate: Any, decay: Any) -> tuple[Any, Any]:
    """One probe after a step, and its state; matrices decay, as AdamW's, and vectors do not."""
    updates, state = self.rule.update(gradients, state, params)
    moved = jax.tree.map(
      lambda p, u: p - rate * (u + decay * p if p.ndim > 1 else u), params, updates
    )
    return moved, state

  def factors(self, progress: float) -> tuple[float, float]:
    """What scales the learning rate, and weight decay, at `progress` in 0..1."""
    warmup = self.warmup_epochs / self.epochs
    if progress < warmup:
      rate = progress / warmup
    else:
      rate = factor(self.schedule, (progress - warmup) / (1 - warmup))
    return rate, factor(self.decay_schedule, progress)

  def head_of(self, key: Any, width: int, num_classes: int) -> dict[str, Array]:
    """Kernel and bias of a head, as it starts."""
    if self.head.startswith('normal'):
      kernel = float(self.head.removeprefix('normal_')) * jax.random.normal(
        key, (width, num_classes)
      )
      return {'kernel': kernel, 'bias': jnp.zeros(num_classes)}
    limit = 0.0 if self.head == 'zero' else width**-0.5
    keys = jax.random.split(key)
    return {
      'kernel': jax.random.uniform(keys[0], (width, num_classes), minval=-limit, maxval=limit),
      'bias': jax.random.uniform(keys[1], (num_classes,), minval=-limit, maxval=limit),
    }


def factor(schedule: str, progress: float) -> float:
  """The factor by which the schedule scales its value at `progress` in 0..1."""
  return 1.0 if schedule == 'constant' else float((1 + np.cos(np.pi * progress)) / 2)
