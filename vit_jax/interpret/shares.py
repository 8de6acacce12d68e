"""What a readout reads: the share of each token in its features, by their gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import numpy as jnp

from vit_jax.evaluation import token_health
from vit_jax.models import readout as readouts
from vit_jax.predict import Predictor


def weighed(predictor: Predictor) -> dict[str, Callable[[Any, Any], Any]]:
  """What each readout weighs, `(params, outputs by name) -> B T`: the model's own, all unlearned.

  The weight of a token is its share of the gradient of the sum of all features, in absolute values:
  1/N each for a mean, the share of channels whose maximum it has for a maximum. Of a readout that
  also reads class tokens of earlier blocks, these have what is missing of 1.
  """
  model, section = predictor.model, predictor.passport.model
  found, native = {}, predictor.passport.readout
  shape = token_health.shapes_of(predictor)['tokens'].shape
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  for name in readouts.READOUTS:
    fits = readouts.fits(name, model.prefix) and not readouts.class_of(name).numbered
    if not fits or name == native:
      continue
    module = readouts.build(name, section, prefix=model.prefix, grid=model.grid or (1, 1))
    read, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    if read.ndim == 2 and not jax.tree.leaves(variables):
      found[name] = share_of(lambda params, x, module=module: module.apply({}, x))
  if native and native != 'none':
    own = lambda params, x: model.apply({'params': params}, x, method='read')[1]['features']  # noqa: E731
    found = {native: share_of(own, partial(readouts.with_earlier, model))} | found
  return found


def share_of(
  read: Callable[[Any, Any], Any], given: Callable[[Any, Any], Any] = lambda tokens, _: tokens
) -> Callable[[Any, Any], Any]:
  """The share of each token of the last block in what is read, by the gradient.

  Args:
    given: `(tokens, outputs by name) -> what is read`, the tokens with others before them, if any.
  """

  def share(params, named):
    tokens = named['tokens'].astype(jnp.float32)
    gradient = jax.grad(lambda x: read(params, x).sum())(given(tokens, named))
    size = jnp.abs(gradient).sum(-1)
    every = size / jnp.maximum(size.sum(-1, keepdims=True), 1e-30)
    return every[:, -tokens.shape[1] :]

  return share
