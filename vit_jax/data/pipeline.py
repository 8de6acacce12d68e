"""Which examples, in which order, with which changes: a pure function of (seed, step).

Nothing is saved and nothing skipped on resume. Each process reads only its share of a batch: which
picture stands at which place does not depend on how many processes there are. Threads decode into
one array a batch; pixels stay uint8 until they are on the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import functools
from typing import Any

import jax
from jaxtyping import Float32, Int32, UInt8
import numpy as np

from vit_jax.data.pictures import Damaged, Picture
from vit_jax.data.processes import Make
from vit_jax.data.sources import Source
from vit_jax.runtime import devices

Batch = dict[str, np.ndarray]
# Pictures that a thread takes at a time: enough to hide the hand-over, few enough to share evenly.
CHUNK = 8
# Pictures between the copies of one, where it is repeated. A prime: a part of a batch that is
# accumulated takes every n-th row, and would bring copies together where n divides this.
SPREAD = 31


@functools.lru_cache(maxsize=8)
def shuffled(size: int, seed: int) -> Any:
  """Endless indices below `size`, by position: every epoch is another permutation."""
  import grain  # 0.3 s that prediction need not spend.

  return grain.MapDataset.range(size).seed(seed).shuffle().repeat()


def process_share(batch_size: int) -> np.ndarray:
  """The rows of a global batch that this process reads, whatever its devices."""
  size = batch_size // jax.process_count()
  return np.arange(size) + jax.process_index() * size


def training_places(
  step: int, rows: np.ndarray, batch_size: int, size: int, whole_epochs: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Positions in the endless order, and which of them are real; an epoch has `size` of them.

  With `whole_epochs` an epoch ends with a smaller batch, filled up with rows that are not real;
  else the next epoch begins in the middle of a batch.
  """
  if not whole_epochs:
    return (step - 1) * batch_size + rows, np.ones(len(rows), bool)
  epoch, batch = divmod(step - 1, -(-size // batch_size))
  places = batch * batch_size + rows
  return epoch * size + np.where(places < size, places, 0), places < size


def picture_of(places: np.ndarray, repeats: int, epoch: int) -> np.ndarray:
  """The positions in the order of pictures that stand at some places.

  The copies of a picture stand SPREAD places apart, as mixup's partner is the next row; what an
  epoch of `epoch` places leaves at its end stands closer.
  """
  start = places // epoch * epoch  # Of the epoch, whose pictures are `epoch // repeats`.
  group, place = np.divmod(places - start, SPREAD * repeats)
  left = (epoch - group * SPREAD * repeats) // repeats
  return start // repeats + group * SPREAD + place % np.minimum(SPREAD, left)


def training_batch(
  source: Source,
  step: int,
  *,
  batch_size: int,
  seed: int,
  whole_epochs: bool,
  make: Make,
  repeats: int = 1,
  rows: np.ndarray | None = None,
) -> Batch:
  """This process's rows of the training batch of `step`, counted from 1.

  Every picture stands there `repeats` times, near to each other, each time with its own generator
  (arXiv:1902.05509); the last copy may stand in the next batch.

  Args:
    make: given indices, rows of the whole batch and (seed, step).
    rows: that lie on this process's devices; None: an equal share in the order of processes.
  """
  rows = process_share(batch_size) if rows is None else rows
  places, mask = training_places(step, rows, batch_size, len(source) * repeats, whole_epochs)
  order = shuffled(len(source), seed)
  epoch = len(source) * repeats
  indices = np.array([order[place] for place in picture_of(places, repeats, epoch)])
  images, labels = make(indices, rows, (seed, step))
  return {'image': images, 'label': labels, 'mask': mask}


def evaluation_batch(
  source: Source,
  number: int,
  *,
  batch_size: int,
  shape: tuple[int, ...],
  threads: int | None,
  make: Callable[[Picture, int], np.ndarray],
) -> Batch:
  """This process's rows of batch `number`, from 0, of one pass in order; `make(picture, index)`.

  The last batch is filled up with example 0 under mask False; 'index' says which example is where.
  """
  places = number * batch_size + process_share(batch_size)
  mask = places < len(source)
  indices = np.where(mask, places, 0)
  images, labels = load(
    source, indices, shape, threads, lambda picture, i: make(picture, int(indices[i]))
  )  # fmt: skip
  return {'image': images, 'label': labels, 'mask': mask, 'index': indices.astype(np.int32)}


@functools.cache
def workers(threads: int | None) -> futures.ThreadPoolExecutor:
  """The pool of threads that decode."""
  return futures.ThreadPoolExecutor(threads or devices.cores(), 'decode')


def load(
  source: Source,
  indices: np.ndarray,
  shape: tuple[int, ...],
  threads: int | None,
  make: Callable[[Picture, int], np.ndarray],
) -> tuple[UInt8[np.ndarray, 'B H W C'], Int32[np.ndarray, 'B'] | Float32[np.ndarray, 'B K']]:
  """Fills one array with `make(picture, row)` for each index; and the labels.

  Raises:
    Damaged: a picture that cannot be read; names it.
  """
  images = np.empty((len(indices), *shape), np.uint8)
  chunk = CHUNK if threads != 1 else max(1, len(indices))

  def fill(start: int) -> np.ndarray:
    found, labels = source.read(indices[start : start + chunk])
    for row, picture in enumerate(found, start):
      try:
        images[row] = make(picture, row)
      except Damaged as error:
        where = '' if isinstance(picture, str) else f'{source.name(int(indices[row]))}: '
        raise Damaged(where + str(error)) from None
    return labels

  labels = np.concatenate([*workers(threads).map(fill, range(0, len(indices), chunk))])
  return images, labels.astype(np.int32 if labels.ndim == 1 else np.float32)


def prefetch(make: Callable[[Any], Any], steps: Iterable, ahead: int = 2) -> Iterator:
  """Yields `make(step)` for each step in order, up to `ahead` of them made early in threads."""
  pool = futures.ThreadPoolExecutor(ahead, 'prefetch')
  waiting: deque[futures.Future] = deque()
  try:
    for step in steps:
      waiting.append(pool.submit(make, step))
      if len(waiting) > ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def stream(
  make: Callable[[Any], Any], place: Callable[[Any], Any], steps: Iterable, ahead: int = 0
) -> Iterator:
  """Yields `place(make(step))` for each step in order, two of them early, in threads.

  Args:
    place: brings what was made to the devices, which hold no more than those.
    ahead: further ones that are made early, and wait here.
  """
  if ahead:
    return prefetch(place, prefetch(make, steps, ahead))
  return prefetch(lambda step: place(make(step)), steps)
