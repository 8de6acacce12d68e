"""The readouts that are compared: from the names that a person writes to modules.

class_token  patch_7  sum  sum_all  mean  mean_all  max       fixed functions of the tokens
weighted_add  weighted_concat  (and _softmax)  attention_pool learned mixes
random_patch  shuffled_labels                                 controls
all  patches                                                  groups
"""

import dataclasses
from typing import Any

from vit_jax import tokens
from vit_jax.choices import choose
from vit_jax.models import readout as readouts

FIXED = ('class_token', 'sum', 'sum_all', 'mean', 'mean_all', 'max')
MIXES = ('weighted_add', 'weighted_add_softmax', 'weighted_concat', 'weighted_concat_softmax')
LEARNED = (*MIXES, 'attention_pool')
CONTROLS = ('random_patch', 'shuffled_labels')


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A readout that is compared.

  Attributes:
    module: what it reads; of `random_patch` none, as that depends on the example.
    patch: the number of a single patch token, from 1.
    shuffled: whether its training labels are shuffled.
  """

  name: str
  module: Any  # a linen module, or None
  patch: int | None = None
  shuffled: bool = False

  @property
  def learned(self) -> bool:
    return self.name in LEARNED

  @property
  def control(self) -> bool:
    return self.name in CONTROLS


def choose_candidates(
  names: tuple[str, ...], model: Any, section: dict[str, Any]
) -> tuple[Candidate, ...]:
  """The readouts that `names` stand for, each once, in the order of the module's table.

  Groups leave out what a model without a class token cannot have.

  Args:
    model: has `grid` and `class_token`.
    section: the model's section, for the sizes of attention pooling.

  Raises:
    ValueError: an unknown name, a patch outside the grid, or a class token that is not there.
  """
  count = model.grid[0] * model.grid[1]
  patches = [f'patch_{k}' for k in range(1, count + 1)]
  every = [*FIXED[:1], *patches, *FIXED[1:], *LEARNED, *CONTROLS]
  wanted = set()
  for name in names:
    if name == 'all':
      wanted |= {one for one in every if model.class_token or not needs_class_token(one)}
    elif name == 'patches':
      wanted |= set(patches)
    else:
      tokens.check_patch(name, model.grid)
      choose('readout in config.explore.readouts', name, [*every, 'all', 'patches'])
      wanted.add(name)
  if not wanted:
    raise ValueError('config.explore.readouts names no readout')
  return tuple(make(name, model, section) for name in every if name in wanted)


def needs_class_token(name: str) -> bool:
  return name in ('class_token', 'sum_all', 'mean_all', *MIXES)


def make(name: str, model: Any, section: dict[str, Any]) -> Candidate:
  """One candidate."""
  if name == 'random_patch':
    return Candidate(name, None)
  number = int(name.removeprefix('patch_')) if name.startswith('patch_') else None
  kind = 'patch' if number else name.removesuffix('_softmax')
  if name == 'shuffled_labels':
    kind = 'class_token' if model.class_token else 'mean'
  module = readouts.build(
    kind,
    class_token=model.class_token,
    grid=model.grid,
    patch_index=number or 1,
    weights='softmax' if name.endswith('_softmax') else 'free',
    num_heads=model.Transformer.num_heads,
    mlp_dim=model.Transformer.mlp_dim,
    gelu=section['gelu'],
    epsilon=section['epsilon'],
  )
  return Candidate(name, module, number, name == 'shuffled_labels')
