"""The state of a run, and the train step: one function (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from concurrent import futures
import functools
from typing import Any

from absl import logging
from flax import struct, traverse_util
import jax
from jax import numpy as jnp
import optax

from vit_jax import optim, sharding, weights
from vit_jax.defaults import Config
from vit_jax.parts import Parts


@struct.dataclass
class TrainState:
  """Arrays only: everything else is a function of the config and the step."""

  step: Any
  params: Any  # {'model': ..., and what the objective adds}
  opt_state: Any  # of the trainable parameters
  ema: Any  # a tree like params, or None


def fresh_state(config: Config, parts: Parts) -> TrainState:
  """The state before step 1, as a function of the seed."""
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  batch = {
    'image': jnp.zeros((1, *parts.data.image_shape)),
    'label': jnp.zeros((1,), jnp.int32),
    'weight': jnp.ones((1,)),
  }
  params = parts.objective.init({'params': key, 'dropout': key}, batch, train=False)['params']
  trainable, _ = optim.partition(params, parts.multipliers)
  ema = params if config.ema_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, parts.optimizer.init(trainable), ema)


def state_shapes(config: Config, parts: Parts) -> TrainState:
  """Shapes and shardings of the state; nothing is computed."""
  shapes = jax.eval_shape(functools.partial(fresh_state, config, parts))
  shardings = sharding.state_shardings(shapes, parts.mesh)
  place = functools.partial(jax.ShapeDtypeStruct)
  return jax.tree.map(lambda x, s: place(x.shape, x.dtype, sharding=s), shapes, shardings)


def initial_state(config: Config, parts: Parts, shapes: TrainState) -> TrainState:
  """A fresh state, born where it will live; from `config.init_from` where that is set."""
  given = {}
  if config.init_from:
    source, about = weights.load(config.init_from)
    if about['class_names'] != list(parts.data.class_names):
      source.pop('head', None)  # Other classes: the head starts anew, whatever its shape.
    given, done = weights.adapt(
      source, about, shapes.params['model'], parts.model, config.init_from, config.resample
    )
    logging.info('from %s: %d arrays; %s', config.init_from, len(given), '; '.join(done))

  def init(given):
    state = fresh_state(config, parts)
    flat = traverse_util.flatten_dict(state.params['model'], sep='/') | given
    params = state.params | {'model': traverse_util.unflatten_dict(flat, sep='/')}
    ema = params if config.ema_decay else None
    return TrainState(state.step, params, state.opt_state, ema)

  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  # It runs once: on a CPU, time spent on optimising it is lost (7.8 s with, 5.1 s without, Ti/16).
  hasty = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  options = hasty if jax.default_backend() == 'cpu' else None
  return jax.jit(init, out_shardings=shardings, compiler_options=options)(given)


def make_train_step(config: Config, parts: Parts) -> Callable:
  """(state, batch) -> (state, metrics); differentiates the trainable parameters only."""

  def loss_fn(trainable, frozen, batch, key):
    params = optim.merge(trainable, frozen)
    batch = batch | {'image': parts.data.preprocess.normalise(batch['image'])}
    return parts.objective.apply({'params': params}, batch, train=True, rngs={'dropout': key})

  differentiate = accumulate(jax.value_and_grad(loss_fn, has_aux=True), config.accumulation_steps)

  def train_step(state: TrainState, batch):
    step = state.step + 1
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    # Weights of mean 1 before the batch is cut: a mean of parts is then the mean of the real rows.
    batch = batch | {'weight': batch['mask'] / batch['mask'].mean()}
    trainable, frozen = optim.partition(state.params, parts.multipliers)
    (loss, values), gradients = differentiate(trainable, frozen, batch, key)
    updates, opt_state = parts.optimizer.update(gradients, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    params = optim.merge(trainable, frozen)
    ema = state.ema
    if config.ema_decay:
      ema = jax.tree.map(lambda old, new: old + (1 - config.ema_decay) * (new - old), ema, params)
    values = values | {
      'loss': loss,
      'gradient_norm': optax.global_norm(gradients),
      'parameter_norm': optax.global_norm(trainable),
      'learning_rate': parts.learning_rate(state.step),
    }
    return TrainState(step, params, opt_state, ema), values

  return train_step


def accumulate(differentiate: Callable, count: int) -> Callable:
  """The mean of `differentiate` over `count` equal parts of the batch, one after another."""
  if count == 1:
    return differentiate

  def accumulated(trainable, frozen, batch, key):
    # Part i takes every count-th row, so that each device cuts its own rows and none move.
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)
    keys = jax.random.split(key, count)

    def body(total, part):
      return jax.tree.map(jnp.add, total, differentiate(trainable, frozen, *part)), None

    one = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, trainable, frozen, *one)
    )
    total, _ = jax.lax.scan(body, zeros, (parts, keys))
    return jax.tree.map(lambda x: x / count, total)

  return accumulated


def compile_step(config: Config, parts: Parts, shapes: TrainState):
  """The train step, compiled once and ahead, so that its memory is known before step 1."""
  rows = sharding.batch_sharding(parts.mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
    parts.data.batch_shapes(config.batch_size),
  )
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  outputs = (shardings, sharding.replicated(parts.mesh))
  step = jax.jit(make_train_step(config, parts), donate_argnums=0, out_shardings=outputs)
  return step.lower(shapes, batch).compile()


def prepare(config: Config, parts: Parts, shapes: TrainState, state: TrainState | None):
  """(state, compiled train step); a fresh state where there is none.

  XLA compiles both at once: on two cores a start of Ti/16 takes about two thirds of the time.
  """
  with futures.ThreadPoolExecutor(1, 'compile') as pool:
    compiling = pool.submit(compile_step, config, parts, shapes)
    state = state or initial_state(config, parts, shapes)
    return state, compiling.result()
