"""What a readout reads: the share of each token in its features, by their gradient."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from vit_jax.evaluation import token_health
from vit_jax.models import readout as readouts
from vit_jax.predict import Predictor


def weighed(predictor: Predictor) -> dict[str, Callable[[Any, Any], Any]]:
  """What each readout weighs, `(params, tokens B T D) -> B T`: the model's own, and all unlearned.

  The weight of a token is its share of the gradient of the sum of all features, in absolute values:
  1/N each for a mean, the share of channels whose maximum it has for a maximum.
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
    found = {native: share_of(own)} | found
  return found


def share_of(read: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """The share of each token in what is read, by the gradient."""

  def share(params, tokens):
    gradient = jax.grad(lambda x: read(params, x).sum())(tokens)
    size = jnp.abs(gradient).sum(-1)
    return size / jnp.maximum(size.sum(-1, keepdims=True), 1e-30)

  return share
