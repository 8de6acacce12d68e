"""The readouts that are compared: from the names that a person writes to modules.

Every row of READOUTS (vit_jax/models/readout.py) that a model's tokens allow, `patch` as patch_1 to
patch_N; two controls, random_patch and shuffled_labels; and the groups `all` and `patches`.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax
from jax import numpy as jnp

from vit_jax.models import readout as readouts
from vit_jax.models import tokens
from vit_jax.runtime.choices import check_choice

CONTROLS = ('random_patch', 'shuffled_labels')
GROUPS = ('all', 'patches')
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
  """

  name: str
  module: Any  # a linen module, or None
  width: int
  learned: bool = False
  patch: int | None = None
  shuffled: bool = False

  @property
  def control(self) -> bool:
    """Whether it shows what chance or any patch would give."""
    return self.name in CONTROLS


def choose_candidates(
  names: tuple[str, ...],
  model: Any,
  section: dict[str, Any],
  shape: tuple[int, int],
  key: str = 'config.explore.readouts',
) -> tuple[Candidate, ...]:
  """The readouts that `names` stand for, each once, in the order of READOUTS, controls last.

  Groups leave out what needs a token that the model lacks.

  Args:
    model: has `grid`, `prefix` and `sizes()`.
    section: the model's section, for the settings of readouts such as attention pooling.
    shape: tokens and width of what is read, `T D`.
    key: what a person wrote the names for, named in errors.

  Raises:
    ValueError: an unknown name, a patch outside the grid, or a class token that is not there.
  """
  known = dict(rows(model, section, shape))
  count = model.grid[0] * model.grid[1]
  every = [name for row in known for name in expand(row, count)] + list(CONTROLS)
  patches = [name for row in known if is_numbered(row) for name in expand(row, count)]
  groups = {'patches': patches, 'all': [*CONTROLS]}
  groups['all'] += [n for row, one in known.items() if one for n in expand(row, count)]
  wanted: set[str] = set()
  for name in names:
    if name not in groups:
      tokens.check_patch(name, model.grid)
      check_choice(f'readout in {key}', name, [*every, *GROUPS])
    wanted |= {*groups.get(name, [name])}
  if not wanted:
    raise ValueError(f'{key} names no readout')
  settings = settings_of(model, section)
  chosen = []
  for row, one in known.items():
    for name in expand(row, count):
      if name in wanted:
        number = int(name.removeprefix(f'{row}_')) if is_numbered(row) else None
        chosen.append(make(name, row, model, settings, one, number, key))
  return (*chosen, *(control(name, model, settings, known) for name in CONTROLS if name in wanted))


def settings_of(model: Any, section: dict[str, Any]) -> dict[str, Any]:
  """What readouts may take of a model: heads and MLP width as they are, and its section."""
  kept = {key: value for key, value in section.items() if key not in OWN}
  return kept | {key: x for key, x in model.sizes().items() if key in ('num_heads', 'mlp_dim')}


def is_numbered(row: str) -> bool:
  """Whether a row stands for one readout a patch."""
  return readouts.class_of(row).numbered


def expand(row: str, count: int) -> list[str]:
  """The names of a row of READOUTS: its own, or one a patch."""
  return [f'{row}_{k}' for k in range(1, count + 1)] if is_numbered(row) else [row]


def rows(
  model: Any, section: dict[str, Any], shape: tuple[int, int]
) -> Iterator[tuple[str, tuple[int, bool] | None]]:
  """Rows of READOUTS that can be compared, with width and whether they learn.

  A row whose tokens are not there comes with None; one that makes no vector of an image is left
  out.
  """
  settings, x = settings_of(model, section), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  for row in readouts.READOUTS:
    if not readouts.fits(row, model.prefix):
      yield row, None
      continue
    module = readouts.build(row, settings, prefix=model.prefix, grid=model.grid)
    features, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    if features.ndim == 2:
      yield row, (features.shape[-1], bool(jax.tree.leaves(variables)))


def make(
  name: str,
  row: str,
  model: Any,
  settings: dict[str, Any],
  known: tuple[int, bool] | None,
  number: int | None = None,
  key: str = 'config.explore.readouts',
) -> Candidate:
  """A row of READOUTS as a candidate."""
  if known is None:
    missing = ' and '.join(sorted({*readouts.class_of(row).needs} - {*model.prefix}))
    raise ValueError(
      f'{key}: {name} reads the {missing.replace("_", " ")}, which these weights '
      'lack; choose readouts of patches such as mean'
    )
  given = settings | ({'patch_index': number} if number else {})
  module = readouts.build(row, given, prefix=model.prefix, grid=model.grid)
  return Candidate(name, module, *known, patch=number)


def control(name: str, model: Any, settings: dict[str, Any], known: dict[str, Any]) -> Candidate:
  """A control: another patch of each image, or labels that say nothing."""
  if name == 'random_patch':
    return Candidate(name, None, known['mean'][0])
  row = 'class_token' if known.get('class_token') else 'mean'
  return dataclasses.replace(make(name, row, model, settings, known[row]), shuffled=True)
