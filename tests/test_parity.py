"""Logits equal transformers' ViT on CPU torch: random weights, head and layer norms included."""

import jax
from jax import numpy as jnp
import numpy as np
from peers import need
import pytest

from vit_jax import defaults, models

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.slow]


def random_params(model, seed):
  """Kernels 1/sqrt(fan in); everything else random too, so that nothing hides behind a 0 or a 1."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    name = path[-1].key
    if name == 'kernel':
      fan_in = (
        np.prod(x.shape[:-1]) if path[-2].key not in ('query', 'key', 'value') else x.shape[0]
      )
      return rng.normal(0, fan_in**-0.5, x.shape).astype(np.float32)
    return rng.normal(1.0 if name == 'scale' else 0.0, 0.2, x.shape).astype(np.float32)

  shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def to_huggingface(params, width):
  """Names on disk of ViTForImageClassification (see the layout in vit_jax/models/vit.py)."""

  def dense(entry):
    kernel = (
      entry['kernel'].reshape(-1, entry['bias'].size)
      if entry['bias'].ndim == 1
      else (entry['kernel'].reshape(width, width))
    )
    return {'weight': kernel.T, 'bias': entry['bias'].reshape(-1)}

  def norm(entry):
    return {'weight': entry['scale'], 'bias': entry['bias']}

  encoder = params['Transformer']
  parts = {
    'vit.embeddings.patch_embeddings.projection': {
      'weight': params['embedding']['kernel'].transpose(3, 2, 0, 1),
      'bias': params['embedding']['bias'],
    },
    'vit.layernorm': norm(encoder['encoder_norm']),
    'classifier': dense(params['head']),
  }
  for i in range(12):
    block, name = encoder[f'encoderblock_{i}'], f'vit.encoder.layer.{i}'
    attention = block['MultiHeadDotProductAttention_1']
    for part in ('query', 'key', 'value'):
      parts[f'{name}.attention.attention.{part}'] = dense(attention[part])
    parts[f'{name}.attention.output.dense'] = dense(attention['out'])
    parts[f'{name}.layernorm_before'] = norm(block['LayerNorm_0'])
    parts[f'{name}.layernorm_after'] = norm(block['LayerNorm_2'])
    parts[f'{name}.intermediate.dense'] = dense(block['MlpBlock_3']['Dense_0'])
    parts[f'{name}.output.dense'] = dense(block['MlpBlock_3']['Dense_1'])
  flat = {f'{name}.{key}': value for name, entry in parts.items() for key, value in entry.items()}
  return flat | {
    'vit.embeddings.cls_token': params['cls'],
    'vit.embeddings.position_embeddings': encoder['posembed_input']['pos_embedding'],
  }


def peer(section, params, folder):
  """transformers' model with the same weights, read by its own loader from its own files."""
  from safetensors.numpy import save_file

  width, mlp_dim, heads = section
  transformers = need('transformers')
  config = transformers.ViTConfig(
    hidden_size=width, intermediate_size=mlp_dim, num_attention_heads=heads, num_hidden_layers=12,
    layer_norm_eps=1e-6, hidden_act='gelu', num_labels=10,
  )  # fmt: skip
  config.architectures = ['ViTForImageClassification']
  config.save_pretrained(folder)
  arrays = {key: np.ascontiguousarray(x) for key, x in to_huggingface(params, width).items()}
  save_file(arrays, folder / 'model.safetensors', metadata={'format': 'pt'})
  model, report = transformers.ViTForImageClassification.from_pretrained(
    folder, output_loading_info=True
  )
  assert not report['missing_keys']
  assert not report['unexpected_keys']
  return model.eval()


def pictures(count):
  """Structured, not noise: coloured gradients and stripes."""
  y, x = np.mgrid[0:1:224j, 0:1:224j]
  channels = [np.sin(9 * (k + 1) * (x + k * y)) * y**k for k in range(3)]
  return np.stack([np.stack(channels, -1) * (1 - 0.3 * i) for i in range(count)]).astype(np.float32)


@pytest.mark.parametrize(
  ('variant', 'section'), [('Ti/16', (192, 768, 3)), ('B/16', (768, 3072, 12))]
)
def test_logits_equal_transformers(tmp_path, variant, section):
  settings = defaults.part('model', 'vit').to_dict() | dict(variant=variant, gelu='exact')
  model = models.build(**settings, image_size=(224, 224), channels=3, num_classes=10)
  params, images = random_params(model, 0), pictures(2)
  device_params = jax.tree.map(jnp.asarray, params)
  ours = np.asarray(model.apply({'params': device_params}, jnp.asarray(images))[0])
  torch = need('torch')
  with torch.no_grad():
    theirs = peer(section, params, tmp_path)(torch.tensor(images.transpose(0, 3, 1, 2))).logits
  difference = np.abs(ours - theirs.numpy()).max()
  assert difference <= 1e-5 * theirs.numpy().std(), (difference, theirs.numpy().std())
