"""What evaluators look at, one model on one data set, and how it is computed."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp

from vit_jax import models
from vit_jax.data import Dataset, known
from vit_jax.objectives import Objective
from vit_jax.weights import Passport


@dataclasses.dataclass(frozen=True)
class Subject:
  """One model on one data set.

  Attributes:
    forward: `(params, uint8 images) -> (logits, outputs by name)`.
    passport: what belongs to the weights: class names, how logits are read, the native readout.
    data: the splits, prepared as the weights know them.
    mesh: the devices.
    batch_size: of all devices together; filled up to divide over them.
    cache: folder for what a frozen model makes of the data; None: WORKDIR/cache.
    cache_gb: the most that it may take, in 1e9 bytes.
    objective: what the model is trained for; None: nobody says.
  """

  model: models.Model
  forward: Callable[..., tuple[Any, dict[str, Any]]]
  passport: Passport
  data: Dataset
  mesh: Any
  batch_size: int = 256
  cache: str | None = None
  cache_gb: float = 20.0
  objective: Objective | None = None

  @functools.cached_property
  def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape of everything that the model returns of one image, by name."""
    shapes = traverse_util.unflatten_dict(models.shapes_of(self.model), sep='/')
    image = jax.ShapeDtypeStruct((1, *self.data.image_shape), jnp.uint8)
    return jax.eval_shape(lambda params, x: self.forward(params, x)[1], shapes, image)

  def check_classes(self, evaluator: str) -> None:
    """Raises a ValueError unless the head tells the classes of the data, in their order.

    Files of others often have no names: then their number counts (`known.tells`).
    """
    there, here = list(self.passport.class_names), list(self.data.class_names)
    if not known.tells(there, here):
      raise ValueError(
        f'the data have classes {tuple(here[:10])}, the model {tuple(there[:10])}; {evaluator} '
        "compares them: take config.evaluators=('fewshot',), 'knn' or 'linear', which train heads "
        "of their own, or 'real' with a file that maps the one to the other"
      )
