"""How parameters start: as in the official code, as torch's layers by themselves, as DeiT or iGPT.

Each is a function of a part's role and its fan-in, the number of inputs that one output sums over.
"""

from collections.abc import Callable

from flax import linen as nn
import jax

Initialiser = Callable[..., jax.Array]


def official(role: str, fan_in: int) -> Initialiser:
  """The initialisers of the official code: Xavier, biases of the MLP 1e-6, zero head."""
  del fan_in  # Xavier and LeCun count for themselves.
  kinds = {
    'embedding': nn.initializers.lecun_normal(),
    'position': nn.initializers.normal(stddev=0.02),
    'projection': nn.initializers.xavier_uniform(),
    'output': nn.initializers.xavier_uniform(),
    'mlp': nn.initializers.xavier_uniform(),
    'mlp_bias': nn.initializers.normal(stddev=1e-6),
    'pre_logits': nn.initializers.lecun_normal(),
  }
  return kinds.get(role, nn.initializers.zeros)


def torch(role: str, fan_in: int) -> Initialiser:
  """The defaults of torch: Linear and Conv2d uniform within 1 / sqrt(fan-in), biases too.

  `torch.nn.MultiheadAttention` draws query, key and value as one Xavier matrix `3D x D`, with
  biases of 0; class token and positions are drawn by `torch.randn`.
  """
  kinds = {
    'position': nn.initializers.normal(stddev=1.0),
    'cls': nn.initializers.normal(stddev=1.0),
    'projection': symmetric((6 / (4 * fan_in)) ** 0.5),
    'projection_bias': nn.initializers.zeros,
    'output_bias': nn.initializers.zeros,
  }
  return kinds.get(role, symmetric(fan_in**-0.5))


def deit(role: str, fan_in: int) -> Initialiser:
  """The initialisers of DeiT (arXiv:2012.12877) and timm: normal of 0.02, biases 0, the head too.

  timm's `trunc_normal_` cuts at -2 and 2, a hundred deviations, so that nothing is cut. The patch
  embedding keeps the default of torch's Conv2d.
  """
  if role.startswith('embedding'):
    return torch(role, fan_in)
  return nn.initializers.zeros if role.endswith('bias') else nn.initializers.normal(stddev=0.02)


def igpt(role: str, fan_in: int) -> Initialiser:
  """The initialisers of iGPT (openai/image-gpt): normal, zero where a head or a bias begins.

  The output of attention counts its fan-in once for each block (`Attention.output_fan`).
  """
  deviations = dict.fromkeys(('embedding', 'cls', 'mlp'), 0.02) | {'position': 0.01}
  deviations |= dict.fromkeys(('projection', 'output'), fan_in**-0.5)
  if role not in deviations:
    return nn.initializers.zeros
  return nn.initializers.normal(stddev=deviations[role])


def symmetric(limit: float) -> Initialiser:
  """An initialiser that draws uniformly within -limit..limit."""

  def init(key, shape, dtype='float32'):
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


INITIALISERS = {'official': official, 'torch': torch, 'deit': deit, 'igpt': igpt}
