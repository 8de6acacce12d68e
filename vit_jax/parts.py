"""What a config builds: mesh, data, model, objective, optimizer; the passport of its weights."""

import dataclasses
from typing import Any

import jax
import optax

import vit_jax
from vit_jax import data, models, objectives, optim, sharding
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
  dataset = data.build(**config.data)
  model = models.build(**model_section(config, dataset))
  optimizer, learning_rate = optim.build(total_steps=config.total_steps, **config.optimizer)
  objective = objectives.build(model=model, **config.objective)
  return Parts(mesh, dataset, model, objective, optimizer, learning_rate)


def model_section(config: Config, dataset: data.Dataset) -> dict[str, Any]:
  """The model's arguments: its section, and what the data decide."""
  return config.model.to_dict() | {
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
    'origin': {'init_from': config.init_from, 'data': config.data.to_dict(), 'seed': config.seed},
  }
