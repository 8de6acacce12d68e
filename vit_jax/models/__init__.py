"""Models by name. A new one is a file with `VARIANTS` and `build`, and one line here."""

import inspect

from flax import linen as nn
import jax
from jax import numpy as jnp

from vit_jax.models import vit

MODELS = {'vit': vit}


def build(name: str, **section) -> nn.Module:
  """The model `name` with its config section as keyword arguments."""
  return MODELS[name].build(**section)


def init(model: nn.Module, key: jax.Array) -> dict:
  """Fresh parameters; under `jax.eval_shape` only their shapes."""
  images = jnp.zeros((1, *model.image_size, model.channels))
  return model.init({'params': key}, images)['params']


def keywords(name: str) -> list[str]:
  """What `build` of this model takes."""
  return list(inspect.signature(MODELS[name].build).parameters)
