"""Evaluators by name: each counts every example of a split exactly once.

A new one is a file and one line here.
"""

from collections.abc import Callable

from vit_jax.evaluation import classification

EVALUATORS: dict[str, Callable] = {'classification': classification.Classification}


def build(name: str, **section) -> classification.Classification:
  """The evaluator `name`, with its config section as keyword arguments."""
  return EVALUATORS[name](**section)
