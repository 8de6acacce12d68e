"""Attention weights times the gradient of a class's logit, for gradient-weighted rollout.

In the place of the mean over heads of A_l stands mean_h relu(A_l * d logit / d A_l), as equations 5
and 6 of "Generic Attention-model Explainability" have it (Chefer et al., arXiv:2103.15679); their
earlier paper (arXiv:2012.09838) has relevance from LRP instead of A_l. With a residual of 0.5 the
product is theirs, R_l = R_(l-1) + A_l R_(l-1) from R_0 = I, times 0.5 ** L. Its term without any
attention, residual ** L I, is left out: it tells nothing of the image. Rows do not sum to 1.
"""

from collections.abc import Callable, Iterator
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np

from vit_jax.interpret.query import Attending
from vit_jax.predict import Predictor
from vit_jax.runtime.choices import check_choice

MOST = 8  # images at a time
# Bytes that a backward pass keeps: about six times all weights if the compiler computes no block
# again (a CPU's: 2.2 GB for one image of 384 px in L/16; an H100's: 0.45 GB).
KEPT, COPIES = 2**31, 6
BUDGET = 2**29  # bytes for weights and their gradients; so many layers as fit are taken at a time


def target_of(predictor: Predictor, name: str | None) -> int | None:
  """The number of the class that gradients are of; None: the predicted one, image by image.

  Raises:
    ValueError: the model has no head, no such class, or offers no gradient of its attention.
  """
  model, family = predictor.model, predictor.passport.model['name']
  if not model.num_classes:
    raise ValueError('--weighted=gradient needs a head, and these weights have none')
  if model.perturbation(0) is None:
    raise ValueError(f'--weighted=gradient: a {family} offers no gradient of its attention')
  if name is None:
    return None
  check_choice('--target_class', name, predictor.class_names)
  return predictor.class_names.index(name)


def about(predictor: Predictor, images: np.ndarray, target: int | None) -> list[dict[str, str]]:
  """The predicted class of each image, and the one that gradients are of."""
  logits = predictor.measure(images, lambda named: named['logits'])
  if logits.ndim != 2:
    raise ValueError('--weighted=gradient needs a readout that gives one answer an image')
  names = predictor.class_names
  return [
    {'predicted': names[i], 'target_class': names[i if target is None else target]}
    for i in logits.argmax(-1)
  ]


def by_batch(
  predictor: Predictor, images: np.ndarray, blocks: list[Attending], target: int | None
) -> Iterator[Iterator[np.ndarray]]:
  """For each few images the maps of one block after another, `B T T`, heads averaged.

  The maps of a group of blocks are computed together, the next group when it is asked for.
  """
  # Blocks that the backward pass computes again keep their tokens alone meanwhile.
  computing = predictor.computed(remat='blocks', scan=False)
  size = min(batch_size(computing, blocks), len(images))
  programs = [(part, program(computing, part, target)) for part in parts(computing, blocks, size)]

  def maps(batch):
    for part, weighted in programs:
      found = computing.stream(batch, weighted, size)
      yield from (found[one.block] for one in part)

  for start in range(0, len(images), size):
    yield maps(images[start : start + size])


def shapes_of(predictor: Predictor, size: int) -> dict[str, Any]:
  """The shapes of all named outputs of a batch."""
  image = jax.ShapeDtypeStruct(
    (size, *predictor.model.image_size, predictor.model.channels), jnp.float32
  )
  return jax.eval_shape(predictor.forward, predictor.params, image)[1]


def batch_size(predictor: Predictor, blocks: list[Attending]) -> int:
  """How many images are computed at a time."""
  shapes = shapes_of(predictor, 1)
  one = COPIES * sum(4 * shapes[name_of(one)].size for one in blocks)
  return max(1, min(MOST, KEPT // one))


def parts(predictor: Predictor, blocks: list[Attending], size: int) -> list[list[Attending]]:
  """Blocks in groups whose weights and gradients fit the budget together, at least one each."""
  shapes = shapes_of(predictor, size)
  largest = max(2 * shapes[name_of(one)].size * 4 for one in blocks)
  count = max(1, BUDGET // largest)
  return [blocks[i : i + count] for i in range(0, len(blocks), count)]


def name_of(one: Attending) -> str:
  """The output with the weights of a block, in the shape that they are computed in."""
  return f'block_{one.block}/attention_weights'


def program(
  predictor: Predictor, blocks: list[Attending], target: int | None
) -> Callable[..., dict[int, Any]]:
  """`(params, images) -> {block: mean over heads of relu(A * d logit / d A), `B T T`}`.

  What is added to the weights is 0, so they and the logits stay what they are.
  """
  model = predictor.model
  places: Any = {one: tuple(str(model.perturbation(one.block)).split('/')) for one in blocks}

  def weighted(params, images):
    def logit(added):
      flat = {places[one]: added[one.block] for one in blocks}
      changes = traverse_util.unflatten_dict(flat)
      logits, named = predictor.forward(params, images, perturbations=changes)
      wanted = logits.argmax(-1) if target is None else jnp.full(len(images), target)
      chosen = jnp.take_along_axis(logits, wanted[:, None], 1)
      return chosen.sum(), {one.block: named[name_of(one)] for one in blocks}

    shapes = shapes_of(predictor, len(images))
    zeros = {one.block: jnp.zeros(shapes[name_of(one)].shape) for one in blocks}
    slopes, weights = jax.grad(logit, has_aux=True)(zeros)
    return {
      one.block: mean_map(model, one, jax.nn.relu(weights[one.block] * slopes[one.block]))
      for one in blocks
    }

  return weighted


def mean_map(model: Any, one: Attending, values: Any) -> Any:
  """Values in the shape of a block's weights, as a map over all tokens, heads averaged."""
  return model.attention_map({name_of(one): values}, one.block).mean(1)
