"""Ctrl-C and SIGTERM as a question that the train loop answers after its step."""

import functools
import signal

from absl import logging
import jax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np


class Interruption:
  """Ctrl-C and SIGTERM ask the loop to save and stop; a second one ends it at once."""

  def __init__(self):
    self._asked = False
    self._before = None  # what the processes said at the step before

  def __enter__(self):
    self._handlers = {sig: signal.signal(sig, self._ask) for sig in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_):
    self._restore()

  def requested(self) -> bool:
    """Whether to stop after this step; call it once a step.

    Several processes give the same answer at the same step: whether any was asked before the last
    one. Reading it one step late keeps the devices busy.
    """
    if jax.process_count() == 1:
      return self._asked
    before, self._before = self._before, any_process(self._asked)
    return before is not None and bool(before)

  def _ask(self, number, _):
    self._asked = True
    self._restore()
    logging.info(
      '%s: saving after this step; once more to stop at once', signal.Signals(number).name
    )

  def _restore(self):
    for sig, handler in self._handlers.items():
      signal.signal(sig, handler)


@functools.cache
def _any():
  mesh = jax.make_mesh((jax.device_count(),), ('all',), axis_types=(AxisType.Auto,))
  rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('all',), ()))
  return rows, jax.jit(jnp.any, out_shardings=everywhere)


def any_process(yes: bool) -> jax.Array:
  """Whether any process says yes; returns before it is known."""
  rows, function = _any()
  local = np.full(jax.local_device_count(), yes)
  return function(jax.make_array_from_process_local_data(rows, local))
