"""What was written for another library, as that library's own model computes it.

Needs the extra `torch`; only `convert --check` asks for it, and only where it is installed.
"""

import pathlib
from typing import Any

from jax import numpy as jnp
import numpy as np

from vit_jax import predict
from vit_jax.formats import configs, swin_configs
from vit_jax.runtime import optional

# By target: the library that reads it.
LIBRARIES = {
  'huggingface': 'transformers',
  'timm': 'timm',
  'pth': 'timm',
  'torchvision': 'torchvision',
}
MODULES = LIBRARIES | {'torchvision': 'torchvision.models'}
TIMM_HYBRIDS = {
  'R+Ti/16': 'vit_tiny_r_s16_p8_224',
  'R26+S/32': 'vit_small_r26_s32_224',
  'R50+B/16': 'vit_base_r50_s16_224',
  'R50+L/32': 'vit_large_r50_s32_224',
}


def missing(target: str, section: dict[str, Any]) -> str | None:
  """Why their model cannot be asked, in words; None where it can."""
  try:
    import_library(target)
  except ValueError as error:
    return str(error)
  if section['name'] == 'hybrid' and section['variant'] not in TIMM_HYBRIDS:
    return f'timm has no {section["variant"]}'
  return None


def import_library(target: str) -> None:
  """Loads what `load` needs.

  Raises:
    ValueError: it is not there, or its parts do not fit together.
  """
  optional.load('torch', 'torch')
  module = optional.load(MODULES[target], 'torch')
  if target == 'huggingface':  # It loads lazily, and breaks as late.
    try:
      module.ViTForImageClassification  # noqa: B018
    except (ImportError, RuntimeError) as error:
      raise ValueError(
        f'transformers cannot be loaded ({" ".join(str(error).split())[:160]})'
      ) from None


def check(
  source: str | pathlib.Path, to: pathlib.Path, target: str, images: np.ndarray
) -> dict[str, Any]:
  """How far the logits of their model, with what is at `to`, are from ours.

  Returns:
    One row: the largest difference, in standard deviations of our logits.
  """
  torch = optional.load('torch', 'torch')
  ours = predict.load(source)
  model = load(to, target, ours).eval()
  given = torch.from_numpy(images).permute(0, 3, 1, 2)
  if ours.model.clusters:
    given = torch.from_numpy(row_of_colours(ours, images))
  with torch.no_grad():
    answer: Any = model(given)
  # A model without a head tells what a head would read.
  given = getattr(answer, 'pooler_output', None) if not ours.model.num_classes else None
  given = np.asarray(getattr(answer, 'logits', answer) if given is None else given)
  expected = ours(images, ('logits',))['logits']
  difference = float(np.abs(given - expected).max() / (expected.std() or 1.0))
  return {'place': f'logits of {LIBRARIES[target]}', 'difference': difference}


def row_of_colours(ours: predict.Predictor, images: np.ndarray) -> np.ndarray:
  """What an iGPT sees of images: the start, then the colours of all pixels but the last."""
  model: Any = ours.model
  colours = model.apply({'params': ours.params}, jnp.asarray(images), method='colours_of')
  start = np.full((len(images), 1), model.clusters)
  return np.concatenate([start, np.asarray(colours)[:, :-1]], axis=1)


def load(to: pathlib.Path, target: str, ours: predict.Predictor) -> Any:
  """Their model with the weights at `to`, by their loader, every key required."""
  if target == 'huggingface':
    transformers = optional.load('transformers', 'torch')
    kind = 'AutoModelForImageClassification' if ours.model.num_classes else 'AutoModel'
    return getattr(transformers, kind).from_pretrained(to)
  if to.is_dir():
    return optional.load('timm', 'torch').create_model(f'local-dir:{to}', pretrained=True)
  model, arrays = build(target, ours), read(to)
  if target == 'pth' and ours.passport.model['name'] == 'swin':  # Under the official names.
    module = optional.load('timm.models.swin_transformer', 'torch')
    arrays = module.checkpoint_filter_fn(arrays, model)
  if target == 'torchvision':  # It keeps numbers that it computes, of a Swin's windows.
    arrays = dict(model.named_buffers()) | arrays
  model.load_state_dict(arrays, strict=True)
  return model


def read(path: pathlib.Path) -> dict[str, Any]:
  """The tensors of a file by name."""
  if path.suffix == '.pth':
    return optional.load('torch', 'torch').load(path, weights_only=True)
  return optional.load('safetensors.torch', 'torch').load_file(path)


def build(target: str, ours: predict.Predictor) -> Any:
  """Their model of the size of ours."""
  section, sizes = ours.passport.model, ours.model.sizes()
  height, width = section['image_size']
  classes = section['num_classes']
  if section['name'] == 'swin':
    return build_swin(target, ours)
  if target == 'torchvision':
    return optional.load(MODULES[target], 'torch').VisionTransformer(
      height, sizes['patch_size'], sizes['depth'], sizes['num_heads'], sizes['width'],
      sizes['mlp_dim'], num_classes=classes, representation_size=section['pre_logits'],
    )  # fmt: skip
  timm = optional.load('timm', 'torch')
  shape: dict[str, Any] = {'num_classes': classes, 'in_chans': section['channels']}
  if section['name'] == 'bit':
    return timm.create_model(f'resnetv2_{section["variant"][1:]}_bit', **shape)
  if section['name'] == 'hybrid':
    name = TIMM_HYBRIDS[section['variant']]
    return timm.create_model(name, img_size=(height, width), **shape)
  config = configs.timm_config(ours.passport, sizes)
  return timm.create_model(config['architecture'], num_classes=classes, **config['model_args'])


def build_swin(target: str, ours: predict.Predictor) -> Any:
  """Their Swin of the size of ours."""
  classes = ours.passport.model['num_classes']
  sizes = ours.model.sizes()
  if target == 'torchvision':
    patch, window = [sizes['patch_size']] * 2, [sizes['window']] * 2
    return optional.load(MODULES[target], 'torch').SwinTransformer(
      patch, sizes['first_width'], sizes['depths'], sizes['heads'], window, num_classes=classes
    )
  config = swin_configs.timm(ours.passport, sizes)['config.json']
  timm = optional.load('timm', 'torch')
  return timm.create_model(config['architecture'], num_classes=classes, **config['model_args'])
