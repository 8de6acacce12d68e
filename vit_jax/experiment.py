"""What a config builds: mesh, data, model, objective, optimizer, evaluators, passport."""

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
import optax

from vit_jax import data, defaults, evaluation, metrics, models, objectives, optim, weights
from vit_jax.data import known as trained
from vit_jax.data import palette, processes
from vit_jax.defaults import Config
from vit_jax.formats import resample
from vit_jax.runtime import devices, sharding
from vit_jax.runtime.choices import check_choice
from vit_jax.weights import Passport, Source

WORKERS = ('threads', 'processes')  # Of a section of data: who makes the pictures, not which.


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that a config builds, each value checked.

  Attributes:
    learning_rate: by step, from 0.
    multipliers: (pattern, factor) pairs of learning rates by parameter name; 0 freezes.
    passport: what will belong to the weights.
    source: the weights that training starts from; None: from scratch, or from a checkpoint of the
      run's own.
    constants: what the objective reads and nothing trains.
    evaluators: by name.
    best: 'max:NAME' or 'min:NAME', which checkpoint is kept beside the newest; None: none is.
  """

  config: Config
  mesh: Any
  data: data.Dataset
  model: models.Model
  objective: objectives.Objective
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  multipliers: optim.Multipliers
  passport: Passport
  source: Source | None
  constants: Any
  evaluators: evaluation.Evaluators
  best: str | None

  @property
  def forward(self) -> Callable[..., tuple[Any, dict]]:
    """`forward(params, uint8 images) -> (logits, outputs by name)`."""
    return weights.make_forward(self.model, self.data.preprocess)

  @property
  def parts(self) -> int:
    """In how many parts a step computes its batch: those asked for, and what a CPU's cache wants.

    Pictures that are mixed with others of their batch stay together.
    """
    asked = self.config.accumulation_steps
    if defaults.mixes(self.config):
      return asked
    rows = self.config.batch_size // asked // self.mesh.size
    pixels = math.prod(self.data.preprocess.image_size)
    return asked * devices.parts([*self.mesh.devices.flat], rows, pixels, self.model.cached_pixels)


def build(
  config: Config,
  workdir: pathlib.Path | None = None,
  *,
  chosen: list[Any] | None = None,
  dataset: data.Dataset | None = None,
) -> Experiment:
  """Builds every part from its section of the config; nothing is compiled, nothing written.

  What a config leaves to the weights comes from the run in `workdir` where it has a checkpoint,
  else from `config.init_from`, which is then needed no more.

  Args:
    chosen: devices to compute on, which need not be here; None: as `runtime/devices.py` chooses.
    dataset: what is known of data that need not be here; None: those that the config names.

  Raises:
    ValueError: a name, a size or a combination that is impossible.
  """
  if chosen is None:
    check_platform(config.platform)
  defaults.check_numbers(config)
  check_choice('config.resample', config.resample, resample.METHODS)
  own = weights.passport_of_run(workdir) if workdir else None
  source = weights.open_source(config.init_from) if config.init_from and not own else None
  known = own or (source.passport if source else None)
  place = str(workdir) if own else config.init_from
  section = data_section(config, known)
  if dataset is None:
    dataset = data.build(**section)
    if own:
      trained.check_unchanged(own, dataset, place)
  mesh = make_mesh(config, dataset.preprocess.image_size, chosen)
  platform = mesh.devices.flat[0].platform
  count = processes.choose(dataset.processes, dataset.threads, platform)
  dataset = dataclasses.replace(dataset, processes=count)
  described = model_section(config, dataset, known, place)
  model = models.build(**described, device=mesh.devices.flat[0])
  normalise = dataset.preprocess.normalise
  objective = objectives.build(model=model, normalise=normalise, **config.objective)
  objective.check_labels(dataset.multi_label)
  objective, constants = open_constants(objective, described, dataset, mesh)
  passport = Passport(
    {key: value for key, value in described.items() if key not in models.EXECUTION},
    dataset.preprocess,
    list(dataset.class_names),
    weights='ema' if config.ema_decay else 'raw',
    predictions=objective.predictions,
    origin={'init_from': config.init_from, 'data': section, 'seed': config.seed}
    | trained.of_pictures(dataset),
  )
  optimizer, learning_rate, multipliers = optim.build(
    total_steps=config.total_steps, groups=model.layer_groups(), **config.optimizer
  )
  evaluators = build_evaluators(config, objective, passport, dataset, mesh)
  metrics.check_bands(config.bands, evaluators.metrics)
  return Experiment(
    config, mesh, dataset, model, objective, optimizer, learning_rate, multipliers, passport,
    source, constants, evaluators, evaluators.choose_best(config.best),
  )  # fmt: skip


def make_mesh(config: Config, image_size: tuple[int, int], chosen: list[Any] | None = None) -> Any:
  """The mesh of a training run, over which its batch divides.

  Raises:
    ValueError: the batch, or `config.fsdp`, does not divide the devices.
  """
  rows = config.batch_size // config.accumulation_steps
  if chosen is None:
    pixels = rows * math.prod(image_size)
    chosen = devices.choose(config.devices, rows, pixels, config.fsdp)
  mesh = sharding.make_mesh(config.fsdp, chosen)
  sharding.check_batch('config.batch_size', config.batch_size, mesh, config.accumulation_steps)
  return mesh


def evaluation_mesh(config: Config, image_size: tuple[int, int]) -> Any:
  """The mesh on which finished weights are computed; batches are filled up to divide over it."""
  rows = config.evaluation.batch_size
  pixels = rows * math.prod(image_size)
  return sharding.make_mesh(1, devices.choose(config.devices, 0, pixels))


def open_constants(
  objective: objectives.Objective, section: dict[str, Any], dataset: data.Dataset, mesh: Any
) -> tuple[Any, dict[str, Any]]:
  """The objective with the models of its sources, and their parameters on the devices.

  They compute as `section`, that of the model which is trained.

  Raises:
    ValueError: a source tells other classes than the data have, or sees other channels.
  """
  opened = {name: weights.open_source(path) for name, path in objective.sources.items()}
  for name, source in opened.items():
    what = f'config.objective.{name}={source.name}'
    trained.check_classes(what, source.passport, dataset)
    sees, given = source.passport.preprocess.channels, dataset.preprocess.channels
    if given not in (sees, 1):
      raise ValueError(f'{what} sees {sees} channels, config.data.channels={given}')
  how = {key: section[key] for key in ('attention', 'dtype') if key in section}
  forwards = {
    name: from_pixels(
      source.passport.build(device=mesh.devices.flat[0], **how), source.passport.preprocess
    )
    for name, source in opened.items()
  }
  constants = {name: source.tree() for name, source in opened.items()}
  return objective.clone(forwards=forwards), sharding.place_state(constants, mesh)


def from_pixels(
  model: models.Model, preprocess: data.Preprocess
) -> Callable[..., tuple[Any, dict]]:
  """`forward(params, images)` for pixel values in 0..255 of any size, as another model sees them.

  They are resized (bilinear, smoothed when shrinking), grey ones repeated, and normalised as the
  model's own passport says. A gradient may run through it.
  """

  def forward(params, images) -> Any:
    x = images.astype(jnp.float32)
    size = (x.shape[0], *preprocess.image_size, x.shape[-1])
    if x.shape != size:
      x = jax.image.resize(x, size, 'linear')
    if x.shape[-1] == 1 and preprocess.channels > 1:
      x = x.repeat(preprocess.channels, -1)
    answer: Any = model.apply({'params': params}, preprocess.normalise(x))
    return answer

  return forward


def build_evaluators(
  config: Config, objective: objectives.Objective, passport: Passport, dataset: data.Dataset,
  mesh: Any,
) -> evaluation.Evaluators:  # fmt: skip
  """The evaluators that `config.evaluators` names, for weights of this passport."""
  model: Any = objective.model
  return evaluation.build(
    tuple(config.evaluators), config.evaluation.to_dict(), model=model, objective=objective,
    forward=weights.make_forward(model, dataset.preprocess), passport=passport, data=dataset,
    mesh=mesh,
  )  # fmt: skip


def data_section(config: Config, known: Passport | None) -> dict[str, Any]:
  """The data's arguments: its section, pixel values as the weights know them.

  Raises:
    ValueError: the data of a checkpoint are asked for that knows none.
  """
  section = config.data.to_dict()
  if section['name'] == 'checkpoint':
    return data_of(known, config.init_from) | {key: section[key] for key in WORKERS}
  if known:
    for key in ('mean', 'std'):
      seen = getattr(known.preprocess, key)
      section[key] = section[key] or fit_channels(seen, section['channels'])
  return section


def data_of(known: Passport | None, source: str | None) -> dict[str, Any]:
  """The data that weights were trained on, as they know them; who made the pictures is left open.

  Raises:
    ValueError: the weights do not say.
  """
  there = known.origin.get('data') if known else None
  if known is None or not there:
    why = f'{source} does not say which these are' if source else 'config.init_from is not set'
    raise ValueError(
      f'config.data.name=checkpoint, the data of the checkpoint: {why}; name them: '
      '--config.data.name=folder --config.data.path=PATH, or digits, or tfds'
    )
  section = defaults.part('data', there['name']).to_dict() | there  # Keys of later versions.
  section |= {key: getattr(known.preprocess, key) for key in ('mean', 'std')}
  return defaults.tuples(section | dict.fromkeys(WORKERS))


def fit_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
  """Pixel means or deviations for another number of channels: their mean."""
  return values if len(values) in (1, channels) else (sum(values) / len(values),)


def model_section(
  config: Config, dataset: data.Dataset, known: Passport | None, place: str | None
) -> dict[str, Any]:
  """The model's arguments: its section, what belongs to its weights, and what the data decide.

  Raises:
    ValueError: the weights, which `place` names, are of another kind of model.
  """
  section = config.model.to_dict()
  if known:
    there = known.model
    if there['name'] != section['name']:
      raise ValueError(f'{place} holds a {there["name"]}; set --config.model.name={there["name"]}')
    keys = [*models.MODELS[section['name']].OFFICIAL]
    if section['variant'] is None:
      keys += [key for key in ('width', 'depth', 'num_heads', 'mlp_dim') if key in section]
    section |= {key: there.get(key) for key in keys if section[key] is None}
  made = models.complete(section) | {'num_classes': len(dataset.class_names)}
  if 'palette' in made:
    made['colours'] = palette.choose(made, dataset, config.seed, known and known.model)
  seen = dataset.preprocess
  return made | {'image_size': seen.image_size, 'channels': seen.channels}


def check_platform(platform: str | None) -> None:
  """Raises a ValueError with the remedy when JAX runs on another platform than was asked for."""
  if platform and jax.default_backend() != platform:
    raise ValueError(
      f'config.platform={platform!r} asked for, but JAX found {jax.default_backend()!r} '
      f"({jax.devices()[0].device_kind}); install the matching extra (pip install -e '.[cuda12]' "
      "or '.[tpu]') and check the driver, or leave config.platform unset"
    )
