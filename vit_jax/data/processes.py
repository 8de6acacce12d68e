"""Training pictures made by processes: Python runs one thread at once, however many cores wait.

What is done to a picture of 32 x 32 is nearly all Python: one core makes 2,000 a second of CIFAR-10
with RandAugment, and sixteen threads no more. Of a photo it is a third, so that threads keep a few
cores busy: sixteen of them made 650 a second beside an H200, which trains ViT-B/16 on 3,460.
"""

from collections.abc import Callable
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import functools
from multiprocessing import resource_tracker
import multiprocessing.context
import os
import pathlib
import pickle
import signal
import sys
import tempfile
import threading
import types
from typing import Any, NoReturn

from absl import logging
import numpy as np

from vit_jax.data import shared
from vit_jax.runtime import devices

# Images `B H W C` and labels of examples at some indices, in some rows, changed by (seed, step).
Make = Callable[[np.ndarray, np.ndarray, tuple[int, int]], tuple[np.ndarray, np.ndarray]]

FEW = 4  # cores that threads keep busy
MOST = 16  # processes by rule; several of a host share its cores
PART = 2**24  # bytes of pictures that a process makes at a time

GROUP = (signal.SIGINT, signal.SIGTERM)  # may go to all processes; the first one says when.

_make: list[Make] = []  # In a process of a pool: what it was started for.


def choose(count: int | None, threads: int | None, platform: str) -> int:
  """How many processes make training pictures; 0: threads do.

  Args:
    count: that was asked for; None: one a core, at most 16, on the host of an accelerator that has
      more than four. A script, or another's `python -m`, is none: what it does would be done
      again in each process.
    threads: that were asked for, which they are then.
    platform: of the devices that train.
  """
  if count is not None:
    return count
  main = sys.modules['__main__']
  name = getattr(getattr(main, '__spec__', None), 'name', '')
  script = hasattr(main, '__file__') and not name.startswith(f'{__name__.partition(".")[0]}.')
  cores = devices.cores()
  alone = threads is not None or platform == 'cpu' or script or cores <= FEW
  return 0 if alone else min(cores, MOST)


def begin(path: str) -> None:
  """Readies a process of a pool: it ends with the one that started it, and by nothing else.

  Args:
    path: of the file with what it is started for.
  """
  try:
    _make[:] = [pickle.loads(pathlib.Path(path).read_bytes())]
  except Exception as error:  # Any: what others' classes raise. A pool would not tell it.
    _make[:] = [functools.partial(refuse, f'{type(error).__name__}: {error}')]
  for one in GROUP:
    signal.signal(one, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def refuse(reason: str, *_: Any) -> NoReturn:
  """Says why pictures cannot be made by processes.

  Raises:
    ValueError: always.
  """
  raise ValueError(
    f'what makes the pictures cannot be handed to processes ({reason}); '
    'config.data.processes=0 makes them in threads'
  )


def make_here(
  indices: np.ndarray, rows: np.ndarray, key: tuple[int, int], place: shared.Place | None
) -> tuple[np.ndarray | tuple[int, ...], np.ndarray]:
  """What this process of a pool was started for; images in the block there, if any."""
  images, labels = _make[0](indices, rows, key)
  if place is None:
    return images, labels
  shared.pixels_of(shared.attached(place), images.shape)[:] = images
  return images.shape, labels


class Pickler(pickle.Pickler):
  """Refuses what stands in a session alone: a process that starts anew cannot import it."""

  def reducer_override(self, obj: Any) -> Any:
    named = isinstance(obj, type | types.FunctionType) and obj.__module__ == '__main__'
    if named and not hasattr(sys.modules['__main__'], '__file__'):
      raise pickle.PicklingError(f'{obj.__qualname__} is defined in this session, in no file')
    return NotImplemented


class Worker(multiprocessing.context.SpawnProcess):
  """A process that ignores SIGTERM, from its first moment on.

  A second or two pass until `begin`, in which a run may be stopped too. A pool that lost another
  process would wait for this one forever.
  """

  def start(self) -> None:
    """Starts it while signals of the group are held back, which it inherits."""
    resource_tracker.ensure_running()  # Started with the first process, it would let them through.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP)
    try:
      super().start()
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, held)

  def terminate(self) -> None:
    self.kill()


class Context(multiprocessing.context.SpawnContext):
  """Starts workers anew; not forked: JAX's threads hold locks that a copy would wait for."""

  Process = Worker


def named_file() -> tuple[Any, str]:
  """An empty file on the disk, which is gone when it is closed, and its path."""
  file = tempfile.NamedTemporaryFile(prefix='vit_jax_')  # noqa: SIM115
  return file, file.name


class Threads:
  """Pictures that are made in this process, as soon as they are asked for."""

  def __init__(self, make: Make):
    self.make = make

  def __call__(
    self, indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels at some indices; from any thread."""
    return self.make(indices, rows, key)

  def begin(self) -> None:
    """Does nothing: threads start with their first work."""

  def end(self) -> None:
    """Does nothing: other batches, of evaluation, need the threads too."""

  def ahead(self, rows: int) -> int:
    """No batches beside those that are made early anyway."""
    del rows
    return 0


class Pool:
  """Processes that make a batch each, or its parts; the pictures are those that one process makes.

  Args:
    make: can be pickled; each process has its own, and files that it opens are opened in each.
    count: of processes. They start with `begin`, in a second or two, or with the first batches.
    size: bytes of a picture.

  Raises:
    ValueError: it cannot be pickled.
  """

  def __init__(self, make: Make, count: int, size: int):
    self.count, self.size = count, size
    self.blocks = shared.Blocks()
    # A million names of files take seconds to cross a pipe, one process after another.
    self.file, path = shared.memory_file() or named_file()
    try:
      Pickler(self.file, pickle.HIGHEST_PROTOCOL).dump(make)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
      refuse(str(error))
    self.file.flush()
    self.workers = futures.ProcessPoolExecutor(count, Context(), begin, (path,))
    self.starter = threading.Thread(target=self.start_all)

  def begin(self) -> None:
    """Starts all processes, which get ready beside what else is done.

    Ctrl-C reaches the main thread alone: here it would leave a process half started.
    """
    logging.info(
      '%d processes make training pictures (config.data.processes=0: threads)', self.count
    )
    self.starter.start()
    self.starter.join()

  def start_all(self) -> None:
    """Gives each process something to start for."""
    for _ in range(self.count):
      self.workers.submit(int)

  def end(self) -> None:
    """Ends all processes, when nobody waits for them any more."""
    if self.starter.ident:  # Begun; Ctrl-C may have come in between.
      self.starter.join()
    self.workers.shutdown(cancel_futures=True)
    self.blocks.close()
    self.file.close()

  def __call__(
    self, indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels at some indices; from any thread.

    One process makes all that is no more than PART: handing over takes this one 0.4 ms each time.

    Raises:
      OSError: a process was stopped from outside.
    """
    cuts = (np.array_split(x, self.parts(len(indices))) for x in (indices, rows))
    try:
      started = [self.start(*part, key=key) for part in zip(*cuts, strict=True)]
      made = [self.finish(*one) for one in started]
    except BrokenProcessPool:
      raise OSError(
        'a process that makes training pictures was stopped, perhaps for want of memory; '
        f'config.data.processes={self.count} may be fewer, or 0'
      ) from None
    if len(made) == 1:
      return made[0]
    images, labels = zip(*made, strict=True)
    return np.concatenate(images), np.concatenate(labels)

  def start(
    self, indices: np.ndarray, rows: np.ndarray, key: tuple[int, int]
  ) -> tuple[futures.Future, shared.Block | None]:
    """What will be made, and the block where its images will lie; None: they come by a pipe."""
    block = self.blocks.take(len(indices) * self.size)
    place = block and block.place
    return self.workers.submit(make_here, indices, rows, key, place), block

  def finish(
    self, future: futures.Future, block: shared.Block | None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of what was started."""
    images, labels = future.result()
    return (self.blocks.take_out(block, images) if block else images), labels

  def parts(self, rows: int) -> int:
    """In how many parts a batch of some rows is made."""
    return max(1, min(self.count, rows, rows * self.size // PART))

  def ahead(self, rows: int) -> int:
    """Further batches of some rows to make early, so that every process has work."""
    return -(-self.count // self.parts(rows))
