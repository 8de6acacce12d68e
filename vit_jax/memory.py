"""Host memory of CPU runs: keeps what is freed, as XLA asks for it again at each step."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed() -> None:
  """Makes steps on a CPU faster; call it before JAX starts a backend. Elsewhere it does nothing.

  XLA:CPU allocates its temporaries anew at every call. glibc hands large blocks back to the system
  each time, so that their pages must be mapped and cleared again; and it always does so for blocks
  above 64 MiB outside the main thread, where JAX computes unless it is told not to. Measured on two
  cores: a step of the digits 34 ms, then 21; of CIFAR-10 (128 images, 0.4 GiB) 257 ms, then 140.
  """
  os.environ.setdefault('JAX_CPU_ENABLE_ASYNC_DISPATCH', 'false')
  if 'jax' in sys.modules:  # It has read its environment.
    sys.modules['jax'].config.update('jax_cpu_enable_async_dispatch', False)
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
  if mallopt is not None:
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
