"""How healthy the tokens of a model are: norms, outliers, rank, similarity and entropy by depth.

Tokens are those of the residual stream, at the input and after each block, before any norm.
Letters: `L` depths (the input and each block), `n` images, `T` tokens, `N` patches, `h` heads.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from vit_jax.models.tokens import block_names

FACTOR = 3.0  # An outlier's norm is so many times the median norm of the patches of its block.
SAMPLED = 16  # patches of an image that rank and CKA see
EPSILON = 1e-7  # of RankMe


@dataclasses.dataclass(frozen=True)
class Health:
  """What was measured of some images.

  Attributes:
    prefix, grid: of the model; tokens of the prefix stand first.
    norms: Euclidean lengths of tokens, `L n T`.
    factor: how many times the median an outlier's norm is.
    similarity: mean cosine of two different patches of an image, `L n`.
    entropy: of the attention of patches, a mean over them, `L-1 n h`; None without attention.
    rank: effective rank of patches of all images (RankMe), `L`.
    cka: linear CKA between depths, of the same patches, `L L`.
    width: of the tokens, the largest rank that there is.
  """

  prefix: tuple[str, ...]
  grid: tuple[int, int]
  norms: np.ndarray
  factor: float
  similarity: np.ndarray
  entropy: np.ndarray | None
  rank: np.ndarray
  cka: np.ndarray
  width: int

  @property
  def patches(self) -> np.ndarray:
    """The norms of the patches, `L n N`."""
    return self.norms[:, :, len(self.prefix) :]

  @property
  def outliers(self) -> np.ndarray:
    """Whether each patch is one, `L n N`."""
    return outliers(self.patches, self.factor)

  def summary(self) -> dict[str, Any]:
    """Numbers by depth, for JSON."""
    first, patches = len(self.prefix), self.patches
    quantiles = np.quantile(patches, (0.05, 0.5, 0.95), axis=(1, 2))
    numbers = {
      'norm_of_patches': {'5 %': quantiles[0], 'median': quantiles[1], '95 %': quantiles[2]},
      'norm_of_prefix': {
        name: self.norms[:, :, i].mean(1) for i, name in enumerate(self.prefix[:first])
      },
      'outliers': self.outliers.mean((1, 2)),
      'similarity': self.similarity.mean(1),
      'effective_rank': self.rank,
      'cka': self.cka,
    }
    if self.entropy is not None:
      numbers['attention_entropy'] = self.entropy.mean(1)
    return jax.tree.map(lambda x: np.round(x, 5).tolist(), numbers)


def depths_of(model: Any, outputs: dict[str, Any], name: str) -> tuple[str, ...]:
  """The outputs that hold the tokens at each depth, all of one grid.

  Args:
    outputs: their shapes by name, of one image.
    name: of the family, for the error.

  Raises:
    ValueError: the model has no blocks of tokens on one grid.
  """
  names = ('embedded', *block_names([*outputs]))
  shapes = {outputs[name].shape[1:] for name in names if name in outputs}
  count = len(model.prefix) + (model.grid[0] * model.grid[1] if model.grid else 0)
  known = len(names) > 1 and 'embedded' in outputs and model.grid is not None
  if not known or {shape[0] for shape in shapes} != {count} or {len(s) for s in shapes} != {2}:
    raise ValueError(
      f'a {name} has no blocks of tokens on one grid of patches to look into: give the weights of '
      'a model that has, such as a ViT'
    )
  return names


def measure(predictor: Any, images: Any, factor: float = FACTOR) -> Health:
  """The health of the tokens of some images.

  Args:
    predictor: a model with `measure`, as `vit_jax.load` gives.
    images: uint8 `n H W C`, or what `predictor.measure` takes.

  Raises:
    ValueError: the model has no tokens on a grid, or `factor` is not above 1.
  """
  if not factor > 1:  # Nor for one that is no number.
    raise ValueError(f'--factor={factor:g} must be above 1: times the median norm of patches')
  model = predictor.model
  names = depths_of(model, shapes_of(predictor), predictor.passport.model['name'])
  first, count = len(model.prefix), model.grid[0] * model.grid[1]
  sampled = np.unique(np.linspace(0, count - 1, SAMPLED).round().astype(int))

  def numbers(outputs):
    tokens = [outputs[name].astype(jnp.float32) for name in names]
    maps = [model.attention_map(outputs, i) for i in range(len(names) - 1)]
    found = {
      'norms': jnp.stack([jnp.linalg.norm(x, axis=-1) for x in tokens], 1),
      'similarity': jnp.stack([similarity(x[:, first:]) for x in tokens], 1),
      'sampled': jnp.stack([x[:, first + sampled] for x in tokens], 1),
    }
    if all(x is not None for x in maps):
      found['entropy'] = jnp.stack([entropy(x[:, :, first:]) for x in maps], 1)
    return found

  found = predictor.measure(images, numbers)
  some = np.swapaxes(found['sampled'], 0, 1)  # n L s D -> L n s D
  some = some.reshape(len(names), -1, some.shape[-1]).astype(np.float64)
  swap = lambda x: np.swapaxes(x, 0, 1)  # noqa: E731
  return Health(
    model.prefix, model.grid, swap(found['norms']), factor, swap(found['similarity']),
    swap(found['entropy']) if 'entropy' in found else None,
    np.array([effective_rank(x) for x in some]), cka_of(some), some.shape[-1],
  )  # fmt: skip


def shapes_of(predictor: Any) -> dict[str, Any]:
  """The shapes of all named outputs of one image."""
  model = predictor.model
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), jnp.float32)
  return jax.eval_shape(predictor.forward, predictor.params, image)[1]


def outliers(norms: Float[np.ndarray, 'L n N'], factor: float) -> Bool[np.ndarray, 'L n N']:
  """Patches whose norm is more than `factor` times the median of their depth, over all images.

  A relative rule: papers cut at fixed norms (150 for DINOv2-L, arXiv:2309.16588), which say nothing
  of another model.
  """
  return norms > factor * np.median(norms, axis=(1, 2), keepdims=True)


def similarity(x: Float[Array, 'B N D']) -> Float[Array, 'B']:
  """The mean cosine of two different rows: 1 where all patches say the same (arXiv:2104.12753)."""
  unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  count = x.shape[1]
  total = (unit.sum(1) ** 2).sum(-1) - (unit**2).sum((1, 2))
  return total / max(1, count * (count - 1))


def entropy(weights: Float[Array, 'B h Q T']) -> Float[Array, 'B h']:
  """The entropy of rows of attention in nats, a mean over queries: ln T where it is uniform.

  Rows are over all tokens, those of the prefix included, so that they sum to 1.
  """
  return -jax.scipy.special.xlogy(weights, weights).sum(-1).mean(-1)


def effective_rank(x: Float[np.ndarray, 'r D']) -> float:
  """RankMe (arXiv:2210.02885): the exponential of the entropy of singular values, not centred."""
  values = np.linalg.svd(x, compute_uv=False)
  share = values / max(values.sum(), 1e-30) + EPSILON
  return float(np.exp(-(share * np.log(share)).sum()))


def linear_cka(x: Float[np.ndarray, 'r D'], y: Float[np.ndarray, 'r E']) -> float:
  """Linear CKA (arXiv:1905.00414) of the same rows in two spaces: 1 but for turns and scale.

  Columns are centred; 0 where one side is constant.
  """
  x, y = x - x.mean(0), y - y.mean(0)
  both = np.linalg.norm(y.T @ x) ** 2
  apart = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  return float(both / apart) if apart else 0.0


def cka_of(layers: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
  """Linear CKA between any two of some layers, `L L`."""
  found = np.eye(len(layers))
  for i, x in enumerate(layers):
    for j in range(i):
      found[i, j] = found[j, i] = linear_cka(x, layers[j])
  return found
