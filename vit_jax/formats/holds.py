"""What each target holds of each family, and the names that its arrays have there.

A family that is not in `HOLDERS` is refused by every target here; our own format holds any.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from vit_jax.formats import (
  bit,
  configs,
  dinov2,
  families,
  igpt_write,
  names,
  prefix,
  swin,
  swin_configs,
  weights,
)
from vit_jax.formats.files import Arrays

Section = dict[str, Any]

# By target: settings it computes with, whatever a file says.
FIXED: dict[str, Section] = {
  'official': {'gelu': 'tanh', 'epsilon': 1e-6, 'qkv_bias': True},
  'torchvision': {'gelu': 'exact', 'epsilon': 1e-6, 'qkv_bias': True},
  'timm': {'epsilon': 1e-6},
  'huggingface': {},
}
FIXED_RESNET: dict[str, Section] = {
  'official': {'standardise': 'official', 'group_norm_epsilon': 1e-6},
  'timm': {'standardise': 'timm', 'group_norm_epsilon': 1e-5},
}
# The formulas of BiT's kernels differ in their epsilon alone, so either file serves both.
FIXED_BIT: Section = {'group_norm_epsilon': 1e-5, 'pool_padding': 'zero', 'root_kernel': 7}
READOUTS = {
  'official': ('class_token', 'mean'),
  'torchvision': ('class_token',),
  'timm': ('class_token', 'mean'),
  'huggingface': ('class_token',),
}
# Of a DeiT with a distillation token.
DISTILLED_READOUTS = {
  'timm': ('class_and_distillation',),
  'huggingface': ('class_and_distillation', 'class_token'),
}

# Settings that no target has, with what all of them have instead.
UNKNOWN = {
  'qk_scale': None, 'embedding_norm': False, 'positions': 'learned', 'position_at': 'input',
}  # fmt: skip


class Holder(NamedTuple):
  """What is known elsewhere of one family.

  Attributes:
    targets: those that have the family.
    folders: those of them that take it as a folder with its settings.
    losses: what a target cannot hold of a model section and its sizes, in words.
    renamed: arrays under a target's names.
    settings: by target, what a folder holds beside the arrays: names of files and their content.
    unseen: what these cannot say of how pictures become the input, in words.
    torch_file: the target whose names torch's own file has.
  """

  targets: tuple[str, ...]
  folders: tuple[str, ...]
  losses: Callable[[str, Section, Section], list[str]]
  renamed: Callable[[str, Arrays], Arrays]
  settings: dict[str, Callable] = configs.SETTINGS
  unseen: Callable[[str, Any], list[str]] = configs.unseen
  torch_file: str = 'timm'


def check_held(target: str, name: str, folder: bool) -> None:
  """Raises a ValueError where a target has no model of this family, or not as a folder."""
  holder = HOLDERS.get(name)
  known = holder.targets if holder else ()
  if target not in known:
    others = ', '.join((*known, 'vit_jax', 'stablehlo'))
    raise ValueError(f'{target} has no {name}, so all of it would be lost; --to may be {others}')
  if holder and folder and target not in holder.folders:
    raise ValueError(f'{target} takes a {name} as a file, not a folder; name it DST.safetensors')


def names_of(target: str, name: str) -> str:
  """The target whose names arrays of the family `name` have in `target`, which may be 'pth'.

  Raises:
    ValueError: what is official is itself a `.pth`.
  """
  own = HOLDERS[name].torch_file if name in HOLDERS else 'timm'
  if target == own == 'official':
    raise ValueError(f"the official code of a {name} reads torch's files: --to=pth")
  return own if target == 'pth' else target


def settings(target: str, passport: Any, sizes: Section) -> dict[str, Section]:
  """What a folder for `target` holds beside the arrays: names of files and their content."""
  made: dict[str, Section] = HOLDERS[passport.model['name']].settings[target](passport, sizes)
  return made


def losses(target: str, model: Section, sizes: Section) -> list[str]:
  """What `target` cannot hold of a model that it has, in words.

  Args:
    sizes: of the model, as `Model.sizes` gives them.
  """
  return HOLDERS[model['name']].losses(target, model, sizes)


def unseen(target: str, passport: Any) -> list[str]:
  """What a folder for `target` cannot say of how pictures become the model's input, in words."""
  return HOLDERS[passport.model['name']].unseen(target, passport.preprocess)


def renamed(target: str, arrays: Arrays, name: str) -> Arrays:
  """Arrays of a model of the family `name` under the target's names.

  Raises:
    ValueError: arrays without a place there.
  """
  return HOLDERS[name].renamed(target, arrays)


def differing(target: str, model: Section, fixed: Section) -> list[str]:
  """Settings in which a model differs from what a target always has, in words."""
  return [
    f'{key}={model[key]!r}: {target} always has {value!r}'
    for key, value in fixed.items()
    if model[key] != value
  ]


def vit_losses(target: str, model: Section, sizes: Section) -> list[str]:
  """What a target cannot hold of a ViT."""
  if dinov2.holds(target, model):
    return [*dinov2.losses(model, sizes), *unknown_settings(target, model)]
  return [
    *differing(target, model, FIXED[target]),
    *readout_losses(target, model),
    *shape_losses(target, model),
  ]


def readout_losses(target: str, model: Section) -> list[str]:
  """What a target cannot hold of a ViT's tokens and of what reads them."""
  lost = []
  if model['readout'] not in READOUTS[target]:
    lost.append(f'readout={model["readout"]!r}: {target} has {" and ".join(READOUTS[target])}')
  if target == 'official' and model['readout'] == 'mean' and model['class_token']:
    lost.append("readout='mean' beside a class token: official's gap has no class token")
  if target in ('torchvision', 'huggingface') and not model['class_token']:
    lost.append(f'class_token=False: {target} always has one')
  if model['pre_logits'] and target in ('timm', 'huggingface'):
    lost.append(f'pre_logits={model["pre_logits"]}: {target} has no such layer')
  return lost + setting_losses(target, model)


def setting_losses(target: str, model: Section) -> list[str]:
  """Settings that a target has not."""
  lost = []
  if target != 'timm':
    lost += [*['LayerScale'] * bool(model['layer_scale']), *extra_parts(target, model)]
  return lost + unknown_settings(target, model)


def extra_parts(target: str, model: Section) -> list[str]:
  """Registers and gated MLPs, where a target has neither in a model of this family."""
  fixed = {'registers': 0, 'mlp': 'plain'}
  return [f'{key}={model[key]!r}: {target} has none' for key in fixed if model[key] != fixed[key]]


def unknown_settings(target: str, model: Section) -> list[str]:
  """Settings that no target has, in words."""
  return [
    f'{key}={model[key]!r}: {target} has no such setting'
    for key, default in UNKNOWN.items()
    if model[key] != default
  ]


def shape_losses(target: str, model: Section) -> list[str]:
  """What a target cannot hold of the pictures' shape."""
  lost = []
  height, width = model['image_size']
  if height != width and target in ('official', 'torchvision'):
    lost.append(f'image_size={height} x {width}: {target} takes squares alone')
  if target == 'torchvision' and model['channels'] != 3:
    lost.append(f'channels={model["channels"]}: torchvision takes 3')
  return lost


def is_distilled(model: Section) -> bool:
  """Whether a DeiT has a distillation token."""
  return model['variant'].endswith('-distilled')


def deit_losses(target: str, model: Section, sizes: Section) -> list[str]:
  """What a target cannot hold of a DeiT; one without a distillation token is a ViT there."""
  if not is_distilled(model):
    return vit_losses(target, model, sizes)
  if target not in DISTILLED_READOUTS:
    return [f'the distillation token: {target} has none']
  lost = differing(target, model, FIXED[target] | {'average': 'logits'})
  if model['readout'] not in DISTILLED_READOUTS[target]:
    known = ' and '.join(DISTILLED_READOUTS[target])
    lost.append(f'readout={model["readout"]!r}: {target} has {known}')
  lost += extra_parts(target, model) if target == 'timm' else []
  return lost + setting_losses(target, model) + shape_losses(target, model)


def hybrid_losses(target: str, model: Section, sizes: Section) -> list[str]:
  """What a target cannot hold of a hybrid."""
  lost = vit_losses(target, model, sizes) + differing(target, model, FIXED_RESNET[target])
  lost += differing(target, {'root_kernel': sizes['root_kernel']}, {'root_kernel': 7})
  return lost + (extra_parts(target, model) if target == 'timm' else [])


def bit_losses(target: str, model: Section, sizes: Section) -> list[str]:
  """What a target cannot hold of a BiT."""
  del sizes
  return differing(target, {'root_kernel': 7} | model, FIXED_BIT)  # Before 1.4.0 none said.


def swin_losses(target: str, model: Section, sizes: Section) -> list[str]:
  """What a target cannot hold of a Swin: all have the paper's settings."""
  del sizes
  fixed = {'gelu': 'exact', 'epsilon': 1e-5, 'qkv_bias': True}
  lost = [] if target == 'huggingface' else differing(target, model, fixed)
  size, _, patch = model['variant'].partition('/')
  halvings = 1 if size == 'digits' else 3
  smallest = -(-min(model['image_size']) // (int(patch) * 2**halvings))
  if target in ('torchvision', 'huggingface') and smallest < model['window']:
    lost.append(
      f'image_size={model["image_size"]}: {target} has no maps smaller than a window of '
      f'{model["window"]}'
    )
  if target != 'huggingface' and any(side % int(patch) for side in model['image_size']):
    lost.append(
      f'image_size={model["image_size"]}: {target} cuts off the border that patches of {patch} do '
      'not fill, where ours are filled up'
    )
  return lost


def rename_vit(target: str, arrays: Arrays) -> Arrays:
  """Arrays of a ViT or a hybrid under a target's names."""
  if target == 'official':
    return arrays
  if target == 'huggingface' and is_dinov2(arrays):
    return dinov2.renamed(arrays)
  arrays = prefix.fold(arrays, class_kept=False)
  depth = weights.depth_of(arrays, r'Transformer/encoderblock_(\d+)/')
  made, left = names.to_theirs(arrays, families.FAMILIES[target], depth, names.units_of(arrays))
  if left:
    raise ValueError(f'{target} has no place for {", ".join(sorted(left))}')
  return made


def is_dinov2(arrays: Arrays) -> bool:
  """Whether a ViT has what Hugging Face's DINOv2 has, and its ViT has not."""
  scaled = any('LayerScale_1' in name for name in arrays)
  return 'reg' in arrays or scaled or weights.is_gated(arrays)


def rename_deit(target: str, arrays: Arrays) -> Arrays:
  """Arrays of a DeiT under a target's names."""
  if target != 'huggingface' or 'dist' not in arrays:
    return rename_vit(target, arrays)
  made = rename_vit('huggingface_deit', arrays)
  if 'head_dist/kernel' in arrays:
    return made
  return {name.replace('cls_classifier.', 'classifier.'): entry for name, entry in made.items()}


def rename_bit(target: str, arrays: Arrays) -> Arrays:
  """Arrays of a BiT under a target's names."""
  return {'timm': bit.to_timm, 'official': bit.to_official}[target](arrays)


HOLDERS = {
  'vit': Holder(tuple(FIXED), ('timm', 'huggingface'), vit_losses, rename_vit,
                dinov2.SETTINGS),
  'deit': Holder(tuple(FIXED), ('timm', 'huggingface'), deit_losses, rename_deit,
                 dinov2.SETTINGS),
  'hybrid': Holder(tuple(FIXED_RESNET), (), hybrid_losses, rename_vit),
  'swin': Holder(tuple(FIXED), ('timm', 'huggingface'), swin_losses, swin.renamed,
                 swin_configs.SETTINGS, torch_file='official'),
  'bit': Holder(('official', 'timm'), (), bit_losses, rename_bit),
  'igpt': Holder(('huggingface',), ('huggingface',), igpt_write.losses, igpt_write.renamed,
                 {'huggingface': igpt_write.settings}, igpt_write.unseen),
}  # fmt: skip
