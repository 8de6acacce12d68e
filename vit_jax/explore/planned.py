"""A plan as it was found: what fits, and lower bounds of the time.

No time can be told without the device. What compiling tells is how much there is to do; each part
alone, at the published peak, takes at least so long.
"""

import dataclasses

import jax
import numpy as np

from vit_jax import step
from vit_jax.explore.estimate import Estimate, Run
from vit_jax.runtime import flops
from vit_jax.runtime.compiled import Collective
from vit_jax.runtime.targets import Target

# How often the data of a message cross a device's link, on a ring; once where nothing stands here.
CROSSINGS = {'all-reduce': 2}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What was found.

  Attributes:
    dtype: of the computation.
    asked: the train step as the config says it.
    forward: evaluation's pass, beside the state.
    flops: of one image: of the train step, and of the forward pass.
    process: bytes that the process itself takes on a CPU: Python, libraries, compiled programs.
    table: steps of other batch sizes and shardings, those that were not compiled too.
    largest: the largest batch that fits, compiled; None: not asked for, or none fits.
    remedies: (option, the asked step with it) pairs.
  """

  run: Run
  dtype: str
  asked: Estimate
  forward: Estimate
  flops: tuple[float, float]
  process: int
  table: tuple[Estimate, ...] = ()
  largest: Estimate | None = None
  remedies: tuple[tuple[str, Estimate], ...] = ()

  def fits(self, found: Estimate) -> bool:
    """Whether a program fits into a device."""
    return found.total <= self.room

  @property
  def room(self) -> int:
    """Bytes of a device that are left for programs."""
    return self.run.limit - self.process // len(self.run.devices)

  @property
  def remedy(self) -> str | None:
    """The first remedy that makes the asked step fit; None: it fits, or nothing was found."""
    if self.fits(self.asked):
      return None
    return next((option for option, found in self.remedies if self.fits(found)), None)

  @property
  def fits_whole(self) -> bool:
    """Whether both training and evaluation fit as they were asked for."""
    return self.fits(self.asked) and self.fits(self.forward)

  def flops_of(self, found: Estimate, training: bool = True) -> float:
    """Operations of a call on each device."""
    return self.flops[0 if training else 1] * found.batch_size / len(self.run.devices)

  def bounds(self, found: Estimate, training: bool = True) -> dict[str, float | None]:
    """Lower bounds of a call, in seconds."""
    return bounds(found, self.run, self.flops_of(found, training), self.dtype)


def flops_per_image(run: Run) -> tuple[float, float]:
  """Operations that a train step and a forward pass take for one image.

  Counted in the plain form of attention: a fused kernel shows none of its products.
  """
  plain = run.having(model__attention='plain') if 'attention' in run.config.model else run
  built, size = plain.build(), run.config.batch_size
  shapes = step.state_shapes(built)
  batch = built.objective.batch_shapes(built.data.image_shape, size)
  train = flops.flops_of(step.make_train_step(built), shapes, dict(batch), built.constants)
  images = jax.ShapeDtypeStruct((1, *built.data.image_shape), np.uint8)
  forward = flops.flops_of(lambda p, x: built.forward(p, x)[0], shapes.params['model'], images)
  return train / size, float(forward)


def bounds(
  found: Estimate, run: Run, flops_of_device: float, dtype: str
) -> dict[str, float | None]:
  """Lower bounds of a call, in seconds: `arithmetic`, `memory`, `collectives`, and images a second.

  None where no peak is published, or the compiler refused the program.
  """
  peaks = run.target.peaks
  names = ('arithmetic', 'memory', 'collectives', 'images_per_second')
  if peaks is None or found.traffic is None:
    return dict.fromkeys(names)
  seconds: dict[str, float | None] = {
    'arithmetic': flops_of_device / peaks.flops[dtype],
    'memory': found.traffic / peaks.memory,
    'collectives': sum((message_seconds(one, run.target) for one in found.messages), 0.0),
  }
  longest = max(x for x in seconds.values() if x is not None)
  return seconds | {'images_per_second': found.batch_size / longest}


def message_seconds(one: Collective, target: Target) -> float:
  """The shortest time of a message: within hosts and between them at once, each on a ring."""
  peaks = target.peaks
  assert peaks is not None  # Else nobody asks.
  hosts = len({device // target.per_host for device in one.group})
  local = len(one.group) / hosts
  crossing = one.times * one.size * CROSSINGS.get(one.kind, 1)
  within = crossing * (local - 1) / local / peaks.link
  across = crossing * (hosts - 1) / hosts / local / (peaks.network or peaks.link)
  return max(within, across)
