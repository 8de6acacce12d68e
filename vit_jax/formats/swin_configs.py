"""The settings that other libraries keep beside the weights of a Swin, as written."""

from typing import Any

from vit_jax.formats import configs

# timm's architectures of that form; sizes are given as arguments.
ARCHITECTURE = 'swin_tiny_patch4_window7_224'


def huggingface(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The content of the files that SwinForImageClassification is made from, by name."""
  model, labels = passport.model, passport.class_names
  height, width = model['image_size']
  config = {
    'architectures': ['SwinForImageClassification'],
    'model_type': 'swin',
    'embed_dim': sizes['first_width'],
    'hidden_size': sizes['width'],
    'depths': sizes['depths'],
    'num_heads': sizes['heads'],
    'num_layers': len(sizes['depths']),
    'window_size': sizes['window'],
    'mlp_ratio': 4.0,
    'hidden_act': configs.HUGGINGFACE_ACT[model['gelu']],
    'layer_norm_eps': model['epsilon'],
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'use_absolute_embeddings': False,
    'image_size': height if height == width else [height, width],
    'patch_size': sizes['patch_size'],
    'num_channels': model['channels'],
    'qkv_bias': model['qkv_bias'],
    'id2label': {str(i): name for i, name in enumerate(labels)},
    'label2id': {name: i for i, name in enumerate(labels)},
    'torch_dtype': 'float32',
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
  config = {
    'architecture': ARCHITECTURE,
    'num_classes': model['num_classes'],
    'model_args': arguments,
    'label_names': passport.class_names,
    'pretrained_cfg': configs.timm_preprocess(passport.preprocess)
    | {
      'num_classes': model['num_classes'],
      'first_conv': 'patch_embed.proj',
      'classifier': 'head.fc',
    },
  }
  return {'config.json': config}


# By target: file names and their content.
SETTINGS = {'huggingface': huggingface, 'timm': timm}
