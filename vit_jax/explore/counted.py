"""One model at one size as a record: parameters, arithmetic, memory, speed, the largest batch.

Arithmetic is told three times. `analytic` is the family's closed form and `traced` what the program
itself multiplies (`runtime/flops.py`): products alone, two FLOPs for a multiply-add. `xla` is the
compiler's own count, elementwise operations too.
"""

import dataclasses
from typing import Any

from absl import logging
import jax

from vit_jax import step
from vit_jax.experiment import Experiment
from vit_jax.explore import estimate, planned, stopwatch
from vit_jax.explore.alternatives import find_largest
from vit_jax.explore.estimate import Run
from vit_jax.runtime import memory

GB, EXA = 1e9, 1e18
CONVENTION = (
  'FLOPs are those of products, two for each multiply-add; norms, softmax, biases and activations '
  'are left out, but in what XLA counts. A training that is not traced counts as three times its '
  'forward passes.'
)


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is asked for beside counts.

  Attributes:
    compiled: memory, and what XLA counts.
    timed: images a second on the devices here.
    fit: the largest batch of a train step that fits.
    images: that a whole training sees; 0: nothing is said of one.
  """

  compiled: bool = True
  timed: bool = False
  fit: bool = False
  images: int | float = 0


def record(title: str, run: Run, asked: Asked) -> dict[str, Any]:
  """What is known of a model; None for what was not asked for, or cannot be told.

  FLOPs are of one image, memory is of a device at the run's batch size: `forward` and `train_step`
  live within a call alone, activations above all; `total` is all that a train step takes.

  Args:
    title: the model as a person writes it.
    run: which model, images, batch and devices.
  """
  built = run.build()
  parts = built.model.multiply_adds()
  train, forward = planned.flops_per_image(run)
  found: dict[str, Any] = {
    'model': title,
    'image_size': list(built.model.image_size),
    'num_classes': built.model.num_classes,
    'dtype': getattr(built.model, 'dtype', 'float32'),
    'batch_size': run.config.batch_size,
    'target': run.target.name,
    'device': run.devices[0].device_kind,
    'devices': len(run.devices),
    'parameters': parameters_of(built),
    'multiply_adds': parts or None,
    'flops': {'analytic': 2 * sum(parts.values()) or None, 'traced': int(forward), 'xla': None},
    'train_flops': {'traced': train, 'three_forward': 3 * forward},
    'exaflops': exaflops(train, forward, asked.images) if asked.images else None,
    'memory_gb': None,
    'largest_batch_size': None,
    'images_per_second': None,
  }
  compile_it(found, run, built, asked)
  return found


def compile_it(found: dict[str, Any], run: Run, built: Experiment, asked: Asked) -> None:
  """Adds to a record what only the compiled programs, or running them, can tell."""
  if not (asked.compiled or asked.fit or asked.timed):
    return
  forward, train = estimate.of_forward(run, built), estimate.of_step(run, built)
  if forward.flops is not None:
    found['flops']['xla'] = forward.flops * len(run.devices) / forward.batch_size
  found['memory_gb'] = {
    'forward': in_gb(forward.temporary),
    'train_step': in_gb(train.temporary),
    'state': in_gb(train.memory.get('state')),
    'total': in_gb(train.total),
  }
  room = run.limit - (memory.resident() if run.devices[0].platform == 'cpu' else 0)
  if asked.fit:
    largest = find_largest(run, [train], room)
    found['largest_batch_size'] = largest.batch_size if largest else 0
  if asked.timed and train.total > room:
    found['images_per_second'] = {'forward': None, 'train_step': None}
    logging.warning('%s takes %.3g GB, and %.3g are there: not timed', found['model'],
                    train.total / GB, room / GB)  # fmt: skip
  elif asked.timed:
    found['images_per_second'] = stopwatch.images_per_second(built)


def parameters_of(built: Experiment) -> int:
  """The number of the model's parameters."""
  return sum(x.size for x in jax.tree.leaves(step.state_shapes(built).params['model']))


def exaflops(train: float, forward: int | float, images: int | float) -> dict[str, float]:
  """The 10^18 FLOPs of a training that sees so many images, from those of one.

  `traced` are the train step's own; `three_forward` takes its backward pass as two forward ones, as
  papers do.
  """
  return {'traced': train * images / EXA, 'three_forward': 3 * forward * images / EXA}


def in_gb(size: int | None) -> float | None:
  return None if size is None else size / GB
