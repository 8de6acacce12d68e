"""What an exploration of readouts works with, every value checked: model, data, candidates."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from vit_jax import data, defaults, experiment, predict
from vit_jax.defaults import Config
from vit_jax.evaluation import candidates, probes
from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.fitting import Fitted
from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens
from vit_jax.explore.lab_data import build_data, doubt
from vit_jax.explore.selection import SELECTIONS
from vit_jax.models import tokens
from vit_jax.runtime.choices import check_choice

TOKEN_NORMS = ('model', 'none')
# Sections and keys of the config that say something here; a change of any other would be ignored.
READ = ('run', 'platform', 'devices', 'seed', 'data', 'init_from', 'evaluation.batch_size',
        'explore')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lab:
  """What an exploration works with.

  Attributes:
    shape: of the tokens that are read, `T D`.
    earlier: how many of them are class tokens of blocks before the last, in front of the others.
    doubt: that the weights may have been trained on test examples, in words; '': no reason to.
  """

  config: Config
  predictor: predict.Predictor
  data: data.Dataset
  candidates: tuple[Candidate, ...]
  layers: tuple[str, ...]
  settings: probes.Settings
  shape: tuple[int, int]
  earlier: int = 0
  doubt: str = ''

  @functools.cached_property
  def mesh(self) -> Any:
    """The devices that compute."""
    return experiment.evaluation_mesh(self.config, self.predictor.model.image_size)

  @property
  def num_classes(self) -> int:
    """The number of classes of the data, whatever the weights knew."""
    return len(self.data.class_names)

  @property
  def grid(self) -> tuple[int, int]:
    """(height, width) of the patches."""
    return self.predictor.model.grid or (1, 1)  # `build` has refused a model without.

  @property
  def depth(self) -> int:
    """The number of blocks that the model names."""
    return max(1, len(tokens.block_names(self.predictor.output_names)))

  @property
  def seeds(self) -> list[int]:
    """A number for each run of the probes."""
    return [self.config.seed + i for i in range(self.config.explore.seeds)]


@dataclasses.dataclass(frozen=True)
class Layer:
  """What was found of one layer: `R` readouts, `S` seeds, `E` epochs.

  Attributes:
    rates: `R`: the learning rates that validation chose.
    validation: `R G`: accuracy at each rate of the grid; empty where there was no choice.
    fitted: with the chosen rates, on all training examples.
    closed: accuracy of least squares, `R`; not a number for learned mixes.
    labels: of the test examples.
    decays: `R`: the weight decays that were chosen with the rates; empty where none was tried.
  """

  rates: np.ndarray
  validation: np.ndarray
  fitted: Fitted
  closed: np.ndarray
  labels: np.ndarray
  decays: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

  def validation_at(self, r: int, grid: list[float]) -> float | None:
    """Accuracy of readout `r` at its learning rate on the held-out part; None without a choice."""
    if not self.validation.size:
      return None
    return float(self.validation[r, grid.index(float(self.rates[r]))])

  @property
  def correct(self) -> np.ndarray:
    """Whether each prediction is right: `S R n`."""
    return self.fitted.predictions[:, :, 0] == self.labels


def build(config: Config) -> Lab:
  """Everything that is needed, each value checked."""
  refuse_unread(config)
  experiment.check_platform(config.platform)
  if jax.process_count() > 1:
    raise ValueError('config.run=explore works in one process, on all of its devices')
  options = config.explore
  if not config.init_from:
    raise ValueError('config.run=explore needs --config.init_from: a run or a weight file')
  if options.checkpoints:
    raise ValueError(
      'config.explore.checkpoints: several backbones are explored by vit_jax.explore.run, as the '
      'command does; one lab reads config.init_from alone'
    )
  if options.seeds < 1 or not options.learning_rates or min(options.learning_rates) <= 0:
    raise ValueError('config.explore.seeds and learning_rates must be at least one, above 0')
  if min(options.weight_decays, default=-1) < 0:
    raise ValueError('config.explore.weight_decays must be at least one, and none below 0')
  if options.ridge <= 0:  # Else a feature that is constant leaves nothing to solve.
    raise ValueError(f'config.explore.ridge={options.ridge} must be above 0')
  check_choice('config.explore.selection', options.selection, SELECTIONS)
  check_choice('config.explore.token_norm', options.token_norm, TOKEN_NORMS)
  predictor = predict.load(config.init_from)
  if 'tokens' not in predictor.output_names or not predictor.model.grid:
    raise ValueError(
      f'{config.init_from} holds a {predictor.passport.model["name"]}, which has no tokens on a '
      'grid to read; config.run=explore needs weights of a family that has'
    )
  layers = layer_names(predictor, options.layers)
  earlier = count_earlier(predictor, tuple(options.readouts), layers)
  count, width = shape_of_tokens(predictor, layers, options.token_norm == 'none')
  shape = (earlier + count, width)
  dataset = build_data(config, predictor)
  return Lab(
    config,
    predictor,
    dataset,
    candidates.choose_candidates(
      tuple(options.readouts), predictor.model, predictor.passport.model, shape
    ),
    layers,
    probes.Settings(
      options.epochs, options.batch_size, options.head, options.schedule, config.seed,
      options.optimizer, options.b2, options.warmup_epochs, options.decay_schedule,
      options.clip_norm,
    ),
    shape,
    earlier,
    doubt(config, predictor, dataset),
  )  # fmt: skip


def count_earlier(
  predictor: predict.Predictor, names: tuple[str, ...], layers: tuple[str, ...]
) -> int:
  """How many blocks before the last some readouts take the class token of; 0 without one.

  Raises:
    ValueError: a readout needs more blocks than the model has, or than `layers` allows.
  """
  blocks = len(tokens.block_names(predictor.output_names))
  depth = max(1, blocks) if layers == ('tokens',) else 1
  earlier = candidates.earlier_blocks(names, depth, 'config.explore.readouts')
  return earlier if 'class_token' in predictor.model.prefix else 0


def layer_names(predictor: predict.Predictor, layers: str) -> tuple[str, ...]:
  """Outputs of tokens; after the last block those that the model itself reads."""
  names = tokens.layer_names(predictor.output_names, layers, 'config.explore.layers', means=True)
  last = tokens.block_names(predictor.output_names)[-1:]
  return tuple('tokens' if name in last else name for name in names)


def shape_of_tokens(
  predictor: predict.Predictor, layers: tuple[str, ...], raw: bool = False
) -> tuple[int, int]:
  """Tokens and width of the last layer, `T D`.

  Args:
    raw: whether tokens are read without any norm.

  Raises:
    ValueError: another layer has another grid or width, so that no readout fits both.
  """
  model = predictor.model
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), np.float32)
  named = jax.eval_shape(lambda p, x: predictor.forward(p, x)[1], predictor.params, image)
  read = {x: jax.eval_shape(lambda n, x=x: tokens.read_layer(n, x, raw), named) for x in layers}
  shapes = {layer: found.shape[1:] for layer, found in read.items()}
  count, width = jax.eval_shape(tokens.rows, named['tokens']).shape[1:]
  for layer, found in shapes.items():
    if found != (count, width):
      raise ValueError(
        f'config.explore.layers: {layer} is {found[0]} x {found[1]} (tokens x width) and the last '
        f'layer {count} x {width}; choose layers of one shape, such as last'
      )
  return count, width


def refuse_unread(config: Config, read: tuple[str, ...] = READ) -> None:
  """Raises a ValueError that names the keys that were changed and say nothing here.

  Args:
    read: sections and keys, 'data' or 'evaluation.batch_size', that do.
  """
  changed = [name for key in config if key not in read for name in changes(config, key, read)]
  if changed:
    raise ValueError(
      f'config.run=explore does not read config.{", config.".join(changed)}: the model is that of '
      'config.init_from, and probes and their cache are set by config.explore'
    )


def changes(config: Config, key: str, read: tuple[str, ...]) -> list[str]:
  """A key that was changed; of a section of which some keys are read the others that were."""
  value, normal = config[key], defaults.get_config()[key]
  if value == normal or not any(name.startswith(f'{key}.') for name in read):
    return [key] * (value != normal)
  names = [f'{key}.{inner}' for inner in value if value[inner] != normal.get(inner)]
  return [name for name in names if name not in read]


def as_evaluated(lab: Lab, store: dict[str, Tokens]) -> Tokens:
  """Tokens of the training pictures as evaluation sees them, on parts of which rules choose."""
  return store['train_plain' if lab.config.explore.views else 'train']


def probes_of(lab: Lab, some: list[Candidate]) -> Probes:
  """Some readouts with heads, not yet trained."""
  return Probes(
    some,
    shape=lab.shape,
    num_classes=lab.num_classes,
    first=lab.earlier + len(lab.predictor.model.prefix),
    settings=lab.settings,
    mesh=lab.mesh,
  )
