"""Swin's weights of timm, torchvision, Hugging Face and the official `.pth`, both ways."""

from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

from vit_jax.formats import from_torch, names, preprocessing, weights
from vit_jax.formats.files import Arrays

ATTENTION = 'MultiHeadDotProductAttention_1'
TABLE = 'relative_position_bias_table'
# What torch keeps beside the weights and computes from the sizes.
IDLE = r'.*(relative_position_index|attn_mask|relative_coords_table)'
# transformers 5 in memory, and what it writes to disk.
IN_MEMORY = {
  r'\.attention\.q_proj\.': '.attention.self.query.',
  r'\.attention\.k_proj\.': '.attention.self.key.',
  r'\.attention\.v_proj\.': '.attention.self.value.',
  r'\.attention\.o_proj\.': '.attention.output.dense.',
  r'\.attention\.relative_position_bias\.': '.attention.self.',
  r'(blocks\.\d+)\.mlp\.fc1\.': r'\1.intermediate.dense.',
  r'(blocks\.\d+)\.mlp\.fc2\.': r'\1.output.dense.',
}


@dataclasses.dataclass(frozen=True)
class Library:
  """Names of one library; `{s}` is a stage and `{b}` a block, from 0.

  Attributes:
    merging: prefix of what leads into a stage; `{before}` is the stage before it.
    modules: our module -> theirs: outside of blocks, and within one.
    packed: query, key and value as one matrix: its name before 'weight' and 'bias', if any.
    table: that of relative positions.
  """

  block: str
  merging: str
  outside: dict[str, str]
  inside: dict[str, str]
  packed: str | None
  table: str

  def stage(self, s: int) -> dict[str, int]:
    """What the names of a stage may hold."""
    return {'s': s, 'before': s - 1, 'odd': 2 * s + 1, 'even': 2 * s}


TIMM = Library(
  block='layers.{s}.blocks.{b}.',
  merging='layers.{s}.downsample.',
  outside={'embedding': 'patch_embed.proj', 'embedding_norm': 'patch_embed.norm', 'norm': 'norm',
           'head': 'head.fc'},
  inside={'LayerNorm_0': 'norm1', f'{ATTENTION}/out': 'attn.proj', 'LayerNorm_2': 'norm2',
          'MlpBlock_3/Dense_0': 'mlp.fc1', 'MlpBlock_3/Dense_1': 'mlp.fc2'},
  packed='attn.qkv.',
  table=f'attn.{TABLE}',
)  # fmt: skip
OFFICIAL = dataclasses.replace(
  TIMM, merging='layers.{before}.downsample.', outside=TIMM.outside | {'head': 'head'}
)
TORCHVISION = Library(
  block='features.{odd}.{b}.',
  merging='features.{even}.',
  outside={'embedding': 'features.0.0', 'embedding_norm': 'features.0.2', 'norm': 'norm',
           'head': 'head'},
  inside=TIMM.inside | {'MlpBlock_3/Dense_0': 'mlp.0', 'MlpBlock_3/Dense_1': 'mlp.3'},
  packed='attn.qkv.',
  table=f'attn.{TABLE}',
)  # fmt: skip
HUGGINGFACE = Library(
  block='swin.encoder.layers.{s}.blocks.{b}.',
  merging='swin.encoder.layers.{before}.downsample.',
  outside={'embedding': 'swin.embeddings.patch_embeddings.projection',
           'embedding_norm': 'swin.embeddings.norm', 'norm': 'swin.layernorm',
           'head': 'classifier'},
  inside={'LayerNorm_0': 'layernorm_before', f'{ATTENTION}/query': 'attention.self.query',
          f'{ATTENTION}/key': 'attention.self.key', f'{ATTENTION}/value': 'attention.self.value',
          f'{ATTENTION}/out': 'attention.output.dense', 'LayerNorm_2': 'layernorm_after',
          'MlpBlock_3/Dense_0': 'intermediate.dense', 'MlpBlock_3/Dense_1': 'output.dense'},
  packed=None,
  table=f'attention.self.{TABLE}',
)  # fmt: skip
LIBRARIES = {
  'timm': TIMM, 'official': OFFICIAL, 'torchvision': TORCHVISION, 'huggingface': HUGGINGFACE,
}  # fmt: skip
OUTSIDE = {'embedding': 'conv', 'embedding_norm': 'norm', 'norm': 'norm', 'head': 'dense'}


def tidy(arrays: Arrays) -> Arrays:
  """Names that transformers has in memory as its files have them."""
  if not any(name.startswith('swin.encoder.') for name in arrays):
    return arrays
  for before, after in IN_MEMORY.items():
    arrays = {re.sub(before, after, name): entry for name, entry in arrays.items()}
  return arrays


def recognise(arrays: Arrays) -> str | None:
  """The library whose Swin these are; None where they are of another family."""
  arrays = tidy(arrays)
  for name, library in LIBRARIES.items():
    first = library.block.format(b=0, **library.stage(0)) + library.table
    merging = library.merging.format(**library.stage(1)) + 'reduction.weight'
    if first in arrays and (merging in arrays or name == 'timm'):
      return 'official' if name == 'timm' and merging not in arrays else name
  return None


def rules(library: Library, depths: tuple[int, ...]) -> Iterator[tuple[int, names.Rule]]:
  """Every array with the stage that it belongs to."""
  for module, kind in OUTSIDE.items():
    for rule in names.module_rules(module, f'{library.outside[module]}.', kind):
      yield 0, rule
  for s, depth in enumerate(depths):
    if s:
      prefix = library.merging.format(**library.stage(s))
      yield s, names.Rule((f'stage_{s}/merging/reduction/kernel',), f'{prefix}reduction.weight',
                          'dense')  # fmt: skip
      for rule in names.module_rules(f'stage_{s}/merging/norm', f'{prefix}norm.', 'norm'):
        yield s, rule
    for b in range(depth):
      prefix = library.block.format(b=b, **library.stage(s))
      for rule in block_rules(library, f'stage_{s}/block_{b}/', prefix):
        yield s, rule


def block_rules(library: Library, ours: str, theirs: str) -> Iterator[names.Rule]:
  """The arrays of one block."""
  for module, name in library.inside.items():
    yield from names.module_rules(ours + module, f'{theirs}{name}.', names.BLOCK_KINDS[module])
  yield names.Rule((f'{ours}{ATTENTION}/{TABLE}',), theirs + library.table, 'same')
  if library.packed:
    parts = [f'{ours}{ATTENTION}/{part}/' for part in ('query', 'key', 'value')]
    for own, name in (('kernel', 'weight'), ('bias', 'bias')):
      yield names.Rule(tuple(p + own for p in parts), theirs + library.packed + name, f'qkv {own}')


def open_weights(arrays: Arrays, settings: dict[str, Any]) -> weights.Weights:
  """A Swin.

  Args:
    settings: of Hugging Face's config.json, where it is there.

  Raises:
    ValueError: arrays are missing or unknown, or a setting that our models do not have.
  """
  arrays, family = tidy(arrays), recognise(arrays)
  assert family is not None  # The caller has asked.
  library = LIBRARIES[family]
  depths, heads = stages_of(arrays, library)
  ours, left = {}, {name for name in arrays if not re.fullmatch(IDLE, name)}
  for s, rule in rules(library, depths):
    if rule.theirs in arrays:
      left.discard(rule.theirs)
      for i, name in enumerate(rule.ours):
        ours[name] = names.converted(arrays[rule.theirs], rule, i, heads[s])
  weights.refuse(left)
  head = ours.get('head/kernel')
  try:
    side, _, channels, width = ours['embedding/kernel'].shape
  except (KeyError, ValueError) as error:
    raise ValueError(f'an array is missing or of no shape that a Swin has: {error}') from None
  window = (math.isqrt(ours[f'stage_0/block_0/{ATTENTION}/{TABLE}'].shape[0]) + 1) // 2
  from_torch.check_settings(settings, ('swin',))
  model = {
    'kind': 'swin', 'depths': depths, 'heads': heads, 'width': width,
    'embedding_side': side,
    'channels': channels, 'num_classes': head.shape[-1] if head else 0, 'window': window,
    'image_size': image_size(settings, window),
    'qkv_bias': f'stage_0/block_0/{ATTENTION}/query/bias' in ours,
    'gelu': from_torch.GELU[settings.get('hidden_act', 'gelu')],
    'epsilon': settings.get('layer_norm_eps', 1e-5),
  }  # fmt: skip
  return weights.Weights(ours, family, model, seen(settings, family, model),
                         from_torch.class_names(settings) if head else None)  # fmt: skip


def seen(settings: dict[str, Any], family: str, model: dict[str, Any]) -> dict[str, Any]:
  """What the weights were trained to see: as settings say, else as the official evaluation does.

  It resizes to 256, or torchvision to what it has for a size, and crops 224; at 384 nothing is cut
  off but what is longer.
  """
  if preprocessing.normalisation(settings):
    return preprocessing.of_settings('huggingface', settings, False)
  side = min(model['image_size'])
  small = side if side >= 384 else None
  if family == 'torchvision' and side < 384:
    kind = (model['width'], sum(model['depths']), model['embedding_side'])
    small = preprocessing.torchvision_shorter(side, kind)
  return weights.IMAGENET | {'fit': 'crop', 'resize_small': small, 'resize': 'bicubic'}


def image_size(settings: dict[str, Any], window: int) -> tuple[int, int]:
  """As the settings say; else 32 windows' sides, 224 and 384 as published."""
  return weights.sides(settings.get('image_size', 32 * window))


def stages_of(arrays: Arrays, library: Library) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Blocks and heads of each stage."""
  depths, heads = [], []
  for s in range(8):
    pattern = re.escape(library.block.format(b='#', **library.stage(s))).replace(r'\#', r'(\d+)')
    depth = weights.depth_of(arrays, pattern)
    if not depth:
      break
    depths.append(depth)
    first = library.block.format(b=0, **library.stage(s)) + library.table
    if first not in arrays:
      raise ValueError(f'{first} is missing')
    heads.append(arrays[first].shape[-1])
  return tuple(depths), tuple(heads)


def renamed(target: str, arrays: Arrays) -> Arrays:
  """Arrays of a Swin under a target's names.

  Raises:
    ValueError: arrays without a place there.
  """
  library, made, left = LIBRARIES[target], {}, set(arrays)
  depths = tuple(
    weights.depth_of(arrays, rf'stage_{s}/block_(\d+)/')
    for s in range(weights.depth_of(arrays, r'stage_(\d+)/'))
  )
  for _, rule in rules(library, depths):
    if set(rule.ours) <= arrays.keys():
      left -= {*rule.ours}
      made[rule.theirs] = names.exported([arrays[name] for name in rule.ours], rule.kind)
  if left:
    raise ValueError(f'{target} has no place for {", ".join(sorted(left))}')
  return made
