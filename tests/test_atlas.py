"""The atlas: what is kept of attention and similarity, its size, the page itself, refusals."""

import json
import re
import shutil
import subprocess

import jax
import numpy as np
from PIL import Image
import pytest
from test_interpret import pixels, write

from vit_jax import models, predict
from vit_jax.interpret import __main__ as command
from vit_jax.interpret import atlas, factors, lens, pages, shares
from vit_jax.models import igpt

SMALL = dict(image_size=(16, 24), variant='mu/4', depth=3)
# As much of a browser as the script of the page touches.
BROWSER = """
const element = tag => ({ tag, children: [], dataset: {}, style: {}, attrs: {},
  append(...x) { this.children.push(...x); }, setAttribute(k, v) { this.attrs[k] = v; },
  querySelectorAll() { return this.children.filter(c => c.tag === 'button'); },
  getBoundingClientRect: () => ({ left: 0, top: 0, width: 100, height: 100 }),
  getContext: () => new Proxy({}, { get: (t, k) => t[k] === undefined ? () => {} : t[k] }) });
const made = {};
const document = { getElementById: id => made[id] ||= element(id), createElement: element };
const Image = function () { return Object.assign(element('img'), { complete: false }); };
const Option = function () { return element('option'); };
"""
ASK = """
const t = first + 7;
for (const view of shown) change({ view });
change({ view: 'attention', depth: 2, head: 1, token: t });
const answers = { shown, words: made.what.textContent, attention: [...values()] };
change({ view: 'similarity', depth: 3 });
answers.similarity = [...values()];
change({ view: 'norm' });
answers.norm = [...values()];
change({ view: 'lens' });
answers.lens = [...values()];
change({ view: 'readout', readout: data.readouts.indexOf('mean') });
answers.mean = [...values()];
answers.table = made.lens.innerHTML;
made.map.onkeydown({ key: 'ArrowRight', preventDefault() {} });
answers.moved = state.token - t;
made.map.onpointerdown({ clientX: 99, clientY: 1 });
answers.corner = state.token - first;
made.heads.onclick({ clientX: 99, clientY: 99 });
answers.head = [state.head, state.depth];
console.log(JSON.stringify(answers));
"""


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """A random ViT with a register, images, and the page of two of them."""
  root = tmp_path_factory.mktemp('atlas')
  predictor = predict.load(write(root / 'model', 'vit', registers=1, **SMALL))
  seen = pixels(predictor)
  for name, image in zip('ab', seen, strict=True):
    Image.fromarray(image).save(root / f'{name}.png')
  command.main(['atlas', str(root / 'model'), str(root), f'--out={root / "out"}', '--count=2'])
  return predictor, seen, (root / 'out/atlas.html').read_text()


def test_attention_is_kept_up_to_its_rank():
  weights = np.exp(2 * np.random.default_rng(0).standard_normal((2, 3, 9, 9)))
  weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
  errors = [factors.attention(weights, rank)[2] for rank in (1, 3, 9)]
  assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02
  small, scales, off = factors.attention(weights, 9)
  rebuilt = factors.restored(small, scales)
  assert off == pytest.approx(0.5 * np.abs(rebuilt - weights).sum(-1).mean(), abs=1e-4)
  # Attention that falls with the squared distance is a product of three numbers.
  places = np.arange(9)
  near = np.exp(-((places[:, None] - places) ** 2) / 9.0)
  near = (near / near.sum(-1, keepdims=True))[None, None].astype(np.float32)
  assert factors.attention(near, 3)[2] < 0.03


def test_directions_keep_cosines():
  rng = np.random.default_rng(0)
  tokens = rng.standard_normal((2, 10, 4)) * rng.random((2, 10, 1)) * 5
  small, off = factors.directions(tokens, 4)
  unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
  kept = small / 127.0
  np.testing.assert_allclose(kept @ kept.swapaxes(1, 2), unit @ unit.swapaxes(1, 2), atol=0.02)
  assert off < 0.01


def test_the_page_is_alone(page):
  """Nothing is fetched, everything has a name for those who do not see it."""
  _, _, text = page
  assert not re.search(r'(src|href)=["\'](?!data:)|https?://|url\(|import\(|fetch\(', text)
  assert '<meta name="viewport" content="width=device-width' in text and 'lang="en"' in text
  assert text.count('aria-') > 5 and 'onkeydown' in text and 'onpointerdown' in text
  assert pages.MARK not in text


def test_the_script_shows_what_the_model_computes(page):
  """Its numbers, computed by the page's own script, against the model's outputs."""
  node = shutil.which('node')
  if not node:
    pytest.skip('needs node')
  predictor, seen, text = page
  script = re.search(r'<script>(.*)</script>', text, re.DOTALL)
  done = subprocess.run(
    [node, '-e', BROWSER + script[1] + ASK], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  named = predictor(seen[:1], ('block_1/attention_weights', 'block_2/tokens', 'probabilities'))
  token = 2 + 7
  expected = named['block_1/attention_weights'][0, 1, token]
  np.testing.assert_allclose(found['attention'], expected, atol=0.02)
  last = named['block_2/tokens'][0]
  unit = last / np.linalg.norm(last, axis=-1, keepdims=True)
  np.testing.assert_allclose(found['similarity'], unit @ unit[token], atol=0.1)
  np.testing.assert_allclose(found['norm'], np.linalg.norm(last, axis=-1), rtol=2e-3)
  answer = named['probabilities'][0]
  assert found['lens'][0] == pytest.approx(answer.max(), abs=4e-3)
  np.testing.assert_allclose(found['mean'], [0, 0] + [1 / 24] * 24, atol=1e-4)
  assert found['table'].count('<tr') == 4 and 'cat' in found['table']
  assert found['shown'] == ['similarity', 'attention', 'norm', 'lens', 'readout']
  assert (found['moved'], found['corner'], found['head']) == (1, 5, [1, 3])
  assert 'class token' in found['words'] and 'register 1' in found['words']


def test_the_page_of_a_causal_model_shows_pixels_where_they_lie(tmp_path):
  """Its tokens read a start, then each pixel one place later."""
  node = shutil.which('node')
  if not node:
    pytest.skip('needs node')
  predictor = predict.load(write(tmp_path, 'igpt', (4, 6), variant='mu', clusters=9, depth=2))
  seen = pixels(predictor, 1)
  text = atlas.Atlas(predictor).page(seen, ['a'], 'model', 10.0)
  script = re.search(r'<script>(.*)</script>', text, re.DOTALL)
  ask = """
    change({ view: 'attention', depth: 1, head: 0, token: 23 });
    console.log(JSON.stringify([[...values()], made.what.textContent]));
  """
  done = subprocess.run(
    [node, '-e', BROWSER + script[1] + ask], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  shown, words = json.loads(done.stdout)
  name = 'block_0/attention_weights'
  expected = predictor(seen, (name,))[name][0, 0, -1]
  np.testing.assert_allclose(shown, [*expected[1:], 0], atol=0.02)
  assert words.endswith('What is missing of 1 goes to the start.')


def test_readouts_weigh_what_they_read(page):
  predictor, seen, _ = page
  named = predictor(seen, ('tokens',))
  tokens = named['tokens']
  found = {name: np.asarray(jax.jit(f)(predictor.params, named))
           for name, f in shares.weighed(predictor).items()}  # fmt: skip
  assert next(iter(found)) == 'class_token'
  np.testing.assert_array_equal(found['class_token'], np.eye(26)[[0, 0]])
  np.testing.assert_allclose(found['mean_all'], 1 / 26, rtol=1e-5)
  counts = np.bincount(tokens[0, 2:].argmax(0), minlength=24) / 32
  np.testing.assert_allclose(found['max'][0, 2:], counts, atol=1e-6)
  assert not any(name.startswith(('patch', 'weighted', 'attention')) for name in found)


@pytest.mark.parametrize('name', ['class_of_4', 'class_of_4_and_mean'])
def test_a_readout_of_several_blocks_weighs_its_own_tokens(tmp_path, name):
  """The class token of the last of four blocks has a fourth, or a fifth beside the mean."""
  section = dict(image_size=(8, 12), variant='mu/4', depth=4, registers=1)
  predictor = predict.load(write(tmp_path, 'vit', readout=name, **section))
  named = jax.jit(predictor.forward)(predictor.params, pixels(predictor))[1]
  weigh = shares.weighed(predictor)
  assert next(iter(weigh)) == name
  found = jax.jit(weigh[name])(predictor.params, named)
  of_patches = [1 / 5 / 6] * 6 if name.endswith('mean') else [0] * 6
  expected = [1 / (4 + name.endswith('mean')), 0, *of_patches]
  np.testing.assert_allclose(found, [expected] * 2, rtol=1e-5)


def test_what_does_not_fit_is_said(page, tmp_path):
  predictor, seen, _ = page
  for megabytes in (0.01, float('nan')):
    with pytest.raises(ValueError, match=r'2 images.* MB at least.*--megabytes='):
      atlas.Atlas(predictor).content(seen, ['a', 'b'], megabytes)
  folder = write(tmp_path / 'bit', 'bit', image_size=(32, 64), variant='R8x1')
  Image.fromarray(seen[0]).save(tmp_path / 'a.png')
  with pytest.raises(SystemExit, match='a bit has no blocks of tokens on one grid'):
    command.main(['atlas', str(folder), str(tmp_path / 'a.png'), f'--out={tmp_path / "out"}'])
  assert not (tmp_path / 'out').exists()


def test_without_a_norm_for_the_lens_the_page_has_none(tmp_path, monkeypatch):
  """The lens says so when it is made, so that the page is written without it."""
  predictor = predict.load(write(tmp_path, 'igpt', (4, 6), variant='mu', clusters=9))
  seen = pixels(predictor, 1)
  assert 'top' in atlas.Atlas(predictor).content(seen, ['a'], 10.0)['images'][0]
  monkeypatch.setattr(igpt.ImageGPT, 'normalise', models.Model.normalise)
  with pytest.raises(ValueError, match='a ImageGPT has no norm after its last block'):
    lens.lens(predictor, seen)
  found = atlas.Atlas(predictor).content(seen, ['a'], 10.0)
  assert found['classes'] == [] and 'top' not in found['images'][0]


def test_without_a_single_classifier_the_page_says_so(tmp_path):
  section = dict(variant='Ti/16-distilled', width=32, depth=1, num_heads=2)
  predictor = predict.load(write(tmp_path, 'deit', image_size=(48, 32), **section))
  found = atlas.Atlas(predictor).content(pixels(predictor, 1), ['a'], 10.0)
  assert found['classes'] == [] and 'top' not in found['images'][0]
  assert found['native'] == found['readouts'][0] == 'class_and_distillation'


@pytest.mark.slow
def test_images_of_a_vit_b_fit_half_a_megabyte_each(tmp_path):
  """12 blocks, 12 heads, 14 x 14 patches: 20 of them fit 10 MB, and 3 of them 1.5 MB."""
  section = dict(variant='B/16', width=96, mlp_dim=96)  # Its width is not in the page.
  predictor = predict.load(write(tmp_path / 'model', 'vit', image_size=(224, 224), **section))
  rng = np.random.default_rng(0)
  for i in range(3):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f'{i}.png')
  assert predictor.model.sizes()['depth'] == predictor.model.sizes()['num_heads'] == 12
  command.main(
    ['atlas', str(tmp_path / 'model'), str(tmp_path), f'--out={tmp_path}', '--megabytes=1.5']
  )
  text = (tmp_path / 'atlas.html').read_text()
  assert 1.2e6 < len(text) <= 1.5e6
  assert json.loads(re.search(r'"rank": (\d+)', text)[1]) == 4
