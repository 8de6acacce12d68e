"""Swin: published counts, windows by hand, reach by gradient, files of others both ways."""

import json

from conftest import small_config
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
from peers import need
import pytest

import vit_jax
from vit_jax import defaults, models, train, weights
from vit_jax.convert import check_theirs, convert
from vit_jax.formats import holds
from vit_jax.formats import swin as formats
from vit_jax.formats.files import Entry
from vit_jax.models import swin, windows

# arXiv:2103.14030 and the official code, at 1,000 and 21,841 classes; 10^9 multiply-adds (the
# paper's FLOPs) of table 1 and of the official README.
PUBLISHED = {
  ('T/4', 224, 7): (28_288_354, 44_315_083, 4.5),
  ('S/4', 224, 7): (49_606_258, 65_632_987, 8.7),
  ('B/4', 224, 7): (87_768_224, 109_130_249, 15.4),
  ('L/4', 224, 7): (196_532_476, 228_565_093, 34.5),
  ('B/4', 384, 12): (87_903_584, None, 47.1),
  ('L/4', 384, 12): (196_735_516, None, 103.9),
}


def build(image_size=(16, 16), num_classes=5, channels=3, **section):
  normal = defaults.part('model', 'swin').to_dict()
  section = normal | {'variant': 'digits/1', 'window': 4} | section
  return models.build(**section, image_size=image_size, channels=channels, num_classes=num_classes)


def shapes(model):
  return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


def initial(model, seed=0):
  return jax.jit(models.init, static_argnums=0)(model, jax.random.key(seed))


def drawn(model, seed=0):
  leaves, tree = jax.tree.flatten(initial(model, seed))
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return jax.tree.unflatten(
    tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  )


@pytest.mark.parametrize('key', PUBLISHED)
def test_published_counts(key):
  """Parameters exactly; multiply-adds to the digits of table 1."""
  variant, side, window = key
  for classes, expected in zip((1000, 21_841), PUBLISHED[key][:2], strict=True):
    if expected:
      model = build((side, side), classes, variant=variant, window=window)
      assert sum(x.size for x in jax.tree.leaves(shapes(model))) == expected
  billions = sum(build((side, side), 1000, variant=variant, window=window).multiply_adds().values())
  assert billions / 1e9 == pytest.approx(PUBLISHED[key][2], rel=0.01)


@pytest.mark.parametrize('grid', [(8, 8), (7, 10), (4, 9), (3, 3)])
@pytest.mark.parametrize('shifted', [False, True])
def test_windows_are_cut_and_joined(grid, shifted):
  found = windows.Windows.of(grid, 4, shifted)
  x = jax.random.normal(jax.random.key(0), (2, *grid, 3))
  cut = found.cut(x)
  assert cut.shape == (2 * found.count[0] * found.count[1], found.size[0] * found.size[1], 3)
  np.testing.assert_array_equal(found.join(cut), x)
  assert all(shift == 0 for side, shift in zip(grid, found.shift, strict=True) if side <= 4)


def test_the_mask_is_the_official_one():
  """Regions of the rolled map from three slices an axis, as in Swin's code."""
  found = windows.Windows.of((8, 12), 4, True)
  regions = np.zeros((8, 12), int)
  cuts = (slice(0, -4), slice(-4, -2), slice(-2, None))
  for i, rows in enumerate(cuts):
    for j, columns in enumerate(cuts):
      regions[rows, columns] = 3 * i + j
  cells = regions.reshape(2, 4, 3, 4).swapaxes(1, 2).reshape(6, 16)
  np.testing.assert_array_equal(found.apart(), cells[:, :, None] != cells[:, None])
  offsets = found.offsets()
  for query in range(16):
    for key in range(16):
      (yq, xq), (yk, xk) = divmod(query, 4), divmod(key, 4)
      assert offsets[query, key] == (yq - yk + 3) * 7 + xq - xk + 3


def reach(block, params, grid, place):
  """Which tokens of the map the output at a place depends on."""
  x = jax.random.normal(jax.random.key(0), (1, grid[0] * grid[1], 32))
  index = place[0] * grid[1] + place[1]

  def total(x):
    return (block.apply({'params': params}, x, False)[0][0, index] * jnp.arange(1.0, 33)).sum()

  return (np.abs(jax.jit(jax.grad(total))(x))[0].max(-1) > 1e-9).reshape(grid)


def test_a_window_is_seen_and_two_blocks_connect_neighbours():
  model = build((8, 8))
  params = drawn(model)['stage_0']
  first, second = model.stages[0].blocks
  seen = reach(first, params['block_0'], (8, 8), (1, 6))
  expected = np.zeros((8, 8), bool)
  expected[:4, 4:] = True
  np.testing.assert_array_equal(seen, expected)
  shifted = reach(second, params['block_1'], (8, 8), (3, 3))
  expected = np.zeros((8, 8), bool)
  expected[2:6, 2:6] = True  # Across the borders of the first block's windows.
  np.testing.assert_array_equal(shifted, expected)
  corner = reach(second, params['block_1'], (8, 8), (0, 7))
  expected = np.zeros((8, 8), bool)
  expected[:2, 6:] = True  # What the roll brought into the same window stays apart.
  np.testing.assert_array_equal(corner, expected)


def test_attention_in_a_window_by_hand():
  found = windows.Windows.of((4, 4), 4, False)
  layer = windows.WindowAttention(2, windows=found)
  x = jax.random.normal(jax.random.key(0), (1, 16, 8))
  params = layer.init(jax.random.key(1), x, False)['params']
  params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape), params)
  y, weights = layer.apply({'params': params}, x, False)
  q, k, v = (
    np.einsum('td,dhe->hte', x[0], params[n]['kernel']) + params[n]['bias'][:, None]
    for n in ('query', 'key', 'value')
  )
  table = np.asarray(params['relative_position_bias_table'])
  logits = np.einsum('hte,hse->hts', q, k) / 2 + table[found.offsets()].transpose(2, 0, 1)
  share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(weights[0, 0], share, atol=1e-5)
  mixed = np.einsum('hts,hse->the', share, v)
  out = np.einsum('the,hed->td', mixed, params['out']['kernel']) + params['out']['bias']
  np.testing.assert_allclose(y[0], out, atol=1e-5)


@pytest.mark.parametrize('size', [(16, 16), (13, 22), (3, 5)])
def test_any_size_is_filled_up(size):
  model = build(size)
  apply = jax.jit(lambda params, x: model.apply({'params': params}, x))
  logits, outputs = apply(initial(model), jnp.ones((2, *size, 3)))
  assert logits.shape == (2, 5) and outputs['tokens'].shape[1:3] == model.grid
  maps = swin.grids(size, 1, 2)
  assert [outputs[f'stage_{i}'].shape[1:3] for i in range(2)] == maps
  assert [outputs[f'block_{i}/tokens'].shape[1:3] for i in (1, 2)] == maps
  filled = [w for w in maps if any(side > 4 and side % 4 for side in w)]
  assert all(f'{h} x {w}' in model.summary().partition('filled up')[2] for h, w in filled)
  assert bool(filled) == ('filled up' in model.summary())
  for i in range(4):
    seen = np.asarray(model.attention_map(outputs, i))
    height, width = model.attention_grid(i)
    assert seen.shape == (2, (2, 4)[i // 2], height * width, height * width)
    np.testing.assert_allclose(seen.sum(-1), 1, rtol=1e-5)


def test_computing_again_is_the_same():
  rates = dict(drop_path=0.5, attention_dropout=0.1)
  params, x = drawn(build()), jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
  key = {'dropout': jax.random.key(4)}

  def loss(remat):
    def total(p):
      return (
        build(remat=remat, **rates).apply({'params': p}, x, train=True, rngs=key)[0] ** 2
      ).sum()

    return jax.jit(jax.value_and_grad(total))(params)

  plain = jax.tree.leaves(loss('none'))
  for remat in ('attention', 'dots', 'blocks'):
    for a, b in zip(plain, jax.tree.leaves(loss(remat)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def run_config(**overrides):
  return small_config(
    model__name='swin', model__variant='digits/1', model__window=4, data__validation_fraction=0.2,
    optimizer__schedule='constant',
    **overrides,
  )  # fmt: skip


def test_it_trains_resumes_is_judged_and_moves_to_another_window(tmp_path):
  train.train(run_config(), tmp_path / 'whole')
  train.train(run_config(total_steps=2), tmp_path / 'cut')
  train.train(run_config(), tmp_path / 'cut')
  a, b = (weights.open_source(tmp_path / name).flat() for name in ('whole', 'cut'))
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
  assert train.evaluate(run_config(), tmp_path / 'whole')['n_examples'] == 360
  tuned = small_config(model__name='swin', model__window=6, data__image_size=(14, 14),
                       init_from=str(tmp_path / 'whole'), total_steps=1)  # fmt: skip
  train.train(tuned, tmp_path / 'tuned')
  table = 'stage_0/block_0/MultiHeadDotProductAttention_1/relative_position_bias_table'
  assert weights.open_source(tmp_path / 'tuned').flat()[table].shape == (121, 2)


@pytest.mark.parametrize(
  ('section', 'words'),
  [
    (dict(variant='X/4'), "did you mean '.*/4'"),
    (dict(window=0), 'window=0'),
    (dict(drop_path=1.0), r'drop_path=1\.0'),
    (dict(remat='dot'), "did you mean 'dots'"),
  ],
)
def test_what_cannot_be_is_refused(section, words):
  with pytest.raises(ValueError, match=words):
    build(**section)


def peer_of(library):
  """A Swin-T of another library with random weights, in evaluation."""
  module, torch = need('transformers' if library == 'huggingface' else library), need('torch')
  torch.manual_seed(0)
  if library == 'timm':
    model = module.create_model('swin_tiny_patch4_window7_224', num_classes=11)
  elif library == 'torchvision':
    model = module.models.swin_t(num_classes=11)
  else:
    model = module.SwinForImageClassification(module.SwinConfig(num_labels=11))
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.05)
  return model.eval()


def files_of(model, library, folder):
  """A peer's weights as its users have them, and their arrays by name."""
  from safetensors.torch import load_file
  import torch

  if library == 'huggingface':
    model.save_pretrained(folder)
    return folder, load_file(folder / 'model.safetensors')
  torch.save(model.state_dict(), folder / 'theirs.pth')
  return folder / 'theirs.pth', model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize('library', ['timm', 'torchvision', 'huggingface'])
def test_the_same_logits_as_others_both_ways(library, tmp_path):
  model = peer_of(library)
  from safetensors.torch import load_file
  import torch

  path, theirs = files_of(model, library, tmp_path)
  ours = vit_jax.load(path)
  assert ours.passport.model['variant'] == 'T/4' and ours.passport.model['window'] == 7
  x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
  with torch.no_grad():
    expected = model(torch.from_numpy(x).permute(0, 3, 1, 2))
  expected = (expected.logits if library == 'huggingface' else expected).numpy()
  found = ours(x, ('logits',))['logits']
  np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
  to = tmp_path / ('back' if library == 'huggingface' else 'back.safetensors')
  convert(str(path), to, library, False)
  back = load_file(to / 'model.safetensors' if to.is_dir() else to)
  for name, value in back.items():
    torch.testing.assert_close(value, theirs[name], msg=name)
  assert {*theirs} - {*back} <= {name for name in theirs if 'index' in name or 'mask' in name}
  assert all(row['difference'] < 1e-4 for row in check_theirs(path, to, library))


@pytest.mark.slow
def test_the_official_file_and_a_folder_of_timm(tmp_path):
  """Names of the official code, which timm renames; a Swin of other sizes for timm."""
  need('timm')
  import torch

  train.train(run_config(data__image_size=(32, 24)), tmp_path / 'run')
  convert(str(tmp_path / 'run'), tmp_path / 'timm', 'timm', False)
  assert check_theirs(tmp_path / 'run', tmp_path / 'timm', 'timm')[0]['difference'] < 1e-4
  convert(str(tmp_path / 'run'), tmp_path / 'official.pth', 'pth', False)
  names = torch.load(tmp_path / 'official.pth', weights_only=True)
  assert 'layers.0.downsample.reduction.weight' in names and 'head.weight' in names
  difference = check_theirs(tmp_path / 'run', tmp_path / 'official.pth', 'pth')[0]['difference']
  assert difference < 1e-4


def test_grey_pictures_without_a_passport(tmp_path):
  """The mean of RGB that is known of such files is averaged, and said."""
  train.train(run_config(total_steps=1), tmp_path / 'run')
  convert(str(tmp_path / 'run'), tmp_path / 'a.safetensors', 'timm', False)
  (tmp_path / 'a.safetensors.json').unlink()
  (tmp_path / 'config.json').write_text('{"image_size": [8, 8]}')
  found = vit_jax.load(tmp_path / 'a.safetensors').passport
  assert found.model['channels'] == 1 and found.model['image_size'] == (8, 8)
  assert found.preprocess.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
  assert 'averaged' in found.origin['notes'][0]


def test_a_file_without_its_first_kernel_is_refused():
  flat = traverse_util.flatten_dict(shapes(build()), sep='/')
  entries = {name: Entry.of(np.zeros(x.shape, np.float32)) for name, x in flat.items()}
  theirs = formats.renamed('timm', entries)
  assert formats.open_weights(theirs, {}).model['width'] == 32
  del theirs['patch_embed.proj.weight']
  with pytest.raises(ValueError, match=r'missing.*embedding/kernel'):
    formats.open_weights(theirs, {})


def test_what_others_cannot_hold_is_said(tmp_path):
  train.train(run_config(total_steps=1, data__image_size=(6, 8)), tmp_path / 'run')
  for target, words in (
    ('torchvision', 'smaller than a window'), ('huggingface', 'smaller than'),
    ('official', 'to=pth'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=words):
      convert(str(tmp_path / 'run'), tmp_path / 'to', target, False)
  assert not (tmp_path / 'to').exists()


@pytest.mark.parametrize('target', ['timm', 'torchvision', 'official', 'huggingface'])
def test_a_border_that_patches_do_not_fill_is_said(target):
  """Only Hugging Face's fills it up as ours; the others' convolution rounds down."""
  section = models.complete({**defaults.part('model', 'swin'), 'name': 'swin', 'variant': 'T/4'})
  for size, lost in (((224, 224), False), ((226, 224), target != 'huggingface')):
    model = section | {'image_size': size}
    found = holds.HOLDERS['swin'].losses(target, model, {})
    assert any('cuts off the border' in words for words in found) == lost
    assert len(found) == lost


def test_a_page_of_sizes():
  found = build((32, 24)).sizes()
  assert json.loads(json.dumps(found)) == found and found['depth'] == 4
