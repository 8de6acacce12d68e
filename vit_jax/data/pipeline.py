"""Which examples, in which order, with which changes: a pure function of (seed, step).

Nothing is saved and nothing skipped on resume. Each process reads only its share of a batch: which
picture stands at which place does not depend on how many processes there are.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
import functools
import math
from typing import Any

import jax
import numpy as np

from vit_jax.data.augment import Affine
from vit_jax.data.preprocess import Preprocess
from vit_jax.data.sources import Source

Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=8)
def shuffled(size: int, seed: int) -> Any:
  """Endless indices below `size`, by position: every epoch is another permutation."""
  import grain  # 0.3 s that prediction need not spend.

  return grain.MapDataset.range(size).seed(seed).shuffle().repeat()


def process_share(batch_size: int) -> range:
  """The rows of a global batch that this process reads."""
  size = batch_size // jax.process_count()
  return range(jax.process_index() * size, (jax.process_index() + 1) * size)


def batch_at(
  source: Source, step: int, batch_size: int, seed: int, preprocess: Preprocess, augment: Affine
) -> Batch:
  """This process's rows of the training batch of `step`, counted from 1."""
  order = shuffled(len(source), seed)
  rows = process_share(batch_size)
  indices = [order[(step - 1) * batch_size + row] for row in rows]
  # One generator for each (seed, step, row): a picture's crop is the same on any number of hosts.
  images = [
    augment(preprocess.fit(source.images[i]), np.random.default_rng((seed, step, row)))
    for i, row in zip(indices, rows, strict=True)
  ]
  return {'image': np.stack(images), 'label': source.labels[indices]}


def epoch(source: Source, batch_size: int, preprocess: Preprocess) -> Iterator[Batch]:
  """This process's rows of every batch of one pass; padding repeats example 0 under mask False."""
  for start in range(0, math.ceil(len(source) / batch_size) * batch_size, batch_size):
    places = np.array([start + row for row in process_share(batch_size)])
    mask = places < len(source)
    indices = np.where(mask, places, 0)
    images = np.stack([preprocess.fit(source.images[i]) for i in indices])
    yield {'image': images, 'label': source.labels[indices], 'mask': mask, 'index': indices}


def prefetch(make: Callable[[int], object], steps: range, ahead: int = 2) -> Iterator:
  """`make(step)` for each step in order, up to `ahead` of them made beforehand in a thread."""
  with futures.ThreadPoolExecutor(1, 'prefetch') as pool:
    waiting: deque[futures.Future] = deque()
    for step in steps:
      waiting.append(pool.submit(make, step))
      if len(waiting) > ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
