"""Train steps compiled for devices that need not be here, and what stands in them."""

import time
from typing import Any

import jax
from jax import numpy as jnp
import ours
import plain
import work as works

from vit_jax import step
from vit_jax.runtime import compiled, hlo, sharding, targets

GB = 1e9


def experiment_of(target: targets.Target, variant: str, batch_size: int, **overrides) -> Any:
  """Ours in bfloat16 with AdamW, for a target and a batch of each of its devices."""
  side, total = overrides.pop('image_size', 224), batch_size * len(target.devices)
  dtype = overrides.pop('dtype', 'bfloat16')
  config = ours.configure('vit', variant, total, side, dtype, optimizer='adamw', **overrides)
  return ours.build(config, chosen=target.devices)


def compile_ours(built: Any) -> tuple[Any, Any, dict]:
  """The project's own compiled step, the shapes of its state, and what to say of it: nothing."""
  shapes = step.state_shapes(built)
  return step.compile_step(built, shapes), shapes, {}


def compile_other(built: Any, checkout: str | None) -> tuple[Any, Any, dict]:
  """The same of plain linen or the official code, on the same mesh and with the same optimizer."""
  config, mesh = built.config, built.mesh
  side, rows = config.data.image_size[0], sharding.batch_sharding(mesh)
  work = works.of('training', config.model.variant, config.batch_size, side, config.model.dtype)
  everywhere = sharding.replicated(mesh)
  params = step.state_shapes(built).params['model']
  state = params, jax.eval_shape(built.optimizer.init, params)
  shape = jax.ShapeDtypeStruct
  state = jax.tree.map(lambda x: shape(x.shape, x.dtype, sharding=everywhere), state)
  images = shape((config.batch_size, side, side, 3), jnp.float32, sharding=rows)
  labels = shape((config.batch_size,), jnp.int32, sharding=rows)
  train_step = plain.training_step(plain.forward(work, checkout), built.optimizer)
  jitted = jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
  lowered = jitted.lower(state, images, labels)
  try:
    return lowered.compile(), state, {}
  except RuntimeError as error:
    # Without a card a GPU's compiler cannot measure tiles, and may find none for products of
    # linen's (jax 0.10.2).
    if 'tile sizes' not in str(error):
      raise
  option = 'xla_gpu_enable_triton_gemm'
  return (
    lowered.compile(compiler_options={option: False}),
    state,
    {'second_attempt_without': option},
  )


def facts(row: str, target: targets.Target, variant: str, batch_size: int, **overrides) -> dict:
  """A row for a target."""
  checkout = overrides.pop('official', None)
  if row == 'ours_plain':
    overrides['model__attention'] = 'plain'
  built = experiment_of(target, variant, batch_size, **overrides)
  start = time.perf_counter()
  if row.startswith('ours'):
    program, state, notes = compile_ours(built)
  else:
    program, state, notes = compile_other(built, checkout if row == 'official' else None)
  seconds = time.perf_counter() - start
  line = {'case': row, 'target': target.name, 'devices': len(target.devices), 'variant': variant}
  line |= {'batch_size_a_device': batch_size} | named(overrides)
  return line | {'compile_seconds': round(seconds, 1)} | notes | read(program, state, target)


def named(overrides: dict) -> dict:
  """Settings as a line has them: `model__remat` is `remat`."""
  return {key.removeprefix('model__'): value for key, value in overrides.items()}


def read(program: Any, state: Any, target: targets.Target) -> dict:
  """What stands in a compiled program, of one device."""
  memory, text = compiled.memory_of(program), hlo.parse(program.as_text())
  traffic, counted_by = compiled.traffic_of(program, text)
  collectives: dict[str, dict[str, float]] = {}
  for one in compiled.collectives_of(text, len(target.devices)):
    each = collectives.setdefault(one.kind, {'count': 0, 'gb': 0.0})
    each['count'] += one.times
    each['gb'] = round(each['gb'] + one.times * one.size / GB, 4)
  return {
    'temporary_gb': round(memory.temporary / GB, 3),
    'state_gb': round(compiled.size_on_device(state) / GB, 3),
    'total_gb': round(memory.total / GB, 3),
    'fits': memory.total <= target.memory,
    'traffic_gb': round(traffic / GB, 1),
    'traffic_counted_by': counted_by,
    'collectives': collectives,
    'attention': compiled.attention_of(text),
  }


def scan(target: targets.Target, variant: str, batch_size: int, **overrides) -> dict:
  """Seconds of compiling ours with its blocks in a loop, and one after another."""
  overrides = {key: x for key, x in overrides.items() if key not in ('official', 'model__scan')}
  seconds = {}
  for loop in (True, False):
    built = experiment_of(target, variant, batch_size, **overrides | {'model__scan': loop})
    start = time.perf_counter()
    compile_ours(built)
    seconds[loop] = time.perf_counter() - start
  line = {'case': 'scan', 'target': target.name, 'devices': len(target.devices)}
  line |= {'variant': variant, 'batch_size_a_device': batch_size} | named(overrides)
  return line | {
    'compile_seconds': round(seconds[True], 1),
    'compile_seconds_unrolled': round(seconds[False], 1),
    'ratio': round(seconds[True] / seconds[False], 3),
  }
