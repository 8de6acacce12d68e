"""Compiled programs are kept between starts, so that the second start of a run compiles nothing.

  $VIT_JAX_CACHE/compiled/<jax version>-<hash of the processor>/

JAX's own cache names each program by what it was made of, its options and the devices. What it does
not ask is on which processor a CPU's program was made, which may know instructions that another one
sharing the folder lacks; hence the folder. A damaged entry is compiled anew.
"""

import contextlib
import hashlib
import pathlib
import platform

import jax

from vit_jax.runtime import fetch

MOST = 2 * 10**9  # bytes; above it the programs that were not used for longest go
SHORTEST = 0.1  # seconds; what compiles faster is not worth a file


def keep() -> None:
  """Turns the cache on, unless JAX was told another folder; call it before the first program.

  JAX_ENABLE_COMPILATION_CACHE=false turns it off.
  """
  if jax.config.values['jax_compilation_cache_dir']:
    return
  folder = fetch.cache_folder() / 'compiled'
  trim(folder, MOST)
  jax.config.update('jax_compilation_cache_dir', str(folder / f'{jax.__version__}-{processor()}'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', SHORTEST)


def processor() -> str:
  """Names the kind of processor: a hash of its architecture and of what it can do."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
  seen = sorted({line for line in lines if line.startswith(('flags', 'Features', 'model name'))})
  content = '\n'.join([platform.machine(), *(seen or lines[:1])])
  return hashlib.sha256(content.encode()).hexdigest()[:12]


def trim(folder: pathlib.Path, most: int) -> None:
  """Deletes files, those first that were not used for longest, until `most` bytes are left."""
  found = []
  for path in folder.rglob('*'):
    with contextlib.suppress(FileNotFoundError):  # Another start may be tidying up.
      found += [(path, path.stat())] if path.is_file() else []
  total = sum(stat.st_size for _, stat in found)
  for path, stat in sorted(found, key=lambda x: max(x[1].st_atime, x[1].st_mtime)):
    if total <= most:
      return
    path.unlink(missing_ok=True)
    total -= stat.st_size
