"""The state of a run, and the train step: one function (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from concurrent import futures
import functools
import pathlib
from typing import Any
import zlib

from absl import logging
from flax import struct, traverse_util
import jax
from jax import numpy as jnp
import optax

from vit_jax import checkpoint, optim
from vit_jax.defaults import Config
from vit_jax.experiment import Experiment
from vit_jax.formats import adapt
from vit_jax.objectives import Objective
from vit_jax.runtime import sharding, stacked


@struct.dataclass
class TrainState:
  """The arrays of a run; everything else is a function of the config and the step."""

  step: Any
  params: Any  # {'model': ..., and what the objective adds}
  opt_state: Any  # of the trainable parameters
  ema: Any  # a tree like params, or None


def fresh_state(experiment: Experiment, constants: Any) -> TrainState:
  """The state before step 1, as a function of the seed."""
  config = experiment.config
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  params = init_params(experiment.objective, experiment.data.image_shape, key, constants)
  trainable, _ = optim.partition(params, experiment.multipliers)
  ema = params if config.ema_decay else None
  opt_state = experiment.optimizer.init(trainable)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema)


def init_params(
  objective: Objective, image_shape: tuple[int, int, int], key: jax.Array, constants: Any
) -> dict[str, Any]:
  """Fresh parameters of an objective: its model's, in 'model', and what it adds."""
  shapes = objective.batch_shapes(image_shape, 1)
  batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
  batch['weight'] = jnp.ones((1,))
  keys = {'params': key} | streams(objective, key)
  params: dict[str, Any] = {**objective.init(keys, batch, constants, train=False)['params']}
  return params if objective.trains_head else params | {'model': with_zero_head(params['model'])}


def with_zero_head(model: dict[str, Any]) -> dict[str, Any]:
  """A model's parameters with heads of zeros, which nobody takes for trained ones.

  Most start so by themselves; a DeiT's do not.
  """
  heads = {name: x for name, x in model.items() if name.startswith('head')}
  return model | jax.tree.map(jnp.zeros_like, heads)


def streams(objective: Objective, key: jax.Array) -> dict[str, jax.Array]:
  """A key for each random stream of an objective; 'dropout' has the step's own."""
  return {
    name: key if name == 'dropout' else jax.random.fold_in(key, zlib.crc32(name.encode()))
    for name in objective.streams
  }


def state_shapes(experiment: Experiment) -> TrainState:
  """Shapes and shardings of the state; nothing is computed."""
  return place(experiment, jax.eval_shape(functools.partial(fresh_state, experiment),
                                          experiment.constants))  # fmt: skip


def place(experiment: Experiment, shapes: TrainState) -> TrainState:
  """Shapes of a state with the shardings that it has in a run."""
  shardings = sharding.state_shardings(shapes, experiment.mesh)
  if experiment.config.shard_optimizer:
    opt_state = sharding.state_shardings(shapes.opt_state, experiment.mesh, sharding.AXES)
    shardings = shardings.replace(opt_state=opt_state)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def in_file(experiment: Experiment, shapes: TrainState) -> TrainState:
  """Shapes and shardings of the state as checkpoints hold it: without stacks of blocks."""
  return place(experiment, stacked.unstack_shapes(shapes))


def from_file(shapes: TrainState, state: TrainState) -> TrainState:
  """A restored state as the run wants it; `stacked.unstack` is the way back."""
  if jax.tree.structure(shapes) == jax.tree.structure(state):
    return state  # No stacks, and so no second copy.
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.jit(functools.partial(stacked.stack_like, shapes), out_shardings=shardings)(state)


def initial_state(experiment: Experiment, shapes: TrainState) -> TrainState:
  """A fresh state, born where it will live; from the experiment's source where it has one."""
  model = stacked.unstack_shapes(shapes.params['model'])
  given = from_source(experiment, model) if experiment.source else {}

  def init(given, constants):
    state = fresh_state(experiment, constants)
    params = state.params
    if given:
      flat = traverse_util.flatten_dict(stacked.unstack(params['model']), sep='/') | given
      filled = stacked.stack_like(params['model'], traverse_util.unflatten_dict(flat, sep='/'))
      params = params | {'model': filled}
    ema = params if experiment.config.ema_decay else None
    return TrainState(state.step, params, state.opt_state, ema)

  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  # It runs once: on a CPU, time spent on optimising it is lost (7.8 s with, 5.1 s without, Ti/16).
  hasty = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  options = hasty if jax.default_backend() == 'cpu' else None
  return jax.jit(init, out_shardings=shardings, compiler_options=options)(
    given, experiment.constants
  )


def from_source(experiment: Experiment, shapes: dict[str, Any]) -> dict[str, Any]:
  """The parameters, by whole name, that the experiment's source has for its model.

  Raises:
    ValueError: they do not fit the model; every difference is listed.
  """
  source: Any = experiment.source
  given, about = source.flat(), source.passport
  other = about.class_names != list(experiment.data.class_names)
  if other or not experiment.objective.trains_head:  # The head starts anew, whatever its shape.
    given = {name: x for name, x in given.items() if not name.startswith('head')}
  want = traverse_util.flatten_dict(shapes, sep='/')
  old, new = about.build(), experiment.model
  fitted, done = adapt.adapt(given, want, old, new, source.name, experiment.config.resample)
  logging.info('from %s: %d arrays; %s', source.name, len(fitted), '; '.join(done))
  return fitted


def load_params(
  workdir: pathlib.Path, objective: Objective, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """All parameters of a run's objective (numpy), of its best checkpoint, else of its newest.

  Raises:
    ValueError: the folder has no checkpoint, or one of another objective.
  """
  if not (workdir / 'checkpoints').is_dir():
    raise ValueError(
      f'{workdir} holds no checkpoints/, and what an objective adds to its model is in those '
      'alone: weight files hold the model; give the folder of a run'
    )
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    params, _ = checkpoints.restore_whole()
  init = functools.partial(init_params, objective, image_shape)
  want = stacked.unstack_shapes(jax.eval_shape(init, jax.random.key(0), {}))
  flat = functools.partial(traverse_util.flatten_dict, sep='/')
  adapt.check_complete(flat(params), flat(want), workdir)
  return params


def make_train_step(experiment: Experiment) -> Callable:
  """The step `(state, batch, constants) -> (state, metrics)`; moves what is trainable only.

  Raises:
    ValueError: the objective returns other metrics than it names; when traced.
  """
  config, objective = experiment.config, experiment.objective

  def loss_fn(trainable, frozen, constants, batch, key):
    params = optim.merge(trainable, frozen)
    keys = streams(objective, key)
    loss, values = objective.apply({'params': params}, batch, constants, train=True, rngs=keys)
    if {*values} != {*objective.metrics}:
      raise ValueError(f'{type(objective).__name__} names the metrics {objective.metrics} and '
                       f'returns {tuple(values)}')  # fmt: skip
    return loss, values

  differentiate = accumulate(jax.value_and_grad(loss_fn, has_aux=True), experiment.parts)

  def train_step(state: TrainState, batch, constants):
    step = state.step + 1
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    # Weights of mean 1 before the batch is cut: a mean of parts is then the mean of the real rows.
    batch = batch | {'weight': batch['mask'] / batch['mask'].mean()}
    trainable, frozen = optim.partition(state.params, experiment.multipliers)
    constants = jax.lax.stop_gradient(constants)
    (loss, values), gradients = differentiate(trainable, frozen, constants, batch, key)
    if config.shard_optimizer:  # Each device then updates its part, and gathers the rest.
      cut = sharding.state_shardings(gradients, experiment.mesh, sharding.AXES)
      gradients = jax.lax.with_sharding_constraint(gradients, cut)
    updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    params = optim.merge(trainable, frozen)
    ema = average(config, state.ema, params, step)
    values = values | {
      'loss': loss,
      'gradient_norm': optax.global_norm(gradients),
      'parameter_norm': optax.global_norm(trainable),
      'learning_rate': experiment.learning_rate(state.step),
    }
    return TrainState(step, params, opt_state, ema), values

  return train_step


def average(config: Config, ema: Any, params: Any, step: jax.Array) -> Any:
  """The average of the weights after step `step`, from the one before; None where there is none.

  There is no bias correction: the average starts as the weights of step `config.ema_start`, which
  after t more steps count the product of the t decays.
  """
  if not config.ema_decay:
    return ema
  decay = config.ema_decay
  if config.ema_warmup:
    since = jnp.maximum(step - config.ema_start, 0)
    decay = jnp.minimum(decay, (1 + since) / (10 + since))
  ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
  if not config.ema_start:
    return ema
  return jax.tree.map(lambda old, new: jnp.where(step <= config.ema_start, new, old), ema, params)


def accumulate(differentiate: Callable, count: int) -> Callable:
  """The mean of `differentiate` over `count` equal parts of the batch, one after another."""
  if count == 1:
    return differentiate

  def accumulated(trainable, frozen, constants, batch, key):
    # Part i takes every count-th row, so that each device cuts its own rows and none move.
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)
    keys = jax.random.split(key, count)

    def part(rows):
      return differentiate(trainable, frozen, constants, *rows)

    def body(total, rows):
      return jax.tree.map(jnp.add, total, part(rows)), None

    one = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, one))
    total, _ = jax.lax.scan(body, zeros, (parts, keys))
    return jax.tree.map(lambda x: x / count, total)

  return accumulated


def compile_step(experiment: Experiment, shapes: TrainState):
  """The train step, compiled once and ahead, so that its memory is known before step 1."""
  rows = sharding.batch_sharding(experiment.mesh)
  wanted = experiment.objective.batch_shapes(
    experiment.data.image_shape, experiment.config.batch_size
  )
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in wanted.items()
  }
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  outputs = (shardings, sharding.replicated(experiment.mesh))
  step = jax.jit(make_train_step(experiment), donate_argnums=0, out_shardings=outputs)
  with jax.set_mesh(experiment.mesh):
    return step.lower(shapes, batch, experiment.constants).compile()


def prepare(experiment: Experiment, shapes: TrainState, state: TrainState | None):
  """The state and the compiled train step; a fresh state where there is none.

  XLA compiles both at once: on two cores a start of Ti/16 takes about two thirds of the time.
  """
  with futures.ThreadPoolExecutor(1, 'compile') as pool:
    compiling = pool.submit(compile_step, experiment, shapes)
    state = state or initial_state(experiment, shapes)
    return state, compiling.result()
