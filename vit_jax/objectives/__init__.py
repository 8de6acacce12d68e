"""Objectives by name: modules that hold the model and return `(loss, metrics)`.

A new one is a file and one line here; what it may be asked stands in `protocol.py`.
"""

from collections.abc import Callable

from flax import linen as nn

from vit_jax.objectives import (
  autoregressive,
  classification,
  distillation,
  masked_patches,
  masked_pixels,
)
from vit_jax.objectives.protocol import Objective
from vit_jax.runtime.choices import check_choice

__all__ = ['OBJECTIVES', 'Objective', 'build']

OBJECTIVES: dict[str, Callable[..., Objective]] = {
  'classification': classification.Classification,
  'distillation': distillation.Distillation,
  'masked_patches': masked_patches.MaskedPatches,
  'autoregressive': autoregressive.Autoregressive,
  'masked_pixels': masked_pixels.MaskedPixels,
}


def build(name: str, *, model: nn.Module, normalise: Callable, **section) -> Objective:
  """The objective `name` around `model`, with its config section as keyword arguments."""
  check_choice('config.objective.name', name, OBJECTIVES)
  return OBJECTIVES[name](model=model, normalise=normalise, **section)
