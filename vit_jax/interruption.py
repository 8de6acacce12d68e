"""Ctrl-C and SIGTERM as a question that the train loop answers after its step."""

import signal

from absl import logging


class Interruption:
  """Ctrl-C and SIGTERM ask the loop to save and stop; a second one ends it at once."""

  def __init__(self):
    self.requested = False

  def __enter__(self):
    self._handlers = {sig: signal.signal(sig, self._ask) for sig in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_):
    self._restore()

  def _ask(self, number, _):
    self.requested = True
    self._restore()
    logging.info(
      '%s: saving after this step; once more to stop at once', signal.Signals(number).name
    )

  def _restore(self):
    for sig, handler in self._handlers.items():
      signal.signal(sig, handler)
