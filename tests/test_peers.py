"""Weights of timm, torchvision and transformers give their logits here, and ours give ours there.

Random weights with every part random, LayerNorms and heads included; structured pictures.
"""

import json

from jax import numpy as jnp
import numpy as np
from peers import need
import pytest

from vit_jax import convert, predict, weights
from vit_jax.convert import __main__ as command
from vit_jax.convert import peers as peer_models
from vit_jax.formats import names
from vit_jax.runtime import fetch

pytestmark = pytest.mark.slow
VIT_LIMIT = 1e-5  # Largest difference, in standard deviations of the logits.
RESNET_LIMIT = 2e-4


def randomise(model, seed=0):
  """Every parameter random: kernels 1/sqrt(fan-in), norms about 1, all else about 0."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      token = any(word in name for word in ('pos', 'token'))
      norm = any(word in name for word in ('norm', 'ln_', '.ln.')) and parameter.ndim == 1
      if parameter.ndim >= 2 and not token:
        parameter.copy_(noise / np.sqrt(parameter[0].numel()))
      else:
        parameter.copy_(0.2 * noise + (1 if norm and name.endswith('weight') else 0))
  return model.eval()


def torch_logits(model, images):
  import torch

  with torch.no_grad():
    answer = model(torch.from_numpy(images).permute(0, 3, 1, 2))
  return np.asarray(getattr(answer, 'logits', answer))


def distance(given, expected):
  return np.abs(given - expected).max() / expected.std()


def make(peer, name, **options):
  """A random model of a peer."""
  module = need(peer)
  if peer == 'timm':
    return randomise(module.create_model(name, pretrained=False, **options))
  if peer == 'torchvision':
    import torchvision.models

    return randomise(getattr(torchvision.models, name)(weights=None, **options))
  sizes = {'B/16': (768, 12, 12, 16), 'S/16': (384, 12, 6, 16), 'Ti/16': (192, 12, 3, 16)}
  width, depth, heads, patch = sizes[DEITS.get(name, ('', name))[1]]
  kind = 'DeiT' if name in DEITS else 'ViT'
  config = getattr(module, f'{kind}Config')(
    hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, patch_size=patch,
    intermediate_size=4 * width, num_labels=10, attn_implementation='eager', **options,
  )  # fmt: skip
  made = DEITS[name][0] if name in DEITS else 'ViTForImageClassification'
  return randomise(getattr(module, made)(config))


def save(model, path):
  """As their own users do; returns what ours are given."""
  if hasattr(model, 'save_pretrained') and 'transformers' in type(model).__module__:
    model.save_pretrained(path)
    return path
  import torch

  torch.save(model.state_dict(), path.with_suffix('.pth'))
  return path.with_suffix('.pth')


DEITS = {
  'DeiT Ti/16, two heads': ('DeiTForImageClassificationWithTeacher', 'Ti/16'),
  'DeiT S/16, one head': ('DeiTForImageClassification', 'S/16'),
}
CASES = [
  ('timm', 'vit_tiny_patch16_224', VIT_LIMIT),
  ('timm', 'vit_small_patch16_224', VIT_LIMIT),
  ('timm', 'vit_base_patch32_224', VIT_LIMIT),
  ('timm', 'vit_large_patch16_224', VIT_LIMIT),
  ('torchvision', 'vit_b_16', VIT_LIMIT),
  ('transformers', 'Ti/16', VIT_LIMIT),
  ('transformers', 'B/16', VIT_LIMIT),
  ('timm', 'deit_small_patch16_224', VIT_LIMIT),
  ('timm', 'deit_tiny_distilled_patch16_224', VIT_LIMIT),
  ('timm', 'deit_small_distilled_patch16_224', VIT_LIMIT),
  ('timm', 'deit_base_distilled_patch16_384', VIT_LIMIT),
  ('transformers', 'DeiT Ti/16, two heads', VIT_LIMIT),
  ('transformers', 'DeiT S/16, one head', VIT_LIMIT),
  ('timm', 'vit_tiny_r_s16_p8_224', RESNET_LIMIT),
  ('timm', 'vit_small_r26_s32_224', RESNET_LIMIT),
  ('timm', 'vit_base_r50_s16_224', RESNET_LIMIT),
  ('timm', 'resnetv2_50x1_bit', RESNET_LIMIT),
]


OPTIONS = {'deit_small_patch16_224': {'init_values': 0.1}}  # With LayerScale.


@pytest.mark.parametrize(('peer', 'name', 'limit'), CASES, ids=lambda x: str(x))
def test_both_ways_the_logits_are_the_same(tmp_path, peer, name, limit):
  """Their weights, read by us, give their logits; written by us, in a new model of theirs, too."""
  options = {'num_classes': 10} if peer != 'transformers' else {}
  options |= OPTIONS.get(name, {})
  model = make(peer, name, **options)
  source = save(model, tmp_path / 'w')
  ours = predict.load(source)
  images = convert.pictures(ours.model.image_size, 3)
  expected = torch_logits(model, images)
  assert distance(ours(images, ('logits',))['logits'], expected) < limit

  del model
  target = {'transformers': 'huggingface'}.get(peer, peer)
  to = tmp_path / ('hf' if target == 'huggingface' else 'w.safetensors')
  convert.convert(str(source), to, target, False)
  again = peer_models.load(to, target, ours).eval()  # Strictly, by their loader.
  assert distance(torch_logits(again, images), expected) < limit


@pytest.mark.parametrize(
  ('target', 'name'),
  [('huggingface', 'hf'), ('timm', 'timm'), ('torchvision', 'tv.safetensors'), ('pth', 'w.pth')],
)
def test_check_compares_with_their_own_model(ours, tmp_path, target, name, capsys):
  path, _, _ = ours
  need('timm'), need('transformers'), need('torchvision')
  command.main([str(path), str(tmp_path / name), f'--to={target}', '--check', '--json'])
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  row = next(row for row in rows if row['place'].startswith('logits of '))
  assert 0 < row['difference'] < VIT_LIMIT
  # Caught where their model computes something else than ours: its query biases are 0.
  from safetensors.numpy import load_file, save_file

  if target == 'torchvision':
    arrays = load_file(tmp_path / name)
    for key in arrays:
      if key.endswith('in_proj_bias'):
        arrays[key][:192] = 0
    save_file(arrays, tmp_path / name)
    images = convert.pictures((224, 224), 3)
    row = peer_models.check(str(path), tmp_path / name, target, images)
    assert row['difference'] > 100 * VIT_LIMIT


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
  """A random timm ViT-Ti/16, read by us."""
  model = make('timm', 'vit_tiny_patch16_224', num_classes=7)
  path = save(model, tmp_path_factory.mktemp('ours') / 'w')
  predictor = predict.load(path)
  images = convert.pictures(predictor.model.image_size, 3)
  return path, images, predictor(images, ('logits',))['logits']


def test_transformers_reads_our_folder(ours, tmp_path):
  transformers = need('transformers')
  path, images, expected = ours
  convert.convert(str(path), tmp_path / 'hf', 'huggingface', False)
  model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / 'hf')
  assert model.config.id2label[3] == 'class 3'
  assert distance(torch_logits(model.eval(), images), expected) < VIT_LIMIT
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'hf')
  assert list(processor.image_mean) == [0.5, 0.5, 0.5]


def test_timm_reads_our_folder_and_our_npz(ours, tmp_path):
  timm = need('timm')
  path, images, expected = ours
  convert.convert(str(path), tmp_path / 'timm', 'timm', False)
  model = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
  assert distance(torch_logits(model, images), expected) < VIT_LIMIT
  convert.convert(str(path), tmp_path / 'w.npz', 'official', accept_loss=True)
  model = timm.create_model('vit_tiny_patch16_224', num_classes=7).eval()
  model.load_pretrained(tmp_path / 'w.npz')
  assert distance(torch_logits(model, images), expected) < VIT_LIMIT


def test_torchvision_reads_our_file_strictly(tmp_path):
  need('torchvision')
  from safetensors.torch import load_file
  from torchvision.models import vision_transformer

  model = make('timm', 'vit_tiny_patch16_224', num_classes=7)
  path = save(model, tmp_path / 'w')
  convert.convert(str(path), tmp_path / 'tv.safetensors', 'torchvision', False)
  theirs = vision_transformer.VisionTransformer(224, 16, 12, 3, 192, 768, num_classes=7).eval()
  theirs.load_state_dict(load_file(tmp_path / 'tv.safetensors'), strict=True)
  images = convert.pictures((224, 224), 3)
  assert distance(torch_logits(theirs, images), torch_logits(model, images)) < VIT_LIMIT


@pytest.mark.parametrize('target', ['timm', 'torchvision', 'huggingface', 'pth', 'official'])
def test_round_trips_are_bit_equal(ours, tmp_path, target):
  path, _, _ = ours
  suffix = {'torchvision': '.safetensors', 'pth': '.pth', 'official': '.npz'}.get(target, '')
  convert.convert(str(path), tmp_path / f'w{suffix}', target, accept_loss=target == 'official')
  first = weights.open_source(path).arrays
  second = weights.open_source(tmp_path / f'w{suffix}').arrays
  assert first.keys() == second.keys()
  for name, entry in first.items():
    np.testing.assert_array_equal(second[name].load(), entry.load())


def wrong_heads(x, heads):
  return x.T.reshape(x.shape[1], -1, heads).swapaxes(1, 2)


def test_a_wrong_mapping_is_caught(tmp_path, monkeypatch):
  """Heads interleaved, the grid transposed, the query's bias dropped: each is far off."""
  model = make('timm', 'vit_tiny_patch16_224', num_classes=7)
  path = save(model, tmp_path / 'w')
  images = convert.pictures((224, 224), 3)
  expected = torch_logits(model, images)
  right = names.back

  def interleaved(kind, x, heads):
    return wrong_heads(x, heads) if kind == 'heads' else right(kind, x, heads)

  def transposed(kind, x, heads):
    return right(kind, x, heads).swapaxes(0, 1) if kind == 'conv' else right(kind, x, heads)

  def no_query_bias(kind, x, heads):
    return right(kind, x, heads) * (kind != 'heads bias')

  for wrong in (interleaved, transposed, no_query_bias):
    monkeypatch.setattr(names, 'back', wrong)
    given = predict.load(path)(images, ('logits',))['logits']
    assert distance(given, expected) > 100 * VIT_LIMIT
  monkeypatch.setattr(names, 'back', right)
  assert distance(predict.load(path)(images, ('logits',))['logits'], expected) < VIT_LIMIT


def test_hash_in_name():
  assert fetch.hash_in_name('https://x.org/vit_b_16-c867db91.pth') == 'c867db91'
  assert fetch.hash_in_name('https://x.org/vit_b_16.pth') is None


@pytest.mark.parametrize(
  'fit',
  [
    dict(fit='squash'), dict(fit='crop'), dict(fit='crop', resize_small=59),
    dict(fit='crop', resize_small=48, resize='bicubic'),
  ],
)  # fmt: skip
def test_timm_fits_a_picture_as_we_do(fit):
  """Its own evaluation transform, from what we write, against our preprocessing."""
  need('timm')
  from PIL import Image
  from timm.data import create_transform

  from vit_jax.data.preprocess import Preprocess
  from vit_jax.formats import configs

  ours = Preprocess(**(SEEN | fit))
  told = configs.timm_preprocess(ours)
  transform = create_transform(
    tuple(told['input_size']), interpolation=told['interpolation'], crop_pct=told['crop_pct'],
    crop_mode=told['crop_mode'], mean=told['mean'], std=told['std'],
  )  # fmt: skip
  y, x = np.mgrid[0:90, 0:131]
  picture = np.stack([x * 1.9, y * 2.8, 127 + 90 * np.sin(x * y / 400)], -1).astype(np.uint8)
  theirs = np.moveaxis(np.asarray(transform(Image.fromarray(picture))), 0, -1)
  given = np.asarray(ours.normalise(jnp.asarray(ours(picture)[None])))[0]
  assert np.abs(given - theirs).max() < 3 / 127  # Two grey levels: their filters round otherwise.


SEEN = dict(
  image_size=(48, 48), channels=3, fit='squash', resize_small=None, resize='bilinear',
  mean=(0.5,), std=(0.5,),
)  # fmt: skip
