"""The readouts that are compared: from the names that a person writes to modules.

Every row of READOUTS (vit_jax/models/readout.py) that a model's tokens allow, `patch` as patch_1 to
patch_N, with the words behind it that a name may have; two controls, random_patch and
shuffled_labels; and the groups `all`, `patches` and `probes`, the published ones.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

import jax
from jax import numpy as jnp

from vit_jax.models import readout as readouts
from vit_jax.models import tokens
from vit_jax.models.readout import Spec

CONTROLS = ('random_patch', 'shuffled_labels')
GROUPS = ('all', 'patches', 'probes')
# Keys of a model's section that say how the model itself reads: here rows of the table say that.
OWN = ('readout', 'readout_weights', 'patch_index')


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A readout that is compared.

  Attributes:
    module: what it reads; of `random_patch` none, as that depends on the example.
    width: features that it hands to the head.
    learned: whether it has parameters of its own.
    patch: the number of a single patch token, from 1.
    shuffled: whether its training labels are shuffled.
    batch: what is normalised over batches: 'batch_before' its tokens, 'batch' its features.
    start: the first of the tokens that 'batch_before' counts.
  """

  name: str
  module: Any  # a linen module, or None
  width: int
  learned: bool = False
  patch: int | None = None
  shuffled: bool = False
  batch: tuple[str, ...] = ()
  start: int = 0

  @property
  def control(self) -> bool:
    """Whether it shows what chance or any patch would give."""
    return self.name in CONTROLS


@dataclasses.dataclass(frozen=True)
class Source:
  """What candidates read.

  Attributes:
    prefix: names of the tokens before the patches, class tokens of earlier blocks first.
    section: settings that readouts may take of the model.
    shape: `T D`.
  """

  prefix: tuple[str, ...]
  grid: tuple[int, int]
  section: dict[str, Any]
  shape: tuple[int, int]

  @property
  def count(self) -> int:
    """The number of patches."""
    return math.prod(self.grid)


def source_of(
  model: Any,
  section: dict[str, Any],
  shape: tuple[int, int],
  grid: tuple[int, int] | None = None,
) -> Source:
  """What candidates read of a model, by its section; what `shape` has more are earlier blocks'.

  Args:
    grid: of a map, whose places are all there is to read; None: tokens as the last block has them.
  """
  kept = {key: value for key, value in section.items() if key not in OWN}
  kept |= {key: x for key, x in model.sizes().items() if key in ('num_heads', 'mlp_dim')}
  if grid is not None:
    return Source((), grid, kept, shape)
  extra = shape[0] - len(model.prefix) - math.prod(model.grid)
  return Source(readouts.earlier(extra) + model.prefix, model.grid, kept, shape)


def choose_candidates(
  names: tuple[str, ...],
  model: Any,
  section: dict[str, Any],
  shape: tuple[int, int],
  key: str = 'config.explore.readouts',
  grid: tuple[int, int] | None = None,
) -> tuple[Candidate, ...]:
  """The readouts that `names` stand for, each once, in the order of READOUTS, controls last.

  Groups leave out what needs a token that the model lacks.

  Args:
    model: has `grid`, `prefix` and `sizes()`.
    section: the model's section, for the settings of readouts such as attention pooling.
    shape: tokens and width of what is read, `T D`; before those of the model class tokens of
      earlier blocks.
    key: what a person wrote the names for, named in errors.
    grid: as in `source_of`.

  Raises:
    ValueError: an unknown name, a patch outside the grid, or a class token that is not there.
  """
  source = source_of(model, section, shape, grid)
  wanted = specs_of(names, source, key)
  known = dict(rows(source, {spec.row for spec in wanted} | {'mean', 'class_token'}))
  silent = [spec.row for spec in wanted if spec.row in readouts.READOUTS and spec.row not in known]
  if silent:
    raise ValueError(f'{key}: {silent[0]} makes no vector of an image; choose another readout')
  chosen = []
  for row, one in known.items():
    for name in expand(row, source.count):
      mine = [spec for spec in wanted if spec.row == name]
      chosen += [make(spec, row, source, one, key) for spec in mine]
  controls = [name for name in CONTROLS if Spec(name) in wanted]
  return (*chosen, *(control(name, source, known) for name in controls))


def specs_of(names: tuple[str, ...], source: Source, key: str) -> list[Spec]:
  """What `names` stand for, each once: rows with words, `patch` with its number, and controls.

  Raises:
    ValueError: an unknown name, or a patch outside the grid.
  """
  every = [name for row in readouts.READOUTS for name in expand(row, source.count)]
  asked = {name.partition('+')[0] for name in names}
  groups = {group: members(group, source) for group in GROUPS if group in asked}
  wanted: dict[Spec, None] = {}
  for name in names:
    if ',' in name:
      several = ','.join(repr(one.strip()) for one in name.split(','))
      raise ValueError(f'{key}: {name!r} is one name; several are written "({several})"')
    tokens.check_patch(name.partition('+')[0], source.grid)
    spec = readouts.parse(name, f'readout in {key}', [*every, *CONTROLS, *GROUPS])
    for row in groups.get(spec.row, [spec.row]):
      if row not in CONTROLS:
        wanted[Spec(row, spec.words)] = None
      elif not spec.words:
        wanted[Spec(row)] = None
      elif spec.row not in groups:
        raise ValueError(f'{key}: {row} is a control, which no words change; write {row} alone')
  if not wanted:
    raise ValueError(f'{key} names no readout')
  return [*wanted]


def members(group: str, source: Source) -> list[str]:
  """The names in a group: of rows whose tokens are there and that make a vector of an image."""
  rows_of_kind = {
    row
    for row in readouts.READOUTS
    if (is_numbered(row) if group == 'patches' else is_published(row) == (group == 'probes'))
  }
  found = {row for row, one in rows(source, rows_of_kind) if one}
  names = [n for row in readouts.READOUTS if row in found for n in expand(row, source.count)]
  return names + [*CONTROLS] * (group == 'all')


def is_published(row: str) -> bool:
  """Whether a row is one of the group `probes`."""
  return readouts.class_of(row).published


def earlier_blocks(names: tuple[str, ...], depth: int, key: str) -> int:
  """How many blocks before the last some readouts take the class token of.

  Args:
    depth: blocks that can be read.

  Raises:
    ValueError: a readout is named that needs more blocks than there are.
  """
  wanted = [0]
  for name in names:
    row = name.partition('+')[0]
    if row == 'probes':
      wanted += [n for n in map(readouts.earlier_of, readouts.READOUTS) if n < depth]
    elif row in readouts.READOUTS:
      wanted.append(readouts.earlier_of(row))
      if wanted[-1] and wanted[-1] >= depth:
        raise ValueError(
          f'{key}: {name} reads the last {wanted[-1] + 1} blocks, and here are {depth}: take '
          'weights of a deeper model with config.explore.layers=last, or class_and_mean instead'
        )
  return max(wanted)


def is_numbered(row: str) -> bool:
  """Whether a row stands for one readout a patch."""
  return readouts.class_of(row).numbered


def expand(row: str, count: int) -> list[str]:
  """The names of a row of READOUTS: its own, or one a patch."""
  return [f'{row}_{k}' for k in range(1, count + 1)] if is_numbered(row) else [row]


def rows(source: Source, wanted: set[str]) -> Iterator[tuple[str, tuple[int, bool] | None]]:
  """Those rows of READOUTS that can be compared, with width and whether they learn.

  A row whose tokens are not there comes with None; one that makes no vector of an image is left
  out.
  """
  x = jax.ShapeDtypeStruct((1, *source.shape), jnp.float32)
  for row in readouts.READOUTS:
    if not {row, *expand(row, source.count)} & wanted:
      continue
    if not readouts.fits(row, source.prefix):
      yield row, None
      continue
    module = readouts.build(row, source.section, prefix=source.prefix, grid=source.grid)
    features, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    if features.ndim == 2:
      yield row, (features.shape[-1], bool(jax.tree.leaves(variables)))


def make(
  spec: Spec,
  row: str,
  source: Source,
  known: tuple[int, bool] | None,
  key: str = 'config.explore.readouts',
) -> Candidate:
  """A row of READOUTS as a candidate."""
  name = spec.row + spec.suffix
  if known is None:
    raise ValueError(f'{key}: {lacking(name, row, source)}')
  number = int(spec.row.removeprefix(f'{row}_')) if is_numbered(row) else None
  given = source.section | ({'patch_index': number} if number else {})
  module = readouts.build(
    row + spec.suffix, given, prefix=source.prefix, grid=source.grid, probing=True
  )
  reads_prefix = 'all' in spec.words or not readouts.class_of(row).pools
  first = sum(map(readouts.is_earlier, source.prefix)) if reads_prefix else len(source.prefix)
  batch = tuple(word for word in readouts.BATCH if word in spec.words)
  return Candidate(name, module, *known, patch=number, batch=batch, start=first)


def lacking(name: str, row: str, source: Source) -> str:
  """Why weights cannot be read so, and what to do."""
  missing = sorted({*readouts.class_of(row).needs} - {*source.prefix})
  if not missing:
    return readouts.refusal(name, source.prefix)
  return (
    f'{name} reads the {" and ".join(missing).replace("_", " ")}, which these weights lack; '
    'choose readouts of patches such as mean'
  )


def control(name: str, source: Source, known: dict[str, Any]) -> Candidate:
  """A control: another patch of each image, or labels that say nothing."""
  if name == 'random_patch':
    return Candidate(name, None, known['mean'][0])
  row = 'class_token' if known.get('class_token') else 'mean'
  return dataclasses.replace(make(Spec(row), row, source, known[row]), name=name, shuffled=True)
