"""Several processes as one run: connect them, let them agree, and stop all when one is lost.

SLURM, Cloud TPU, GKE and mpirun start the processes and JAX finds them by itself; without such a
launcher each is told where the first one listens:

  python -m vit_jax.main ... --coordinator=HOST:PORT --num_processes=2 --process_id=0
"""

import glob
from importlib import util
import os
import re
import sys
import threading
import time
from typing import NoReturn

# Seconds before process 0 takes the coordinator away, without which JAX aborts the others: what is
# wrong for all of them, each may say itself.
GRACE = 3
HEARTBEAT_TIMEOUT = 15  # seconds of silence after which a process counts as dead; all stop in 30
# What the runtimes say when the other end of a connection is gone.
LOST = re.compile(
  r'gloo|nccl|coordination|UNAVAILABLE|DEADLINE|heartbeat|Connection (reset|closed)'
)


def connect(
  coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
  """Joins this process to its run; without the first three only where a launcher started several.

  Ends the process with a message when they have not come together after `timeout` seconds.

  Raises:
    ValueError: some of the three are missing or impossible.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [f'--{key}' for key, value in given.items() if value is None]
  if len(missing) == 3 and not launched():
    return
  if 0 < len(missing) < 3:
    raise ValueError(f'{", ".join(missing)} missing; all three belong together')
  if coordinator and not re.fullmatch(r'.+:\d+', coordinator):
    raise ValueError(f'--coordinator={coordinator} must be HOST:PORT')
  if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
    raise ValueError(f'--process_id={process_id} must lie in 0..{num_processes - 1}')
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # What we say of a lost process is enough.
  import jax

  # The loop answers SIGTERM itself; see interruption.py.
  jax.config.update('jax_enable_preemption_service', False)
  # JAX would abort with a stack trace, so we give up before it does.
  where, count = coordinator or 'the address that the launcher names', num_processes or 'all'
  reason = (
    f'{count} processes did not meet at {where} within {timeout} s (--connect_timeout); is process '
    '0 running, are all others, and can the port be reached?'
  )
  watch = threading.Timer(timeout, stop, [reason])
  watch.daemon = True
  watch.start()
  jax.distributed.initialize(
    coordinator,
    num_processes,
    process_id,
    initialization_timeout=10 * timeout,
    heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
    shutdown_timeout_seconds=timeout,
  )
  watch.cancel()
  if jax.local_device_count() * jax.process_count() != jax.device_count():
    raise ValueError(
      f'process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} '
      f'devices; each of the {jax.process_count()} processes must have as many'
    )


def launched() -> bool:
  """Whether a launcher that JAX knows started this process as one of several, or on a TPU host."""
  several = any(
    int(os.environ.get(key) or 1) > 1 for key in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  )
  on_tpu = util.find_spec('libtpu') and (glob.glob('/dev/accel*') or glob.glob('/dev/vfio/*'))
  return several or (bool(on_tpu) and os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu'))


def several() -> bool:
  """Whether this process is one of several; says no before any backend is started."""
  if 'jax' not in sys.modules:
    return False
  import jax

  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this process is the one that writes."""
  import jax

  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process is here."""
  if several():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def all_agree(yes: bool) -> bool:
  """Whether every process says yes."""
  if not several():
    return yes
  from jax.experimental import multihost_utils
  import numpy as np

  return bool(multihost_utils.process_allgather(np.array(yes)).all())


def stop(message: str, grace: float = 0.0) -> NoReturn:
  """Ends this process, `grace` seconds later, without the orderly end that others never answer."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  time.sleep(grace)
  os._exit(1)


def stop_for(error: BaseException) -> NoReturn:
  """Ends this process of several for an error that it or all of them have."""
  message = explain(error)
  lost = LOST.search(message)  # Here JAX would abort process 0 too, if it waited.
  stop(message, grace=GRACE if is_first() and not lost else 0.0)


class Together:
  """While the loop runs: an error that only this process has ends it at once, so the others learn.

  What every process meets at the same step, such as a loss that is not finite, takes the usual way.
  """

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is not None and several() and kind not in (FloatingPointError, KeyboardInterrupt):
      stop_for(error)


def explain(error: BaseException) -> str:
  """One line for an error of a run of several processes."""
  text = ' '.join(str(error).split()) or repr(error)
  if LOST.search(text):
    return (
      f'another process of this run stopped or cannot be reached ({text[:200]}); all stop. Start '
      'them again, in any number: they go on from the last checkpoint'
    )
  return text
