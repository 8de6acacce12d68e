"""What a command says: plain lines on stderr, without what its libraries say; results on stdout."""

from collections.abc import Iterator
import contextlib
import io
from logging import Formatter, getLogger
import os
import select
import sys

from absl import flags, logging


def show() -> None:
  """Shows messages of level INFO as they are; call it once, when a command starts."""
  flags.FLAGS.mark_as_parsed()  # Else absl begins with a warning; a command may still parse some.
  logging.use_absl_handler()
  logging.get_absl_handler().setFormatter(Formatter('%(message)s'))
  getLogger('jax').setLevel('WARNING')  # Else it lists the backends that are not there.
  getLogger('matplotlib').setLevel('WARNING')  # Else it says that it looked for fonts.
  logging.set_verbosity(logging.INFO)


@contextlib.contextmanager
def printing() -> Iterator[None]:
  """Lets a command print any name of a file, and end quietly where its reader has gone.

  A name that the encoding of stdout does not have is told with backslashes. After `| head -1` the
  exit status is 1 and nothing is said, as Python's documentation has it.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    yield
    sys.stdout.flush()
  except BrokenPipeError:
    if not reader_has_gone():
      raise
    # What is left is flushed when Python ends, which would complain then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def reader_has_gone() -> bool:
  """Whether nobody reads stdout any more: other pipes, as to processes, may break, too."""
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)  # Errors are told all the same.
  return any(event & select.POLLERR for _, event in poll.poll(0))
