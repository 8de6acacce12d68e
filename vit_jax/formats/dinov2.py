"""DINOv2 (arXiv:2304.07193) of Hugging Face, with registers (arXiv:2309.16588) or without, and of
its own code: a ViT with LayerScale, of its largest size with SwiGLU.

Hugging Face's classifier reads the class token and the mean of the patches, side by side: here that
is the readout 'weighted_concat' with the weights that it starts from, 1/N.
"""

import math
import re
from typing import Any

import numpy as np

from vit_jax.formats import configs, families, names, prefix, weights
from vit_jax.formats.files import Arrays, Entry

KINDS = ('dinov2', 'dinov2_with_registers')
# transformers in memory, its files, and DINOv2's own code -> the names of families.py.
RENAMED = {
  r'^dinov2_with_registers\.': 'dinov2.',
  r'^(?=(embeddings|encoder|layernorm)\.)': 'dinov2.',
  r'attention\.q_proj\.': 'attention.attention.query.',
  r'attention\.k_proj\.': 'attention.attention.key.',
  r'attention\.v_proj\.': 'attention.attention.value.',
  r'attention\.o_proj\.': 'attention.output.dense.',
  r'mlp\.(weights_in|w12)\.': 'mlp.fc1.',
  r'mlp\.(weights_out|w3)\.': 'mlp.fc2.',
  r'^register_tokens$': 'reg_token',
}
RATIOS = range(1, 17)  # of MLP to width, which a config.json has as a whole number
MEAN = 'readout/weights'


def recognise(arrays: Arrays) -> bool:
  """Whether arrays have the names of Hugging Face's DINOv2."""
  return any(name.endswith('layer_scale1.lambda1') for name in arrays)


def is_own(arrays: Arrays) -> bool:
  """Whether arrays have the names of DINOv2's own code, which are nearly those of timm."""
  scales = any(name.endswith('.ls1.gamma') for name in arrays)
  return scales and ({'mask_token', 'pos_embed'} <= arrays.keys() or 'register_tokens' in arrays)


def tidy(arrays: Arrays) -> Arrays:
  """The same under the names of `families.py`."""
  for before, after in RENAMED.items():
    arrays = {re.sub(before, after, name): entry for name, entry in arrays.items()}
  return arrays


def with_mean(arrays: Arrays) -> Arrays:
  """Arrays under our names; where there is a head, the mean that it reads beside the class token.

  Raises:
    ValueError: the head reads something else.
  """
  if 'head/kernel' not in arrays:
    return arrays
  width, seen = arrays['cls'].shape[-1], arrays['head/kernel'].shape[0]
  if seen != 2 * width:
    raise ValueError(f'its classifier reads {seen} numbers; class token and mean are {2 * width}')
  tokens = arrays[weights.POSITION].shape[1] - 1
  count = tokens - (arrays['reg'].shape[1] if 'reg' in arrays else 0)
  return arrays | {MEAN: Entry.of(np.full(count, 1 / count, np.float32))}


def readout_of(arrays: Arrays) -> str | None:
  """The readout of arrays that `with_mean` has seen; None: as of any ViT."""
  return 'weighted_concat' if MEAN in arrays else None


def holds(target: str, model: dict[str, Any]) -> bool:
  """Whether a ViT is written as a DINOv2: it has what Hugging Face's ViT has not."""
  own = model['layer_scale'] or model['registers'] or model['mlp'] == 'swiglu'
  return target == 'huggingface' and bool(own)


def losses(model: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
  """What Hugging Face's DINOv2 cannot hold of a ViT.

  Args:
    sizes: width and mlp_dim.
  """
  wanted = 'weighted_concat' if model['num_classes'] else 'class_token'
  fixed = {
    'readout': wanted, 'class_token': True, 'pre_logits': None, 'readout_weights': 'free',
  }  # fmt: skip
  lost = [
    f"{key}={model[key]!r}: huggingface's DINOv2 has {value!r}"
    for key, value in fixed.items()
    if model[key] != value
  ]
  if not model['layer_scale']:
    lost.append("layer_scale=0: huggingface's DINOv2 always has LayerScale")
  height, width = model['image_size']
  if height != width:
    lost.append(f"image_size={height} x {width}: huggingface's DINOv2 takes squares alone")
  if ratio_of(model['mlp'], sizes) is None:
    lost.append(f"mlp_dim={sizes['mlp_dim']}: huggingface's DINOv2 has a whole multiple of width")
  return lost


def ratio_of(mlp: str, sizes: dict[str, Any]) -> int | None:
  """The mlp_ratio of a config.json from which transformers makes this MLP; None: there is none."""
  width, wanted = sizes['width'], sizes['mlp_dim']
  made = {ratio: width * ratio for ratio in RATIOS}
  if mlp == 'swiglu':
    made = {ratio: math.ceil(int(hidden * 2 / 3) / 8) * 8 for ratio, hidden in made.items()}
  return next((ratio for ratio, hidden in made.items() if hidden == wanted), None)


def renamed(arrays: Arrays) -> Arrays:
  """Arrays under the names on disk; the mask of pre-training, which nothing reads, is 0.

  Raises:
    ValueError: the head reads another mix than the mean, or arrays without a place.
  """
  arrays = prefix.fold(without_mean(arrays), class_kept=True)
  depth = weights.depth_of(arrays, r'Transformer/encoderblock_(\d+)/')
  made, left = names.to_theirs(arrays, families.FAMILIES['huggingface_dinov2'], depth, ())
  if left:
    raise ValueError(f"huggingface's DINOv2 has no place for {', '.join(sorted(left))}")
  mask = np.zeros((1, arrays['cls'].shape[-1]), np.float32)
  made['dinov2.embeddings.mask_token'] = Entry.of(mask)
  root = 'dinov2_with_registers.' if 'reg' in arrays else 'dinov2.'
  root = root if 'head/kernel' in arrays else ''  # A model without a head has no prefix.
  changes = {r'^dinov2\.': root}
  if weights.is_gated(arrays):
    changes |= {r'mlp\.fc1\.': 'mlp.weights_in.', r'mlp\.fc2\.': 'mlp.weights_out.'}
  for before, after in changes.items():
    made = {re.sub(before, after, name): entry for name, entry in made.items()}
  return made


def without_mean(arrays: Arrays) -> Arrays:
  """The same without the weights of the mean.

  Raises:
    ValueError: they are no longer those of a mean.
  """
  if MEAN not in arrays:
    return arrays
  mixed = arrays[MEAN].load()
  if not np.allclose(mixed, 1 / len(mixed), rtol=1e-5):
    raise ValueError(
      f"{MEAN} are not 1/{len(mixed)}: huggingface's DINOv2 has the plain mean beside the class "
      'token; fine-tune with config.optimizer.multipliers='
      "((('readout/.*', 0.0),)) to keep it, or take --to=vit_jax"
    )
  return {name: entry for name, entry in arrays.items() if name != MEAN}


def settings(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """What a folder of Hugging Face holds beside the arrays: of a DINOv2, else of a ViT or DeiT."""
  made = configs.huggingface(passport, sizes)
  model = passport.model
  if not holds('huggingface', model):
    return made
  registers = model['registers']
  name = 'Dinov2WithRegisters' if registers else 'Dinov2'
  task = 'ForImageClassification' if model['num_classes'] else 'Model'
  config = configs.huggingface_shared(passport, sizes) | {
    'architectures': [name + task],
    'model_type': KINDS[bool(registers)],
    'hidden_act': 'gelu' if model['mlp'] == 'swiglu' else configs.HUGGINGFACE_ACT[model['gelu']],
    'hidden_size': sizes['width'],
    'num_hidden_layers': sizes['depth'],
    'num_attention_heads': sizes['num_heads'],
    'mlp_ratio': ratio_of(model['mlp'], sizes),
    'layerscale_value': model['layer_scale'],
    'use_swiglu_ffn': model['mlp'] == 'swiglu',
  }
  config |= {'num_register_tokens': registers} if registers else {}
  return made | {'config.json': config}


SETTINGS = configs.SETTINGS | {'huggingface': settings}
