"""What a weight file holds, once its names are ours; and what no model of ours can hold."""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

from vit_jax.formats import names
from vit_jax.formats.files import Arrays

POSITION = 'Transformer/posembed_input/pos_embedding'
HALF = {'mean': (0.5,), 'std': (0.5,)}
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
# Parts that other models have and ours have not, by their arrays' names.
FOREIGN = {
  r'reg_token|register_tokens|storage_tokens': 'register tokens',
  r'\bls[12]\.|gamma_[12]|lambda_?1|layer_scale': 'LayerScale',
  r'w12|w3\b|weights_in|fc1_[gx]|mlp\.gate': 'SwiGLU',
  r'[qk]_norm': 'norms of query and key',
  r'dist_token|distillation|head_dist': 'parts of a distilled DeiT without the others',
  r'rel_pos|relative_position': 'relative positions',
  r'fc_norm': 'a norm after the pooling',
  r'norm_pre|pre_layernorm|patch_embed\.norm': 'a norm before the blocks',
  r'attn_pool': 'attention pooling of another form',
}


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a file holds.

  Attributes:
    arrays: under our names, not yet read.
    family: whose file it is.
    model: sizes and settings, as far as names and shapes tell.
    preprocess: what the weights were trained to see.
    class_names: in order of the logits; None where the file does not say.
    notes: what was taken for granted, in words.
    predictions: how logits become probabilities: softmax, or sigmoid.
  """

  arrays: Arrays
  family: str
  model: dict[str, Any]
  preprocess: dict[str, Any]
  class_names: list[str] | None = None
  notes: tuple[str, ...] = ()
  predictions: str = 'softmax'


def for_channels(found: Weights) -> Weights:
  """The same, where a mean of RGB is known of weights that take other channels: it is averaged."""
  channels, seen = found.model['channels'], found.preprocess
  spread = {key: seen[key] for key in ('mean', 'std') if key in seen}
  if all(len(values) in (1, channels) for values in spread.values()):
    return found
  one = {key: (sum(values) / len(values),) for key, values in spread.items()}
  note = f'{channels} channels: mean and deviation of pixels are those of RGB, averaged'
  return dataclasses.replace(found, preprocess=seen | one, notes=(*found.notes, note))


def check_class_names(names: Sequence[str] | None, count: int | None) -> None:
  """Raises a ValueError where there are names, but not one for each of `count` logits."""
  if names is not None and count is not None and len(names) != count:
    raise ValueError(f'{len(names)} class names for {count} logits')


def parts_of(unknown: set[str]) -> str:
  """What kinds of foreign parts some names belong to."""
  found = {what for pattern, what in FOREIGN.items() for n in unknown if re.search(pattern, n)}
  return ', '.join(sorted(found))


def refuse(unknown: set[str]) -> None:
  """Raises a ValueError where names are left that no model of ours has."""
  if unknown:
    foreign = parts_of(unknown)
    what = f'has {foreign} that we cannot read' if foreign else 'has arrays of no model of ours'
    raise ValueError(f'{what}: {shown(unknown)}')


def shown(unknown: set[str], count: int = 8) -> str:
  return ', '.join(sorted(unknown)[:count]) + (
    f' and {len(unknown) - count} more' * (len(unknown) > count)
  )


def depth_of(arrays: Arrays, pattern: str) -> int:
  """The number of blocks, whose names match `pattern` with the index as its group."""
  found = [int(match[1]) for name in arrays if (match := re.match(pattern, name))]
  return max(found, default=-1) + 1


def grid_of(settings: dict[str, Any]) -> tuple[int, int] | None:
  """Patches as (height, width), where the settings say."""
  if 'image_size' not in settings or 'patch_size' not in settings:
    return None
  image, patch = sides(settings['image_size']), sides(settings['patch_size'])
  return image[0] // patch[0], image[1] // patch[1]


def sides(size: int | Sequence[int]) -> tuple[int, int]:
  """(height, width) of what settings give as one side or as both."""
  return (size, size) if isinstance(size, int) else (size[0], size[-1])


def is_gated(arrays: Arrays) -> bool:
  """Whether the MLPs of a ViT, under our names, are SwiGLU: gate and value lie side by side."""
  block = 'Transformer/encoderblock_0/MlpBlock_3'
  first, second = (arrays.get(f'{block}/Dense_{i}/kernel') for i in (0, 1))
  return first is not None and second is not None and first.shape[-1] == 2 * second.shape[0]


def vit_model(arrays: Arrays, gelu: str, epsilon: float, grid: tuple[int, int] | None) -> dict:
  """Sizes and settings of a ViT from its arrays, which have our names.

  Raises:
    ValueError: an array that every ViT has is missing, or the grid cannot be told.
  """
  try:
    width = arrays['Transformer/encoder_norm/scale'].shape[-1]
    block = 'Transformer/encoderblock_0/'
    query = arrays[f'{block}MultiHeadDotProductAttention_1/query/kernel'].shape
    mlp_dim = arrays[f'{block}MlpBlock_3/Dense_1/kernel'].shape[0]
    side, _, channels, _ = arrays['embedding/kernel'].shape
    positions = arrays[POSITION].shape[1]
  except (KeyError, ValueError) as error:
    raise ValueError(f'an array is missing or of no shape that a ViT has: {error}') from None
  class_token, distilled = 'cls' in arrays, 'dist' in arrays
  registers = arrays['reg'].shape[1] if 'reg' in arrays else 0
  count = positions - class_token - distilled - registers
  if grid is None:
    root = math.isqrt(count)
    if root * root != count:
      raise ValueError(f'{count} positions are no square grid, and the file does not store its own')
    grid = (root, root)
  elif grid[0] * grid[1] != count:
    raise ValueError(f'{count} positions do not fill its grid of {grid[0]} x {grid[1]}')
  head = arrays.get('head/kernel')
  units = names.units_of(arrays) if 'conv_root/kernel' in arrays else None
  return {
    'kind': 'hybrid' if units is not None else 'deit' if distilled else 'vit',
    'width': width,
    'depth': depth_of(arrays, r'Transformer/encoderblock_(\d+)/'),
    'num_heads': query[1],
    'mlp_dim': mlp_dim,
    'embedding_side': side,
    'channels': arrays['conv_root/kernel'].shape[2] if 'conv_root/kernel' in arrays else channels,
    'num_classes': head.shape[-1] if head else 0,
    'grid': grid,
    'class_token': class_token,
    'registers': registers,
    'mlp': 'swiglu' if is_gated(arrays) else 'plain',
    'pre_logits': arrays['pre_logits/kernel'].shape[-1] if 'pre_logits/kernel' in arrays else None,
    'readout': readout_of(arrays, class_token),
    'layer_scale': 1e-5 if f'{block}LayerScale_1/scale' in arrays else 0.0,
    'embedding_norm': 'embedding_norm/scale' in arrays,
    'qkv_bias': f'{block}MultiHeadDotProductAttention_1/query/bias' in arrays,
    'gelu': gelu,
    'epsilon': epsilon,
    'units': units,
    'root': arrays['conv_root/kernel'].shape[0] if 'conv_root/kernel' in arrays else None,
  }


def readout_of(arrays: Arrays, class_token: bool) -> str:
  if any(name.startswith('readout/MultiHead') for name in arrays):
    return 'attention_pool'
  if 'head_dist/kernel' in arrays:
    return 'class_and_distillation'
  return 'class_token' if class_token else 'mean'
