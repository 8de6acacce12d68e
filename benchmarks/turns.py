"""Things to time, each in a process of its own, that run only when asked: in turns, never at once.

A busy machine then slows all alike, no allocator or thread pool serves two libraries, and what one
leaves in the caches none inherits: a turn begins with a run that is not timed.
"""

from collections.abc import Callable
import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import signal
import time
from typing import Any

SECONDS = 0.5  # of a turn, at least: short steps are timed as the mean of several
LONG = 5.0  # seconds of a run that warms up enough by itself
# What a process is asked: to run, or also to give its memory back afterwards. That costs its next
# turn time (Ti/16 training: 16.6 instead of 18.3 images/s), so only where all do not fit at once.
ROOMY, CROWDED = 'roomy', 'crowded'
FULL = 0.6  # of this machine's memory
FAILED = 'failed'  # key of an answer that says why there will be no more


def resident() -> int:
  """The most bytes of host memory that this process has had, libraries included."""
  import resource  # Unix has it.

  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclasses.dataclass(frozen=True)
class Timed:
  """Something to time.

  Attributes:
    run: starts it once, and may return before it is done.
    wait: given what `run` returned, returns when that is done.
    queued: whether runs may be started before the last one is done, as on an accelerator; on a CPU
      they would then compute at once.
    about: what the process that asks should know, such as the logits.
    free: gives memory back between turns, so that many can be compared on one machine.
    memory: the most bytes that were in use.
  """

  run: Callable[[], Any]
  wait: Callable[[Any], Any]
  queued: bool = False
  about: dict = dataclasses.field(default_factory=dict)
  free: Callable[[], Any] = lambda: None
  memory: Callable[[], int] = resident

  def seconds(self) -> float:
    """Seconds of a run: the mean over a turn."""
    for _ in range(2):  # Its memory is mapped and its data are near again.
      start = time.perf_counter()
      self.wait(self.run())
      elapsed = time.perf_counter() - start
      if elapsed > LONG:
        break
    count = max(1, round(SECONDS / max(elapsed, 1e-4)))
    start, result = time.perf_counter(), None
    for _ in range(count):
      result = self.run()
      if not self.queued:
        self.wait(result)
    self.wait(result)
    return (time.perf_counter() - start) / count


def trim() -> None:
  """Gives what glibc keeps back to the system."""
  release = getattr(ctypes.CDLL(None), 'malloc_trim', None) if os.name == 'posix' else None
  if release is not None:
    release(0)


def serve(make: Callable[..., Timed], arguments: tuple, pipe) -> None:
  """Makes something to time, says so, and answers each message with the seconds of a run."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that asks ends this one.
  try:
    timed = make(*arguments)
    for _ in range(2):
      timed.wait(timed.run())  # Compiles.
    pipe.send(timed.about | {'memory': timed.memory()})
    while asked := pipe.recv():
      elapsed = timed.seconds()
      if asked == CROWDED:
        timed.free()
        trim()
      pipe.send(elapsed)
  except EOFError:
    pass  # Nobody asks any more.
  except Exception as error:
    text = ' '.join(str(error).split()) or type(error).__name__
    pipe.send({FAILED: f'{type(error).__name__}: {text}'[:300]})


class Turns:
  """Processes by name; use as a context, which ends them whatever happens."""

  def __init__(self):
    self.context = multiprocessing.get_context('spawn')
    self.processes: dict[str, tuple[Any, Any]] = {}
    self.memory: dict[str, int] = {}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for name in list(self.processes):
      self.stop(name)

  def start(self, name: str, make: Callable[..., Timed], *arguments) -> dict:
    """Starts a process and waits until it is ready; what it says of itself, or why it failed."""
    pipe, theirs = self.context.Pipe()
    process = self.context.Process(target=serve, args=(make, arguments, theirs), daemon=True)
    process.start()
    theirs.close()  # Else its death would not be heard of.
    self.processes[name] = (process, pipe)
    answer = self.hear(name)
    self.memory[name] = answer.get('memory', 0)
    return answer

  def hear(self, name: str) -> Any:
    """The next answer of a process, which is stopped if it says that it failed."""
    process, pipe = self.processes[name]
    try:
      answer = pipe.recv()
    except EOFError:
      process.join()
      answer = {FAILED: f'the process died with exit code {process.exitcode}'}
    if isinstance(answer, dict) and FAILED in answer:
      self.stop(name)
    return answer

  def stop(self, name: str) -> None:
    """Ends a process."""
    process, pipe = self.processes.pop(name)
    pipe.close()
    process.join(5)
    if process.is_alive():
      process.kill()
      process.join()

  def measure(self, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round, one after another; without those that failed."""
    times: dict[str, list[float]] = {name: [] for name in names}
    room = FULL * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    ask = CROWDED if sum(self.memory[name] for name in names) > room else ROOMY
    for _ in range(rounds):
      for name in list(times):
        _, pipe = self.processes[name]
        with contextlib.suppress(BrokenPipeError):  # `hear` says why.
          pipe.send(ask)
        answer = self.hear(name)
        if isinstance(answer, dict):
          del times[name]
        else:
          times[name].append(answer)
    return times
