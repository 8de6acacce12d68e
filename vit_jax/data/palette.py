"""The palette that a model of pixels tells colours in: k-means on training pictures, or a file.

Colours are in normalised pixel values, as the model sees them. A palette belongs to the weights and
travels in their passport.
"""

import pathlib
from typing import Any
import warnings

from jax import numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.data import Dataset
from vit_jax.data.preprocess import Preprocess
from vit_jax.runtime.progress import track

Palette = tuple[tuple[float, ...], ...]
PIXELS = 200_000  # that k-means sees, of whole pictures
ROUNDS = 100  # of k-means at most


def choose(
  section: dict[str, Any], dataset: Dataset, seed: int, known: dict[str, Any] | None
) -> Palette | None:
  """The palette of a run: of the weights that it goes on from, of a file, or of its own pictures.

  Args:
    section: of the model: `palette`, a path or None, and `clusters`.
    known: the section of those weights; None: there are none.

  Returns:
    None where the data are not here: a plan needs no colours.

  Raises:
    ValueError: a file that does not fit, or pictures of fewer colours than are asked for.
  """
  path, count = section['palette'], section['clusters']
  if known and known.get('colours'):
    if path not in (None, known.get('palette')):
      raise ValueError(
        f'config.model.palette={path}: the weights that the run starts from have a palette of '
        'their own, which their embeddings are of; leave it out'
      )
    return known['colours']
  if path:
    return as_tuples(read(pathlib.Path(path).expanduser(), count, dataset.preprocess))
  return as_tuples(learn(dataset, count, seed)) if len(dataset.splits['train']) else None


def as_tuples(colours: Float[np.ndarray, 'K C']) -> Palette:
  """Colours as numbers that a passport can hold, each float32 exactly."""
  return tuple(tuple(map(float, row)) for row in colours.astype(np.float32))


def read(path: pathlib.Path, count: int, preprocess: Preprocess) -> Float[np.ndarray, 'K C']:
  """The colours in a .npy file, such as OpenAI's `clusters`.

  Raises:
    ValueError: no such array, of another size, or not of pixel values as the run has them.
  """
  try:
    colours = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f'config.model.palette={path}: no .npy file of colours ({error})') from None
  wanted = (count, preprocess.channels)
  if not isinstance(colours, np.ndarray) or colours.shape != wanted:
    raise ValueError(
      f'config.model.palette={path} holds {getattr(colours, "shape", "no array")}, and the model '
      f'has (clusters, channels) {wanted}: set config.model.clusters and config.data.channels to '
      'what it holds, or take another file'
    )
  low, high = (np.asarray(preprocess.normalise(jnp.full((1, 1, 1, 1), x))) for x in (0, 255))
  if np.any(colours < low.min() - 1e-3) or np.any(colours > high.max() + 1e-3):
    raise ValueError(
      f'config.model.palette={path} holds colours from {colours.min():.3g} to {colours.max():.3g}, '
      f'and pixels are {low.min():.3g} to {high.max():.3g}; its colours must be as the model sees '
      'them: -1..1 with config.data.mean=(0.5,) and config.data.std=(0.5,)'
    )
  return colours.astype(np.float32)


def pixels_of(dataset: Dataset, seed: int) -> Float[np.ndarray, 'n C']:
  """Pixels of training pictures, drawn by the seed, as evaluation and the model see them."""
  height, width, channels = dataset.image_shape
  size = len(dataset.splits['train'])
  count = min(size, max(1, PIXELS // (height * width)))
  chosen = np.sort(np.random.default_rng(seed).permutation(size)[:count])
  rows = track(chosen, count, 'pixels for the palette', 'pictures')
  images = np.stack([dataset.picture('train', int(i)) for i in rows])
  return np.asarray(dataset.preprocess.normalise(jnp.asarray(images))).reshape(-1, channels)


def learn(dataset: Dataset, count: int, seed: int) -> Float[np.ndarray, 'K C']:
  """The centres of `count` clusters of pixels, the darkest first; the same for the same seed.

  Raises:
    ValueError: the pictures have fewer colours.
  """
  from sklearn.cluster import KMeans
  from sklearn.exceptions import ConvergenceWarning
  from threadpoolctl import threadpool_limits

  colours, times = np.unique(pixels_of(dataset, seed), axis=0, return_counts=True)
  if len(colours) < count:
    raise ValueError(
      f'config.model.clusters={count}, and the training pictures have {len(colours)} colours; set '
      f'config.model.clusters={len(colours)} or less, or name config.model.palette'
    )
  # One thread: sums in another order would make other centres in another process.
  with threadpool_limits(1), warnings.catch_warnings():
    warnings.simplefilter('ignore', ConvergenceWarning)
    means = KMeans(count, n_init=1, max_iter=ROUNDS, random_state=seed)  # pyright: ignore
    means.fit(colours.astype(np.float64), sample_weight=times)
  found = means.cluster_centers_
  return found[np.lexsort((*found.T, found.sum(1)))]
