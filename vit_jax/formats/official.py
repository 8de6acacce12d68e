"""The `.npz` layouts of Google's code: vision_transformer's own, and big_vision's.

Our tree has the official names (`vit_jax/models/vit.py`), so that layout needs no table. big_vision
numbers the parts of a block otherwise, adds positions before the class token joins, and may keep
all blocks in one array or everything under a prefix.
"""

import pathlib
import re
from typing import Any

from flax import traverse_util
import numpy as np

from vit_jax.formats import files, weights
from vit_jax.formats.files import Arrays, Entry

PREFIXES = ('opt/target/', 'target/', 'params/img/', 'params/', '')
# What others call the parts of a block: linen's own numbers, where each kind counts for itself.
RENAMED = {
  'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
  'LayerNorm_1': 'LayerNorm_2',
  'MlpBlock_0': 'MlpBlock_3',
}
SCANNED = 'Transformer/encoderblock/'
OURS = re.compile(
  r'cls|embedding/(kernel|bias)|embedding_norm/(scale|bias)|(pre_logits|head)/(kernel|bias)|readout/.*|conv_root/kernel'
  r'|gn_root/(scale|bias)|block\d+/unit\d+/(conv\w+/kernel|gn\w+/(scale|bias))'
  r'|Transformer/(posembed_input/pos_embedding|encoder_norm/(scale|bias))'
  r'|Transformer/encoderblock_\d+/(LayerNorm_[02]/(scale|bias)'
  r'|MultiHeadDotProductAttention_1/(query|key|value|out)/(kernel|bias)'
  r'|MlpBlock_3/Dense_[01]/(kernel|bias))'
)


def read(path: pathlib.Path) -> dict:
  """The tree of arrays in a file of ours.

  Raises:
    ValueError: not an `.npz` file, or a damaged one.
  """
  arrays = {name: entry.load() for name, entry in files.open_file(path).items()}
  return traverse_util.unflatten_dict(arrays, sep='/')


def write(path: pathlib.Path, params: dict) -> None:
  """Writes a tree of arrays."""
  arrays: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
  files.write_npz(path, {name: Entry.of(np.asarray(array)) for name, array in arrays.items()})


def recognise(arrays: Arrays) -> bool:
  return any(f'{prefix}embedding/kernel' in arrays for prefix in PREFIXES)


def open_weights(arrays: Arrays, settings: dict[str, Any]) -> weights.Weights:
  """An official or big_vision file; optimizer slots beside the weights are left out.

  Raises:
    ValueError: arrays are missing or unknown.
  """
  prefix = next(p for p in PREFIXES if f'{p}embedding/kernel' in arrays)
  ours = {name.removeprefix(prefix): e for name, e in arrays.items() if name.startswith(prefix)}
  if not prefix:
    ours = {name: e for name, e in ours.items() if not name.startswith(('opt/', 'state/'))}
  ours = unscan(ours)
  linen = any('MlpBlock_0' in name for name in ours if name.startswith('Transformer'))
  if linen:
    ours = {renamed(name): entry for name, entry in ours.items()}
  big_vision = 'pos_embedding' in ours
  if big_vision:
    ours[weights.POSITION] = with_class_position(ours.pop('pos_embedding'), 'cls' in ours)
  ours = {name: squeezed(name, entry) for name, entry in ours.items()}
  weights.refuse({name for name in ours if not OURS.fullmatch(name)})
  model = weights.vit_model(ours, 'tanh', 1e-6, weights.grid_of(settings))
  model |= {'standardise': 'official', 'group_norm_epsilon': 1e-6}
  family = 'big_vision' if big_vision else 'official'
  return weights.Weights(ours, family, model, dict(weights.HALF))


def renamed(name: str) -> str:
  """A name of big_vision, or of official weights in memory, as in the published files."""
  if name.startswith('MAPHead_0/'):
    return 'readout/' + name.removeprefix('MAPHead_0/')
  if not name.startswith('Transformer/encoderblock'):
    return name
  for theirs, ours in RENAMED.items():
    name = name.replace(f'/{theirs}/', f'/{ours}/')
  return name


def unscan(arrays: Arrays) -> Arrays:
  """Blocks that lie in one array, along its first axis, become arrays of their own."""
  split: Arrays = {}
  for name, entry in arrays.items():
    if not name.startswith(SCANNED):
      split[name] = entry
      continue
    for i in range(entry.shape[0]):
      own = name.replace('encoderblock/', f'encoderblock_{i}/')
      split[own] = Entry(entry.shape[1:], entry.dtype, lambda e=entry, i=i: e.load()[i])
  return split


def with_class_position(entry: Entry, class_token: bool) -> Entry:
  """big_vision's positions, (1, N, D), with the 0 that its class token is given."""
  if not class_token:
    return entry
  one, count, width = entry.shape

  def load() -> np.ndarray:
    return np.concatenate([np.zeros((1, 1, width), entry.dtype), entry.load()], axis=1)

  return Entry((one, count + 1, width), entry.dtype, load)


def squeezed(name: str, entry: Entry) -> Entry:
  """Group norms may be stored as (1, 1, 1, C)."""
  if '/gn' not in f'/{name}' or len(entry.shape) == 1:
    return entry
  return Entry(entry.shape[-1:], entry.dtype, lambda: entry.load().reshape(-1))
