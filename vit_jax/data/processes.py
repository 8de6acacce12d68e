"""Training pictures made by processes: small ones keep Python busy, which runs one thread at once.

Decoding and resizing let other threads run, so that threads suffice for photos. What is done to a
picture of 32 x 32 is nearly all Python: one core makes 2,000 a second of CIFAR-10 with RandAugment,
and sixteen threads no more; a GPU takes tens of thousands.
"""

from collections.abc import Callable
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing.context
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
  for one in (signal.SIGINT, signal.SIGTERM):  # They may go to all; the first one says when.
    signal.signal(one, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_here(
  indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """What this process of a pool was started for."""
  return _make[0](indices, rows, key)


class Worker(multiprocessing.context.SpawnProcess):
  """A process that ignores SIGTERM: a pool that lost another one would wait for it forever."""

  def terminate(self) -> None:
    self.kill()


class Context(multiprocessing.context.SpawnContext):
  """Starts workers anew; not forked: JAX's threads hold locks that a copy would wait for."""

  Process = Worker


class Pool:
  """Processes that make a batch each; the pictures are those that one process makes.

  Args:
    make: can be pickled; each process has its own, and files that it opens are opened in each.
    count: of processes. They start with the first batches, in a second or two.
  """

  def __init__(self, make: Make, count: int):
    self.count = count
    self.workers = futures.ProcessPoolExecutor(count, Context(), begin, (make,))

  def __call__(
    self, indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels at some indices; from any thread.

    One process makes all of them: handing over takes this process 0.4 ms each time.

    Raises:
      OSError: a process was stopped from outside.
    """
    try:
      return self.workers.submit(make_here, indices, rows, key).result()
    except BrokenProcessPool:
      raise OSError(
        'a process that makes training pictures was stopped, perhaps for want of memory; '
        f'config.data.processes={self.count} may be fewer, or 0'
      ) from None
