"""Other libraries that tests compare with; they are optional, except where parity is required."""

import os

import pytest


def need(name):
  """A peer's module; without it the test is skipped, or fails where parity is required."""
  try:
    import torch

    try:
      import torchvision  # noqa: F401
    except RuntimeError:  # Its wheel is built for CUDA; models need none of its operators.
      for operator in ('nms', 'qnms'):
        schema = '(Tensor a, Tensor b, float c) -> Tensor'
        torch.library.define(f'torchvision::{operator}', schema)
    return __import__(name)
  except ImportError:
    if os.environ.get('VIT_JAX_REQUIRE_PARITY'):
      raise
    pytest.skip(f"{name} is not installed: pip install -e '.[torch]'")
