"""The ViT as others write it in linen: of linen's own layers, and the official code itself.

Plain linen is what google-research/vision_transformer is written in: a strided convolution,
`nn.MultiHeadDotProductAttention`, `nn.Dense`, `nn.gelu`. Parameters are named as in the published
files, so that it, the official code and ours read the same.
"""

from collections.abc import Callable
import functools
from importlib import util
import pathlib
from typing import Any
from unittest import mock

from flax import linen as nn
import jax
from jax import numpy as jnp
import optax
from work import CLASSES, Work


class Block(nn.Module):
  """Pre-norm Transformer block of linen's own layers."""

  num_heads: int
  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    y = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x)
    x += nn.MultiHeadDotProductAttention(
      self.num_heads,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      deterministic=True,
      name='MultiHeadDotProductAttention_1',
    )(y, y)
    y = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_2')(x)
    return x + Mlp(self.mlp_dim, self.dtype, name='MlpBlock_3')(y)


class Mlp(nn.Module):
  """Dense -> GELU -> Dense."""

  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    y = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype)(x))
    return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class PositionEmbedding(nn.Module):
  """A learned vector for each token."""

  @nn.compact
  def __call__(self, x):
    shape = (1, *x.shape[1:])
    return x + self.param('pos_embedding', nn.initializers.normal(0.02), shape).astype(x.dtype)


class Encoder(nn.Module):
  """Positions -> blocks -> layer norm."""

  depth: int
  num_heads: int
  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    x = PositionEmbedding(name='posembed_input')(x)
    for i in range(self.depth):
      x = Block(self.num_heads, self.mlp_dim, self.dtype, name=f'encoderblock_{i}')(x)
    return nn.LayerNorm(dtype=self.dtype, name='encoder_norm')(x)


class VisionTransformer(nn.Module):
  """ViT with a class token."""

  patch: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  num_classes: int = CLASSES
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images):
    sides = (self.patch, self.patch)
    x = nn.Conv(
      self.width, sides, sides, padding='VALID', dtype=self.dtype, name='embedding'
    )(images)  # fmt: skip
    cls = self.param('cls', nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
    x = x.reshape(len(x), -1, self.width)
    x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
    x = Encoder(self.depth, self.num_heads, self.mlp_dim, self.dtype, name='Transformer')(x)
    return nn.Dense(self.num_classes, name='head')(x[:, 0].astype(jnp.float32))


def build(work: Work) -> nn.Module:
  """The ViT of linen's own layers."""
  keys = ('patch_size', 'width', 'depth', 'num_heads', 'mlp_dim')
  return VisionTransformer(*(work.sizes[key] for key in keys), dtype=work.dtype)


def build_official(work: Work, checkout: str) -> Callable:
  """The official model, from a checkout of google-research/vision_transformer.

  Its package is called `vit_jax` too, so its two files are loaded under names of their own. Its
  encoder has no way to say a dtype, but its blocks do: they are given it.

  Raises:
    FileNotFoundError: no such files there.
  """
  import vit_jax

  resnet = load(checkout, 'models_resnet')
  with mock.patch.object(vit_jax, 'models_resnet', resnet, create=True):
    module = load(checkout, 'models_vit')
  module.Encoder1DBlock = functools.partial(module.Encoder1DBlock, dtype=work.dtype)
  sizes = work.sizes
  transformer = dict(
    num_layers=sizes['depth'], mlp_dim=sizes['mlp_dim'], num_heads=sizes['num_heads']
  )
  transformer |= dict(dropout_rate=0.0, attention_dropout_rate=0.0)
  side = mock.Mock(size=(sizes['patch_size'],) * 2)
  model = module.VisionTransformer(CLASSES, side, transformer, sizes['width'])

  def apply(variables, images):
    return model.apply({'params': number_anew(variables['params'])}, images, train=False)

  return apply


def number_anew(params: dict) -> dict:
  """Published names as linen numbers modules: by class, so `LayerNorm_2` is `LayerNorm_1`."""
  names = {'LayerNorm_2': 'LayerNorm_1', 'MlpBlock_3': 'MlpBlock_0'}
  names['MultiHeadDotProductAttention_1'] = 'MultiHeadDotProductAttention_0'
  encoder = {
    block: {names.get(name, name): x for name, x in parts.items()}
    for block, parts in params['Transformer'].items()
  }
  return params | {'Transformer': encoder}


def load(checkout: str, name: str) -> Any:
  """A file of the official package as a module `official_NAME`."""
  path = pathlib.Path(checkout) / 'vit_jax' / f'{name}.py'
  spec = util.spec_from_file_location(f'official_{name}', path)
  assert spec is not None and spec.loader is not None  # Never for a path that ends in .py.
  module = util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def forward(work: Work, checkout: str | None) -> Callable:
  """`forward(params, images) -> logits`, of the official code where a checkout is given."""
  apply = build_official(work, checkout) if checkout else build(work).apply
  return lambda params, images: apply({'params': params}, images)


def training_step(forward: Callable, optimizer: optax.GradientTransformation) -> Callable:
  """`step(state, images, labels) -> (state, loss)` with `state = (params, optimizer's state)`."""

  def step(state, images, labels):
    params, opt_state = state

    def loss(params):
      logits = forward(params, images)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value

  return step
