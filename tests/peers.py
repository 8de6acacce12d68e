"""Other libraries that tests compare with; they are optional, except where parity is required."""

import os

import pytest


def mend_torchvision():
  """Its wheel is built for CUDA: beside torch for CPUs it lacks operators that no model here needs,
  and refuses to load."""
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    for operator in ('nms', 'qnms'):
      schema = '(Tensor a, Tensor b, float c) -> Tensor'
      torch.library.define(f'torchvision::{operator}', schema)
  except ImportError:
    pass


def need(name):
  """A peer's module; without it the test is skipped, or fails where parity is required."""
  try:
    mend_torchvision()
    return __import__(name)
  except ImportError:
    if os.environ.get('VIT_JAX_REQUIRE_PARITY'):
      raise
    pytest.skip(f"{name} is not installed: pip install -e '.[torch]'")
