"""Our package as the command runs it, on pictures that are only shapes: what benchmarks time.

Both the training step and the forward pass are those of `vit_jax.experiment`, on the devices that
it chooses. What linen's plain form and the official code are timed with stands here too, since all
three read the same parameters.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
import optax
from turns import Timed
from work import CLASSES, Work

from vit_jax import data, defaults, experiment, models, step
from vit_jax.runtime import compiled, devices, memory, sharding

RATE = 1e-3  # of the SGD that every library takes


def configure(
  family: str, variant: str, batch_size: int, image_size: int, dtype: str, **overrides
) -> defaults.Config:
  """A config of plain SGD; dotted keys override, '__' stands for '.'."""
  chosen = {'model': family, 'optimizer': overrides.pop('optimizer', 'sgd')}
  config = defaults.complete(defaults.get_config(), chosen)
  config.model.update(variant=variant, dtype=dtype)
  config.data.update(image_size=(image_size, image_size), channels=3)
  config.batch_size = batch_size
  if config.optimizer.name == 'sgd':
    config.optimizer.update(learning_rate=RATE, schedule='constant', momentum=0.0, clip_norm=0.0)
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


def build(config: defaults.Config, chosen: list[Any] | None = None) -> experiment.Experiment:
  """The experiment of a config, for devices that are chosen or need not be here."""
  shapes = data.describe(num_classes=CLASSES, **config.data.to_dict())
  return experiment.build(config, chosen=chosen, dataset=shapes)


def make(work: Work, one_device: bool) -> Timed:
  """Ours as the command runs it, or on one device instead of those that it chooses."""
  memory.keep_freed(work.batch_size * work.image_size**2)
  if not one_device:
    devices.prepare()
  config = configure(work.family, work.variant, work.batch_size, work.image_size, work.dtype)
  if one_device:
    config.devices = 1
  return KINDS[work.kind](build(config))


def training(built: experiment.Experiment) -> Timed:
  """The project's own compiled step, on one batch again and again."""
  state, train_step = step.prepare(built, step.state_shapes(built), None)
  shapes = built.objective.batch_shapes(built.data.image_shape, built.config.batch_size)
  batch = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
  batch['image'] = np.random.default_rng(0).integers(0, 256, batch['image'].shape, np.uint8)
  batch['label'] += np.arange(len(batch['label'])) % len(built.data.class_names)
  batch['mask'] |= True
  placed = sharding.place_batch(batch, built.mesh)

  def run():
    nonlocal state
    state, values = train_step(state, placed, built.constants)
    return state, values

  return timed(run, **about(built, train_step))


def about(built: experiment.Experiment, program: Any) -> dict:
  """How many devices compute, and what the compiler says that each needs, in bytes."""
  return {'devices': built.mesh.size, 'compiled': compiled.memory_of(program).total}


def inference(built: experiment.Experiment) -> Timed:
  """The forward pass with its rows cut over the devices, as `make_forward` has it."""
  everywhere, rows = sharding.replicated(built.mesh), sharding.batch_sharding(built.mesh)
  params = jax.device_put(parameters(built.model), everywhere)
  batch = pictures(built.config.batch_size, built.data.image_shape)
  placed = jax.device_put(batch, rows)
  forward = jax.jit(lambda params, images: built.forward(params, images)[0], out_shardings=rows)
  function = forward.lower(params, placed).compile()
  logits = np.asarray(function(params, placed))
  return timed(lambda: function(params, placed), logits=logits, **about(built, function))


def make_other(work: Work, checkout: str | None, kept: bool) -> Timed:
  """Plain linen as its users run it, or the official code where a checkout is given.

  Args:
    kept: whether the allocator keeps what is freed, as ours has it.

  Raises:
    ValueError: another family than the ViT that either has.
  """
  if work.family != 'vit':
    raise ValueError(f'there is no {work.family} of plain linen and none of the official code')
  import plain

  if kept:
    memory.keep_freed(work.batch_size * work.image_size**2)
  config = configure('vit', work.variant, work.batch_size, work.image_size, work.dtype, devices=1)
  built = build(config)
  forward, params = plain.forward(work, checkout), parameters(built.model)
  images = pictures(work.batch_size, built.data.image_shape)
  if work.kind == 'inference':
    function = jax.jit(forward)
    logits = np.asarray(function(params, images))
    return timed(lambda: function(params, images), logits=logits)
  optimizer = optax.sgd(RATE)
  train_step = jax.jit(plain.training_step(forward, optimizer), donate_argnums=0)
  return timed(repeat(train_step, (params, optimizer.init(params)), images))


def repeat(train_step: Callable, state: Any, images: jax.Array) -> Callable[[], Any]:
  """A function that takes one more step from where it left off."""
  labels = jnp.arange(len(images)) % CLASSES

  def run():
    nonlocal state
    state, loss = train_step(state, images, labels)
    return state, loss

  return run


KINDS = {'inference': inference, 'training': training}


def timed(run: Callable[[], Any], **about) -> Timed:
  """Something of JAX to time."""
  if jax.default_backend() == 'cpu':
    return Timed(run, jax.block_until_ready, about=about)

  def most() -> int:
    return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)

  return Timed(run, jax.block_until_ready, queued=True, about=about, memory=most)


def parameters(model: models.Model) -> dict:
  """The same fresh parameters for everyone, with a head that is not 0."""
  params = jax.jit(functools.partial(models.init, model))(jax.random.key(0))
  key = jax.random.key(1)
  head = jax.tree.map(lambda x: jax.random.normal(key, x.shape, x.dtype) * 0.05, params['head'])
  return params | {'head': head}


def pictures(batch_size: int, shape: tuple[int, ...]) -> jax.Array:
  """The same normalised pictures for everyone."""
  return jax.random.normal(jax.random.key(2), (batch_size, *shape))


def peak(dtype: str, side: int, spread: bool) -> Timed:
  """The largest matrix product that this machine gives JAX, as (side, side) @ (side, side).

  Args:
    spread: cut over a device for each core, each of one thread; else one device.
  """
  memory.keep_freed(side * side)
  if spread:
    devices.prepare()
  mesh = sharding.make_mesh(1, None if spread else jax.devices()[:1])
  rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  drawn = jax.random.normal(jax.random.key(0), (side, side), dtype)  # Zeros take less power.
  a, b = jax.device_put(drawn, rows), jax.device_put(drawn, everywhere)
  alone = {'xla_cpu_multi_thread_eigen': False}
  options = alone if spread and jax.default_backend() == 'cpu' else None
  function = jax.jit(jnp.matmul, out_shardings=rows, compiler_options=options)
  return timed(lambda: function(a, b))
