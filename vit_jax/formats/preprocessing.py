"""What weights of timm, torchvision and Hugging Face were trained to see, by their settings."""

import math
from typing import Any

from vit_jax.formats import configs, weights

RESAMPLE = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}  # Pillow's numbers
SWAG = 384  # pixels from which torchvision's ViTs are those of SWAG, fine-tuned end to end
# Pixels of the shorter side of which torchvision cuts out 224, where they are not 256: of Swin-T,
# Swin-S, Swin-B and ViT-L/16, by width, depth and patch.
TORCHVISION = {(96, 12, 4): 232, (96, 24, 4): 246, (128, 24, 4): 238, (1024, 24, 16): 242}


def of_settings(family: str, settings: dict[str, Any], facebook: bool) -> dict[str, Any]:
  """What the weights were trained to see: as the preprocessor's file says, else as usual there."""
  made = normalisation(settings)
  if made:
    made['resize'] = RESAMPLE[settings.get('resample', 2)]
    shorter = shorter_side(settings)
    return made | ({'fit': 'crop', 'resize_small': shorter} if shorter != 0 else {})
  if family == 'torchvision':
    return weights.IMAGENET | {'fit': 'crop', 'resize_small': None}
  if facebook:  # All that are published are DeiT's and DINOv2's.
    return weights.IMAGENET | {'fit': 'crop', 'resize_small': None, 'resize': 'bicubic'}
  return dict(weights.HALF)


def normalisation(settings: dict[str, Any]) -> dict[str, Any]:
  """Mean and deviation as a preprocessor's file says; {} where it does not.

  Raises:
    ValueError: it says one without the other.
  """
  if not settings.get('do_normalize', True):
    return {'mean': (0.0,), 'std': (1.0,)}
  if 'image_mean' not in settings:
    return {}
  if 'image_std' not in settings:
    raise ValueError('its settings say image_mean without image_std; write both or neither')
  return {'mean': tuple(settings['image_mean']), 'std': tuple(settings['image_std'])}


def shorter_side(settings: dict[str, Any]) -> int | None:
  """Pixels of the shorter side before the centre is cut out: 0 nothing is, None as is usual."""
  if not settings.get('do_center_crop', False):
    return 0
  size = settings.get('size', {})
  sides = [size] if isinstance(size, int) else size
  if isinstance(size, dict):
    sides = [size[key] for key in ('shortest_edge', 'height', 'width') if key in size]
  if isinstance(size, dict) and 'height' in size and size == settings.get('crop_size'):
    return 0
  return same_share(min(sides, default=None), settings)


def same_share(shorter: int | None, settings: dict[str, Any]) -> int | None:
  """The shorter side before the centre of the model's own size is cut out.

  Published DINOv2 is for 518 pixels, and its preprocessor cuts 224 out of 256 for speed.
  """
  crop, image = settings.get('crop_size'), settings.get('image_size')
  crop = crop.get('height') if isinstance(crop, dict) else crop
  if not (shorter and isinstance(crop, int) and isinstance(image, int)):
    return shorter
  return round(shorter * image / crop)


def timm_crop(trained: dict[str, Any], size: int | list[int]) -> dict[str, Any]:
  """How timm's evaluation transform fits a picture, in the words of a preprocessor's file.

  Args:
    size: of what the model sees, which its arguments may have changed.
  """
  numbers = {name: number for number, name in RESAMPLE.items()}
  made: dict[str, Any] = {'resample': numbers.get(trained.get('interpolation', 'bicubic'), 3)}
  if trained.get('crop_mode') == 'squash':
    return made
  share = trained.get('crop_pct') or configs.CENTRE
  shorter = math.floor(min(weights.sides(size)) / share)
  return made | {'do_center_crop': True, 'size': {'shortest_edge': shorter}}


def of_torchvision(side: int, kind: tuple[int, int, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
  """What ViTs of torchvision for so many pixels see other than most of them, and a note.

  Args:
    kind: width, depth and patch.
  """
  if side < SWAG:
    return {'resize_small': torchvision_shorter(side, kind)}, ()
  note = f"pictures are resized as of torchvision's SWAG weights, those of {SWAG} pixels and more"
  return {'resize': 'bicubic', 'resize_small': side}, (note,)


def torchvision_shorter(side: int, kind: tuple[int, int, int]) -> int | None:
  """Pixels of the shorter side before torchvision cuts out `side` of them: None as is usual.

  Args:
    kind: width, depth and patch.
  """
  return TORCHVISION.get(kind) if side == 224 else None
