"""The one loop: build, resume, step, log, evaluate, save. And evaluation of what it left behind."""

import dataclasses
import pathlib
from typing import Any

from absl import logging
from clu import parameter_overview
import jax

from vit_jax import checkpoint, data, distributed, evaluation, metrics, predict, sharding, weights
from vit_jax.defaults import Config
from vit_jax.interruption import Interruption
from vit_jax.metrics import Recorder, due
from vit_jax.parts import Parts, build, check_platform, data_section, passport
from vit_jax.step import TrainState, prepare, state_shapes


def train(config: Config, workdir: pathlib.Path) -> None:
  """Trains as `config` says, going on from the newest checkpoint in `workdir`.

  Raises:
    ValueError: a value that cannot work; nothing has been compiled yet.
    FloatingPointError: the loss is not finite; the last good checkpoint stays.
  """
  parts = build(config)
  checkpoint.claim(workdir, config.to_dict())
  has_validation = 'validation' in parts.data.splits
  with checkpoint.Checkpoints(workdir, config.keep_checkpoints, has_validation) as checkpoints:
    shapes = state_shapes(config, parts)
    state = checkpoints.restore_latest(shapes)
    first = step = int(state.step) if state else 0
    if first >= config.total_steps:
      logging.info('%s is finished: step %d of %d', workdir, first, config.total_steps)
      if not weights.has_current_model(workdir):  # Killed after its last checkpoint.
        finish(config, workdir, first)
      return
    state, train_step = prepare(config, parts, shapes, state)
    describe(config, parts, state, train_step)
    about = passport(config, parts)  # Now: what the run started from may be gone later.
    evaluator = make_evaluator(config, parts.model, parts.data, parts.mesh)
    together = distributed.Together()
    with Recorder(config, workdir, first) as recorder, Interruption() as interruption, together:
      for step, batch in training_batches(config, parts, first):
        state, values = train_step(state, batch)
        recorder.push(step, values)
        interrupted = interruption.requested()
        scheduled = due(config.checkpoint_every, step) or step == config.total_steps
        splits = splits_due(config, parts, step, scheduled)
        if splits or scheduled or interrupted:
          recorder.settle()  # What is not finite is neither evaluated nor saved.
          evaluated = (state.ema if config.ema_decay else state.params)['model']
          scores = {split: evaluator.run(evaluated, split).scores() for split in splits}
          recorder.add(step, scores)
        if scheduled or interrupted:
          best = scores.get('validation') if scheduled else None
          checkpoints.save(step, state, about, best)
        if interrupted:
          break
    checkpoints.wait()
  finish(config, workdir, step)


def training_batches(config: Config, parts: Parts, first: int):
  """(step, batch on the devices) from `first + 1` on, made ahead in a thread."""

  def make(step: int):
    batch = parts.data.batch_at(step, batch_size=config.batch_size, seed=config.seed)
    return step, sharding.place_batch(batch, parts.mesh)

  return data.pipeline.prefetch(make, range(first + 1, config.total_steps + 1))


def splits_due(config: Config, parts: Parts, step: int, scheduled: bool) -> list[str]:
  """All but train when evaluation is due and at the end; validation with every checkpoint.

  A checkpoint that an interruption asks for is not scheduled: it leaves no trace in the metrics,
  so that a run that was interrupted reads like one that was not.
  """
  splits = [split for split in parts.data.splits if split != 'train']
  if due(config.eval_every, step) or (config.eval_every and step == config.total_steps):
    return splits
  return [split for split in splits if split == 'validation' and scheduled]


def make_evaluator(config: Config, model, dataset: data.Dataset, mesh):
  return evaluation.build(
    model=model, data=dataset, mesh=mesh, loss=config.objective.loss, **config.evaluation
  )


def finish(config: Config, workdir: pathlib.Path, step: int) -> None:
  """Writes the inference file and the curves from what is on disk, and says where things are."""
  from vit_jax import figures

  loaded = weights.load(workdir)  # By every process, as Orbax wants it.
  if distributed.is_first():
    weights.write_model(workdir / 'model', *loaded)
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


def describe(config: Config, parts: Parts, state: TrainState, train_step) -> None:
  """The first lines of a run."""
  device = jax.devices()[0]
  logging.info(
    'backend %s, %d x %s, %d process(es), computing in %s',
    device.platform,
    jax.device_count(),
    device.device_kind,
    jax.process_count(),
    config.model.dtype,
  )
  logging.info('%s', parameter_overview.get_parameter_overview(state.params['model']))
  logging.info('config:\n%s', config)
  grid = parts.model.grid
  logging.info(
    'tokens: %d x %d patches of %d px%s = %d, from images of %d x %d x %d',
    *grid,
    parts.model.patch_size,
    ' and a class token' if parts.model.class_token else '',
    parts.model.num_tokens,
    *parts.data.image_shape,
  )
  sizes = ', '.join(f'{name} {len(source)}' for name, source in parts.data.splits.items())
  names = parts.data.class_names
  logging.info('data: %s; %d classes: %s', sizes, len(names), ', '.join(names[:20]))
  memory = train_step.memory_analysis()
  if memory is not None:
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    logging.info('memory: about %.2f GiB a device for the train step', total / 2**30)
  for key in ('log_every', 'eval_every', 'checkpoint_every'):
    if config[key] > config.total_steps:
      logging.info('%s=%d is longer than the run', key, config[key])
  if config.optimizer.warmup_steps >= config.total_steps:
    logging.info('warm-up of %d steps fills the run', config.optimizer.warmup_steps)


def evaluate(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates the model of a run on the test split; process 0 writes and returns the report.

  Raises:
    ValueError: no checkpoint, or other classes than the model's.
  """
  check_platform(config.platform)
  predictor = predict.load(workdir)
  if weights.has_zero_head(predictor.params):
    raise ValueError(f'{workdir}: the head is all zero, so an accuracy would say nothing; train it')
  there = predictor.passport['model']
  asked = {key: value for key, value in config.model.items() if value is not None}
  differ = [key for key, value in asked.items() if there.get(key) != value]
  if differ:
    rows = ', '.join(f'{key}: {there.get(key)!r} there' for key in differ)
    raise ValueError(f'the config describes another model than {workdir} holds ({rows})')
  dataset = data.build(**data_section(config))
  if list(dataset.class_names) != predictor.class_names:
    raise ValueError(
      f'the data have classes {dataset.class_names}, the model {predictor.class_names}'
    )
  dataset = dataclasses.replace(dataset, preprocess=predictor.preprocess)
  mesh = sharding.make_mesh(config.fsdp)
  params = jax.device_put(predictor.params, sharding.replicated(mesh))
  result = make_evaluator(config, predictor.model, dataset, mesh).run(params, 'test')
  about = {key: predictor.passport[key] for key in ('step', 'weights')}
  write = evaluation.classification.write_report
  return (
    write(workdir / 'reports', result, dataset, 'test', about) if distributed.is_first() else {}
  )
