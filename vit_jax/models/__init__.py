"""Models by name. A new one is a file with `VARIANTS` and `build`, and one line here."""

from typing import Any

import jax
from jax import numpy as jnp

from vit_jax.models import bit, hybrid, vit

MODELS = {'vit': vit, 'hybrid': hybrid, 'bit': bit}
Model = vit.VisionTransformer | bit.BigTransfer


def complete(section: dict[str, Any]) -> dict[str, Any]:
  """A config section in which what is None, and may be, is as in the official code."""
  official = MODELS[section['name']].OFFICIAL
  return section | {key: value for key, value in official.items() if section.get(key) is None}


def build(name: str, **section) -> Model:
  """The model `name` with its config section as keyword arguments."""
  section = complete({'name': name} | section)
  del section['name']
  return MODELS[name].build(**section)


def init(model: Model, key: jax.Array) -> dict:
  """Fresh parameters; under `jax.eval_shape` only their shapes."""
  images = jnp.zeros((1, *model.image_size, model.channels))
  return dict(model.init({'params': key}, images)['params'])
