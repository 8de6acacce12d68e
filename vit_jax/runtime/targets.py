"""Devices by name that programs are compiled for: those here, or GPUs and TPUs that are elsewhere.

JAX's compilers need no device: a TPU is a topology of libtpu, a GPU a text that describes it
(`catalogue.py`). `h100:8` is a host of 8, `h100:64` eight of them, `v5e:4x4` a slice of 16 chips.
"""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from typing import Any

import jax
from jax.experimental import topologies

from vit_jax.runtime import memory
from vit_jax.runtime.catalogue import CARD, TARGETS, Kind, Peaks
from vit_jax.runtime.choices import check_choice

HOST = 8  # GPUs of a host; more of them are several hosts of as many


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices that a program is compiled for.

  Attributes:
    name: as a person writes it, 'h100:8'; 'here' for the devices of this machine.
    devices: JAX's.
    memory: bytes of one of them that a program may fill.
    reserved: what is left out of `memory`, and why, in words.
    peaks: published figures; None: there are none, as of a CPU.
    per_host: devices that are joined by `peaks.link`.
  """

  name: str
  devices: list[Any]
  memory: int
  reserved: str
  peaks: Peaks | None
  per_host: int


def open_target(name: str | None) -> Target:
  """The devices that a name stands for; without one, those that are here.

  Raises:
    ValueError: no such target or topology (lists those that there are), or no compiler for it.
  """
  if not name:
    return here()
  word, _, shape = name.partition(':')
  check_choice('--target', word, TARGETS)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # The compilers say much that is nobody's.
  jax.config.update('jax_platforms', 'cpu')  # No device here is needed, and a TPU would be taken.
  kind = TARGETS[word]
  open_devices = gpu_devices if kind.platform == 'gpu' else tpu_devices
  devices = open_devices(word, kind, shape)
  memory, reserved = usable(kind.platform, kind.memory)
  per_host = min(HOST, len(devices)) if kind.platform == 'gpu' else len(devices)
  return Target(name, devices, memory, reserved, kind.peaks, per_host)


def usable(platform: str, memory: int) -> tuple[int, str]:
  """What a program may fill of a device's memory, and what becomes of the rest."""
  if platform == 'tpu':
    return memory, 'what the TPU compiler keeps for itself is left out'
  keys = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
  share = float(next((os.environ[key] for key in keys if os.environ.get(key)), 0.75))
  return int(share * memory), (
    f'JAX takes {share:.0%} of the {memory / 1e9:.1f} GB of a GPU; XLA_CLIENT_MEM_FRACTION=0.9 '
    'takes more, and CUDA, cuDNN and NCCL need about 1 GB beside it'
  )


def gpu_topology(name: str, shape: str) -> tuple[int, int]:
  """(hosts, GPUs of each): '' is one, '8' one host of 8, '64' eight of 8, '2x4' two of 4.

  Raises:
    ValueError: it is none of these.
  """
  if re.fullmatch(r'[1-9]\d*x[1-9]\d*', shape):
    hosts, each = map(int, shape.split('x'))
    if each <= HOST:
      return hosts, each
  elif not shape or re.fullmatch(r'[1-9]\d*', shape):
    count = int(shape or 1)
    if count <= HOST:
      return 1, count
    if count % HOST == 0:
      return count // HOST, HOST
  raise ValueError(
    f'--target={name}:{shape}: no such topology; {name}:1 to {name}:{HOST} are one host, multiples '
    f'of {HOST} several ({name}:16), {name}:2x4 is 2 hosts of 4'
  )


def tpu_topology(name: str, kind: Kind, shape: str) -> str:
  """The shape of a slice: '' is the smallest, a number that of so many chips.

  Raises:
    ValueError: there is no such slice; lists those that there are.
  """
  by_count = {str(chips(one)): one for one in kind.topologies}
  shape = by_count.get(shape, shape) or kind.topologies[0]
  if shape not in kind.topologies:
    known = ', '.join(f'{one} ({chips(one)})' for one in kind.topologies)
    raise ValueError(
      f'--target={name}:{shape}: no such topology; choose one, or its number of chips: {known}'
    )
  return shape


def chips(shape: str) -> int:
  """How many chips a slice has: '4x4' has 16."""
  return math.prod(map(int, shape.split('x')))


def gpu_devices(name: str, kind: Kind, shape: str) -> list[Any]:
  """Compile-only GPUs."""
  hosts, each = gpu_topology(name, shape)
  need('jax_cuda12_plugin', name, 'cuda12')
  bandwidth = int(kind.peaks.memory)
  text = CARD.format(kind=kind.kind, memory=kind.memory, bandwidth=bandwidth, **kind.card)
  return compile_only(name, platform='cuda', topology=f'1x{hosts}x{each}', target_config=text)


def tpu_devices(name: str, kind: Kind, shape: str) -> list[Any]:
  """Compile-only TPUs."""
  shape = tpu_topology(name, kind, shape)
  need('libtpu', name, 'tpu')
  # libtpu asks the metadata server of a TPU host for these, and waits for it.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')  # Any that it knows; else it warns.
  # Else a second process that compiles is refused; no chip is opened here.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  single = {'chips_per_host_bounds': (1, 1, 1)} if chips(shape) == 1 else {}
  return compile_only(f'{name}:{shape}', platform='tpu', **single, **kind.options)


def need(module: str, name: str, extra: str) -> None:
  """Raises a ValueError where a compiler is not installed; shows the command that installs it."""
  if not importlib.util.find_spec(module):
    raise ValueError(f"--target={name} needs its compiler: pip install -e '.[{extra}]'")


def compile_only(name: str, **options) -> list[Any]:
  """Devices that nothing can run on.

  Raises:
    ValueError: the compiler that is installed does not know them; says what it says.
  """
  try:
    return list(topologies.get_topology_desc(topology_name=name, **options).devices)
  except (RuntimeError, NotImplementedError) as error:
    why = ' '.join(str(error).split())[:200]
    raise ValueError(f'--target={name}: the compiler that is installed refuses it: {why}') from None


def here() -> Target:
  """The devices of this machine; those of a CPU share its memory."""
  devices = jax.devices()
  first, count = devices[0], len(devices)
  if first.platform == 'cpu':
    reserved = 'the memory of this machine, of which other programs take a part too'
    return Target('here', devices, memory.installed(), reserved, None, count)
  known = next((kind for kind in TARGETS.values() if kind.kind == first.device_kind), None)
  # Only a device of this process tells; the first of all may belong to another.
  stats = jax.local_devices()[0].memory_stats() or {}
  limit, reserved = usable(first.platform, known.memory if known else 0)
  each = jax.local_device_count() if first.platform == 'gpu' else count
  limit = stats.get('bytes_limit', limit)
  if not limit:
    limit, reserved = sys.maxsize, 'how much memory such a device has is not known'
  return Target('here', devices, limit, reserved, known.peaks if known else None, each)


def room_here(devices: list[Any]) -> int:
  """Bytes that a program may fill of each of some devices of this machine.

  On a CPU what this process holds already is left out, so ask before there is a state.
  """
  found = here().memory
  if devices[0].platform != 'cpu':
    return found
  return max(0, found - memory.resident()) // len(devices)
