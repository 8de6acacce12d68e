"""Writes weights for others: official .npz, timm, torchvision, Hugging Face, torch's .pth.

What a target cannot hold is named and refused; what only our own reader needs (class names,
preprocessing, heads) goes into a passport beside the file, FILE.json.
"""

import json
import pathlib
from typing import Any

import numpy as np

from vit_jax.formats import bit, files, names
from vit_jax.formats.files import Arrays

# By target: settings it computes with, whatever a file says.
FIXED: dict[str, dict[str, Any]] = {
  'official': {'gelu': 'tanh', 'epsilon': 1e-6, 'qkv_bias': True},
  'torchvision': {'gelu': 'exact', 'epsilon': 1e-6, 'qkv_bias': True},
  'timm': {'epsilon': 1e-6},
  'huggingface': {},
}
FIXED_RESNET = {
  'official': {'standardise': 'official', 'group_norm_epsilon': 1e-6},
  'timm': {'standardise': 'timm', 'group_norm_epsilon': 1e-5},
}
READOUTS = {
  'official': ('class_token', 'mean'),
  'torchvision': ('class_token',),
  'timm': ('class_token', 'mean'),
  'huggingface': ('class_token',),
}
TIMM_ACT = {'tanh': 'gelu_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}
HUGGINGFACE_ACT = {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}
RESAMPLE = {'nearest': 0, 'lanczos': 1, 'bilinear': 2, 'linear': 2, 'bicubic': 3}


def losses(target: str, model: dict[str, Any]) -> list[str]:
  """What `target` cannot hold of a model, in words."""
  if model['name'] == 'bit':
    return [] if target in ('official', 'timm') else [f'{target} has no BiT']
  lost = []
  fixed = FIXED[target]
  if model['name'] == 'hybrid':
    if target not in FIXED_RESNET:
      return [f'{target} has no hybrids']
    fixed = fixed | FIXED_RESNET[target]
  for key, value in fixed.items():
    if model[key] != value:
      lost.append(f'{key}={model[key]!r}: {target} always has {value!r}')
  if model['readout'] not in READOUTS[target]:
    lost.append(f'readout={model["readout"]!r}: {target} has {" and ".join(READOUTS[target])}')
  if target == 'official' and model['readout'] == 'mean' and model['class_token']:
    lost.append("readout='mean' beside a class token: official's gap has no class token")
  if target in ('torchvision', 'huggingface') and not model['class_token']:
    lost.append(f'class_token=False: {target} always has one')
  if model['pre_logits'] and target in ('timm', 'huggingface'):
    lost.append(f'pre_logits={model["pre_logits"]}: {target} has no such layer')
  for key, default in (('qk_scale', None), ('embedding_norm', False)):
    if model[key] != default:
      lost.append(f'{key}={model[key]!r}: {target} has no such setting')
  height, width = model['image_size']
  if height != width and target in ('official', 'torchvision'):
    lost.append(f'image_size={height} x {width}: {target} takes squares alone')
  if target == 'torchvision' and model['channels'] != 3:
    lost.append(f'channels={model["channels"]}: torchvision takes 3')
  return lost


def renamed(target: str, arrays: Arrays, model: dict[str, Any], depth: int) -> Arrays:
  """Arrays under the target's names.

  Raises:
    ValueError: arrays without a place there.
  """
  if model['name'] == 'bit':
    return bit.to_timm(arrays) if target == 'timm' else bit.to_official(arrays)
  if target == 'official':
    return arrays
  units = names.units_of(arrays)
  made, left = names.to_theirs(arrays, names.FAMILIES[target], depth, units)
  if left:
    raise ValueError(f'{target} has no place for {", ".join(sorted(left))}')
  return made


def write(
  target: str, arrays: Arrays, passport: dict[str, Any], sizes: dict[str, int], to: pathlib.Path
) -> None:
  """Writes `to`: a file, or for Hugging Face (and timm, unless it is named .safetensors) a folder.

  Args:
    target: official, timm, torchvision, huggingface, or pth (timm's names).
    arrays: under our names.
    passport: model section, preprocessing, class names.
    sizes: width, depth, num_heads and mlp_dim.
    to: where; what stands there is replaced once everything is written.
  """
  model = passport['model']
  made = renamed('timm' if target == 'pth' else target, arrays, model, sizes['depth'])
  metadata = {'format': 'pt'}
  if target == 'official':
    files.write_npz(to, made)
  elif target == 'pth':
    write_pth(to, made)
  elif target == 'huggingface' or (target == 'timm' and to.suffix != '.safetensors'):
    settings = huggingface_config if target == 'huggingface' else timm_config
    to.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(to / 'model.safetensors', made, metadata)
    write_json(to / 'config.json', settings(passport, sizes))
    if target == 'huggingface':
      write_json(to / 'preprocessor_config.json', huggingface_preprocessor(passport['preprocess']))
    return
  else:
    files.write_safetensors(to, made, metadata)
  write_json(to.with_name(to.name + '.json'), passport)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  with files.replacing(path) as partial:
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False))


def write_pth(path: pathlib.Path, arrays: Arrays) -> None:
  """torch.save of a dictionary of tensors."""
  try:
    import torch
  except ImportError:
    raise ValueError("--to=pth needs torch: pip install -e '.[torch]'") from None
  state = {name: torch.from_numpy(np.ascontiguousarray(e.load())) for name, e in arrays.items()}
  with files.replacing(path) as partial, partial.open('wb') as file:
    torch.save(state, file)


def huggingface_config(passport: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
  """config.json of ViTForImageClassification."""
  model, labels = passport['model'], passport['class_names']
  height, width = model['image_size']
  return {
    'architectures': ['ViTForImageClassification'],
    'model_type': 'vit',
    'hidden_size': sizes['width'],
    'num_hidden_layers': sizes['depth'],
    'num_attention_heads': sizes['num_heads'],
    'intermediate_size': sizes['mlp_dim'],
    'hidden_act': HUGGINGFACE_ACT[model['gelu']],
    'layer_norm_eps': model['epsilon'],
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'image_size': height if height == width else [height, width],
    'patch_size': sizes['patch_size'],
    'num_channels': model['channels'],
    'qkv_bias': model['qkv_bias'],
    'id2label': {str(i): name for i, name in enumerate(labels)},
    'label2id': {name: i for i, name in enumerate(labels)},
    'torch_dtype': 'float32',
  }


def huggingface_preprocessor(preprocess: dict[str, Any]) -> dict[str, Any]:
  """preprocessor_config.json: resized whole, or its shorter side and the centre."""
  height, width = preprocess['image_size']
  channels = preprocess['channels']
  made = {
    'do_resize': True,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': spread(preprocess['mean'], channels),
    'image_std': spread(preprocess['std'], channels),
    'resample': RESAMPLE[preprocess['resize']],
  }
  if preprocess['fit'] == 'squash':
    return made | {
      'image_processor_type': 'ViTImageProcessor', 'size': {'height': height, 'width': width}
    }  # fmt: skip
  shorter = preprocess['resize_small'] or round(min(height, width) / 0.875)
  return made | {
    'image_processor_type': 'BitImageProcessor',
    'size': {'shortest_edge': shorter},
    'do_center_crop': True,
    'crop_size': {'height': height, 'width': width},
  }


def spread(values, channels: int) -> list[float]:
  return list(values) * (channels if len(values) == 1 else 1)


def timm_config(passport: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
  """config.json for `timm.create_model('local-dir:FOLDER')`."""
  model, preprocess = passport['model'], passport['preprocess']
  if model['name'] != 'vit':
    raise ValueError(f'timm: write a {model["name"]} into a file, DST.safetensors')
  arguments = {
    'img_size': list(model['image_size']),
    'patch_size': sizes['patch_size'],
    'in_chans': model['channels'],
    'embed_dim': sizes['width'],
    'depth': sizes['depth'],
    'num_heads': sizes['num_heads'],
    'mlp_ratio': sizes['mlp_dim'] / sizes['width'],
    'qkv_bias': model['qkv_bias'],
    'act_layer': TIMM_ACT[model['gelu']],
    'class_token': model['class_token'],
    'global_pool': 'token' if model['readout'] == 'class_token' else 'avg',
    'fc_norm': False,
  }
  channels = model['channels']
  return {
    'architecture': 'vit_base_patch16_224',
    'num_classes': model['num_classes'],
    'global_pool': arguments['global_pool'],
    'model_args': arguments,
    'label_names': passport['class_names'],
    'pretrained_cfg': {
      'input_size': [channels, *model['image_size']],
      'num_classes': model['num_classes'],
      'interpolation': preprocess['resize'].replace('linear', 'bilinear').replace('bibi', 'bi'),
      'mean': spread(preprocess['mean'], channels),
      'std': spread(preprocess['std'], channels),
      'first_conv': 'patch_embed.proj',
      'classifier': 'head',
    },
  }
