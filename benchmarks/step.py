"""Times a step of our ViT and of a plain linen ViT with the same parameters: a JSON line a case.

  python benchmarks/step.py --variants Ti/16,S/16 --batch_size 8

Plain linen is what google-research/vision_transformer is written in: a strided convolution,
`nn.MultiHeadDotProductAttention`, `nn.Dense`, `nn.gelu`. Each lives in a process of its own, as its
users run it: ours with `memory.keep_freed`, which the command calls, plain linen without, and once
more with, so that what comes from the model and what from the memory can be told apart. They are
measured in turns, and a case reports medians, so that a busy machine slows all alike.
"""

import argparse
from collections.abc import Callable
import json
import multiprocessing
import statistics
import time

from flax import linen as nn
import jax
from jax import numpy as jnp
import optax

from vit_jax import defaults, models
from vit_jax.models import encoder, vit
from vit_jax.runtime import memory

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
    x = encoder.PositionEmbedding(name='posembed_input')(x)
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
    'plain': lambda parameters, images: plain.apply({'params': parameters}, images),
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


def inference(forward: Callable, parameters: dict, images) -> Callable[[], object]:
  """A function that computes the logits of a batch."""
  function = jax.jit(forward)
  return lambda: function(parameters, images)


def training(forward: Callable, parameters: dict, images) -> Callable[[], object]:
  """A function that takes one more step (forward, backward, update) from where it left off."""
  step, labels = training_step(forward), jnp.arange(len(images)) % CLASSES
  state = jax.tree.map(jnp.copy, parameters)

  def run():
    nonlocal state
    state = step(state, images, labels)
    return state

  return run


KINDS = {'inference': inference, 'training': training}
# Whose model, and whether the allocator keeps what is freed.
CASES = {'ours': ('ours', True), 'plain_linen': ('plain', False), 'plain_kept': ('plain', True)}


def serve(case: str, kind: str, options: argparse.Namespace, variant: str, pipe) -> None:
  """Answers each message with the milliseconds of one run; makes sure that the logits agree."""
  whose, kept = CASES[case]
  if kept:
    memory.keep_freed(options.batch_size * options.image_size**2)
  shape = (options.batch_size, options.image_size, options.image_size, 3)
  images = jax.random.normal(jax.random.key(2), shape)
  functions, parameters = forwards(options, variant)
  if case == 'ours' and kind == 'inference':
    logits = [jax.jit(function)(parameters, images) for function in functions.values()]
    difference = float(jnp.abs(logits[0] - logits[1]).max())
    assert difference < TOLERANCE[options.dtype], f'{variant}: logits differ by {difference}'
  run = KINDS[kind](functions[whose], parameters, images)
  for _ in range(2):
    jax.block_until_ready(run())  # Compiles.
  while pipe.recv():
    start = time.perf_counter()
    jax.block_until_ready(run())
    pipe.send((time.perf_counter() - start) * 1000)


def compare(kind: str, options: argparse.Namespace, variant: str) -> dict[str, float]:
  """Median milliseconds of each case, each in its own process."""
  context, pipes = multiprocessing.get_context('spawn'), {}
  for case in CASES:
    pipes[case], theirs = context.Pipe()
    context.Process(target=serve, args=(case, kind, options, variant, theirs)).start()
  times = {case: [] for case in CASES}
  for turn in range(options.rounds + 1):
    for case, pipe in pipes.items():
      pipe.send(True)
      elapsed = pipe.recv()
      if turn:  # At the first one others may still be compiling.
        times[case].append(elapsed)
  for pipe in pipes.values():
    pipe.send(False)
  return {case: round(statistics.median(values), 2) for case, values in times.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--variants', default='Ti/16,S/16,B/16', help='comma-separated')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--image_size', type=int, default=224, help='side in pixels')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--dtype', default='float32', choices=list(TOLERANCE))
  options = parser.parse_args()
  for kind in KINDS:
    for variant in options.variants.split(','):
      times = compare(kind, options, variant)
      line = dict(case=kind, variant=variant, batch_size=options.batch_size)
      line |= {f'{case}_ms': value for case, value in times.items()}
      line['speedup'] = round(times['plain_linen'] / times['ours'], 2)
      line['speedup_same_memory'] = round(times['plain_kept'] / times['ours'], 2)
      print(json.dumps(line), flush=True)


if __name__ == '__main__':
  main()
