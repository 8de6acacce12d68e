"""The settings that other libraries keep beside the weights of a Swin, as written."""

from typing import Any

from vit_jax.formats import configs

# timm's architectures of that form; sizes are given as arguments.
ARCHITECTURE = 'swin_tiny_patch4_window7_224'


def huggingface(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The content of the files that SwinForImageClassification is made from, by name."""
  config = configs.huggingface_shared(passport, sizes) | {
    'architectures': ['SwinForImageClassification'],
    'model_type': 'swin',
    'embed_dim': sizes['first_width'],
    'hidden_size': sizes['width'],
    'depths': sizes['depths'],
    'num_heads': sizes['heads'],
    'num_layers': len(sizes['depths']),
    'window_size': sizes['window'],
    'mlp_ratio': 4.0,
    'use_absolute_embeddings': False,
  }
  seen = configs.huggingface_preprocessor(passport.preprocess)
  return {'config.json': config, 'preprocessor_config.json': seen}


def timm(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The content of config.json for `timm.create_model('local-dir:FOLDER')`, by its name."""
  model = passport.model
  arguments = {
    'img_size': list(model['image_size']),
    'patch_size': sizes['patch_size'],
    'window_size': sizes['window'],
    'in_chans': model['channels'],
    'embed_dim': sizes['first_width'],
    'depths': sizes['depths'],
    'num_heads': sizes['heads'],
  }
  return {'config.json': configs.timm_shared(passport, ARCHITECTURE, arguments, 'head.fc')}


# By target: file names and their content.
SETTINGS = {'huggingface': huggingface, 'timm': timm}
