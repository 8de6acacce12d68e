"""Times a step of our ViT and of a plain linen ViT with the same parameters: a JSON line a case.

  python benchmarks/step.py --variants Ti/16,S/16 --batch_size 8

Plain linen is what google-research/vision_transformer is written in: a strided convolution,
`nn.MultiHeadDotProductAttention`, `nn.Dense`, `nn.gelu`. Both are measured in the same process, in
turns, and a case reports the median of the rounds, so that a busy machine slows both alike.
"""

import argparse
from collections.abc import Callable
import json
import statistics
import time

from flax import linen as nn
import jax
from jax import numpy as jnp
import optax

from vit_jax import defaults, models
from vit_jax.models import vit

TOLERANCE = {'float32': 1e-4, 'bfloat16': 5e-2}  # Largest difference of logits of about 1.
CLASSES = 1000


class PlainBlock(nn.Module):
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
    return x + PlainMlp(self.mlp_dim, self.dtype, name='MlpBlock_3')(y)


class PlainMlp(nn.Module):
  """Dense -> GELU -> Dense."""

  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    y = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype)(x))
    return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class PlainEncoder(nn.Module):
  """Positions -> blocks -> layer norm."""

  depth: int
  num_heads: int
  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    x = vit.PositionEmbedding(name='posembed_input')(x)
    for i in range(self.depth):
      x = PlainBlock(self.num_heads, self.mlp_dim, self.dtype, name=f'encoderblock_{i}')(x)
    return nn.LayerNorm(dtype=self.dtype, name='encoder_norm')(x)


class PlainVisionTransformer(nn.Module):
  """ViT of linen's own layers, named as ours, so that both read the same parameters."""

  variant: str
  dtype: str

  @nn.compact
  def __call__(self, images):
    name, side = vit.decode_variant(self.variant)
    size = dict(vit.SIZES[name])
    width, patch = size.pop('width'), (side, side)
    x = nn.Conv(width, patch, patch, padding='VALID', dtype=self.dtype, name='embedding')(images)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, width)).astype(x.dtype)
    x = x.reshape(len(x), -1, width)
    x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
    x = PlainEncoder(**size, dtype=self.dtype, name='Transformer')(x)
    return nn.Dense(CLASSES, name='head')(x[:, 0].astype(jnp.float32))


def forwards(options: argparse.Namespace, variant: str) -> tuple[dict[str, Callable], dict]:
  """Functions (parameters, images) -> logits by name, and parameters with a head that is not 0."""
  section = defaults.part('model', 'vit').to_dict()
  section |= dict(variant=variant, dtype=options.dtype)
  size = (options.image_size, options.image_size)
  ours = models.build(**section, image_size=size, channels=3, num_classes=CLASSES)
  plain = PlainVisionTransformer(variant, options.dtype)
  parameters = jax.jit(models.init, static_argnums=0)(ours, jax.random.key(0))
  kernel = parameters['head']['kernel']
  parameters['head']['kernel'] = jax.random.normal(jax.random.key(1), kernel.shape) * 0.05
  return {
    'ours': lambda parameters, images: ours.apply({'params': parameters}, images)[0],
    'plain_linen': lambda parameters, images: plain.apply({'params': parameters}, images),
  }, parameters


def training_step(forward: Callable) -> Callable:
  """(parameters, images, labels) -> parameters after a step of SGD, in the memory of the old."""

  def loss(parameters, images, labels):
    logits = forward(parameters, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  def step(parameters, images, labels):
    gradients = jax.grad(loss)(parameters, images, labels)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, parameters, gradients)

  return jax.jit(step, donate_argnums=0)


def compare(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
  """Median milliseconds of each run; the runs take turns."""
  times = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append((time.perf_counter() - start) * 1000)
  return {f'{name}_ms': round(statistics.median(values), 2) for name, values in times.items()}


def inference(options: argparse.Namespace, variant: str, images) -> dict[str, float]:
  """Logits of a batch, after making sure that both models agree on them."""
  functions, parameters = forwards(options, variant)
  functions = {name: jax.jit(function) for name, function in functions.items()}
  logits = [function(parameters, images) for function in functions.values()]
  difference = float(jnp.abs(logits[0] - logits[1]).max())
  assert difference < TOLERANCE[options.dtype], f'{variant}: logits differ by {difference}'
  runs = {name: lambda f=f: f(parameters, images) for name, f in functions.items()}
  return compare(runs, options.rounds)


def training(options: argparse.Namespace, variant: str, images) -> dict[str, float]:
  """Forward, backward and update of a batch; each model trains a copy of its own."""
  functions, parameters = forwards(options, variant)
  labels = jnp.arange(len(images)) % CLASSES
  runs = {}
  for name, function in functions.items():
    runs[name] = repeated(training_step(function), parameters, images, labels)
    jax.block_until_ready(runs[name]())  # Compiles.
  return compare(runs, options.rounds)


def repeated(step: Callable, parameters: dict, *batch: jax.Array) -> Callable[[], object]:
  """A function that takes one more step from where it left off."""
  state = jax.tree.map(jnp.copy, parameters)

  def run():
    nonlocal state
    state = step(state, *batch)
    return state

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--variants', default='Ti/16,S/16,B/16', help='comma-separated')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--image_size', type=int, default=224, help='side in pixels')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--dtype', default='float32', choices=list(TOLERANCE))
  options = parser.parse_args()
  shape = (options.batch_size, options.image_size, options.image_size, 3)
  images = jax.random.normal(jax.random.key(2), shape)
  for measure in (inference, training):
    for variant in options.variants.split(','):
      times = measure(options, variant, images)
      case = dict(case=measure.__name__, variant=variant, batch_size=options.batch_size, **times)
      case['speedup'] = round(case['plain_linen_ms'] / case['ours_ms'], 2)
      print(json.dumps(case | {'device': jax.devices()[0].device_kind}), flush=True)


if __name__ == '__main__':
  main()
