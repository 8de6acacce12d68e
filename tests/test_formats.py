"""Weight files: every container and layout, what is refused, resampling, surgery, fine-tuning."""

import collections
import dataclasses
import io
import json
import pickle
import re
import sys
import types
import zipfile

from conftest import ROOT, SMALL
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
from peers import need
import pytest
import scipy.ndimage

from vit_jax import convert, defaults, experiment, models, predict, weights
from vit_jax.convert import __main__ as command
from vit_jax.convert import stablehlo
from vit_jax.data.preprocess import Preprocess
from vit_jax.formats import adapt, files, from_torch, holds, resample, swin
from vit_jax.formats import write as writing
from vit_jax.formats.files import Entry

SIZES = dict(variant='digits/16', image_size=(48, 48), channels=3, num_classes=5)
PIXELS = dict(mean=(0.5,), std=(0.5,), fit='squash', resize_small=None)


def passport_of(path):
  return weights.open_source(path).passport


def random_model(name='vit', **section):
  """A model, and random parameters as a flat dictionary."""
  known = defaults.part('model', name).to_dict()
  model = models.build(**(known | SIZES | section))
  rng = np.random.default_rng(0)
  return model, {
    key: rng.standard_normal(x.shape).astype(np.float32) * 0.1
    for key, x in models.shapes_of(model).items()
  }


def write(path, arrays):
  files.write_npz(path, {name: Entry.of(x) for name, x in arrays.items()})
  return path


@pytest.fixture
def official(tmp_path):
  model, arrays = random_model()
  return write(tmp_path / 'w.npz', arrays), model, arrays


def logits(path):
  predictor = predict.load(path)
  images = convert.pictures(predictor.model.image_size, predictor.model.channels)
  return predictor(images, ('logits',))['logits']


def test_official(official):
  path, model, arrays = official
  opened = weights.open_source(path)
  found, passport = opened.arrays, opened.passport
  assert found.keys() == arrays.keys()
  assert passport.model['variant'] == 'digits/16'
  assert passport.model['image_size'] == (48, 48)
  assert (passport.model['gelu'], passport.model['epsilon']) == ('tanh', 1e-6)
  params = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(arrays, sep='/'))
  expected, _ = model.apply({'params': params}, jnp.asarray(convert.pictures((48, 48), 3)))
  np.testing.assert_allclose(logits(path), expected, atol=1e-5)


def test_official_with_pre_logits(tmp_path):
  _, arrays = random_model(pre_logits=64)
  path = write(tmp_path / 'w.npz', arrays)
  assert passport_of(path).model['pre_logits'] == 64
  assert convert.inspect(str(path))['pre_logits'] == 64


@pytest.mark.parametrize('prefix', ['', 'params/', 'opt/target/', 'params/img/'])
@pytest.mark.parametrize('scanned', [False, True])
def test_big_vision(official, tmp_path, prefix, scanned):
  """Other numbers, blocks in one array, a position that the class token does not get."""
  path, _, arrays = official
  position = arrays['Transformer/posembed_input/pos_embedding']
  position[:, 0] = 0
  write(path, arrays)
  theirs = {}
  for name, x in arrays.items():
    for ours, others in (('MultiHeadDotProductAttention_1', 'MultiHeadDotProductAttention_0'),
                         ('LayerNorm_2', 'LayerNorm_1'), ('MlpBlock_3', 'MlpBlock_0')):  # fmt: skip
      name = name.replace(ours, others)
    theirs[name] = x
  theirs['pos_embedding'] = theirs.pop('Transformer/posembed_input/pos_embedding')[:, 1:]
  if scanned:
    names = {n.split('/', 2)[2] for n in theirs if 'encoderblock_' in n}
    for name in names:
      blocks = [theirs.pop(f'Transformer/encoderblock_{i}/{name}') for i in range(4)]
      theirs[f'Transformer/encoderblock/{name}'] = np.stack(blocks)
  theirs = {prefix + name: x for name, x in theirs.items()}
  if prefix == 'opt/target/':
    theirs['opt/state/step'] = np.zeros(())
  other = write(tmp_path / 'bv.npz', theirs)
  assert passport_of(other).origin['family'] == 'big_vision'
  np.testing.assert_array_equal(logits(other), logits(path))


@pytest.mark.parametrize(
  ('name', 'variant'),
  [
    ('hybrid', 'R+Ti/16'),
    ('hybrid', 'R5+digits/4'),
    ('hybrid', 'R20+cifar/4'),
    ('hybrid', 'R26+S/32'),
    ('bit', 'R50x1'),
    ('bit', 'R8x1'),
  ],
)
def test_resnets(tmp_path, name, variant):
  """Group norms as (1, 1, 1, C), TensorFlow's numbers in BiT's names."""
  _, arrays = random_model(name, variant=variant, image_size=(64, 64))
  if name == 'hybrid':
    arrays = {n: x[None, None, None] if '/gn' in f'/{n}' else x for n, x in arrays.items()}
  else:
    arrays = {
      f'resnet/{n}'.replace('a/standardized_conv2d', 'a/standardized_conv2d_7'): x
      for n, x in arrays.items()
    }
  path = write(tmp_path / 'w.npz', arrays)
  passport = passport_of(path)
  assert (passport.model['name'], passport.model['variant']) == (name, variant)
  assert np.isfinite(logits(path)).all()


@pytest.mark.parametrize(
  ('name', 'section'),
  [
    ('bit', {'variant': 'R8x1', 'root_kernel': 3}),
    ('hybrid', {'variant': 'R20+cifar/4'}),
  ],
)
@pytest.mark.parametrize('target', ['official', 'timm'])
def test_a_small_root_stays_here(tmp_path, name, section, target):
  """A file says so by its first kernel; what others know begins with 7 x 7 and a pool."""
  section = section | {'image_size': (16, 16)}
  _, arrays = random_model(name, **section)
  assert arrays[next(key for key in arrays if 'root' in key and 'kernel' in key)].shape[0] == 3
  weights.write_model(
    tmp_path / 'a', traverse_util.unflatten_dict(arrays, sep='/'), about(section, name)
  )
  expected = logits(tmp_path / 'a')
  with pytest.raises(ValueError, match=f'--to={target} would lose .*root'):
    convert.convert(tmp_path / 'a', tmp_path / 'b.safetensors', target)
  given = write(tmp_path / 'w.npz', arrays)
  known = passport_of(given).model
  assert (known.get('root_kernel', 3), known['variant']) == (3, section['variant'])
  if name == 'hybrid':  # The file does not tell the size of pictures of a BiT.
    np.testing.assert_allclose(logits(given), expected, atol=1e-5)


@pytest.mark.parametrize('kind', ['npz', 'safetensors'])
@pytest.mark.parametrize(
  'target', ['official', 'timm', pytest.param('pth', marks=pytest.mark.slow)]
)
def test_bfloat16_is_read_and_written_as_float32(tmp_path, kind, target):
  _, arrays = random_model(variant='mu/4', image_size=(8, 8))
  half = {name: x.astype(jnp.bfloat16) for name, x in arrays.items()}
  source = tmp_path / f'half.{kind}'
  if kind == 'npz':
    np.savez(source, **half)
  else:
    files.write_safetensors(source, {name: Entry.of(x) for name, x in half.items()}, {})
  if target == 'pth':
    need('torch')
  to = tmp_path / (TARGETS | {'pth': 'w.pth'})[target]
  convert.convert(source, to, target, accept_loss=True)
  opened = weights.open_source(to)
  assert {entry.dtype for entry in opened.arrays.values()} == {np.dtype(np.float32)}
  for name, x in opened.flat().items():
    np.testing.assert_array_equal(x, half[name].astype(np.float32), name)


def spoil(arrays, how):
  name = 'Transformer/encoderblock_3/MlpBlock_3/Dense_0/kernel'
  if how == 'missing':
    del arrays[name]
  elif how == 'extra':
    arrays['Transformer/encoderblock_3/ls1.gamma'] = np.ones(64, np.float32)
  else:
    arrays[name] = arrays[name][:, :-1]


@pytest.mark.parametrize(
  ('how', 'words'),
  [
    ('missing', ['MlpBlock_3/Dense_0/kernel', 'nothing']),
    ('extra', ['LayerScale', 'ls1.gamma']),
    ('shape', ['MlpBlock_3/Dense_0/kernel', '(64, 127)', '(64, 128)']),
  ],
)
def test_what_does_not_fit_is_named(official, tmp_path, how, words):
  path, _, arrays = official
  spoil(arrays, how)
  write(path, arrays)
  with pytest.raises(ValueError, match=r'w\.npz') as caught:
    convert.convert(str(path), tmp_path / 'out.safetensors', 'timm', False)
  for word in words:
    assert word in str(caught.value)
  assert not list(tmp_path.glob('out*'))


class Evil:
  def __reduce__(self):
    return print, ('this ran',)


def torch_zip(path, content):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', content)
    archive.writestr('archive/version', '3')


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
  torch_zip(tmp_path / 'a.pth', pickle.dumps({'x': Evil()}))
  with pytest.raises(ValueError, match=r'print.*could run code'):
    files.open_file(tmp_path / 'a.pth')
  (tmp_path / 'b.pth').write_bytes(pickle.dumps(collections.OrderedDict(x=Evil())))
  with pytest.raises(ValueError, match='could run code'):
    files.open_file(tmp_path / 'b.pth')
  np.savez(tmp_path / 'c.npz', x=np.array([Evil()], dtype=object))
  with pytest.raises(ValueError, match='Python objects'):
    files.open_file(tmp_path / 'c.npz')
  assert 'this ran' not in capsys.readouterr().out


class Rebuilt:
  """A tensor as torch pickles one, of any numbers."""

  def __init__(self, *place):
    self.place = place

  def __reduce__(self):
    return TORCH['_rebuild_tensor_v2'], (Stored(), *self.place, False, {})


class Stored:
  """The storage '0', of 20 floats."""


TORCH = {}


class TorchPickler(pickle.Pickler):
  def persistent_id(self, obj):
    return ('storage', TORCH['FloatStorage'], '0', 'cpu', 20) if isinstance(obj, Stored) else None


@pytest.fixture
def torch_names(monkeypatch):
  """Functions that pickle as torch's own, without torch."""
  for module, name in (('torch', 'FloatStorage'), ('torch._utils', '_rebuild_tensor_v2')):
    fake = type(name, (), {'__module__': module})
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: fake}))
    monkeypatch.setitem(TORCH, name, fake)


@pytest.mark.parametrize(
  ('name', 'place', 'words'),
  [
    ('w', (1, (3, 2), (6, 1)), None),
    ('w', (-4, (24,), (1,)), 'beyond'),
    ('w', (0, (21,), (1,)), 'beyond'),
    ('w', (19, (-5,), (1,)), 'beyond'),
    ('w', (19, (2,), (-1,)), 'beyond'),
    ('w', (-1, (0,), (1,)), 'beyond'),
    ('w', (0, (10**9, 10**9), (0, 0)), 'beyond'),
    ('w', (1.5, (2,), (1,)), 'damaged'),
    ('w', (0, ('2',), (1,)), 'damaged'),
    (5, (0, (2,), (1,)), 'damaged'),
  ],
)
def test_a_tensor_stays_within_its_storage(tmp_path, torch_names, name, place, words):
  """Also before its start: what lies there in memory is none of the file."""
  content = io.BytesIO()
  TorchPickler(content, 2).dump({name: Rebuilt(*place)})
  torch_zip(tmp_path / 'a.pth', content.getvalue())
  with zipfile.ZipFile(tmp_path / 'a.pth', 'a') as archive:
    archive.writestr('archive/data/0', np.arange(20, dtype=np.float32).tobytes())
  if words is None:
    found = files.open_file(tmp_path / 'a.pth')[name].load()
    np.testing.assert_array_equal(found, [[1, 2], [7, 8], [13, 14]])
    return
  with pytest.raises(ValueError, match=rf'a\.pth: .*{words}'):
    files.open_file(tmp_path / 'a.pth')


def test_an_entry_that_claims_too_much(official):
  """A header that asks for a terabyte is refused before memory is taken."""
  path, _, _ = official
  header = str({'descr': '<f4', 'fortran_order': False, 'shape': (2**20, 2**20)}).ljust(117) + '\n'
  with zipfile.ZipFile(path, 'a') as archive:
    content = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode()
    archive.writestr('huge.npy', content)
  with pytest.raises(ValueError, match=r'huge\.npy claims float32'):
    files.open_file(path)


@pytest.mark.parametrize('kind', ['npz', 'safetensors'])
def test_truncated_and_other_files(official, tmp_path, kind):
  path, _, _ = official
  if kind == 'safetensors':
    arrays = weights.open_source(path).arrays
    path = tmp_path / 'w.safetensors'
    files.write_safetensors(path, arrays, {})
  content = path.read_bytes()
  for size in (len(content) // 2, 20, 0):
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=path.name):
      predict.load(path)
  (tmp_path / 'words.txt').write_text('these are words')
  with pytest.raises(ValueError, match='no weight file'):
    predict.load(tmp_path / 'words.txt')


GRIDS = [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((14, 14), (7, 28)), ((16, 16), (13, 19))]


@pytest.mark.parametrize(('old', 'new'), GRIDS)
def test_positions_as_scipy(old, new):
  x = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 6)).astype(np.float32)
  given = resample.grid(x, old, new, 'official')
  zoom = (new[0] / old[0], new[1] / old[1], 1)
  expected = scipy.ndimage.zoom(x[0].reshape(*old, 6), zoom, order=1)
  np.testing.assert_allclose(given[0].reshape(*new, 6), expected, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), GRIDS)
@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_positions_as_torch(old, new, method):
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 6)).astype(np.float32)
  given = resample.grid(x, old, new, method)
  grid = torch.from_numpy(x.reshape(1, *old, 6)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    grid, size=new, mode=method, antialias=method == 'bicubic'
  )
  expected = expected[0].permute(1, 2, 0).numpy().reshape(1, -1, 6)
  np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), [(13, 23), (23, 13), (13, 13), (3, 1)])
def test_tables_of_offsets_as_torch(old, new):
  """As the official Swin moves to another window: without antialiasing, the border repeated."""
  torch = pytest.importorskip('torch')
  table = np.random.default_rng(0).standard_normal((old**2, 3)).astype(np.float32)
  given = resample.offsets(table, new**2)
  grid = torch.from_numpy(table.reshape(1, old, old, 3)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(grid, size=(new, new), mode='bicubic')
  expected = expected[0].permute(1, 2, 0).numpy().reshape(-1, 3)
  np.testing.assert_allclose(given, expected, atol=1e-5)


def test_kernels_for_other_channels():
  """A grey picture gives the same through the sum, a constant one through a multiple."""
  kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 8)).astype(np.float32)
  grey = resample.channels(kernel, 1)
  np.testing.assert_allclose(grey[:, :, 0], kernel.sum(2), atol=1e-6)
  np.testing.assert_allclose(resample.channels(kernel, 6).sum(2), kernel.sum(2), atol=1e-5)
  np.testing.assert_allclose(resample.channels(kernel, 2)[:, :, 1], 1.5 * kernel[:, :, 1])
  assert resample.channels(kernel, 3) is kernel


def adapted(path, **section):
  opened = weights.open_source(path)
  known = defaults.part('model', 'vit').to_dict()
  model = models.build(**(known | SIZES | section))
  want, old = models.shapes_of(model), opened.passport.build()
  return adapt.adapt(opened.flat(), want, old, model, str(path), 'official')


@pytest.mark.parametrize(
  ('section', 'new', 'done'),
  [
    (dict(image_size=(64, 96)), [], '3 x 3 to 4 x 6'),
    (dict(channels=1), [], '3 channels to 1'),
    (dict(readout='mean', class_token=False), [], 'class token and its position are left out'),
    (dict(readout='patch', patch_index=5), [], 'new: -'),
    (dict(readout='weighted_add'), ['readout/weights'], 'new: readout/weights'),
    (dict(pre_logits=32), ['head/kernel', 'pre_logits/bias', 'pre_logits/kernel'], 'pre_logits'),
    (dict(num_classes=3), ['head/bias', 'head/kernel'], 'dropped: head/bias, head/kernel'),
  ],
)
def test_surgery(official, section, new, done):
  path, _, arrays = official
  given, words = adapted(path, **section)
  assert done in '; '.join(words)
  assert words[-1] == f'new: {", ".join(new) or "-"}'
  untouched = 'Transformer/encoderblock_2/MlpBlock_3/Dense_0/kernel'
  np.testing.assert_array_equal(given[untouched], arrays[untouched])


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_flipped_bytes_are_refused_by_name(tmp_path, save):
  """Any byte of an archive may be wrong: what is no array any more is one line with the file."""
  path, rng = tmp_path / 'w.npz', np.random.default_rng(0)
  save(path, a=rng.standard_normal((3, 2)).astype(np.float32))
  content, said = path.read_bytes(), []
  for place in range(len(content)):
    path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
    try:
      [entry.load() for entry in files.open_file(path).values()]
    except ValueError as error:
      said.append(str(error))
  assert said and all('w.npz' in line for line in said)


@pytest.mark.parametrize(
  ('name', 'text', 'words'),
  [
    ('config.json', '[3]', 'holds a list instead of an object'),
    ('config.json', '{"a": ', 'is damaged'),
    ('preprocessor_config.json', '"x"', 'holds a str instead'),
    ('model.safetensors.index.json', '[]', 'holds a list instead'),
    ('model.safetensors.index.json', '{}', 'has no weight_map'),
    ('model.safetensors.index.json', '{"weight_map": {"a": 1}}', 'has no weight_map'),
    ('preprocessor_config.json', '{"image_mean": 3}', 'says image_mean=3, which is not a list of'),
    ('preprocessor_config.json', '{"image_std": []}', r'says image_std=\[\], which is not a list'),
    ('config.json', '{"num_attention_heads": "12"}', "says num_attention_heads='12', which is not"),
    ('config.json', '{"num_attention_heads": 0}', 'says num_attention_heads=0, which is not a'),
    ('config.json', '{"image_size": {"height": 8}}', 'says image_size=.*not a side in pixels'),
    ('config.json', '{"layer_norm_eps": "small"}', 'says layer_norm_eps=.*not a number'),
    ('config.json', '{"layer_norm_eps": NaN}', 'says layer_norm_eps=nan, which is not a number'),
    ('config.json', '{"hidden_act": ["gelu"]}', 'says hidden_act=.*not a word'),
    ('config.json', '{"id2label": {"cat": "0"}}', 'says id2label=.*not an object with'),
    ('config.json', '{"id2label": {"0": 3}}', 'says id2label=.*not an object with'),
    ('config.json', '{"pretrained_cfg": {}, "label_names": "x"}', 'says label_names=.*not a list'),
    ('preprocessor_config.json', '{"size": {"shortest_edge": "9"}}', 'says size=.*not a side'),
    ('preprocessor_config.json', '{"crop_size": [0]}', r'says crop_size=.*not a side'),
    ('preprocessor_config.json', '{"resample": 5}', 'says resample=5, which is not a number of'),
    ('preprocessor_config.json', '{"do_center_crop": "no"}', 'says do_center_crop=.*true or false'),
    ('config.json', '{"problem_type": 3}', 'says problem_type=3, which is not a word'),
    ('config.json', '{"model_args": [3]}', 'says model_args=.*not an object'),
    ('config.json', '{"model_args": {"num_heads": true}}', 'says num_heads=True, which is not'),
    ('config.json', '{"pretrained_cfg": {"input_size": [3, 8]}}', 'says input_size=.*not channels'),
    ('config.json', '{"pretrained_cfg": {"crop_pct": "all"}}', 'says crop_pct=.*not a number'),
  ],
)
def test_damaged_settings_are_named(tmp_path, name, text, words):
  files.write_safetensors(tmp_path / 'model.safetensors', {'a': Entry.of(np.zeros(3))}, {})
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=rf'{re.escape(name)} {words}'):
    weights.open_source(tmp_path)


def exported(tmp_path, target, section, **about_it):
  """A folder for `target` of a small random ViT; its config.json can be changed."""
  section = dict(gelu='exact') | section
  _, arrays = random_model(**section)
  passport = dataclasses.replace(about(section, 'vit'), **about_it)
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'a', tree, passport)
  convert.convert(tmp_path / 'a', tmp_path / target, target)
  return tmp_path / target


def change(path, **keys):
  """Writes keys of a JSON file; None leaves one out."""
  content = json.loads(path.read_text()) | keys
  path.write_text(json.dumps({key: x for key, x in content.items() if x is not None}))


@pytest.mark.parametrize('image_size', [(32, 64), (112, 128), (64, 32)])
def test_a_folder_of_timm_that_leaves_out_the_patches_is_not_square(tmp_path, image_size):
  """7 x 8 patches and a class token are 57; 14 x 16 would make 225 = 15 * 15, 2 x 4 make 9."""
  folder = exported(tmp_path, 'timm', dict(image_size=image_size))
  config = json.loads((folder / 'config.json').read_text())
  del config['model_args']['patch_size']
  change(folder / 'config.json', model_args=config['model_args'])
  assert passport_of(folder).model['image_size'] == image_size
  np.testing.assert_array_equal(logits(folder), logits(tmp_path / 'a'))


@pytest.mark.parametrize(('size', 'shorter'), [((96, 96), 106), ((32, 32), 35)])
def test_the_crop_of_timm_is_of_what_the_model_sees(tmp_path, size, shorter):
  """Arguments may make a 384 of an architecture that was pre-trained at 224."""
  folder = exported(tmp_path, 'timm', dict(image_size=size))
  config = json.loads((folder / 'config.json').read_text())
  seen = config['pretrained_cfg'] | dict(
    input_size=[3, 64, 64], crop_pct=0.9, crop_mode='center'
  )  # fmt: skip
  change(folder / 'config.json', pretrained_cfg=seen)
  given = passport_of(folder).preprocess
  assert (given.image_size, given.fit, given.resize_small) == (size, 'crop', shorter)


def test_heads_may_be_written_into_a_config_of_timm(tmp_path):
  """As the error asks, where no size that has a name tells them."""
  folder = exported(tmp_path, 'timm', dict(width=24, num_heads=6, mlp_dim=40))
  config = json.loads((folder / 'config.json').read_text())
  del config['model_args']['num_heads']
  change(folder / 'config.json', model_args=config['model_args'])
  with pytest.raises(ValueError, match=r'write \{"num_attention_heads": N\} into a config\.json'):
    weights.open_source(folder)
  change(folder / 'config.json', num_attention_heads=6)
  np.testing.assert_array_equal(logits(folder), logits(tmp_path / 'a'))


def test_sigmoids_stay_sigmoids(tmp_path):
  """Hugging Face's settings say so; a folder of timm cannot, and loses them by consent alone."""
  folder = exported(tmp_path, 'huggingface', {}, predictions='sigmoid')
  config = json.loads((folder / 'config.json').read_text())
  assert config['problem_type'] == 'multi_label_classification'
  assert passport_of(folder).predictions == 'sigmoid'
  change(folder / 'config.json', problem_type=None)
  assert passport_of(folder).predictions == 'softmax'
  with pytest.raises(ValueError, match="would lose predictions='sigmoid'"):
    convert.convert(tmp_path / 'a', tmp_path / 'timm', 'timm')
  convert.convert(tmp_path / 'a', tmp_path / 'one.safetensors', 'timm')
  assert passport_of(tmp_path / 'one.safetensors').predictions == 'sigmoid'


@pytest.mark.parametrize(
  ('keys', 'expected'),
  [
    (dict(do_center_crop=True, size={'height': 48, 'width': 48},
          crop_size={'height': 48, 'width': 48}), dict(fit='squash')),
    (dict(do_center_crop=True, size={'height': 60, 'width': 64}),
     dict(fit='crop', resize_small=60)),
    (dict(do_center_crop=True, size=56), dict(fit='crop', resize_small=56)),
    (dict(do_center_crop=True, size=None), dict(fit='crop', resize_small=None)),
    (dict(do_normalize=False), dict(mean=(0.0,), std=(1.0,))),
    (dict(do_normalize=False, image_mean=None, image_std=None, resample=3),
     dict(mean=(0.0,), std=(1.0,), resize='bicubic')),
    (dict(resample=1), dict(resize='lanczos')),
  ],
)  # fmt: skip
def test_a_preprocessor_is_taken_at_its_word(tmp_path, keys, expected):
  folder = exported(tmp_path, 'huggingface', {})
  change(folder / 'preprocessor_config.json', **keys)
  given = passport_of(folder).preprocess
  assert {key: getattr(given, key) for key in expected} == expected


def test_a_mean_without_deviation_is_refused(tmp_path):
  folder = exported(tmp_path, 'huggingface', {})
  change(folder / 'preprocessor_config.json', image_std=None)
  with pytest.raises(ValueError, match='image_mean without image_std'):
    weights.open_source(folder)


def test_large_vits_of_torchvision_are_seen_as_swag_has_them(tmp_path):
  section = dict(variant='mu/32', gelu='exact', epsilon=1e-6)
  for side, expected in ((384, ('bicubic', 384)), (224, ('bilinear', None))):
    _, arrays = random_model(image_size=(side, side), **section)
    passport = about(section | {'image_size': (side, side)})
    weights.write_model(
      tmp_path / f'{side}', traverse_util.unflatten_dict(arrays, sep='/'), passport
    )
    convert.convert(tmp_path / f'{side}', tmp_path / f'{side}.safetensors', 'torchvision')
    (tmp_path / f'{side}.safetensors.json').unlink()
    given = passport_of(tmp_path / f'{side}.safetensors')
    assert (given.preprocess.resize, given.preprocess.resize_small) == expected
    assert any('SWAG' in note for note in given.origin['notes']) == (side == 384)


@pytest.mark.parametrize(
  ('name', 'variant', 'shorter'),
  [
    ('swin', 'T/4', 232), ('swin', 'S/4', 246), ('swin', 'B/4', 238), ('swin', 'L/4', None),
    ('vit', 'L/16', 242), ('vit', 'L/32', None), ('vit', 'B/16', None),
  ],
)  # fmt: skip
def test_each_model_of_torchvision_is_cropped_as_there(name, variant, shorter):
  """The side that its own transforms resize to before 224 are cut out; None: 256."""
  section = defaults.part('model', name).to_dict() | {'variant': variant, 'gelu': 'exact'}
  model = models.build(**section, image_size=(224, 224), channels=3, num_classes=5)
  arrays = {key: Entry.of(np.broadcast_to(np.float32(0), x.shape))
            for key, x in models.shapes_of(model).items()}  # fmt: skip
  theirs = holds.renamed('torchvision', arrays, name)
  if name == 'swin':
    found = swin.open_weights(theirs, {})
  else:
    found = from_torch.open_weights(theirs, {}, models.vit.SIZES)
  assert (found.preprocess['fit'], found.preprocess['resize_small']) == ('crop', shorter)


def test_heads_that_do_not_divide_are_refused(tmp_path):
  section = dict(variant='digits/16', gelu='exact')
  _, arrays = random_model(**section)
  weights.write_model(
    tmp_path / 'a', traverse_util.unflatten_dict(arrays, sep='/'), about(section, 'vit')
  )
  convert.convert(str(tmp_path / 'a'), tmp_path / 'b', 'huggingface')
  config = json.loads((tmp_path / 'b/config.json').read_text()) | {'num_attention_heads': 3}
  (tmp_path / 'b/config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='3 heads, which do not divide its width of 64'):
    weights.open_source(tmp_path / 'b')


def test_a_class_token_is_added(tmp_path):
  _, arrays = random_model(readout='mean', class_token=False)
  path = write(tmp_path / 'w.npz', arrays)
  assert passport_of(path).model['readout'] == 'mean'
  given, words = adapted(path)
  position = given['Transformer/posembed_input/pos_embedding']
  assert not position[:, 0].any()
  np.testing.assert_array_equal(position[:, 1:], arrays['Transformer/posembed_input/pos_embedding'])
  assert 'a class token is added' in '; '.join(words)


@pytest.mark.parametrize(
  ('target', 'section', 'words'),
  [
    ('torchvision', {}, ["gelu='tanh'"]),
    ('timm', dict(pre_logits=8), ['pre_logits=8']),
    ('huggingface', dict(readout='weighted_add'), ["readout='weighted_add'"]),
    ('official', dict(image_size=(48, 64)), ['takes squares']),
    ('official', dict(epsilon=1e-12), ['epsilon=1e-12']),
  ],
)
def test_what_a_target_cannot_hold_is_refused(tmp_path, target, section, words):
  model, arrays = random_model(**section)
  passport = about(section)
  weights.write_model(tmp_path / 'm', traverse_util.unflatten_dict(arrays, sep='/'), passport)
  with pytest.raises(ValueError, match='would lose') as caught:
    convert.convert(str(tmp_path / 'm'), tmp_path / 'out', target, False)
  for word in words:
    assert word in str(caught.value)
  assert not (tmp_path / 'out').exists()
  assert model.num_classes == 5


def test_an_export_replaces_one_of_its_kind_alone(tmp_path):
  """What another target left there would be taken for the new one."""
  section = dict(variant='mu/4', image_size=(8, 8))
  _, arrays = random_model(**section)
  for name, scale in (('a', 1.0), ('b', 2.0)):
    tree = traverse_util.unflatten_dict({n: x * scale for n, x in arrays.items()}, sep='/')
    weights.write_model(tmp_path / name, tree, about(section))
  a, b, to = (tmp_path / name for name in ('a', 'b', 'to'))
  convert.convert(a, to, 'vit_jax')
  with pytest.raises(ValueError, match=r'other things.*weights\.npz'):
    convert.convert(b, to, 'huggingface')
  for name in ('weights.npz.partial', 'partial.npz', 'partial.npz.partial'):
    (to / name).write_text('what an export that was killed left')
  convert.convert(b, to, 'vit_jax')
  head = weights.open_source(to).arrays['head/kernel'].load()
  np.testing.assert_array_equal(head, 2 * arrays['head/kernel'])
  for target, place, words in [
    ('vit_jax', a, 'itself lies'), ('official', a / 'weights.npz', 'itself lies'),
    ('official', a, 'itself lies'), ('official', to, 'writes a file'),
    ('timm', b / 'model.json', 'writes a folder'),
  ]:  # fmt: skip
    with pytest.raises(ValueError, match=words):
      convert.convert(a / 'weights.npz' if target == 'official' else a, place, target)
  convert.convert(a, tmp_path / 'hub', 'huggingface')
  before = (tmp_path / 'hub/model.safetensors').read_bytes()
  for place, target in (('hub/.', 'timm'), ('hub/model.safetensors', 'timm'),
                        ('hub/config.json', 'official')):  # fmt: skip
    with pytest.raises(ValueError, match='itself lies'):
      convert.convert(tmp_path / 'hub', tmp_path / place, target)
  assert (tmp_path / 'hub/model.safetensors').read_bytes() == before
  (tmp_path / 'hub/model.safetensors.new.partial').write_text('as above')
  convert.convert(b, tmp_path / 'hub', 'huggingface')


def test_a_file_that_no_export_wrote_stays(tmp_path):
  section = dict(variant='mu/4', image_size=(8, 8))
  _, arrays = random_model(**section)
  tree = traverse_util.unflatten_dict({**arrays}, sep='/')
  weights.write_model(tmp_path / 'a', tree, about(section))
  files = {'thesis.txt': 'mine', 'notes.npz.json': '{"mine": 1}', 'list.npz.json': '[]'}
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  for name in ('thesis.txt', 'notes.npz', 'list.npz'):
    with pytest.raises(ValueError, match=name):
      convert.convert(tmp_path / 'a', tmp_path / name, 'official')
  for name, text in files.items():
    assert (tmp_path / name).read_text() == text
  to = tmp_path / 'w.safetensors'
  convert.convert(tmp_path / 'a', to, 'timm')
  with pytest.raises(ValueError, match='an export for timm'):
    convert.convert(tmp_path / 'a', to, 'official')
  before = to.read_bytes()
  to.write_text('cut short')
  convert.convert(tmp_path / 'a', to, 'timm')
  assert to.read_bytes() == before
  content = json.loads((tmp_path / 'w.safetensors.json').read_text())
  del content['target']
  (tmp_path / 'w.safetensors.json').write_text(json.dumps(content))  # As before 1.4.1.
  convert.convert(tmp_path / 'a', to, 'timm')
  to.unlink()
  convert.convert(tmp_path / 'a', to, 'timm')


@pytest.mark.parametrize(
  ('target', 'name', 'settings'),
  [('official', 'w.npz', 'w.npz.json'), ('huggingface', 'hf', 'hf/config.json')],
)
def test_a_crash_leaves_no_old_settings_beside_new_arrays(
  tmp_path, monkeypatch, target, name, settings
):
  section = dict(variant='mu/4', image_size=(8, 8), gelu='tanh')
  model, arrays = random_model(**section)
  passport, to = about(section), tmp_path / name
  own = {n: Entry.of(x) for n, x in arrays.items()}
  write = lambda given: writing.write(target, given, passport, model.sizes(), to)  # noqa: E731
  write(own)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}

  def broken():
    raise OSError('no space left')

  with pytest.raises(OSError, match='no space left'):
    write(own | {'cls': own['cls']._replace(load=broken)})
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
  monkeypatch.setattr(writing.atomic, 'write_text', lambda *_: broken())
  with pytest.raises(OSError, match='no space left'):
    write({n: Entry.of(2 * x) for n, x in arrays.items()})
  assert not (tmp_path / settings).exists()


@pytest.mark.parametrize('changed', [1.0, np.nan, 1.01])
def test_check_ends_in_an_error_above_its_limit(tmp_path, capsys, monkeypatch, changed):
  section = dict(variant='mu/4', image_size=(8, 8))
  _, arrays = random_model(**section)
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'a', tree, about(section))
  right = files.write_npz

  def wrong(path, given):
    head = Entry.of(changed * arrays['head/kernel'])
    right(path, given | {'head/kernel': head})

  monkeypatch.setitem(writing.WRITERS, 'official', wrong)
  words = [str(tmp_path / 'a'), str(tmp_path / 'b.npz'), '--to=official', '--check']
  if changed == 1:
    command.main(words)
  else:
    with pytest.raises(SystemExit, match=r'error: .* logits is off by (nan|\d\.\de-\d+) .* 1e-03'):
      command.main(words)
  assert 'logits' in capsys.readouterr().out


def test_a_program_that_lies_beside_weights_is_not_run(tmp_path):
  section = dict(variant='mu/4', image_size=(8, 8))
  _, arrays = random_model(**section)
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'a', tree, about(section))
  convert.convert(tmp_path / 'a', tmp_path / 'to', 'huggingface')
  (tmp_path / 'to/load.py').write_text('raise SystemError')
  rows = convert.check(tmp_path / 'a', tmp_path / 'to')
  assert max(row['difference'] for row in rows) == 0


def about(section, name='vit'):
  known = models.complete(defaults.part('model', name).to_dict() | SIZES | section)
  seen = {'image_size': known['image_size'], 'channels': known['channels'], 'resize': 'bilinear'}
  return weights.Passport.from_json({
    'format': 1, 'model': known, 'class_names': list('abcde'),
    'preprocess': seen | PIXELS,
  })  # fmt: skip


def test_stablehlo_runs_with_jax_and_numpy_alone(trained, tmp_path, monkeypatch):
  convert.convert(str(trained), tmp_path / 'out', 'stablehlo', False)
  rows = convert.check(str(trained), tmp_path / 'out')
  assert rows[0]['difference'] < 1e-5
  loader = (tmp_path / 'out/load.py').read_text()
  assert 'vit_jax' not in loader
  assert len(loader.splitlines()) <= 15
  (tmp_path / 'out/__pycache__').mkdir()  # Of an import of load.py.
  assert convert.check(str(trained), tmp_path / 'out') == rows
  convert.convert(str(trained), tmp_path / 'out', 'stablehlo')
  monkeypatch.setattr(stablehlo, 'export', lambda *_: types.SimpleNamespace())
  with pytest.raises(AttributeError):  # A crash between new weights and a new program
    convert.convert(trained, tmp_path / 'out', 'stablehlo')
  assert not (tmp_path / 'out/load.py').exists()  # leaves nothing that runs.


# The smallest model of each family, beside pictures of 16 x 16 in colour.
SMALLEST = {
  'vit': {'variant': 'mu/4'},
  'deit': {'variant': 'mu/4-distilled'},
  'hybrid': {'variant': 'R5+digits/4', 'image_size': (32, 32)},
  'axial': {'variant': 'mu/4'},
  'swin': {'variant': 'digits/2', 'window': 3},
  'bit': {'variant': 'R8x1'},
  'axial_resnet': {'variant': 'R8x1'},
  'sasa': {'variant': 'digits', 'kernel': 3},
  'cordonnier': {'variant': 'digits/2'},
  'igpt': {'variant': 'mu', 'clusters': 9, 'image_size': (4, 4)},
}


@pytest.mark.parametrize(
  'name',
  [x if x in ('swin', 'igpt') else pytest.param(x, marks=pytest.mark.slow) for x in models.MODELS],
)
def test_stablehlo_of_every_family_takes_any_batch(name):
  section = {'image_size': (16, 16)} | SMALLEST[name]
  _, arrays = random_model(name, **section)
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  exported = stablehlo.export(predict.Predictor(tree, about(section, name)), arrays)
  (logits,) = exported.out_avals
  assert not isinstance(logits.shape[0], int) and logits.shape[1] == 5


def test_the_command(quick, trained, tmp_path):
  out = tmp_path / 'hf'
  done = quick(
    trained, out, '--to=huggingface', '--check', '--json', module='vit_jax.convert', cwd=tmp_path
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert {row['place'] for row in rows} >= {'patches', 'block_0/tokens', 'logits'}
  assert max(row['difference'] for row in rows) == 0
  done = quick('--inspect', out, '--json', module='vit_jax.convert', cwd=tmp_path)
  found = json.loads(done.stdout)
  assert (found['family'], found['grid'], found['classes']) == ('huggingface', [2, 2], 10)
  done = quick(out, ROOT / 'notebooks/first_run.png', '--json', module='vit_jax.predict')
  assert len(json.loads(done.stdout)['predictions']) > 1
  done = quick('--inspect', tmp_path / 'nothing', module='vit_jax.convert')
  assert (done.returncode, 'does not exist' in done.stderr) == (1, True)


@pytest.mark.parametrize('target', ['timm', 'huggingface'])
def test_settings_come_back_from_a_folder(trained, tmp_path, target):
  """tanh GELU, two heads and names are in the folder's config, not in its arrays."""
  convert.convert(str(trained), tmp_path / 'out', target, False)
  rows = convert.check(str(trained), tmp_path / 'out')
  assert max(row['difference'] for row in rows) == 0
  assert passport_of(tmp_path / 'out').class_names == list('0123456789')


def test_the_weights_of_a_run_know_their_passport(tmp_path):
  """The file alone: what it was trained with stands in model.json beside it."""
  _, arrays = random_model(gelu='exact')
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'model', tree, about({'gelu': 'exact'}))
  assert passport_of(tmp_path / 'model/weights.npz').model['gelu'] == 'exact'


def test_weights_of_ours_alone_say_what_arrays_can_say(tmp_path):
  _, arrays = random_model(embedding_norm=True, readout='attention_pool')
  model = passport_of(write(tmp_path / 'w.npz', arrays)).model
  assert (model['embedding_norm'], model['readout']) == (True, 'attention_pool')


def test_an_all_zero_head_reports_no_accuracy(quick, tmp_path, trained):
  params, passport = weights.load(trained)
  params['head'] = jax.tree.map(np.zeros_like, params['head'])
  weights.write_model(tmp_path / 'w/model', params, passport)
  recipe = f'--config={ROOT}/configs/vit_digits.py'
  words = [word for word in SMALL if 'model' in word]
  done = quick(recipe, *words, f'--workdir={tmp_path / "w"}', '--mode=evaluate')
  assert done.returncode == 1
  assert 'head is all zero' in done.stderr
  assert convert.inspect(str(tmp_path / 'w'))['head'] == 'all zero'


def test_fine_tuning_from_a_file_of_others(quick, trained, tmp_path):
  """Size, GELU, epsilon and pixel values come with the weights; the grid changes on the way."""
  convert.convert(str(trained), tmp_path / 'hf', 'huggingface', False)
  recipe = f'--config={ROOT}/configs/finetune.py'
  words = ('--config.total_steps=2', '--config.batch_size=16', '--config.optimizer.train=last:1')
  done = quick(
    recipe, f'--workdir={tmp_path / "w"}', f'--config.init_from={tmp_path / "hf"}', *words
  )
  assert done.returncode == 0, done.stderr
  assert 'positions: 2 x 2 to 4 x 4, official' in done.stderr
  passport = passport_of(tmp_path / 'w')
  assert passport.model['variant'].endswith('/4')
  assert passport.model['image_size'] == (16, 16)


# Models that train here, small, and by target a word of what it would lose of them.
TARGETS = {
  'official': 'w.npz', 'timm': 'w', 'timm file': 'w.safetensors', 'torchvision': 'w.safetensors',
  'huggingface': 'w', 'vit_jax': 'w',
}  # fmt: skip
NO_SUCH = dict.fromkeys(('official', 'timm', 'timm file', 'torchvision', 'huggingface'))
HELD = {
  'plain': ('vit', {}, {}),
  'norm': ('vit', dict(embedding_norm=True), dict.fromkeys(NO_SUCH, 'embedding_norm=True')),
  'grid': ('vit', dict(image_size=(8, 16)), dict.fromkeys(('official', 'torchvision'), 'squares')),
  'mean': (
    'vit', dict(readout='mean', class_token=False),
    dict.fromkeys(('torchvision', 'huggingface'), 'class_token=False'),
  ),
  'pre_logits': (
    'vit', dict(pre_logits=8),
    dict.fromkeys(('timm', 'timm file', 'huggingface'), 'pre_logits=8'),
  ),
  'no bias': (
    'vit', dict(qkv_bias=False), dict.fromkeys(('official', 'torchvision'), 'qkv_bias=False')
  ),
  'scale': ('vit', dict(qk_scale=0.3), dict.fromkeys(NO_SUCH, 'qk_scale=0.3')),
  'softmax': (
    'vit', dict(readout='weighted_add', readout_weights='softmax'),
    dict.fromkeys(NO_SUCH, "readout='weighted_add'"),
  ),
  'pool': ('vit', dict(readout='attention_pool'), dict.fromkeys(NO_SUCH, 'attention_pool')),
  'sizes': ('vit', dict(width=24, depth=2, num_heads=6, mlp_dim=40), {}),
  'hybrid': (
    'hybrid',
    dict(variant='R+Ti/16', image_size=(64, 64), width=24, depth=1, num_heads=3, mlp_dim=40),
    {'timm': 'not a folder', 'torchvision': 'no hybrid', 'huggingface': 'no hybrid'},
  ),
  'bit': (
    'bit', dict(variant='R50x1', image_size=(32, 32)),
    {'timm': 'not a folder', 'torchvision': 'no bit', 'huggingface': 'no bit'},
  ),
}  # fmt: skip


def as_target(target, name):
  """What a target always has, so that the case's own setting alone decides."""
  if name == 'bit':
    return {}
  torch = target.startswith('timm')
  resnet = dict(
    standardise='timm' if torch else 'official', group_norm_epsilon=1e-5 if torch else 1e-6
  )
  gelu = {'gelu': 'tanh' if target == 'official' else 'exact'}
  return gelu | (resnet if name == 'hybrid' else {})


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize(
  'case', [pytest.param(x, marks=pytest.mark.slow) if x == 'bit' else x for x in HELD]
)
def test_every_model_and_every_target(tmp_path, case, target):
  """Written and read with the same logits and settings, or refused in a line with the reason."""
  name, section, lost = HELD[case]
  section = dict(variant='mu/4', image_size=(8, 8)) | section | as_target(target, name)
  passport, to = about(section, name), tmp_path / TARGETS[target]
  _, arrays = random_model(name, **section)
  source = tmp_path / 'source'
  weights.write_model(source, traverse_util.unflatten_dict(arrays, sep='/'), passport)
  if target in lost:
    with pytest.raises(ValueError, match=re.escape(lost[target])) as caught:
      convert.convert(str(source), to, target.split()[0], False)
    assert '\n' not in str(caught.value)
    assert not to.exists()
    return
  convert.convert(str(source), to, target.split()[0], False)
  given, built = passport_of(to).model, passport.build()
  assert (passport_of(to).build().sizes(), passport_of(to).build().grid) == (
    built.sizes(),
    built.grid,
  )
  np.testing.assert_array_equal(logits(to), logits(source))
  assert convert.inspect(str(to))['grid'] == list(built.grid)
  for key in models.MODELS[name].OFFICIAL.keys() - {'variant', 'patch_index', 'readout_weights'}:
    assert given[key] == passport.model[key], key
  started = start_from(to, name, passport.model)
  for key in models.MODELS[name].OFFICIAL.keys() - {'variant'}:
    assert started.passport.model[key] == given[key], key


def start_from(path, name, model):
  """A run that starts from a file, on digits of its size; its weights are adapted."""
  config = defaults.complete(defaults.get_config(), {'model': name})
  config.init_from, config.data.channels = str(path), model['channels']
  config.data.image_size = model['image_size']
  config.batch_size = 16
  built = experiment.build(config)
  want, old = models.shapes_of(built.model), built.source.passport.build()
  given, _ = adapt.adapt(built.source.flat(), want, old, built.model, str(path), 'official')
  assert 'head/kernel' in want or name == 'bit'
  assert len(given) >= len(want) - 4
  return built


def test_a_family_that_nobody_else_knows(monkeypatch, tmp_path):
  """Only our own format takes it; the rest says so."""
  monkeypatch.delitem(holds.HOLDERS, 'vit')
  _, arrays = random_model()
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'a', tree, about({}))
  with pytest.raises(ValueError, match=r'timm has no vit.*--to may be vit_jax, stablehlo'):
    convert.convert(str(tmp_path / 'a'), tmp_path / 'b', 'timm', True)
  convert.convert(str(tmp_path / 'a'), tmp_path / 'b', 'vit_jax', False)
  np.testing.assert_array_equal(logits(tmp_path / 'b'), logits(tmp_path / 'a'))


@pytest.mark.parametrize(
  'fit', [dict(fit='squash'), dict(fit='crop', resize_small=59), dict(fit='crop')]
)
def test_preprocessing_travels_through_a_folder_of_timm(tmp_path, fit):
  _, arrays = random_model()
  passport = about({})
  seen = dataclasses.replace(passport.preprocess, resize='lanczos', mean=(0.1, 0.2, 0.3), **fit)
  passport = dataclasses.replace(passport, preprocess=seen)
  weights.write_model(tmp_path / 'a', traverse_util.unflatten_dict(arrays, sep='/'), passport)
  convert.convert(str(tmp_path / 'a'), tmp_path / 'timm', 'timm', False)
  given = passport_of(tmp_path / 'timm').preprocess
  small = seen.resize_small or (55 if seen.fit == 'crop' else None)
  assert given == dataclasses.replace(seen, resize_small=small, std=(0.5,) * 3)


@pytest.mark.parametrize(
  ('target', 'seen', 'words'),
  [
    ('timm', dict(resize='linear'), "resize='linear': timm has 'bilinear'"),
    ('huggingface', dict(resize='linear'), "resize='linear': huggingface has 'bilinear'"),
    ('huggingface', dict(fit='crop'), "fit='crop' of 32 x 48: huggingface resizes the shorter"),
    ('timm', dict(fit='crop'), None),
  ],
)
def test_what_settings_cannot_say_of_pictures_is_a_loss(tmp_path, target, seen, words):
  """A file has its passport, which says it."""
  section = dict(gelu='exact', image_size=(32, 48))
  passport = about(section)
  passport = dataclasses.replace(
    passport, preprocess=dataclasses.replace(passport.preprocess, **seen)
  )
  sizes = passport.build().sizes()
  if words is None:
    return writing.check(target, passport, sizes, tmp_path / 'to', False)
  with pytest.raises(ValueError, match=f'would lose .*{words}'):
    writing.check(target, passport, sizes, tmp_path / 'to', False)
  writing.check(target, passport, sizes, tmp_path / 'to', True)
  return writing.check('timm', passport, sizes, tmp_path / 'to.safetensors', False)


@pytest.mark.parametrize(
  ('name', 'variant', 'readout', 'labels'),
  [
    ('vit', 'digits/16', 'class_token', list('vwxyz')),
    ('deit', 'digits/16-distilled', 'class_and_distillation', dict(enumerate('vwxyz'))),
  ],
)
def test_a_folder_of_timm_without_arguments(tmp_path, name, variant, readout, labels):
  """timm writes `model_args` only where they differ; what was seen and said stands elsewhere."""
  section = dict(variant=variant, gelu='exact')
  _, arrays = random_model(name, **section)
  passport = about(section, name)
  seen = dataclasses.replace(passport.preprocess, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
  passport = dataclasses.replace(passport, preprocess=seen)
  weights.write_model(tmp_path / 'a', traverse_util.unflatten_dict(arrays, sep='/'), passport)
  convert.convert(tmp_path / 'a', tmp_path / 'timm', 'timm')
  config = json.loads((tmp_path / 'timm/config.json').read_text())
  del config['model_args']
  (tmp_path / 'timm/config.json').write_text(json.dumps(config | {'label_names': labels}))
  given = passport_of(tmp_path / 'timm')
  assert (given.preprocess, given.class_names) == (seen, list('vwxyz'))
  assert given.readout == readout


def test_a_bit_of_timm_is_seen_as_its_settings_say(tmp_path):
  section = dict(variant='R8x1', image_size=(32, 32), standardise='timm')
  _, arrays = random_model('bit', **section)
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'a', tree, about(section, 'bit'))
  convert.convert(tmp_path / 'a', tmp_path / 'b/model.safetensors', 'timm')
  (tmp_path / 'b/model.safetensors.json').unlink()
  seen = dict(
    input_size=[3, 48, 48], interpolation='bicubic', crop_pct=0.8, mean=[0.1] * 3, std=[0.2] * 3
  )
  config = {'architecture': 'resnetv2', 'label_names': list('vwxyz'), 'pretrained_cfg': seen}
  (tmp_path / 'b/config.json').write_text(json.dumps(config))
  given = passport_of(tmp_path / 'b')
  assert given.preprocess == Preprocess(
    (48, 48), 3, resize='bicubic', fit='crop', resize_small=60, mean=(0.1,) * 3, std=(0.2,) * 3
  )
  assert given.model['image_size'] == (48, 48) and given.class_names == list('vwxyz')


def test_pixel_values_that_nobody_says_are_called_a_guess(tmp_path):
  _, arrays = random_model(gelu='exact')
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(tmp_path / 'a', tree, about({'gelu': 'exact'}))
  convert.convert(tmp_path / 'a', tmp_path / 'b.safetensors', 'timm')
  assert not convert.inspect(tmp_path / 'b.safetensors')['notes']  # The passport knows.
  (tmp_path / 'b.safetensors.json').unlink()
  assert any(
    '0.5, are a guess' in note for note in convert.inspect(tmp_path / 'b.safetensors')['notes']
  )


def test_a_passport_that_cannot_be_read_is_named(tmp_path):
  _, arrays = random_model()
  folder, tree = tmp_path / 'm', traverse_util.unflatten_dict(arrays, sep='/')
  weights.write_model(folder, tree, about({}))
  path = folder / 'model.json'
  content = json.loads(path.read_text())
  spoiled = {
    'damaged': path.read_text()[:200],
    'format 2': json.dumps(content | {'format': 2}),
    'no model': json.dumps({'format': 1}),
    'no preprocess': json.dumps(content | {'preprocess': 3}),
    '1 class names for 5 logits': json.dumps(content | {'class_names': ['one']}),
    'instead of an object': '[]',
    'later version: future': json.dumps(content | {'model': content['model'] | {'future': 1}}),
    'preprocessing of a later version: tilt': json.dumps(
      content | {'preprocess': content['preprocess'] | {'tilt': 1}}
    ),
    'its model has no channels, image_size': json.dumps(
      content | {'model': {k: x for k, x in content['model'].items() if k not in
                           ('image_size', 'channels')}}
    ),
  }  # fmt: skip
  cases, words = [*spoiled.items()], 'no model that can be built .*: take the passport as it was'
  for wrong in ({'depth': 'two'}, {'variant': 5}, {'image_size': [None, 8]}):
    cases.append((words, json.dumps(content | {'model': content['model'] | wrong})))
  for words, text in cases:
    path.write_text(text)
    with pytest.raises(ValueError, match=rf'model\.json.*{words}') as caught:
      predict.load(folder)
    assert '\n' not in str(caught.value)


def test_weights_made_for_cudnn_load_here(tmp_path):
  """How a model was computed elsewhere is no part of its weights; an export never asks for it."""
  _, arrays = random_model()
  folder = tmp_path / 'm'
  weights.write_model(folder, traverse_util.unflatten_dict(arrays, sep='/'), about({}))
  content = json.loads((folder / 'model.json').read_text())
  content['model'] |= {'attention': 'cudnn', 'dtype': 'bfloat16'}
  (folder / 'model.json').write_text(json.dumps(content))
  assert np.isfinite(logits(folder)).all()
  predictor, asked = predict.load(folder), []
  build = weights.Passport.build
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      weights.Passport, 'build', lambda self, **how: (asked.append(how), build(self, **how))[1]
    )
    stablehlo.export(predictor, traverse_util.flatten_dict(predictor.params, sep='/'))
  assert asked == [{'attention': 'plain'}]
