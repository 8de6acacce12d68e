"""The one loop: build, resume, step, log, evaluate, save. And evaluation of what it left behind."""

import dataclasses
import pathlib
from typing import Any

from absl import logging
from clu import parameter_overview
import jax

from vit_jax import (
  checkpoint,
  data,
  defaults,
  experiment,
  metrics,
  models,
  objectives,
  predict,
  weights,
)
from vit_jax.data import known
from vit_jax.defaults import Config
from vit_jax.experiment import Experiment
from vit_jax.metrics import Recorder, due
from vit_jax.runtime import compiled, devices, distributed, sharding, stacked, targets
from vit_jax.runtime.interruption import Interruption
from vit_jax.step import TrainState, from_file, in_file, load_params, prepare, state_shapes

COPIES = 3  # times its state that a step takes at least, with gradients and activations


def train(config: Config, workdir: pathlib.Path) -> None:
  """Trains as `config` says, going on from the newest checkpoint in `workdir`.

  The folder belongs to the config from its first checkpoint on: what fails before leaves it free.

  Raises:
    ValueError: a value that cannot work; nothing has been compiled yet.
    FloatingPointError: the loss is not finite; the last good checkpoint stays.
  """
  checkpoint.check_owner(workdir, config.to_dict())
  exp, shapes = open_run(config, workdir)
  saving = checkpoint.Checkpoints(workdir, config.keep_checkpoints, exp.best)
  with saving as checkpoints, exp.data.workers(config.data.processes is not None) as workers:
    state = checkpoints.restore_latest(in_file(exp, shapes))
    first = step = int(state.step) if state else 0
    if first >= config.total_steps:
      logging.info('%s is finished: step %d of %d', workdir, first, config.total_steps)
      # Killed after its last checkpoint. Asked together: process 0 may be writing it already.
      if not distributed.all_agree(weights.has_current_model(workdir)):
        finish(config, workdir, first)
      return
    room = targets.room_here([*exp.mesh.devices.flat])
    check_fits(compiled.size_on_device(shapes), room, 'its state')
    state = state and from_file(shapes, state)
    workers.begin()  # While the step is compiled.
    state, train_step = prepare(exp, shapes, state)
    check_fits(compiled.memory_of(train_step).total, room, 'a train step')
    describe(exp, state, train_step)
    about, together = exp.passport.to_json(), distributed.Together()
    bands = metrics.Bands(config, workdir, first)
    with Recorder(config, workdir, first) as recorder, Interruption() as interruption, together:
      for step, batch in training_batches(exp, first, workers):
        state, values = train_step(state, batch, exp.constants)
        recorder.push(step, values)
        interrupted = interruption.requested()
        scheduled = due(config.checkpoint_every, step) or step == config.total_steps
        groups = groups_due(exp, step, scheduled)
        if groups or scheduled or interrupted:
          recorder.settle()  # What is not finite is neither evaluated nor saved.
          with recorder.paused():
            evaluated = state.ema if config.ema_decay else state.params
            scores = exp.evaluators.run(evaluated, groups)
          recorder.add(step, scores)
          bands.judge(step, scores)
        if scheduled or interrupted:
          with recorder.paused():
            checkpoint.claim(workdir, config.to_dict())
            checkpoints.save(step, stacked.unstack(state), about, scores if scheduled else None)
        if interrupted:
          break
    checkpoints.wait()
  finish(config, workdir, step)


def open_run(config: Config, workdir: pathlib.Path) -> tuple[Experiment, TrainState]:
  """What a config builds, and the shapes of its state.

  A CPU whose memory copies of the state would fill is one device: nobody asked for more.
  """
  exp = experiment.build(config, workdir)
  shapes, chosen = state_shapes(exp), [*exp.mesh.devices.flat]
  most = targets.room_here(chosen) / COPIES
  if (
    devices.by_rule(config.devices, config.fsdp, chosen) and compiled.size_on_device(shapes) > most
  ):
    logging.info('one device: %d copies of the state would fill the memory', len(chosen))
    exp = experiment.build(config, workdir, chosen=chosen[:1])
    shapes = state_shapes(exp)
  return exp, shapes


def training_batches(exp: Experiment, first: int, workers: Any = None):
  """Pairs (step, batch on the devices) from `first + 1` on, made ahead in threads.

  Args:
    workers: what makes the pictures, of `exp.data.workers`; None: threads here.
  """
  config = exp.config
  wanted = exp.objective.batch_shapes(exp.data.image_shape, config.batch_size)
  rows = sharding.rows_here(config.batch_size, exp.mesh)

  def make(step: int):
    batch = exp.data.batch_at(
      step, batch_size=config.batch_size, seed=config.seed, rows=rows, make=workers
    )
    return step, {name: batch[name] for name in wanted}

  def place(made):
    step, batch = made
    return step, sharding.place_batch(batch, exp.mesh)

  steps = range(first + 1, config.total_steps + 1)
  return data.pipeline.stream(make, place, steps, workers.ahead(len(rows)) if workers else 0)


def groups_due(exp: Experiment, step: int, scheduled: bool) -> tuple[str, ...]:
  """The groups of numbers to compute: all when due and at the end; what chooses, at checkpoints.

  A checkpoint that an interruption asks for is not scheduled: it leaves no trace in the metrics,
  so that a run that was interrupted reads like one that was not.
  """
  every = exp.config.eval_every
  if due(every, step) or (every and step == exp.config.total_steps):
    return exp.evaluators.groups
  if scheduled and exp.best:
    return (exp.best.partition(':')[2].partition('/')[0],)
  return ()


def finish(config: Config, workdir: pathlib.Path, step: int) -> None:
  """Writes the inference file and the curves from what is on disk, and says where things are."""
  from vit_jax import figures

  if distributed.is_first():  # A whole copy of the weights is in this process alone.
    weights.write_model(workdir / 'model', *weights.load(workdir))
    figures.curves(metrics.read(workdir / 'metrics.jsonl')).savefig(workdir / 'curves.png')
  distributed.barrier('model written')
  done = step == config.total_steps
  logging.info(
    '%s at step %d of %d; %s',
    'finished' if done else 'stopped',
    step,
    config.total_steps,
    f'model in {workdir / "model"}' if done else 'the same command goes on from here',
  )


def check_fits(needed: int, room: int, what: str) -> None:
  """Refuses what a device cannot hold; else the system would end a run on a CPU without a word.

  Raises:
    MemoryError: fewer than `needed` bytes are there.
  """
  if needed > room:
    raise MemoryError(
      f'{what} takes {needed / 1e9:.3g} GB a device, and {room / 1e9:.3g} GB are there'
    )


def describe(exp: Experiment, state: TrainState, train_step: Any) -> None:
  """Logs the first lines of a run: devices, parameters, config, model, data, memory."""
  config = exp.config
  logging.info(
    'backend %s, %d process(es), computing in %s',
    devices.describe([*exp.mesh.devices.flat]),
    jax.process_count(),
    getattr(exp.model, 'dtype', 'float32'),
  )
  if exp.parts > config.accumulation_steps:
    logging.info('each batch in %d parts, of a size that the cache of a CPU holds', exp.parts)
  shapes = stacked.unstack_shapes(state.params['model'])  # Values may lie in other processes.
  logging.info('%s', parameter_overview.get_parameter_overview(shapes, include_stats=False))
  logging.info('config:\n%s', config)
  logging.info('%s', exp.model.summary())
  sizes = ', '.join(f'{name} {len(source)}' for name, source in exp.data.splits.items())
  names = exp.data.class_names
  logging.info('data: %s; %d classes: %s', sizes, len(names), ', '.join(names[:20]))
  memory = compiled.memory_of(train_step)
  logging.info(
    'memory: about %.3g GB a device for the train step, %.3g of them the state and the batch',
    memory.total / 1e9,
    memory.arguments / 1e9,
  )
  for key in ('log_every', 'eval_every', 'checkpoint_every'):
    if config[key] > config.total_steps:
      logging.info('%s=%d is longer than the run', key, config[key])
  for at, name, *_ in config.bands:
    if at > config.total_steps or not config.eval_every:
      logging.info('config.bands: %s from step %d on will not be evaluated', name, at)
  if config.optimizer.warmup_steps >= config.total_steps:
    logging.info('warm-up of %d steps fills the run', config.optimizer.warmup_steps)


def evaluate(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates the model of a run by `config.evaluators`; process 0 writes and returns the report.

  Where the workdir holds no run, the weights of `config.init_from` are evaluated.

  Raises:
    ValueError: no checkpoint, another model, or data that an evaluator cannot take.
  """
  experiment.check_platform(config.platform)
  execution = {key: config.model[key] for key in models.EXECUTION if key in config.model}
  own = weights.passport_of_run(workdir) or weights.own_folder(workdir)
  other = workdir.is_file() or weights.is_foreign(workdir)  # Of others.
  if not (own or other or config.init_from):
    raise ValueError(
      f'{workdir} holds no checkpoint to evaluate: train first, or name weights with '
      '--config.init_from=C'
    )
  place = workdir if own or not config.init_from else config.init_from
  predictor = predict.load(place, **execution)
  about = predictor.passport
  check_same_model(config, about.model, place, whole=place == workdir)
  dataset = open_data(config, about, place)
  mesh = experiment.evaluation_mesh(config, about.preprocess.image_size)
  objective = objectives.build(
    model=predictor.model, normalise=about.preprocess.normalise, **config.objective
  )
  evaluators = experiment.build_evaluators(config, objective, about, dataset, mesh)
  if evaluators.read_head and weights.has_zero_head(predictor.params):
    raise ValueError(
      f'{place}: the head is all zero, so an accuracy would say nothing; train it, with '
      f'config.init_from={place} say'
    )
  params: Any = {'model': predictor.params}
  if evaluators.read_objective:
    params = load_params(pathlib.Path(place), objective, dataset.image_shape)
  params = jax.device_put(params, sharding.replicated(mesh))
  told = {'step': about.step, 'weights': about.weights}
  if place != workdir:
    told['init_from'] = str(place)
  return evaluators.report(params, workdir / 'reports', told)


def open_data(config: Config, about: weights.Passport, place: Any) -> data.Dataset:
  """The data that are evaluated, prepared as the weights know them.

  Raises:
    ValueError: the config asks for pictures that are prepared otherwise than the weights know them,
      or draws another split, with pictures that they were trained on.
  """
  section, seen = experiment.data_section(config, about), about.preprocess
  if config.data.name != 'checkpoint':
    normal = defaults.part('data', config.data.name).to_dict()
    known.check_seen(config.data.to_dict(), normal, seen, place)
  fitted = section | {'image_size': seen.image_size, 'channels': seen.channels}
  dataset = dataclasses.replace(data.build(**fitted), preprocess=seen)
  there = experiment.data_of(about, str(place)) if about.origin.get('data') else {}
  known.check_untrained(dataset, section, there, place, data.build)
  return dataset


def check_same_model(config: Config, there: dict[str, Any], place: Any, whole: bool) -> None:
  """Raises a ValueError with the keys in which a config asks for another model than is there.

  Args:
    whole: whether all that the config says must hold; else what differs from the defaults.
  """
  normal: Any = {} if whole else defaults.part('model', config.model.name)
  if not whole and config.model == defaults.get_config().model:
    return
  asked = {key: value for key, value in config.model.items() if value is not None}
  differ = [
    key for key, value in asked.items()
    if key not in models.EXECUTION and there.get(key) != value
    and (whole or key == 'name' or value != normal[key])
  ]  # fmt: skip
  if differ:
    rows = ', '.join(f'{key}: {there.get(key)!r} there' for key in differ)
    raise ValueError(
      f'the config describes another model than {place} holds ({rows}): repeat the options that it '
      'was trained with, or evaluate it by --config=configs/evaluate.py '
      f'--config.init_from={place}, in another workdir'
    )
