"""Models by name. A new one is a file with `VARIANTS`, `OFFICIAL` and `build`, and one line here.

What is None and depends on other keys, a family's `decide(section)` may fill in. Its section of the
config stands in `vit_jax/defaults.py`; what callers may ask of it in `protocol.py`.
"""

import functools
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp

from vit_jax.models import axial, axial_resnet, bit, cordonnier, deit, hybrid, igpt, sasa, swin, vit
from vit_jax.models.protocol import EXECUTION, Model
from vit_jax.runtime.choices import check_choice

__all__ = ['EXECUTION', 'MODELS', 'Model', 'build', 'complete', 'init', 'shapes_of']

MODELS: dict[str, Any] = {
  'vit': vit,
  'deit': deit,
  'hybrid': hybrid,
  'axial': axial,
  'swin': swin,
  'bit': bit,
  'axial_resnet': axial_resnet,
  'sasa': sasa,
  'cordonnier': cordonnier,
  'igpt': igpt,
}


def complete(section: dict[str, Any]) -> dict[str, Any]:
  """A config section in which what is None, and may be, is as in the official code."""
  check_choice('config.model.name', section['name'], MODELS)
  family = MODELS[section['name']]
  official = family.OFFICIAL.items()
  section = section | {key: value for key, value in official if section.get(key) is None}
  return family.decide(section) if hasattr(family, 'decide') else section


def build(name: str, *, device: Any = None, **section) -> Model:
  """The model `name` with its config section as keyword arguments.

  Args:
    device: that it will compute on, which need not be here; None: the first one that is. A family
      whose section has `attention` is given it, to choose a kernel that runs there.

  Raises:
    ValueError: a value or a combination that is impossible.
  """
  section = complete({'name': name} | section)
  del section['name']
  for key in ('epsilon', 'group_norm_epsilon'):  # Of norms, in any family.
    if not section.get(key, 1) > 0:
      raise ValueError(f'config.model.{key}={section[key]} must be above 0')
  if 'attention' in section:
    section['device'] = device or jax.devices()[0]
  section['image_size'] = tuple(section['image_size'])
  return MODELS[name].build(**section)


def init(model: Model, key: jax.Array) -> dict:
  """Fresh parameters; under `jax.eval_shape` only their shapes."""
  images = jnp.zeros((1, *model.image_size, model.channels))
  return dict(model.init({'params': key}, images)['params'])


def shapes_of(model: Model) -> dict[str, Any]:
  """The shape of every parameter by its whole name."""
  shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
  return traverse_util.flatten_dict(shapes, sep='/')
