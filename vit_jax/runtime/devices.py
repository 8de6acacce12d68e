"""Which devices compute: all that are here; on a CPU as many as the work is worth.

XLA splits a matrix product over the cores of a CPU, and little else. Several devices, one a core,
with the rows of a batch cut over them, keep every core at work (`benchmarks/README.md`).
"""

import os
from typing import Any

import jax

from vit_jax.runtime import memory

MOST = 8  # devices of a CPU: each holds a copy of the state, and more than 2 were not measured
_prepared = False


def cores() -> int:
  """The number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def asked_for() -> bool:
  """Whether a person said how many devices the CPU has; then all are used, or refused."""
  flag = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  return flag or 'JAX_NUM_CPU_DEVICES' in os.environ


def prepare(platform: str | None = None) -> None:
  """Gives the CPU a device for each core, before JAX starts; `choose` says how many are used.

  Args:
    platform: that the config asks for, if any.
  """
  global _prepared
  if memory.on_cpu(platform) and not asked_for():
    jax.config.update('jax_num_cpu_devices', min(cores(), MOST))
    _prepared = True


def choose(count: int | None, batch_size: int, pixels: int, fsdp: int = 1) -> list[Any]:
  """The devices of a run.

  Args:
    count: how many were asked for; None: all, but on a CPU as many as divide the batch where a
      batch has at least `memory.LARGE` pixels, else one.
    batch_size: rows that are cut over the devices at once; 0: any number, the last filled up.
    pixels: of a batch.
    fsdp: devices over which the state is cut; above 1 all are used.

  Raises:
    ValueError: more were asked for than there are, or some of those of several processes.
  """
  found = jax.devices()
  if count is not None:
    if not 1 <= count <= len(found):
      raise ValueError(f'config.devices={count}: there are {len(found)}, {found[0].device_kind}')
    if count < len(found) and jax.process_count() > 1:
      raise ValueError(f'config.devices={count}: several processes use all of their devices')
    return found[:count]
  if not _prepared or fsdp > 1 or found[0].platform != 'cpu' or jax.process_count() > 1:
    return found
  fitting = [n for n in range(1, len(found) + 1) if batch_size % n == 0]
  return found[: fitting[-1] if pixels >= memory.LARGE else 1]


def parts(chosen: list[Any], rows: int, pixels: int, cached: int) -> int:
  """In how many parts each device of a CPU goes through its rows of a train step; elsewhere 1.

  Args:
    rows: of one device.
    pixels: of one row.
    cached: pixels of a part at most. Parts of less than a quarter of them were slower than none.
  """
  if not _prepared or chosen[0].platform != 'cpu' or jax.process_count() > 1:
    return 1
  sizes = (size for size in range(rows, 0, -1) if rows % size == 0)
  size = next((size for size in sizes if size * pixels <= cached), 1)
  return rows // size if size * pixels >= cached / 4 else 1


def by_rule(count: int | None, fsdp: int, chosen: list[Any]) -> bool:
  """Whether several devices of a CPU were chosen without being asked for."""
  ruled = _prepared and count is None and fsdp == 1
  return ruled and len(chosen) > 1 and chosen[0].platform == 'cpu'


def describe(chosen: list[Any]) -> str:
  """Says how many devices of which kind, and on a CPU why."""
  text = f'{chosen[0].platform}, {len(chosen)} x {chosen[0].device_kind}'
  if not _prepared or chosen[0].platform != 'cpu':
    return text
  why = (
    'one a core as far as they divide the batch, or as asked for' if len(chosen) > 1
    else f'as steps of fewer than {memory.LARGE} pixels are faster on one, or it was asked for'
  )  # fmt: skip
  return f'{text} ({why}; config.devices changes it)'
