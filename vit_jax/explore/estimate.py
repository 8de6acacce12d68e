"""What a train step or a forward pass takes on some devices, from compiling it for them."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np

from vit_jax import data, experiment, step
from vit_jax.defaults import Config
from vit_jax.experiment import Experiment
from vit_jax.runtime import compiled, devices, hlo, memory, sharding
from vit_jax.runtime.compiled import Collective
from vit_jax.runtime.targets import Target

# Batches on a device at once: the one in use, and those that `pipeline.prefetch` makes ahead.
BATCHES = 4
EXHAUSTED = 'RESOURCE_EXHAUSTED'
USED = re.compile(r'Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm|HLO temporaries \(([\d.]+)([KMG])\)')
UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}


@dataclasses.dataclass(frozen=True)
class Run:
  """What is planned, and for which devices.

  Attributes:
    workdir: of the run; one that has a checkpoint knows its weights' settings.
    devices: those of `target` that the run uses.
  """

  config: Config
  workdir: pathlib.Path
  target: Target
  devices: list[Any]
  dataset: data.Dataset

  def having(self, **settings: Any) -> 'Run':
    """The same with other values of some keys; '__' stands for '.'."""
    config = self.config.copy_and_resolve_references()
    for key, value in settings.items():
      config.update_from_flattened_dict({key.replace('__', '.'): value})
    return dataclasses.replace(self, config=config)

  def build(self) -> Experiment:
    """The experiment on these devices."""
    return experiment.build(self.config, self.workdir, chosen=self.devices, dataset=self.dataset)

  @property
  def copies(self) -> int:
    """How often the temporaries of a step are held: of small ones, by each thread of a CPU.

    Measured on two cores: the digits hold theirs (44 MB) twice after five steps, larger steps once.
    """
    height, width = self.dataset.preprocess.image_size
    pixels = self.config.batch_size // self.config.accumulation_steps * height * width
    small = self.devices[0].platform == 'cpu' and pixels < memory.LARGE
    return devices.cores() if small else 1

  @property
  def limit(self) -> int:
    """Bytes of a device that a program may fill; the devices of a CPU share its memory."""
    shared = self.devices[0].platform == 'cpu'
    return self.target.memory // (len(self.devices) if shared else 1)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What one program takes, on each device.

  Attributes:
    batch_size: of all devices together.
    memory: bytes by part: state, activations, batch, total. Where the compiler refuses a program
      as too large it tells the total alone.
    traffic: bytes that are read and written, and who counted them.
    messages: between devices.
    attention: the kernel in the program.
    seconds: of compiling; 0 for what lies between two programs that were compiled.
    flops: as XLA counts them (`compiled.flops_of`).
    temporary: bytes that live within a call alone, held once: activations above all.
  """

  batch_size: int
  fsdp: int
  memory: dict[str, int]
  traffic: int | None = None
  counted_by: str = ''
  messages: tuple[Collective, ...] = ()
  attention: str | None = None
  seconds: float = 0.0
  flops: float | None = None
  temporary: int | None = None

  @property
  def total(self) -> int:
    return self.memory['total']


def of_step(run: Run, built: Experiment) -> Estimate:
  """The train step of a run."""
  config, shapes = run.config, step.state_shapes(built)
  wanted = built.objective.batch_shapes(built.data.image_shape, config.batch_size)
  shape = jax.ShapeDtypeStruct
  rows = sharding.batch_sharding(built.mesh)
  batch = [shape(x.shape, x.dtype, sharding=rows) for x in wanted.values()]
  make = functools.partial(step.compile_step, built, shapes)
  return examine(make, run, config.batch_size, compiled.size_on_device(batch), resident=0)


def of_forward(run: Run, built: Experiment) -> Estimate:
  """The forward pass of evaluation, while the state lies on the devices."""
  size = sharding.round_up(run.config.evaluation.batch_size, built.mesh)
  rows = sharding.batch_sharding(built.mesh)
  images = jax.ShapeDtypeStruct((size, *built.data.image_shape), np.uint8, sharding=rows)
  state = step.state_shapes(built)
  params = state.params['model']
  forward = jax.jit(lambda params, images: built.forward(params, images)[0])
  batch = compiled.size_on_device(images)
  rest = compiled.size_on_device(state) - compiled.size_on_device(params)

  def make():
    with jax.set_mesh(built.mesh):  # As `sharding.jit_on` does where it runs.
      return forward.lower(params, images).compile()

  return examine(make, run, size, batch, resident=rest)


def examine(
  make: Callable[[], Any], run: Run, batch_size: int, batch: int, resident: int
) -> Estimate:
  """Compiles, and reads what the program takes.

  Args:
    make: returns the compiled program.
    batch: bytes of a device's part of a batch, which is among the program's arguments.
    resident: bytes on each device that are no arguments.
  """
  start, fsdp = time.perf_counter(), run.config.fsdp
  try:
    program = make()
  except RuntimeError as error:
    used = memory_in(str(error))
    if used is None:
      raise
    return Estimate(batch_size, fsdp, {'total': used}, seconds=time.perf_counter() - start)
  seconds = time.perf_counter() - start
  found, text = compiled.memory_of(program), hlo.parse(program.as_text())
  parts = {
    'state': resident + max(0, found.arguments - batch),
    'activations': run.copies * found.temporary + found.outputs + found.code,
    'batch': BATCHES * batch,
  }
  traffic, counted_by = compiled.traffic_of(program, text)
  return Estimate(
    batch_size,
    fsdp,
    parts | {'total': sum(parts.values())},
    traffic,
    counted_by,
    tuple(compiled.collectives_of(text, len(run.devices))),
    compiled.attention_of(text),
    seconds,
    compiled.flops_of(program, text),
    found.temporary,
  )


def memory_in(message: str) -> int | None:
  """Bytes that a program would have taken, from a compiler's refusal; None: it is another error."""
  match = USED.search(message) if EXHAUSTED in message else None
  if match is None:
    return None
  number, unit = [part for part in match.groups() if part]
  return int(float(number) * UNITS[unit])


def between(first: Estimate, second: Estimate, batch_size: int) -> Estimate:
  """What lies on the line through two programs: at one sharding all is affine in the batch."""
  share = (batch_size - first.batch_size) / (second.batch_size - first.batch_size)

  def line(a: int, b: int) -> int:
    return max(0, round(a + share * (b - a)))

  keys = first.memory.keys() & second.memory.keys()
  traffic = None
  if first.traffic is not None and second.traffic is not None:
    traffic = line(first.traffic, second.traffic)
  return dataclasses.replace(
    first,
    batch_size=batch_size,
    memory={key: line(first.memory[key], second.memory[key]) for key in keys},
    traffic=traffic,
    seconds=0.0,
    flops=None,
    temporary=None,
  )
