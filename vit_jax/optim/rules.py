"""What each optimizer does with a gradient, without learning rate and decay.

A rule is made from the keys of its section and returns a transformation of gradients to a
direction; `build` adds clipping, decay, the learning rate and what multiplies it by name.
"""

from jax import numpy as jnp
import optax

from vit_jax.optim.blocks import each_block
from vit_jax.optim.checks import check_shares


def sgd(*, momentum: float, nesterov: bool, momentum_dtype: str) -> optax.GradientTransformation:
  """SGD with momentum, as torch's: the trace is `momentum * trace + gradient`."""
  check_shares(momentum=momentum)
  return optax.trace(momentum, nesterov, jnp.dtype(momentum_dtype))


def adam(
  *, b1: float, b2: float, epsilon: float, momentum_dtype: str
) -> optax.GradientTransformation:
  """Adam (arXiv:1412.6980), of AdamW (arXiv:1711.05101) too: they differ in their decay."""
  check_shares(b1=b1, b2=b2)
  if epsilon <= 0:
    raise ValueError(f'config.optimizer.epsilon={epsilon} must be above 0: it is divided by')
  return optax.scale_by_adam(b1, b2, epsilon, mu_dtype=jnp.dtype(momentum_dtype))


def adafactor(
  *,
  momentum: float,
  momentum_dtype: str,
  decay_rate: float,
  beta2_cap: float,
  min_size_to_factor: int,
  clipping_threshold: float,
  epsilon: float,
) -> optax.GradientTransformation:
  """Adafactor as ViT-G was trained (arXiv:2106.04560, section 3.4; big_vision's code).

  The second moment of a matrix is kept as one mean for each row and column; its memory t has the
  weight `min(beta2_cap, 1 - t ** -decay_rate)` at step t. The first is an average of what follows.

  Args:
    momentum: weight of the average of updates from step to step; it has no bias correction. 0:
      none is kept.
    min_size_to_factor: arrays with two axes of at least this many are factored.
    clipping_threshold: largest root mean square of an array's update; 0: no clipping.

  Raises:
    ValueError: a share that is not one, or a size below 1.
  """
  check_shares(momentum=momentum, beta2_cap=beta2_cap)
  for key, value in (('decay_rate', decay_rate), ('min_size_to_factor', min_size_to_factor)):
    if value <= 0:
      raise ValueError(f'config.optimizer.{key}={value} must be above 0')

  def weight(step, exponent):
    return jnp.minimum(beta2_cap, 1 - (step + 1.0) ** -exponent)

  scale = optax.scale_by_factored_rms(
    decay_rate=decay_rate,
    min_dim_size_to_factor=min_size_to_factor,
    epsilon=epsilon,
    decay_rate_fn=weight,
  )
  clip = optax.clip_by_block_rms(clipping_threshold) if clipping_threshold else optax.identity()
  average = optax.ema(momentum, debias=False, accumulator_dtype=jnp.dtype(momentum_dtype))
  return optax.chain(
    each_block(optax.chain(scale, clip)), average if momentum else optax.identity()
  )
