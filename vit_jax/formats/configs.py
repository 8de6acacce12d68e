"""The settings that other libraries keep beside weights: config.json and its like, as written.

`settings_files.py` reads such files, `from_torch.py` understands them.
"""

import math
from typing import Any

TIMM_ACT = {'tanh': 'gelu_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}
HUGGINGFACE_ACT = {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}
RESAMPLE = {'nearest': 0, 'lanczos': 1, 'bilinear': 2, 'linear': 2, 'bicubic': 3}
MULTI_LABEL = 'multi_label_classification'  # Hugging Face's word for a head of sigmoids
CENTRE = 0.875  # the share of the resized picture that a centre crop keeps, where nothing else says


def huggingface(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The content of Hugging Face's files, by name."""
  return {
    'config.json': huggingface_config(passport, sizes),
    'preprocessor_config.json': huggingface_preprocessor(passport.preprocess),
  }


def huggingface_config(passport: Any, sizes: dict[str, Any]) -> dict[str, Any]:
  """The config.json of ViTForImageClassification, or of a DeiT with a distillation token."""
  model = passport.model
  distilled = model['variant'].endswith('-distilled')
  architecture = 'DeiTForImageClassification' if distilled else 'ViTForImageClassification'
  architecture += 'WithTeacher' * (model['readout'] == 'class_and_distillation')
  return huggingface_shared(passport, sizes) | {
    'architectures': [architecture],
    'model_type': 'deit' if distilled else 'vit',
    'hidden_size': sizes['width'],
    'num_hidden_layers': sizes['depth'],
    'num_attention_heads': sizes['num_heads'],
    'intermediate_size': sizes['mlp_dim'],
  }


def huggingface_shared(passport: Any, sizes: dict[str, Any]) -> dict[str, Any]:
  """What the config.json of every classifier of patches says: pictures, patches, classes."""
  model = passport.model
  height, width = model['image_size']
  return {
    'hidden_act': HUGGINGFACE_ACT[model['gelu']],
    'layer_norm_eps': model['epsilon'],
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'image_size': height if height == width else [height, width],
    'patch_size': sizes['patch_size'],
    'num_channels': model['channels'],
    'qkv_bias': model['qkv_bias'],
    'torch_dtype': 'float32',
    **huggingface_labels(passport.class_names),
  }


def huggingface_labels(names: list[str]) -> dict[str, Any]:
  """The names of classes, as a config.json has them."""
  return {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }


def huggingface_preprocessor(preprocess: Any) -> dict[str, Any]:
  """preprocessor_config.json: resized whole, or its shorter side and the centre."""
  height, width = preprocess.image_size
  made = {
    'do_resize': True,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': spread(preprocess.mean, preprocess.channels),
    'image_std': spread(preprocess.std, preprocess.channels),
    'resample': RESAMPLE[preprocess.resize],
  }
  if preprocess.fit == 'squash':
    return made | {
      'image_processor_type': 'ViTImageProcessor', 'size': {'height': height, 'width': width}
    }  # fmt: skip
  return made | {
    'image_processor_type': 'BitImageProcessor',
    'size': {'shortest_edge': shorter_side(preprocess)},
    'do_center_crop': True,
    'crop_size': {'height': height, 'width': width},
  }


def unseen(target: str, preprocess: Any) -> list[str]:
  """What the settings of a target cannot say of how pictures become the input, in words."""
  height, width = preprocess.image_size
  lost = unseen_filter(target, preprocess)
  if target == 'huggingface' and preprocess.fit == 'crop' and height != width:
    lost.append(f"fit='crop' of {height} x {width}: {target} resizes the shorter side, whichever")
  return lost


def unseen_filter(target: str, preprocess: Any) -> list[str]:
  """The filter that resizes, in words, where a target has another one."""
  return [f"resize='linear': {target} has 'bilinear'"] * (preprocess.resize == 'linear')


def shorter_side(preprocess: Any) -> int:
  """Pixels of the shorter side before the centre is cut out."""
  return preprocess.resize_small or round(min(preprocess.image_size) / CENTRE)


def spread(values: tuple[float, ...], channels: int) -> list[float]:
  """A number for each channel."""
  return list(values) * (channels if len(values) == 1 else 1)


def timm(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The content of config.json for `timm.create_model('local-dir:FOLDER')`, by its name."""
  return {'config.json': timm_config(passport, sizes)}


def timm_config(passport: Any, sizes: dict[str, Any]) -> dict[str, Any]:
  """The architecture, its arguments, class names and preprocessing, as timm keeps them."""
  model = passport.model
  distilled = model['variant'].endswith('-distilled')
  gated = model['mlp'] == 'swiglu'
  arguments = {
    'img_size': list(model['image_size']),
    'patch_size': sizes['patch_size'],
    'in_chans': model['channels'],
    'embed_dim': sizes['width'],
    'depth': sizes['depth'],
    'num_heads': sizes['num_heads'],
    'mlp_ratio': ratio_of(sizes['mlp_dim'] * (1 + gated), sizes['width']),
    'qkv_bias': model['qkv_bias'],
    'act_layer': 'silu' if gated else TIMM_ACT[model['gelu']],
    'class_token': model['class_token'],
    'global_pool': 'avg' if model['readout'] == 'mean' else 'token',
    'fc_norm': False,
    'init_values': model['layer_scale'] or None,
  }
  if model['registers']:
    arguments |= {'reg_tokens': model['registers'], 'no_embed_class': True}
  architecture = 'deit_base_distilled_patch16_224' if distilled else 'vit_base_patch16_224'
  # No argument in JSON makes a gated MLP, but an architecture that has it.
  architecture = 'vit_giant_patch14_dinov2' if gated else architecture
  head = ['head', 'head_dist'] if distilled else 'head'
  made = timm_shared(passport, architecture, arguments, head)
  return made | {'global_pool': arguments['global_pool']}


def ratio_of(hidden: int, width: int) -> float:
  """The share from which timm, which rounds down, makes `hidden` again."""
  share = hidden / width
  return share if int(width * share) == hidden else math.nextafter(share, math.inf)


def timm_shared(
  passport: Any, architecture: str, arguments: dict[str, Any], classifier: str | list[str]
) -> dict[str, Any]:
  """A config.json of timm: an architecture, its arguments, and what it was trained to see."""
  count = passport.model['num_classes']
  known = {'num_classes': count, 'first_conv': 'patch_embed.proj', 'classifier': classifier}
  return {
    'architecture': architecture,
    'num_classes': count,
    'model_args': arguments,
    'label_names': passport.class_names,
    'pretrained_cfg': timm_preprocess(passport.preprocess) | known,
  }


def timm_preprocess(preprocess: Any) -> dict[str, Any]:
  """What timm's own evaluation transform makes of pictures as ours does."""
  squash = preprocess.fit == 'squash'
  return {
    'input_size': [preprocess.channels, *preprocess.image_size],
    'interpolation': {'linear': 'bilinear'}.get(preprocess.resize, preprocess.resize),
    'crop_pct': 1.0 if squash else crop_share(min(preprocess.image_size), shorter_side(preprocess)),
    'crop_mode': 'squash' if squash else 'center',
    'mean': spread(preprocess.mean, preprocess.channels),
    'std': spread(preprocess.std, preprocess.channels),
  }


def crop_share(side: int, shorter: int) -> float:
  """The share of which timm, which rounds down, makes `shorter` again."""
  share = side / shorter
  while math.floor(side / share) < shorter:
    share = math.nextafter(share, 0)
  return share


# By target: file names and their content.
SETTINGS = {'huggingface': huggingface, 'timm': timm}
