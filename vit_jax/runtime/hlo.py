"""The text of a compiled program (HLO), read: its computations and their instructions.

XLA offers no other way to ask a compiled program what stands in it. One instruction is one line,

  %name = f32[8,16]{1,0:T(8,128)S(1)} opcode(%operand, ...), attribute=..., backend_config={...}

where T is the tile in which an array lies in memory, and S a memory space other than the usual one.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

ARRAY = re.compile(r'(\w+)\[([\d,<=]*)\](\{[^}]*\})?')
TILE = re.compile(r'T\(([\d,]+)\)')
NAME = re.compile(r'%([\w.\-]+)')
CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)'
  r'|branch_computations=\{([^}]*)\}'
)
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Opcodes whose computations are scheduled as they stand; others only apply theirs.
RUNS = ('while', 'call', 'conditional', 'async-start', 'call-start')
BITS = {'pred': 8, 'token': 0, 'opaque': 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    shape: of the result, as written.
    operands: names of other instructions of the computation; the number of a parameter, the value
      of a constant.
    attributes: what follows the operands, as written.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it runs or applies."""
    found = []
    for one, several in CALLED.findall(self.attributes):
      found += [one] if one else NAME.findall(several)
    return tuple(found)

  def attribute(self, key: str) -> str:
    """The text of an attribute from behind its equals sign on; '' without it."""
    return self.attributes.partition(f'{key}=')[2]


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order in which they run.

  Attributes:
    root: the name of the one whose result is the computation's.
  """

  instructions: dict[str, Instruction]
  root: str

  def parameter(self, number: int) -> Instruction | None:
    """The instruction that stands for an argument."""
    for one in self.instructions.values():
      if one.opcode == 'parameter' and one.operands == (str(number),):
        return one
    return None

  def users(self, name: str) -> list[Instruction]:
    """The instructions that read a result."""
    return [one for one in self.instructions.values() if name in one.operands]


@dataclasses.dataclass(frozen=True)
class Program:
  """The computations of a program by name."""

  computations: dict[str, Computation]
  entry: str

  def trips(self, one: Instruction) -> int:
    """How often a loop runs its body; 1 for what is no loop, or where nobody knows.

    The compiler for GPUs notes it. That for TPUs does not: there it is the bound of the condition,
    as loops of JAX count from 0.
    """
    if one.opcode != 'while':
      return 1
    noted = TRIPS.search(one.attributes)
    if noted:
      return int(noted[1])
    condition = self.computations[one.attribute('condition').partition(',')[0].lstrip('%')]
    test = condition.instructions[condition.root]
    bounds = [condition.instructions[name] for name in test.operands]
    constants = [each.operands[0] for each in bounds if each.opcode == 'constant']
    known = test.opcode == 'compare' and 'direction=LT' in test.attributes and constants
    return int(constants[0]) if known and constants[0].isdecimal() else 1

  def walk(
    self, name: str | None = None, times: int = 1
  ) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that is scheduled by itself, where it stands, and how often it runs.

    What stands in loops counts for each turn; what a fusion does inside is its own affair. Of a
    condition, all branches count.
    """
    computation = self.computations[name or self.entry]
    for one in computation.instructions.values():
      yield computation, one, times
      if one.opcode in RUNS:
        for inner in one.called:
          yield from self.walk(inner, times * self.trips(one))


def parse(text: str) -> Program:
  """The program that `compiled.as_text()` shows."""
  computations, entry, name, root = {}, '', '', ''
  lines: dict[str, Instruction] = {}
  for line in text.splitlines():
    if line.startswith(('%', 'ENTRY')) and line.endswith('{'):
      name, lines = NAME.search(line)[1], {}  # pyright: ignore
      entry = name if line.startswith('ENTRY') else entry
    elif line == '}':
      computations[name] = Computation(lines, root)
    elif line.startswith('  ') and ' = ' in line:
      one = parse_instruction(line)
      lines[one.name] = one
      root = one.name if line.lstrip().startswith('ROOT') else root
  return Program(computations, entry)


def parse_instruction(line: str) -> Instruction:
  """One line of a computation, read."""
  left, _, right = line.partition(' = ')
  end = closing(right, 0) + 1 if right.startswith('(') else right.index(' ')
  shape, rest = right[:end], right[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  end = closing(rest, len(opcode))
  inside = rest[len(opcode) + 1 : end]
  literal = opcode in ('parameter', 'constant')
  operands = (inside.strip(),) if literal else tuple(NAME.findall(inside))
  name = left.split()[-1].removeprefix('%')
  return Instruction(name, shape, opcode.strip(), operands, rest[end + 1 :])


def closing(text: str, start: int) -> int:
  """The place of the bracket that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == '(') - (text[place] == ')')
    if not depth:
      return place
  return len(text)


def arrays(shape: str) -> list[int]:
  """The size of each array of a shape in bytes, as it lies in memory."""
  return [
    math.prod(padded(dimensions, layout)) * bits_of(dtype) // 8
    for dtype, dimensions, layout in ARRAY.findall(shape)
  ]


def padded(dimensions: str, layout: str) -> list[int]:
  """The sizes of an array, smallest stride first, filled up to whole tiles where it has some.

  '197,192' in '{1,0:T(8,128)}' takes 256 x 200 places of a TPU's memory.
  """
  sizes = [int(size.removeprefix('<=')) for size in dimensions.split(',') if size]
  order, _, tiling = layout.strip('{}').partition(':')
  minor_first = [sizes[int(axis)] for axis in order.split(',') if axis] or sizes[::-1]
  match = TILE.search(tiling)
  tile = [int(size) for size in match[1].split(',')][::-1] if match else []
  tile += [1] * (len(minor_first) - len(tile))
  return [-(-size // unit) * unit for size, unit in zip(minor_first, tile, strict=False)]


def bits_of(dtype: str) -> int:
  """Bits of a number: 'bf16' has 16, 'f8e4m3fn' 8, 's4' 4."""
  digits = re.search(r'\d+', dtype)
  return BITS[dtype] if dtype in BITS else int(digits[0]) if digits else 0


def size_of(shape: str) -> int:
  """Bytes of all arrays of a shape."""
  return sum(arrays(shape))
