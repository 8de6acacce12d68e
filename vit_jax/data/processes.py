"""Training pictures made by processes: small ones keep Python busy, which runs one thread at once.

Decoding and resizing let other threads run, so that threads suffice for photos. What is done to a
picture of 32 x 32 is nearly all Python: one core makes 2,000 a second of CIFAR-10 with RandAugment,
and sixteen threads no more; a GPU takes tens of thousands.
"""

from collections.abc import Callable
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing
import os
import signal
import threading

import numpy as np

# Images `B H W C` and labels of examples at some indices, in some rows, changed by (seed, step).
Make = Callable[[np.ndarray, np.ndarray, tuple[int, int]], tuple[np.ndarray, np.ndarray]]

_make: list[Make] = []  # In a process of a pool: what it was started for.


def begin(make: Make) -> None:
  """Readies a process of a pool: it ends with the one that started it, and by nothing else."""
  _make[:] = [make]
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first one says when.
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_here(
  indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """What this process of a pool was started for."""
  return _make[0](indices, rows, key)


class Pool:
  """Processes that share the rows of a batch; the pictures are those that one process makes.

  Args:
    make: can be pickled; each process has its own, and files that it opens are opened in each.
    count: of processes. They start with the first batch, in a second or two.
  """

  def __init__(self, make: Make, count: int):
    self.count = count
    # Not forked: JAX's threads hold locks that a copy would wait for.
    context = multiprocessing.get_context('spawn')
    self.workers = futures.ProcessPoolExecutor(count, context, begin, (make,))

  def __call__(
    self, indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels at some indices.

    Raises:
      OSError: a process was stopped from outside.
    """
    parts = [part for part in np.array_split(np.arange(len(indices)), self.count) if len(part)]
    try:
      waiting = [self.workers.submit(make_here, indices[x], rows[x], key) for x in parts]
      images, labels = zip(*(future.result() for future in waiting), strict=True)
    except BrokenProcessPool:
      raise OSError(
        'a process that makes training pictures was stopped, perhaps for want of memory; '
        f'config.data.processes={self.count} may be fewer, or 0'
      ) from None
    return np.concatenate(images), np.concatenate(labels)
