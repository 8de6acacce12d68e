"""The optimizer from its config section: clip, rule, decay, learning rates by name; and freezing.

A new rule is a function in `rules.py`, its section in `vit_jax/defaults.py`, and one line here.
"""

from collections.abc import Callable
import functools
from typing import Any

import optax

from vit_jax.optim import rules
from vit_jax.optim.checks import check_multipliers, check_numbers, check_pattern
from vit_jax.optim.names import (
  Multipliers,
  by_depth,
  by_name,
  is_trained,
  make_mask,
  match,
  merge,
  multiplier,
  names_of,
  partition,
  scale_by_name,
)
from vit_jax.optim.schedules import SCHEDULES, make_schedule
from vit_jax.runtime.choices import check_choice

__all__ = [
  'DECAYS', 'OPTIMIZERS', 'SCHEDULES', 'Multipliers', 'build', 'by_depth', 'by_name', 'is_trained',
  'make_schedule', 'match', 'merge', 'multiplier', 'names_of', 'partition', 'scale_by_name',
]  # fmt: skip

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': rules.sgd,
  'adam': rules.adam,
  'adamw': rules.adam,
  'adafactor': rules.adafactor,
}
DECAYS = ('coupled', 'decoupled', 'independent')


def build(
  name: str,
  *,
  total_steps: int,
  learning_rate: float,
  schedule: str,
  warmup_steps: int,
  cooldown_steps: int,
  final_fraction: float,
  drops: tuple[int, ...],
  timescale: int,
  clip_norm: float,
  decay: str,
  decay_pattern: str,
  weight_decay: float,
  multipliers: Multipliers,
  train: str,
  layer_decay: float,
  groups: tuple[str, ...] = ('.*', 'head/.*'),
  **rule: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule, Multipliers]:
  """The optimizer `name` for trees of trainable parameters, its learning rate by step, and what
  multiplies it by name; `groups` are patterns of parameters from the input to the head.

  Weight decay has three meanings. Coupled: added to the gradient, before the moments (L2).
  Decoupled: added to what the rule makes of the gradient, and so multiplied by the learning rate
  and by the multipliers of each name, as torch's AdamW. Independent: of the weights is taken
  `weight_decay * rate / peak` at each step, whatever the peak and the multipliers are, as in
  big_vision; what is frozen does not decay either.
  """
  check_choice('config.optimizer.name', name, OPTIMIZERS)
  check_choice('config.optimizer.decay', decay, DECAYS)
  check_numbers(
    learning_rate=learning_rate, clip_norm=clip_norm, weight_decay=weight_decay,
    final_fraction=final_fraction,
  )  # fmt: skip
  check_pattern('decay_pattern', decay_pattern)
  check_multipliers(multipliers)
  multipliers = (*multipliers, *by_depth(train, layer_decay, groups))
  scheduled = functools.partial(
    make_schedule, schedule, total_steps=total_steps, warmup_steps=warmup_steps,
    cooldown_steps=cooldown_steps, final_fraction=final_fraction, drops=drops, timescale=timescale,
  )  # fmt: skip
  rate, factor = scheduled(learning_rate), scheduled(1.0)
  parts = [
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    with_decay(OPTIMIZERS[name](**rule), decay, weight_decay, decay_pattern),
    optax.scale_by_learning_rate(rate),
  ]
  if multipliers:
    parts.append(optax.stateless(lambda updates, _: scale_by_name(updates, multipliers)))
  if decay == 'independent' and weight_decay:
    mask = make_mask(decay_pattern)
    parts.append(optax.add_decayed_weights(lambda step: -weight_decay * factor(step), mask))
  return optax.chain(*parts), rate, multipliers


def with_decay(
  rule: optax.GradientTransformation, decay: str, weight_decay: float, pattern: str
) -> optax.GradientTransformation:
  """A rule with decay before it (coupled) or after it (decoupled); independent decay comes later.

  The state has a place for decay in each case: checkpoints of 0.1.0 know no other form.
  """
  here = weight_decay and decay != 'independent'
  decays = optax.add_decayed_weights(weight_decay, make_mask(pattern)) if here else optax.identity()
  return optax.chain(decays, rule) if decay == 'coupled' else optax.chain(rule, decays)
