"""Models by name. A new one is a file with `VARIANTS` and `build`, and one line here."""

import jax
from jax import numpy as jnp

from vit_jax.models import vit

MODELS = {'vit': vit}


def build(name: str, **section) -> vit.VisionTransformer:
  """The model `name` with its config section as keyword arguments."""
  return MODELS[name].build(**section)


def init(model: vit.VisionTransformer, key: jax.Array) -> dict:
  """Fresh parameters; under `jax.eval_shape` only their shapes."""
  images = jnp.zeros((1, *model.image_size, model.channels))
  return dict(model.init({'params': key}, images)['params'])
