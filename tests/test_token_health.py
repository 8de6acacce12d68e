"""Health of tokens against NumPy, and pictures of it: lens, knock-outs, probes, the report."""

import dataclasses

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import pytest
from test_interpret import pixels, write

from vit_jax import data, figures, interpret, predict, weights
from vit_jax.evaluation import token_health, token_pictures
from vit_jax.explore import token_section
from vit_jax.interpret import knockouts, lens, token_probes

SMALL = dict(image_size=(16, 24), variant='mu/4', depth=3)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random ViT with two registers, and images."""
  folder = write(tmp_path_factory.mktemp('model'), 'vit', registers=2, layer_scale=0.5, **SMALL)
  predictor = predict.load(folder)
  return predictor, pixels(predictor, 5)


def depths(predictor, seen):
  names = ('embedded', *(f'block_{i}/tokens' for i in range(3)))
  found = predictor(seen, names)
  return [found[name].astype(np.float64) for name in names]


def test_measures_are_those_of_numpy(model):
  predictor, seen = model
  found = token_health.measure(predictor, seen, 1.2)
  tokens = depths(predictor, seen)
  np.testing.assert_allclose(found.norms, np.linalg.norm(tokens, axis=-1), rtol=1e-4)
  weights = predictor(seen, ('block_2/attention_weights',))['block_2/attention_weights'][:, :, 3:]
  expected = -(weights * np.log(weights)).sum(-1).mean(-1)
  np.testing.assert_allclose(found.entropy[2], expected, rtol=1e-4)
  for depth, x in enumerate(tokens):
    patches = x[:, 3:]
    unit = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    cosines = np.einsum('nad,nbd->nab', unit, unit)
    pairs = ~np.eye(patches.shape[1], dtype=bool)
    np.testing.assert_allclose(found.similarity[depth], cosines[:, pairs].mean(1), atol=1e-4)
    lengths = np.linalg.norm(patches, axis=-1)
    assert (found.outliers[depth] == (lengths > 1.2 * np.median(lengths))).mean() > 0.99
  places = np.unique(np.linspace(0, 23, 16).round().astype(int))
  rows = [x[:, 3:][:, places].reshape(-1, 32) for x in tokens]
  values = np.linalg.svd(rows[2])[1]
  share = values / values.sum() + 1e-7
  assert found.rank[2] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
  # CKA as a ratio of Hilbert-Schmidt criteria, over Gram matrices of rows.
  centre = np.eye(len(rows[0])) - 1 / len(rows[0])
  grams = [centre @ x @ x.T @ centre for x in rows]
  hsic = lambda a, b: (a * b).sum()  # noqa: E731
  ratio = hsic(grams[0], grams[3]) / np.sqrt(hsic(grams[0], grams[0]) * hsic(grams[3], grams[3]))
  assert found.cka[0, 3] == found.cka[3, 0] == pytest.approx(ratio, rel=1e-3)


def test_closed_forms():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((40, 8))
  turned = 3 * x @ np.linalg.qr(rng.standard_normal((8, 8)))[0] + 5
  assert token_health.linear_cka(x, turned) == pytest.approx(1)
  assert token_health.linear_cka(x, np.ones((40, 3))) == 0
  assert token_health.effective_rank(np.eye(6)) == pytest.approx(6, rel=1e-4)
  assert token_health.effective_rank(np.outer(x[:, 0], x[0])) == pytest.approx(1, rel=1e-3)
  uniform = jnp.full((1, 2, 5, 7), 1 / 7)
  np.testing.assert_allclose(token_health.entropy(uniform), np.log(7), rtol=1e-6)
  one = jnp.zeros((1, 2, 5, 7)).at[..., 3].set(1)
  np.testing.assert_array_equal(token_health.entropy(one), 0)
  same = jnp.ones((1, 5, 3))
  np.testing.assert_allclose(token_health.similarity(same), 1, rtol=1e-6)
  norms = np.ones((1, 2, 10))
  norms[0, 1, 4] = 3.1
  assert np.argwhere(token_health.outliers(norms, 3.0)).tolist() == [[0, 1, 4]]
  assert not token_health.outliers(100 * np.ones((1, 2, 10)), 3.0).any()


def test_the_lens_at_the_end_is_the_answer(model):
  """After the last block, the class token says what the model says; the rest is head(norm(h))."""
  predictor, seen = model
  (found, *_) = interpret.measure('lens', predictor, seen[:2])
  answer = predictor(seen[:1], ('probabilities',))['probabilities'][0]
  target = int(answer.argmax())
  assert found.arrays['probability'].shape == (4, 27)
  assert found.arrays['probability'][3, 0] == pytest.approx(answer[target], rel=1e-4)
  x = depths(predictor, seen[:1])[1][0]
  norm, head = predictor.params['Transformer']['encoder_norm'], predictor.params['head']
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  logits = (x * norm['scale'] + norm['bias']) @ head['kernel'] + head['bias']
  expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(found.arrays['probability'][1], expected[:, target], rtol=1e-3)
  agreement = (expected[3:].argmax(-1) == target).mean()
  assert found.numbers['agreement_of_patches'][1] == pytest.approx(agreement, abs=1e-4)


def test_the_lens_of_a_pooled_readout_sees_one_token_everywhere(tmp_path):
  predictor = predict.load(write(tmp_path, 'vit', readout='sum', **(SMALL | {'depth': 1})))
  seen = pixels(predictor, 1)
  found = interpret.measure('lens', predictor, seen)[0].arrays['probability'][1, 4]
  normed = predictor(seen, ('tokens',))['tokens'][0, 4] * 24
  logits = normed @ predictor.params['head']['kernel'] + predictor.params['head']['bias']
  share = np.exp(logits) / np.exp(logits).sum()
  assert np.abs(share - found).min() < 1e-3


def replaced_by_hand(predictor, seen, block, mask, values):
  """The answer of a model whose tokens before a block were replaced, through its own blocks."""
  model, params = predictor.model, jax.tree.map(jnp.asarray, predictor.params)
  x = jnp.where(mask, values, predictor(seen, ('block_0/tokens',))['block_0/tokens'])
  for i in range(block, 3):
    body = model.Transformer.blocks[i].clone(parent=None, name=None)
    own = {'params': params['Transformer'][f'encoderblock_{i}']}
    x, _ = jax.jit(lambda own, x, body=body: body.apply(own, x, False))(own, x)
  x = model.normalise(params, x)
  return model.apply({'params': params}, x, method='read')


def test_knock_outs_replace_what_they_say(model):
  """The share of answers that stay, against blocks run by hand on replaced tokens."""
  predictor, seen = model
  (found,) = interpret.measure('knockouts', predictor, seen, block=2, patches=3)
  x = predictor(seen, ('block_0/tokens',))['block_0/tokens']
  before = predictor(seen, ('logits', 'features'))
  for kind, rows in {'class_token': [0], 'registers': [1, 2]}.items():
    mask = np.isin(np.arange(27), rows)[None, :, None]
    for method, values in {
      'zero': np.zeros_like(x), 'mean': np.broadcast_to(x.mean(0), x.shape),
      'shuffle': np.roll(x, -1, axis=0),
    }.items():  # fmt: skip
      logits, named = replaced_by_hand(predictor, seen, 1, mask, values)
      same = (np.asarray(logits).argmax(-1) == before['logits'].argmax(-1)).mean()
      assert found.numbers['same_answer'][kind][method] == pytest.approx(same, abs=1e-4)
      a, b = np.asarray(named['features']), before['features']
      cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
      given = found.numbers['cosine_of_features'][kind][method]
      assert given == pytest.approx(cosine.mean(), abs=1e-3)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_the_probability_that_is_kept_is_the_models(model, kind):
  """Of a sigmoid head, softmax is no probability."""
  predictor, rng = model[0], np.random.default_rng(0)
  passport = dataclasses.replace(predictor.passport, predictions=kind)
  logits = rng.normal(0, 2, (2, 5, 3)).astype(np.float32)
  features = rng.normal(size=(2, 5, 8)).astype(np.float32)
  before, after = ((jnp.asarray(x), jnp.asarray(y)) for x, y in zip(logits, features, strict=True))
  found = knockouts.compare(predict.Predictor(predictor.params, passport), before, after)
  e = np.exp(logits)
  shares = e / e.sum(-1, keepdims=True) if kind == 'softmax' else e / (1 + e)
  answer = logits[0].argmax(-1)
  expected = [share[np.arange(5), answer] for share in shares]
  np.testing.assert_allclose(found['kept'], expected[1] / expected[0], rtol=1e-5)
  np.testing.assert_array_equal(found['same'], logits[1].argmax(-1) == answer)


def test_masks_of_patches_are_apart():
  norms = jnp.asarray(np.random.default_rng(0).random((4, 13)))
  kinds = knockouts.kinds_of(('class_token', 'register_1', 'register_2'))
  assert kinds == ['class_token', 'registers', 'largest_patches', 'random_patches']
  prefix = ('class_token', 'register_1', 'register_2')
  found = np.asarray(knockouts.masks(prefix, norms, 2, jax.random.key(0)))
  assert found.shape == (4, 4, 13)
  assert found[0].sum(0).tolist() == [4] + [0] * 12
  assert found[1].sum(0).tolist() == [0, 4, 4] + [0] * 10
  for row, mask in zip(np.asarray(norms), found[2], strict=True):
    assert {*np.flatnonzero(mask)} == {*(np.argsort(row[3:])[-2:] + 3)}
  assert (found[3].sum(1) == 2).all() and not (found[2] & found[3]).any()


def test_probes_read_the_tokens_that_they_name(model):
  predictor, seen = model
  read = token_probes.reader(predictor, 0)
  found = predictor.measure(seen, read)
  x = predictor(seen, ('tokens', 'block_2/tokens'))
  norms = np.linalg.norm(x['block_2/tokens'][:, 3:], axis=-1)
  for i in range(5):
    largest = norms[i].argmax()
    np.testing.assert_allclose(found['largest_patch'][i], x['tokens'][i, 3 + largest], atol=1e-4)
    others = np.abs(x['tokens'][i, 3:] - found['random_patch'][i]).max(-1)
    assert others.argmin() != largest and others.min() < 1e-4
  np.testing.assert_allclose(found['register_2'], x['tokens'][:, 2], atol=1e-4)
  np.testing.assert_allclose(found['ratio'], norms.max(1) / np.median(norms, 1), rtol=1e-4)


def test_probes_of_a_run(trained):
  (found,) = interpret.measure('token_probes', predict.load(trained), examples=200)
  rows = found.numbers['probes']
  assert [*rows] == ['class_token', 'largest_patch', 'random_patch', 'mean_of_patches']
  assert rows['mean_of_patches']['accuracy'] > 0.2  # Chance is 0.1.
  assert found.numbers['n_test'] == 200
  figure = interpret.draw('token_probes', [found])
  assert len(figure.get_axes() or figure.subfigs[0].get_axes()) == 1


def test_probes_need_no_head_but_the_classes_of_their_data(trained):
  params, passport = weights.load(trained)
  other = dataclasses.replace(passport, class_names=[*'abcdefghij'])
  with pytest.raises(ValueError, match=r'tells 10 classes \(a, b'):
    interpret.measure('token_probes', predict.Predictor(params, other), examples=20)
  tokens = {key: value for key, value in params.items() if key != 'head'}
  bare = dataclasses.replace(passport, class_names=[], model=passport.model | {'num_classes': 0})
  headless = predict.Predictor(tokens, bare)
  (found,) = interpret.measure('token_probes', headless, examples=20)
  assert found.numbers['n_test'] == 20
  with pytest.raises(ValueError, match='these weights know of no classes'):
    interpret.measure('shift', headless)


def test_the_report_has_a_section(trained, tmp_path):
  predictor = predict.load(trained)
  dataset = data.build(**small_config().data)
  heading, text, picture = token_section.health(tmp_path, predictor, dataset)
  assert heading.text == 'Are the tokens healthy?'
  assert 'outlier' in text.text and 'effective rank' in text.text
  assert picture.path.exists()


def test_outliers_are_drawn_where_they_are():
  norms = np.ones((3, 2, 7))
  norms[1, :, 4] = 9.0
  health = token_health.Health(
    ('class_token',), (2, 3), norms, 3.0, np.ones((3, 2)), None, np.ones(3), np.eye(3), 8
  )
  assert token_pictures.widest(health) == 1
  assert health.summary()['outliers'] == pytest.approx([0, 1 / 6, 0], abs=1e-4)
  assert 'after block 1 are outliers' in token_section.in_words(health)
  figure = figures.blank(*token_pictures.SIZE)
  token_pictures.draw(figure, health)
  shown = figure.axes[1].images[0].get_array()
  assert np.argmax(shown) == 3  # The fourth patch: token 4 behind the class token.


def test_two_answers_or_none_have_no_lens(tmp_path):
  headless = write(tmp_path / 'a', 'vit', readout='none', **(SMALL | {'depth': 1}))
  predictor = predict.load(headless)
  with pytest.raises(ValueError, match='one answer an image'):
    lens.lens(predictor, pixels(predictor, 1))
