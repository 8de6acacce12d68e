"""Images a second of a model on the devices that are here: forward passes, and train steps."""

from collections.abc import Callable
import statistics
import time
from typing import Any

import jax
import numpy as np

from vit_jax import step
from vit_jax.experiment import Experiment
from vit_jax.runtime import sharding

LEAST, CALLS = 1.0, 3  # seconds and calls at least, after one that is not counted


def images_per_second(built: Experiment) -> dict[str, float]:
  """Medians of some calls of the compiled programs, with pictures of noise on the devices."""
  state, train_step = step.prepare(built, step.state_shapes(built), None)
  batch, size = noise(built), built.config.batch_size
  forward = jax.jit(lambda params, images: built.forward(params, images)[0])
  with jax.set_mesh(built.mesh):
    params, images = state.params['model'], batch['image']
    found = {'forward': size / seconds(lambda: forward(params, images))}

  def train() -> Any:
    nonlocal state
    state, values = train_step(state, batch, built.constants)  # Which takes the old state's place.
    return values

  return found | {'train_step': size / seconds(train)}


def noise(built: Experiment) -> dict[str, jax.Array]:
  """A batch of the run, on its devices: random pictures, every one of class 0."""
  wanted = built.objective.batch_shapes(built.data.image_shape, built.config.batch_size)
  rng = np.random.default_rng(0)

  def fill(shape: Any) -> np.ndarray:
    if shape.dtype == np.uint8:
      return rng.integers(0, 256, shape.shape, np.uint8)
    return np.full(shape.shape, shape.dtype == np.bool_, shape.dtype)  # Every row is real.

  return sharding.place_batch({name: fill(shape) for name, shape in wanted.items()}, built.mesh)


def seconds(call: Callable[[], Any], least: float = LEAST, calls: int = CALLS) -> float:
  """The median time of a call, its result waited for.

  Args:
    least: seconds that all calls take together at least.
    calls: how many there are at least.
  """
  jax.block_until_ready(call())
  taken: list[float] = []
  while len(taken) < calls or sum(taken) < least:
    start = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(time.perf_counter() - start)
  return statistics.median(taken)
