"""Reads ViTs of timm, torchvision and Hugging Face; names.py has the tables."""

import math
import pathlib
import re
from typing import Any

from vit_jax.formats import (
  dinov2,
  families,
  files,
  names,
  prefix,
  preprocessing,
  settings_files,
  weights,
)
from vit_jax.formats.files import Arrays

Sizes = dict[str, dict[str, int]]  # The sizes that papers name: width, depth, mlp_dim, num_heads.
# transformers 5 in memory, and what it writes to disk.
IN_MEMORY = {
  r'attention\.q_proj\.': 'attention.attention.query.',
  r'attention\.k_proj\.': 'attention.attention.key.',
  r'attention\.v_proj\.': 'attention.attention.value.',
  r'attention\.o_proj\.': 'attention.output.dense.',
  r'mlp\.fc1\.': 'intermediate.dense.',
  r'mlp\.fc2\.': 'output.dense.',
}
GELU = {
  'gelu': 'exact', 'gelu_python': 'exact', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh',
  'quick_gelu': 'quick',
}  # fmt: skip
GUESSED = (
  'pixel values, mean and deviation 0.5, are a guess: nothing beside the weights says them; put '
  'the config.json or preprocessor_config.json of their library there'
)
GATED = 'the gated MLP is taken for SwiGLU, the gate before the value'
# Buffers and heads of pre-training that no classifier computes with.
IDLE = (
  r'((vit|deit|dinov2)\.embeddings\.)?mask_token|.*position_ids|.*num_batches_tracked'
  r'|deit\.pooler\..*'
)


def family_of(arrays: Arrays) -> str | None:
  """timm, torchvision, huggingface (_deit, _dinov2); None where it is none of them."""
  if any(name.endswith('embeddings.distillation_token') for name in arrays):
    return 'huggingface_deit'
  if dinov2.recognise(arrays):
    return 'huggingface_dinov2'
  for family, table in families.FAMILIES.items():
    embedding = f'{table.modules["embedding"]}.weight'
    if embedding in arrays or embedding.removeprefix('vit.') in arrays:
      return family
  return 'timm' if any(name.startswith('patch_embed.backbone.') for name in arrays) else None


def open_weights(arrays: Arrays, settings: dict[str, Any], sizes: Sizes) -> weights.Weights:
  """A torch ViT.

  Args:
    arrays: of the file, under their names.
    settings: of Hugging Face's config.json and preprocessor_config.json, where they are there.
    sizes: the named sizes; torch's files do not say how many heads there are.

  Raises:
    ValueError: arrays are missing or unknown, or a setting that our models do not have.
  """
  family = family_of(arrays)
  assert family is not None  # The caller has asked.
  own = dinov2.is_own(arrays)
  arrays = tidy(arrays, family)
  table = families.FAMILIES[family]
  depth = weights.depth_of(arrays, re.escape(table.block).replace(r'\{\}', r'(\d+)'))
  heads, notes = heads_of(arrays, table, depth, settings, sizes)
  ours, left = names.to_ours(arrays, table, depth, heads)
  weights.refuse({name for name in left if not re.fullmatch(IDLE, name)})
  grid = grid_of(settings, ours)
  ours = prefix.place(ours, own or family == 'huggingface_dinov2', grid)
  ours = dinov2.with_mean(ours) if family == 'huggingface_dinov2' else ours
  gated = weights.is_gated(ours)
  notes += (GATED,) * (gated and family == 'timm' and not own)
  gelu, epsilon = table.gelu, table.epsilon
  if settings:
    settings |= {'hidden_act': 'gelu'} if gated else {}
    check_settings(settings, dinov2.KINDS if family == 'huggingface_dinov2' else ('vit', 'deit'))
    gelu = GELU[settings.get('hidden_act', 'gelu')]
    epsilon = settings.get('layer_norm_eps', epsilon)
  model = weights.vit_model(ours, gelu, epsilon, grid)
  model |= {'standardise': 'timm', 'group_norm_epsilon': 1e-5}
  model['readout'] = settings.get('readout', dinov2.readout_of(ours) or model['readout'])
  trained = 'dist' in ours or own or family == 'huggingface_dinov2'
  pixels = preprocessing.of_settings(family, settings, trained)
  if family == 'torchvision' and not settings:
    patch = model['embedding_side']
    kind = (model['width'], model['depth'], patch)
    found, note = preprocessing.of_torchvision(min(model['grid']) * patch, kind)
    pixels |= found
    notes += note
  notes += (GUESSED,) * (pixels == weights.HALF)
  labels = class_names(settings) if model['num_classes'] else None
  return weights.Weights(ours, family, model, pixels, labels, notes)


def grid_of(settings: dict[str, Any], ours: Arrays) -> tuple[int, int] | None:
  """Patches as (height, width), where the settings say the size of images: timm leaves out patches.

  A hybrid's kernel is not of pixels. What does not fit the table of positions says nothing.
  """
  told = weights.grid_of(settings)
  kernel, table = ours.get('embedding/kernel'), ours.get(weights.POSITION)
  if told or kernel is None or table is None or 'conv_root/kernel' in ours:
    return told
  grid = weights.grid_of({'patch_size': list(kernel.shape[:2])} | settings)
  others = table.shape[1] - math.prod(grid) if grid else -1
  most = sum(ours[name].shape[1] for name in ('cls', 'dist', 'reg') if name in ours)
  return grid if 0 <= others <= most else None


def tidy(arrays: Arrays, family: str) -> Arrays:
  """Older and in-memory names as today's files have them."""
  if family == 'torchvision':
    old = {'mlp.linear_1.': 'mlp.0.', 'mlp.linear_2.': 'mlp.3.'}
    for before, after in old.items():
      arrays = {name.replace(before, after): entry for name, entry in arrays.items()}
  if family == 'huggingface_dinov2' or dinov2.is_own(arrays):
    return dinov2.tidy(arrays)
  if family.startswith('huggingface'):
    root = 'deit.' if family == 'huggingface_deit' else 'vit.'
    renames = {rf'^({root})?layers\.': f'{root}encoder.layer.'} | IN_MEMORY
    if root == 'deit.':  # One head alone has the name that a ViT's has.
      renames[r'^classifier\.'] = 'cls_classifier.'
    for before, after in renames.items():
      arrays = {re.sub(before, after, name): entry for name, entry in arrays.items()}
    roots = ('embeddings.', 'encoder.', 'layernorm.', 'pooler.')
    arrays = {f'{root}{n}' if n.startswith(roots) else n: entry for n, entry in arrays.items()}
  return arrays


def heads_of(
  arrays: Arrays, table: families.Family, depth: int, settings: dict[str, Any], sizes: Sizes
) -> tuple[int, tuple[str, ...]]:
  """How many heads: from settings, else from the named size of that width and depth.

  Raises:
    ValueError: neither says.
  """
  norm, hidden = f'{table.modules["Transformer/encoder_norm"]}.weight', 'MlpBlock_3/Dense_1'
  second = f'{table.block.format(0)}{table.modules[hidden]}.weight'
  if norm not in arrays or second not in arrays:
    raise ValueError(f'{norm if norm not in arrays else second} is missing')
  if 'num_attention_heads' in settings:
    return divided(arrays[norm].shape[0], settings['num_attention_heads']), ()
  found = (arrays[norm].shape[0], depth, arrays[second].shape[1])
  for name, size in sizes.items():
    if found == (size['width'], size['depth'], size['mlp_dim']):
      return size['num_heads'], (f'{size["num_heads"]} heads, as ViT-{name} has',)
  raise ValueError(
    f'does not say how many heads its blocks have, and no size that we know has (width, depth, MLP '
    f'width) {found}; write {{"num_attention_heads": N}} into a config.json beside it'
  )


def divided(width: int, heads: int) -> int:
  """The heads, or a ValueError where they do not divide the width."""
  if width % heads:
    raise ValueError(f'its settings say {heads} heads, which do not divide its width of {width}')
  return heads


def check_settings(settings: dict[str, Any], kinds: tuple[str, ...]) -> None:
  """Raises a ValueError for a model that is none of `kinds`, or an activation that ours lack."""
  kind = settings.get('model_type', kinds[0])
  if kind not in kinds:
    raise ValueError(
      f'config.json says model_type={kind!r}; its arrays are of {" or ".join(kinds)}'
    )
  act = settings.get('hidden_act', 'gelu')
  if act not in GELU:
    raise ValueError(f'config.json says hidden_act={act!r}; our models have {", ".join(GELU)}')


def class_names(settings: dict[str, Any]) -> list[str] | None:
  """The labels in order; None where there are none."""
  labels = settings.get('id2label')
  return [labels[key] for key in sorted(labels, key=int)] if labels else None


def open_folder(path: pathlib.Path) -> tuple[Arrays, dict[str, Any]]:
  """The arrays and settings of a folder that Hugging Face's `save_pretrained` wrote.

  Raises:
    ValueError: there are no weights in it.
  """
  arrays: Arrays = {}
  index = path / 'model.safetensors.index.json'
  found = ['model.safetensors', 'pytorch_model.bin']
  if index.exists():
    shards = settings_files.read(index).get('weight_map')
    if not isinstance(shards, dict) or not all(isinstance(x, str) for x in shards.values()):
      raise ValueError(f'{index} has no weight_map, the file of each array')
    for name in sorted(set(shards.values())):
      arrays |= files.open_file(path / name)
  else:
    there = [path / name for name in found if (path / name).exists()]
    if not there:
      raise ValueError(f'{path} holds neither a run nor {" nor ".join(found)}')
    arrays = files.open_file(there[0])
  return arrays, read_settings(path)


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
  """config.json and preprocessor_config.json in one; a ValueError names what cannot be used."""
  settings: dict[str, Any] = {}
  for name in ('preprocessor_config.json', 'config.json'):
    if (folder / name).exists():
      read = settings_files.said(folder / name)
      keys = ('size', 'image_size') if name.startswith('pre') else ()
      settings |= {key: value for key, value in read.items() if key not in keys[1:]}
  # timm writes arguments only where they differ from the architecture's own.
  return from_timm(settings) if {'model_args', 'pretrained_cfg'} & settings.keys() else settings


def from_timm(settings: dict[str, Any]) -> dict[str, Any]:
  """timm's config.json with the words of Hugging Face's."""
  given, trained = settings.get('model_args', {}), settings.get('pretrained_cfg', {})
  words = {'gelu_tanh': 'gelu_pytorch_tanh'}
  act = given.get('act_layer', 'gelu')
  made: dict[str, Any] = {'hidden_act': words.get(act, act)}
  same = {'num_heads': 'num_attention_heads', 'img_size': 'image_size', 'patch_size': 'patch_size'}
  # Not timm's: what a person is asked to write where nothing tells the heads.
  made |= {key: settings[key] for key in ('num_attention_heads',) if key in settings}
  made |= {'image_size': trained['input_size'][1:]} if 'input_size' in trained else {}
  made |= {there: given[here] for here, there in same.items() if here in given}
  made |= {f'image_{key}': trained[key] for key in ('mean', 'std') if key in trained}
  made |= preprocessing.timm_crop(trained, made['image_size']) if 'input_size' in trained else {}
  if names := settings.get('label_names'):  # By number where numbers are left out.
    made['id2label'] = names if isinstance(names, dict) else dict(enumerate(names))
  pool = given.get('global_pool', settings.get('global_pool'))
  return made | ({'readout': 'mean'} if pool == 'avg' else {})  # Else the arrays tell.
