"""Learning rates by step: a warm-up, one of several shapes after it, and a cool-down."""

from collections.abc import Callable
import dataclasses

from jax import numpy as jnp
import optax

from vit_jax.runtime.choices import check_choice


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a schedule after its warm-up may know.

  Attributes:
    steps: from the end of the warm-up to the end of the run, at least 1.
    final_fraction: the last rate as a fraction of the peak, of cosine and linear.
    drops: steps from the end of the warm-up, after each of which a tenth is left.
    timescale: steps in which 1 / sqrt falls by a factor of sqrt(2).
  """

  steps: int
  final_fraction: float
  drops: tuple[int, ...]
  timescale: int


def rsqrt(peak: float, timescale: int) -> optax.Schedule:
  """The rate `peak / sqrt(1 + step / timescale)`, which needs not know where a run ends.

  As in big_vision (arXiv:2106.04560 pairs it with a cool-down): after `timescale` steps 0.707 of
  the peak, after three times as many a half.
  """
  return lambda step: peak / jnp.sqrt(1 + step / timescale)


SCHEDULES: dict[str, Callable[[float, Shape], optax.Schedule]] = {
  'cosine': lambda peak, to: optax.cosine_decay_schedule(peak, to.steps, to.final_fraction),
  'linear': lambda peak, to: optax.linear_schedule(peak, peak * to.final_fraction, to.steps),
  'rsqrt': lambda peak, to: rsqrt(peak, to.timescale),
  'steps': lambda peak, to: optax.piecewise_constant_schedule(peak, dict.fromkeys(to.drops, 0.1)),
  'constant': lambda peak, _: optax.constant_schedule(peak),
}


def make_schedule(
  name: str,
  peak: float,
  total_steps: int,
  *,
  warmup_steps: int = 0,
  cooldown_steps: int = 0,
  final_fraction: float = 0.0,
  drops: tuple[int, ...] = (),
  timescale: int = 10_000,
) -> optax.Schedule:
  """A schedule by step, counted from 0: linear warm-up from 0, then `name`, then a cool-down.

  Args:
    name: a row of SCHEDULES.
    peak: the rate at the end of the warm-up.
    cooldown_steps: the last so many steps are multiplied by 1 ... 1 / cooldown_steps, so that the
      step after the last would have 0; 0: none are.
    final_fraction: the last rate of cosine and linear, as a fraction of the peak.
    drops: steps after each of which 'steps' has a tenth, counted from the start of the run.
    timescale: of 'rsqrt', steps.

  Raises:
    ValueError: no such schedule, or numbers of steps that cannot be.
  """
  check_choice('config.optimizer.schedule', name, SCHEDULES)
  check_steps(total_steps, warmup_steps, cooldown_steps, timescale)
  shape = Shape(
    max(1, total_steps - warmup_steps),
    final_fraction,
    tuple(step - warmup_steps for step in drops),
    timescale,
  )
  rate = SCHEDULES[name](peak, shape)
  if warmup_steps:
    # Counted from 1, so that the first step moves too and the peak is reached at `warmup_steps`.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    rate = optax.join_schedules([warmup, rate], [warmup_steps])
  return cool_down(rate, total_steps, cooldown_steps) if cooldown_steps else rate


def cool_down(rate: optax.Schedule, total_steps: int, cooldown_steps: int) -> optax.Schedule:
  """The schedule `rate`, its last `cooldown_steps` steps multiplied by a line from 1 to 0."""
  return lambda step: rate(step) * jnp.clip((total_steps - step) / cooldown_steps, 0, 1)


def check_steps(total_steps: int, warmup_steps: int, cooldown_steps: int, timescale: int) -> None:
  """Raises a ValueError for a warm-up, cool-down or timescale that cannot be."""
  for key, value in (('warmup_steps', warmup_steps), ('cooldown_steps', cooldown_steps)):
    if value < 0:
      raise ValueError(f'config.optimizer.{key}={value} must be at least 0 (0: none)')
  if timescale <= 0:
    raise ValueError(
      f'config.optimizer.timescale={timescale} must be above 0: the steps after which '
      'schedule=rsqrt has 0.71 of its peak'
    )
  if cooldown_steps and warmup_steps + cooldown_steps > total_steps:
    raise ValueError(
      f'config.optimizer.cooldown_steps={cooldown_steps} and warmup_steps={warmup_steps} are more '
      f'than config.total_steps={total_steps}; shorten one of them, or train longer'
    )
