"""How far a unit in the middle of each block's map sees: by the gradient at the pixels.

The energy of the gradient of a central token, its channels with random signs, is a distribution
over the pixels (an effective receptive field, arXiv:1701.04128); its reach is the root mean square
distance from the middle of that token, in pixels.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax import models
from vit_jax.models import tokens
from vit_jax.predict import Predictor


def of_blocks(predictor: Predictor, images: np.ndarray, seed: int) -> list[float | None]:
  """The reach of each block, from the first on, in pixels; None where no gradient arrives.

  Args:
    images: uint8 `N H W C`.
    seed: of the signs.

  Raises:
    ValueError: the model has no map.
  """
  names = names_of(predictor)
  shapes = jax.eval_shape(
    lambda params, x: named_units(predictor, params, x, names)[0],
    predictor.params,
    jax.ShapeDtypeStruct((1, *predictor.model.image_size, predictor.model.channels), jnp.float32),
  )
  far, all_of_it = predictor.stream(images, program(predictor, names, shapes, seed))
  far, all_of_it = far.sum(0), all_of_it.sum(0)
  return [float(np.sqrt(a / b)) if b > 0 else None for a, b in zip(far, all_of_it, strict=True)]


def untrained(predictor: Predictor, seed: int) -> Predictor:
  """The same model with fresh parameters."""
  init = jax.jit(lambda key: models.init(predictor.model, key))
  params = jax.device_get(init(jax.random.key(seed)))
  return Predictor(params, predictor.passport, **predictor.execution)


def names_of(predictor: Predictor) -> tuple[str, ...]:
  """The outputs that hold the map after each block.

  Raises:
    ValueError: there is no map.
  """
  found = tokens.block_names(predictor.output_names) or ('tokens',)
  if not predictor.model.grid or found[-1] not in predictor.output_names:
    raise ValueError(f'a {predictor.passport.model["name"]} has no map whose units could reach far')
  return found


def named_units(
  predictor: Predictor, params: Any, x: Float[Array, 'B H W C'], names: tuple[str, ...]
) -> tuple[dict[str, Array], dict[str, tuple[int, int]]]:
  """The token in the middle of each output, `B D`, and the (height, width) of its grid."""
  model, outputs = predictor.model, predictor.forward(params, x)[1]
  units, grids = {}, {}
  for name in names:
    found = outputs[name]
    height, width = found.shape[1:3] if found.ndim == 4 else model.grid or (1, 1)
    rows = tokens.choose(model, found, 'patches') if found.ndim == 3 else tokens.rows(found)
    units[name] = rows[:, (height // 2) * width + width // 2].astype(jnp.float32)
    grids[name] = (height, width)
  return units, grids


def program(
  predictor: Predictor, names: tuple[str, ...], shapes: dict[str, Any], seed: int
) -> Callable[..., tuple[Any, Any]]:
  """`(params, images) -> (energy times squared distance, energy)`, a row an image: `B blocks`.

  The backward pass is compiled once and run for one block after another.
  """
  keys = jax.random.split(jax.random.key(seed), len(names))
  signs = {
    name: jax.random.rademacher(key, shapes[name].shape[1:], jnp.float32)
    for name, key in zip(names, keys, strict=True)
  }

  def measure(params, images):
    grids: dict[str, tuple[int, int]] = {}

    def units(x):
      found, sizes = named_units(predictor, params, x, names)
      grids.update(sizes)
      return found

    values, pull = jax.vjp(units, predictor.preprocess.normalise(images))
    apart = jnp.stack([squared_distances(grids[name], images.shape[1:3]) for name in names])

    def one(chosen):
      block, squares = chosen
      wanted = {
        name: jnp.broadcast_to(block[i] * signs[name], values[name].shape)
        for i, name in enumerate(names)
      }
      energy = jnp.square(pull(wanted)[0]).sum(-1)
      return (energy * squares).sum((1, 2)), energy.sum((1, 2))

    found = jax.lax.map(one, (jnp.eye(len(names)), apart))
    return found[0].T, found[1].T

  return measure


def squared_distances(grid: tuple[int, int], image_size: tuple[int, int]) -> Float[Array, 'H W']:
  """Squared pixels from the middle of the central place of a grid to each pixel."""
  axes = []
  for count, side in zip(grid, image_size, strict=True):
    middle = (count // 2 + 0.5) * side / count - 0.5
    axes.append((np.arange(side) - middle) ** 2)
  return jnp.asarray(axes[0][:, None] + axes[1], jnp.float32)
