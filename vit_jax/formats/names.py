"""The layouts of ViT weights elsewhere: timm, torchvision and Hugging Face.

`families.py` has their names; how an array lies follows from the kind of module. Both directions
read the same tables.
"""

from collections.abc import Callable, Iterator, Sequence
import re
from typing import NamedTuple

import numpy as np

from vit_jax.formats.families import ATTENTION, Family
from vit_jax.formats.files import Arrays, Entry

BLOCK = 'Transformer/encoderblock_{}/'
# Modules of ours and their kind; those of a block without its prefix.
BLOCK_KINDS = {
  'LayerNorm_0': 'norm',
  f'{ATTENTION}/query': 'heads',
  f'{ATTENTION}/key': 'heads',
  f'{ATTENTION}/value': 'heads',
  f'{ATTENTION}/out': 'out',
  'LayerNorm_2': 'norm',
  'MlpBlock_3/Dense_0': 'dense',
  'MlpBlock_3/Dense_1': 'dense',
}
KINDS = {
  'embedding': 'conv',
  'Transformer/encoder_norm': 'norm',
  'pre_logits': 'dense',
  'head': 'dense',
  'head_dist': 'dense',
}
PARAMETERS = {
  'cls': 'cls', 'dist': 'dist', 'reg': 'reg',
  'position': 'Transformer/posembed_input/pos_embedding',
}  # fmt: skip


class Rule(NamedTuple):
  """Arrays of ours (three where theirs is packed), the array of theirs, and how it lies."""

  ours: tuple[str, ...]
  theirs: str
  kind: str


def rules(family: Family, depth: int, units: Sequence[int] | None = None) -> Iterator[Rule]:
  """Every array that a model of the family may have; `units=None`: of any hybrid."""
  if family.backbone:
    yield from resnet_rules(family.backbone, units)
  for key, name in family.parameters.items():
    yield Rule((PARAMETERS[key],), name, 'same')
  for module, kind in KINDS.items():
    if module in family.modules:
      yield from module_rules(module, family.modules[module] + '.', kind)
  for i in range(depth):
    ours, theirs = BLOCK.format(i), family.block.format(i)
    for module, kind in BLOCK_KINDS.items():
      if module in family.modules:
        yield from module_rules(ours + module, theirs + family.modules[module] + '.', kind)
    for branch, name in enumerate(family.scales or (), 1):
      yield Rule((f'{ours}LayerScale_{branch}/scale',), theirs + name, 'same')
    if family.packed:
      parts = [f'{ours}{ATTENTION}/{part}/' for part in ('query', 'key', 'value')]
      for own, name in (('kernel', 'weight'), ('bias', 'bias')):
        yield Rule(tuple(p + own for p in parts), theirs + family.packed + name, f'qkv {own}')


# More than any hybrid has: what is not in a file, no rule finds.
HYBRID_UNITS = (16, 16, 48, 16)


def resnet_rules(prefix: str, units: Sequence[int] | None) -> Iterator[Rule]:
  """A hybrid's ResNet. A stem without stages has shorter names at timm."""
  stems = [f'{prefix}stem.', prefix]
  for stem in stems if units is None else stems[:1] if units else stems[1:]:
    yield from weight_rule('conv_root', f'{stem}conv', 'conv')
    yield from module_rules('gn_root', f'{stem}norm.', 'norm')
  for b, count in enumerate(HYBRID_UNITS if units is None else units):
    for u in range(count):
      ours, theirs = f'block{b + 1}/unit{u + 1}/', f'{prefix}stages.{b}.blocks.{u}.'
      for i in (1, 2, 3):
        yield from weight_rule(f'{ours}conv{i}', f'{theirs}conv{i}', 'conv')
        yield from module_rules(f'{ours}gn{i}', f'{theirs}norm{i}.', 'norm')
      yield from weight_rule(f'{ours}conv_proj', f'{theirs}downsample.conv', 'conv')
      yield from module_rules(f'{ours}gn_proj', f'{theirs}downsample.norm.', 'norm')


def weight_rule(ours: str, theirs: str, kind: str) -> Iterator[Rule]:
  yield Rule((f'{ours}/kernel',), f'{theirs}.weight', kind)


def module_rules(ours: str, theirs: str, kind: str) -> Iterator[Rule]:
  weight = 'scale' if kind == 'norm' else 'kernel'
  yield Rule((f'{ours}/{weight}',), f'{theirs}weight', 'same' if kind == 'norm' else kind)
  bias = 'heads bias' if kind == 'heads' else 'same'
  yield Rule((f'{ours}/bias',), f'{theirs}bias', bias)


# Ours -> theirs. Kernels: ours end in the output axis, torch's begin with it.
OUT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'same': lambda x: x,
  'conv': lambda x: x.transpose(3, 2, 0, 1),  # H W I O -> O I H W
  'dense': lambda x: x.T,
  'heads': lambda x: x.reshape(x.shape[0], -1).T,  # D h d -> hd D
  'heads bias': lambda x: x.reshape(-1),
  'out': lambda x: x.reshape(-1, x.shape[-1]).T,  # h d D -> D hd
}


def back(kind: str, x: np.ndarray, heads: int) -> np.ndarray:
  """Theirs -> ours."""
  if kind == 'conv':
    return x.transpose(2, 3, 1, 0)
  if kind == 'heads':
    return x.T.reshape(x.shape[1], heads, -1)
  if kind == 'heads bias':
    return x.reshape(heads, -1)
  if kind == 'out':
    return x.T.reshape(heads, -1, x.shape[0])
  return x.T if kind == 'dense' else x


def to_ours(arrays: Arrays, family: Family, depth: int, heads: int) -> tuple[Arrays, set[str]]:
  """Arrays under our names; and the names of theirs that no rule knows."""
  found: Arrays = {}
  left = set(arrays)
  for rule in rules(family, depth):
    if rule.theirs not in arrays:
      continue
    left.discard(rule.theirs)
    entry = arrays[rule.theirs]
    for i, name in enumerate(rule.ours):
      found[name] = converted(entry, rule, i, heads)
  return found, left


def converted(entry: Entry, rule: Rule, part: int, heads: int) -> Entry:
  count = len(rule.ours)
  kind = rule.kind.replace('qkv kernel', 'heads').replace('qkv bias', 'heads bias')

  def load() -> np.ndarray:
    whole = entry.load()
    rows = len(whole) // count if count > 1 else 0
    piece = whole[part * rows : (part + 1) * rows] if count > 1 else whole
    return back(kind, piece, heads)

  shape = (entry.shape[0] // count, *entry.shape[1:]) if entry.shape else ()
  dummy = np.broadcast_to(np.empty((), np.bool_), shape)
  return Entry(back(kind, dummy, heads).shape, entry.dtype, load)


def to_theirs(
  ours: Arrays, family: Family, depth: int, units: Sequence[int]
) -> tuple[Arrays, set[str]]:
  """Arrays under their names; and the names of ours without a place."""
  made: Arrays = {}
  left = set(ours)
  for rule in rules(family, depth, units):
    if not set(rule.ours) <= set(ours):
      continue
    left -= set(rule.ours)
    made[rule.theirs] = exported([ours[name] for name in rule.ours], rule.kind)
  return made, left


def exported(entries: list[Entry], kind: str) -> Entry:
  convert = OUT[kind.replace('qkv kernel', 'heads').replace('qkv bias', 'heads bias')]

  def load() -> np.ndarray:
    return np.concatenate([convert(entry.load()) for entry in entries])

  dummy = convert(np.broadcast_to(np.empty((), np.bool_), entries[0].shape))
  shape = (dummy.shape[0] * len(entries), *dummy.shape[1:])
  return Entry(shape, entries[0].dtype, load)


def units_of(arrays: Arrays) -> tuple[int, ...]:
  """Units in each stage of a hybrid's ResNet, in our names; nothing: there is none, or a stem."""
  found: dict[int, int] = {}
  for name in arrays:
    if match := re.match(r'block(\d+)/unit(\d+)/', name):
      stage, unit = int(match[1]), int(match[2])
      found[stage] = max(found.get(stage, 0), unit)
  return tuple(found[stage] for stage in sorted(found))
