"""What a config builds: mesh, data, model, objective, optimizer; the passport of its weights."""

import dataclasses
from typing import Any

import jax
import optax

import vit_jax
from vit_jax import data, defaults, models, objectives, optim, sharding, weights
from vit_jax.defaults import Config


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a config builds."""

  mesh: Any
  data: data.Dataset
  model: Any
  objective: Any
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  multipliers: optim.Multipliers = ()


def build(config: Config) -> Parts:
  """Every part, from its section of the config.

  Raises:
    ValueError: a name, a size or a combination that is impossible.
  """
  check_platform(config.platform)
  for key in ('total_steps', 'batch_size', 'accumulation_steps'):
    if config[key] < 1:
      raise ValueError(f'config.{key}={config[key]} must be at least 1')
  if not 0 <= config.ema_decay < 1:
    raise ValueError(f'config.ema_decay={config.ema_decay} must be in [0, 1)')
  mesh = sharding.make_mesh(config.fsdp)
  sharding.check_batch('config.batch_size', config.batch_size, config.accumulation_steps)
  sharding.check_batch('config.evaluation.batch_size', config.evaluation.batch_size)
  dataset = data.build(**data_section(config))
  model = models.build(**model_section(config, dataset))
  optimizer, learning_rate, multipliers = optim.build(
    total_steps=config.total_steps,
    encoder=getattr(model, 'Transformer', None),
    **config.optimizer,
  )
  objective = objectives.build(model=model, **config.objective)
  return Parts(mesh, dataset, model, objective, optimizer, learning_rate, multipliers)


def data_section(config: Config) -> dict[str, Any]:
  """The data's arguments: its section, pixel values as the weights know them.

  Raises:
    ValueError: the data of a checkpoint are asked for that knows none.
  """
  section = config.data.to_dict()
  if section['name'] == 'checkpoint':
    return data_of_checkpoint(config.init_from)
  if config.init_from:
    seen = weights.passport(config.init_from)['preprocess']
    for key in ('mean', 'std'):
      section[key] = section[key] or fit_channels(tuple(seen[key]), section.get('channels'))
  return section


def data_of_checkpoint(source: str | None) -> dict[str, Any]:
  """The data that weights were trained on, and the preprocessing that they know."""
  passport = weights.passport(source) if source else {}
  there = passport.get('origin', {}).get('data')
  if not there:
    why = f'{source} does not say which these are' if source else 'config.init_from is not set'
    raise ValueError(
      f'config.data.name=checkpoint, the data of the checkpoint: {why}; name them: '
      '--config.data.name=folder --config.data.path=PATH, or digits, or tfds'
    )
  section = defaults.part('data', there['name']).to_dict() | there  # Keys of later versions.
  section |= {key: passport['preprocess'][key] for key in ('mean', 'std')}
  return {key: tuple(x) if isinstance(x, list) else x for key, x in section.items()}


def fit_channels(values: tuple[float, ...], channels: int | None) -> tuple[float, ...]:
  """One number a channel, for another number of channels: their mean."""
  return values if len(values) in (1, channels) else (sum(values) / len(values),)


def model_section(config: Config, dataset: data.Dataset) -> dict[str, Any]:
  """The model's arguments: its section, what belongs to its weights, and what the data decide.

  Raises:
    ValueError: the weights are of another kind of model.
  """
  section = config.model.to_dict()
  if config.init_from:
    there = weights.passport(config.init_from)['model']
    if there['name'] != section['name']:
      raise ValueError(
        f'{config.init_from} holds a {there["name"]}; set --config.model.name={there["name"]}'
      )
    keys = [*models.MODELS[section['name']].OFFICIAL]
    if section['variant'] is None:
      keys += [key for key in ('width', 'depth', 'num_heads', 'mlp_dim') if key in section]
    section |= {key: there.get(key) for key in keys if section[key] is None}
  return models.complete(section) | {
    'image_size': dataset.preprocess.image_size,
    'channels': dataset.preprocess.channels,
    'num_classes': len(dataset.class_names),
  }


def check_platform(platform: str | None) -> None:
  if platform and jax.default_backend() != platform:
    raise ValueError(
      f'config.platform={platform!r} asked for, but JAX found {jax.default_backend()!r} '
      f"({jax.devices()[0].device_kind}); install the matching extra (pip install -e '.[cuda12]' "
      "or '.[tpu]') and check the driver, or leave config.platform unset"
    )


def passport(config: Config, parts: Parts) -> dict[str, Any]:
  """What the weights need to be used elsewhere."""
  return {
    'format': 1,
    'vit_jax': vit_jax.__version__,
    'weights': 'ema' if config.ema_decay else 'raw',
    'model': model_section(config, parts.data),
    'preprocess': dataclasses.asdict(parts.data.preprocess),
    'class_names': list(parts.data.class_names),
    'origin': {'init_from': config.init_from, 'data': data_section(config), 'seed': config.seed},
  }
