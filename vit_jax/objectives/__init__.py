"""Objectives by name: modules that hold the model and return `(loss, metrics)`.

A new one is a file and one line here; what it adds to the parameters lies beside the model.
"""

from collections.abc import Callable

from flax import linen as nn

from vit_jax.objectives import classification

OBJECTIVES: dict[str, Callable[..., nn.Module]] = {'classification': classification.Classification}


def build(name: str, *, model: nn.Module, **section) -> nn.Module:
  """The objective `name` around `model`, with its config section as keyword arguments."""
  return OBJECTIVES[name](model=model, **section)
