"""Facts of a compiled program: its memory, its traffic, its collectives, its attention kernel.

All are of one device. What XLA says is taken where it says it; the rest is read from the program
(`hlo.py`). No time is among them: only a device can tell.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from vit_jax.runtime import hlo
from vit_jax.runtime.hlo import Computation, Instruction, Program

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What moves no bytes: names, views, and the second half of what was started before.
FREE = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id',
  'replica-id', 'opt-barrier', 'while', 'call', 'conditional', 'async-start', 'call-start',
)  # fmt: skip
SLICES = ('dynamic-slice', 'slice', 'gather')
VIEWS = ('bitcast', 'reshape', 'copy', 'convert')  # inside a fusion, where they are no copies
KERNELS = {'__cudnn$fmha': 'cudnn', 'vit_attention': 'pallas'}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on a device, as the compiler assigned them.

  Attributes:
    arguments: state, batch and constants.
    outputs: what the program returns and does not write into an argument's place.
    temporary: what lives only within a call: activations above all.
    code: of the program itself, where that lies in the same memory.
  """

  arguments: int
  outputs: int
  temporary: int
  code: int

  @property
  def total(self) -> int:
    """All of it at once."""
    return self.arguments + self.outputs + self.temporary + self.code


@dataclasses.dataclass(frozen=True)
class Collective:
  """A message between devices.

  Attributes:
    kind: one of COLLECTIVES.
    size: bytes of the whole that each device gets or gives, whichever is more.
    group: partition numbers of the devices of one group that speak with one another.
    times: how often.
  """

  kind: str
  size: int
  group: tuple[int, ...]
  times: int


def memory_of(compiled: Any) -> Memory:
  """The memory of a compiled program; zeros where a platform does not say."""
  found = compiled.memory_analysis()
  if found is None:
    return Memory(0, 0, 0, 0)
  return Memory(
    found.argument_size_in_bytes,
    max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
    found.temp_size_in_bytes,
    found.generated_code_size_in_bytes,
  )


def size_on_device(tree: Any) -> int:
  """Bytes of a tree of arrays, or of their shapes and shardings, on each device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def attention_of(program: Program) -> str:
  """The kernel that attention runs in: cudnn or pallas; plain where neither stands there."""
  for computation in program.computations.values():
    for one in computation.instructions.values():
      if one.opcode == 'custom-call':
        for mark, kernel in KERNELS.items():
          if mark in one.name or mark in one.attributes:
            return kernel
  return 'plain'


def collectives_of(program: Program, devices: int) -> list[Collective]:
  """Every message of a program.

  A TPU's compiler sends some from within fusions, several of which wait for the same one: they
  share a channel.
  """
  found, channels = [], set()
  for computation, one, times in program.walk():
    sent = [(computation, one)]
    if one.opcode == 'fusion':
      inside = [program.computations[name] for name in one.called]
      sent = [(where, each) for where in inside for each in where.instructions.values()]
    for where, each in sent:
      kind, channel = each.opcode.removesuffix('-start'), each.attribute('channel_id')
      if kind not in COLLECTIVES:
        continue
      channel = (kind, channel.partition(',')[0])
      if one.opcode == 'fusion' and channel in channels:
        continue
      channels.add(channel)
      group = group_of(each.attribute('replica_groups'), devices)
      found.append(Collective(kind, message_size(where, each), group, times))
  return [one for one in found if len(one.group) > 1]


def message_size(computation: Computation, one: Instruction) -> int:
  """Bytes that go into a collective or come out of it, whichever is more."""
  given = operand_size(computation, one)
  result = hlo.size_of(one.shape)
  if one.opcode in ('all-gather-start', 'collective-permute-start'):
    result -= given  # These also name what they read.
  return max(given, result)


def group_of(text: str, devices: int) -> tuple[int, ...]:
  """The devices of the first group; XLA writes groups in one of four ways.

  '{{0,1},{2,3}}'; '[2,4]<=[8]' with an optional 'T(1,0)'; "mesh['x'=4,'y'=2] {'x'}"; or '{}'.
  """
  if text.startswith('{{'):
    return tuple(map(int, re.findall(r'\d+', text.partition('}')[0])))
  if text.startswith('['):
    return iota_group(text)
  if text.startswith('mesh'):
    return mesh_group(text)
  return tuple(range(devices))


def iota_group(text: str) -> tuple[int, ...]:
  """'[4,2]<=[2,4]T(1,0)': 4 groups of 2 from the numbers 0..7 as a 2 x 4 array, transposed."""
  shape, _, rest = text.partition('<=')
  counts, (dimensions, _, order) = numbers(shape), rest.partition('T')
  sizes = numbers(dimensions.partition(']')[0])
  places = np.arange(math.prod(sizes)).reshape(sizes)
  if rest.partition(']')[2].startswith('T'):
    places = places.transpose(numbers(order.partition(')')[0]))
  return tuple(places.reshape(counts)[0].tolist())


def mesh_group(text: str) -> tuple[int, ...]:
  """The devices of a mesh that differ in some axes: "mesh['x'=4,'y'=2] {'x'}" gives 0, 2, 4, 6."""
  axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", text.partition(']')[0])}
  varied = re.findall(r"'(\w+)'", text.partition('{')[2].partition('}')[0])
  places = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
  where = tuple(slice(None) if name in varied else 0 for name in axes)
  return tuple(np.ravel(places[where]).tolist())


def numbers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r'\d+', text)]


def has_loops(program: Program) -> bool:
  """Whether a loop turns more than once; XLA's own cost analysis counts its body once."""
  return any(program.trips(one) > 1 for _, one, _ in program.walk())


def traffic_of(compiled: Any, program: Program) -> tuple[int, str]:
  """Bytes that a call reads and writes, and who counted them: 'xla', or 'sum' (`own_traffic`)."""
  costs = compiled.cost_analysis() or {}
  counted = int(costs.get('bytes accessed', 0))
  if counted > 0 and not has_loops(program):
    return counted, 'xla'
  return own_traffic(program), 'sum'


def flops_of(compiled: Any, program: Program) -> float | None:
  """FLOPs of a call as XLA counts them, elementwise ones too; None where it does not say.

  It counts the body of a loop once, so that of a program with loops nothing is said, and leaves out
  what a convolution multiplies with the border that it adds to its input.
  """
  counted = float((compiled.cost_analysis() or {}).get('flops', 0.0))
  return counted if counted > 0 and not has_loops(program) else None


def own_traffic(program: Program) -> int:
  """The sum of what every scheduled instruction reads and writes, loops by their turns."""
  return sum(times * touched(program, where, one) for where, one, times in program.walk())


def touched(program: Program, where: Computation, one: Instruction) -> int:
  """Bytes that one instruction reads and writes."""
  if one.opcode in FREE or one.opcode.endswith(('-done', '-update')):
    return 0
  if one.opcode == 'custom-call' and 'ConcatBitcast' in one.attributes:
    return 0  # Slices that arrived side by side, under one name.
  if one.opcode.removesuffix('-start') in SLICES:
    return 2 * moved(where, one)
  if one.opcode == 'dynamic-update-slice':
    return 2 * hlo.size_of(where.instructions[one.operands[1]].shape)
  if one.opcode in ('copy-start', 'all-gather-start', 'collective-permute-start'):
    return hlo.size_of(one.shape)  # It names both what it reads and what it writes.
  if one.opcode == 'fusion' and one.called:
    inside = program.computations[one.called[0]]
    read = sum(
      min(size_of(where, name), read_size(inside, number))
      for number, name in enumerate(one.operands)
    )
    return read + min(written_size(inside, inside.root), hlo.size_of(one.shape))
  return operand_size(where, one) + hlo.size_of(one.shape)


def moved(where: Computation, one: Instruction) -> int:
  """Bytes of what a slice takes; one that is started also names its source, which is larger."""
  sizes = hlo.arrays(one.shape)
  return sizes[1] if one.opcode.endswith('-start') and len(sizes) > 1 else sum(sizes)


def size_of(where: Computation, name: str) -> int:
  """Bytes of a result by its name."""
  return hlo.size_of(where.instructions[name].shape) if name in where.instructions else 0


def operand_size(where: Computation, one: Instruction) -> int:
  """Bytes of all that an instruction reads."""
  return sum(size_of(where, name) for name in one.operands)


def read_size(inside: Computation, number: int) -> int:
  """Bytes that a fusion reads of an argument: of one that it only slices, the slices."""
  parameter = inside.parameter(number)
  if parameter is None:
    return 0
  whole, read = hlo.size_of(parameter.shape), 0
  names = [parameter.name]
  while names:
    name = names.pop()
    for user in inside.users(name):
      if user.opcode in SLICES and user.operands[0] == name:
        read += hlo.size_of(user.shape)
      elif user.opcode in VIEWS:
        names.append(user.name)
      elif user.opcode != 'dynamic-update-slice' or user.operands[0] != name:
        return whole  # An update in place reads nothing.
  return read


def written_size(inside: Computation, name: str) -> int:
  """Bytes that a fusion writes: of an update in place, the update."""
  one = inside.instructions[name]
  if one.opcode == 'tuple':
    return sum(written_size(inside, each) for each in one.operands)
  if one.opcode in ('bitcast', 'copy') and one.operands:
    return min(hlo.size_of(one.shape), written_size(inside, one.operands[0]))
  if one.opcode == 'dynamic-update-slice':
    return size_of(inside, one.operands[1])
  return hlo.size_of(one.shape)
