"""Losses by hand-made numbers; what mixing, erasing and a teacher do to them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives import classification, distillation, mixing

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
LABELS = jnp.array([0, 2])


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_softmax(smoothing):
  log = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(1, keepdims=True))
  targets = np.eye(3)[[0, 2]] * (1 - smoothing) + smoothing / 3
  soft = classification.soft_labels(LABELS, 3, smoothing)
  np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
  given = classification.against(LOGITS, soft, 'softmax')
  np.testing.assert_allclose(given, -(targets * log).sum(1), rtol=1e-6)


def test_sigmoid():
  p = 1 / (1 + np.exp(-np.asarray(LOGITS)))
  targets = np.eye(3)[[0, 2]]
  expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1)
  given = classification.cross_entropy(LOGITS, LABELS, 'sigmoid')
  np.testing.assert_allclose(given, expected, rtol=1e-5)


class Sum(nn.Module):
  """Logits that are linear in the picture, so that mixtures can be followed by hand."""

  heads: tuple[str, ...] = ()
  log_probabilities: bool = False
  num_classes: int = 3

  @nn.compact
  def __call__(self, images, *, train):
    logits = images.sum((1, 2))
    return logits, {f'logits_{name}': logits * (i + 1) for i, name in enumerate(self.heads)}


def batch_of(rng, size=6, side=8):
  images = jnp.asarray(rng.integers(0, 256, (size, side, side, 3)), jnp.float32)
  return {'image': images, 'label': jnp.arange(size) % 3, 'weight': jnp.ones(size)}


@pytest.mark.parametrize(
  'section', [dict(mixup=0.2), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0)]
)
def test_pictures_and_labels_are_mixed_alike(section):
  batch, before = batch_of(np.random.default_rng(0)), [5, 0, 1, 2, 3, 4]
  images, labels = np.asarray(batch['image']), np.asarray(batch['label'])
  objective = classification.Classification(
    Sum(), lambda x: x / 255, label_smoothing=0.1, **section
  )
  whole = np.eye(3)[labels] * 0.9 + 0.1 / 3
  for seed in range(20):
    keys = {name: jax.random.key(seed) for name in ('mixup', 'erasing')}
    mixed, targets = objective.apply({}, batch, keys, method='examples')
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    share = (float(targets[0, 0]) - whole[5, 0]) / (whole[0, 0] - whole[5, 0])  # Of other classes.
    np.testing.assert_allclose(targets, share * whole + (1 - share) * whole[before], atol=1e-5)
    mean = share * images + (1 - share) * images[before]
    own, partner = mixed == images, mixed == images[before]
    if section.get('cutmix') and (own | partner).all():  # Labels have the share of pixels.
      assert np.isclose(own.all(-1).mean(), share, atol=0.02)
    else:
      assert section.get('mixup')
      np.testing.assert_allclose(mixed, mean, atol=0.05)


def test_the_loss_is_that_of_the_examples():
  batch = batch_of(np.random.default_rng(1))
  objective = classification.Classification(Sum(), lambda x: x / 255, mixup=0.8, cutmix=1.0)
  rngs = {name: jax.random.key(3) for name in ('mixup', 'erasing')}
  loss, _ = objective.apply({}, batch, {}, train=True, rngs=rngs)

  def examples(module, batch):
    return module.examples(batch, {name: module.make_rng(name) for name in ('mixup', 'erasing')})

  mixed, targets = objective.apply({}, batch, rngs=rngs, method=examples)
  log = jax.nn.log_softmax((mixed / 255).sum((1, 2)))
  np.testing.assert_allclose(loss, -(targets * log).sum(1).mean(), rtol=1e-5)
  assert not np.array_equal(mixed, batch['image'])
  plain = classification.Classification(Sum(), lambda x: x / 255)
  assert objective.apply({}, batch, {}, train=False) == plain.apply({}, batch, {}, train=False)


def shares_of(mix, size=(32, 32), draws=2000):
  images = jnp.zeros((1, *size, 1))
  keys = jax.random.split(jax.random.key(0), draws)
  return np.asarray(jax.jit(jax.vmap(lambda key: mix(key, images)[1]))(keys))


def test_shares_follow_the_beta_distribution():
  from scipy import stats

  for alpha in (0.2, 0.8):
    shares = shares_of(mixing.Mixing(mixup=alpha))
    folded = stats.beta(alpha, alpha)
    assert shares.min() >= 0.5
    test = stats.kstest(shares, lambda x, b=folded: 2 * b.cdf(x) - 1)
    assert test.pvalue > 1e-3, alpha
  # Uniform for alpha 1, before the border cuts: the pixels that are a picture's own are more.
  keys = jax.random.split(jax.random.key(1), 2000)
  area = jax.vmap(lambda key: 1 - mixing.cutmix_shares(key, 1.0, (64, 64)))(keys)
  inside = np.asarray(area)[:, 32, 32].mean()  # P(the middle is cut) = E[area], uncut by borders.
  assert abs(inside - 0.5) < 0.04


def test_the_kind_of_mixing_is_switched():
  mix = mixing.Mixing(mixup=0.8, cutmix=1.0, probability=0.6, switch_probability=0.25)
  keys = jax.random.split(jax.random.key(2), 3000)
  images = jnp.stack([jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))])
  mixed = np.asarray(jax.jit(jax.vmap(lambda key: mix(key, images)[0]))(keys))[:, 0, :, :, 0]
  values = [np.unique(row) for row in mixed]
  untouched = np.mean([len(v) == 1 and v[0] == 0 for v in values])
  pasted = np.mean([1.0 in v for v in values])
  assert abs(untouched - 0.4) < 0.06  # cutmix with an empty rectangle counts here too
  assert abs(pasted - 0.6 * 0.25) < 0.03


def test_erasing_follows_its_definition():
  images = jnp.full((2000, 32, 32, 3), 77.0)
  erased = np.asarray(
    mixing.erase(jax.random.key(0), images, 0.25, lambda x: (x / 255 - 0.4) / 0.2)
  )
  changed = (erased != 77).all(-1)
  touched = changed.any((1, 2))
  assert abs(touched.mean() - 0.25) < 0.03
  areas, ratios = [], []
  for one in changed[touched]:
    rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert one.sum() == height * width  # a full rectangle
    areas.append(height * width / 1024)
    ratios.append(height / width)
  assert min(areas) > 0.01 and max(areas) < 0.36 and abs(np.mean(areas) - 0.17) < 0.03
  assert min(ratios) > 0.2 and max(ratios) < 4.5 and abs(np.mean(np.log(ratios))) < 0.12
  noise = (erased[changed] / 255 - 0.4) / 0.2
  assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def teach(section, heads=('class_token', 'distillation_token'), known=None):
  """Loss and gradient by the teacher's parameters of two examples."""
  objective = distillation.Distillation(
    Sum(heads), lambda x: x, forwards={'teacher': lambda p, x: (p['w'] * x.sum((1, 2)), {})},
    teacher='T', **section,
  )  # fmt: skip
  batch = {'image': LOGITS[:, None, None], 'label': LABELS, 'weight': jnp.ones(2)}
  known = jnp.array([[1.0, 3.0, 0.5]]) if known is None else known

  def loss(weights):
    rngs = {name: jax.random.key(0) for name in ('mixup', 'erasing')}
    given = {'teacher': {'w': weights}}
    return objective.apply({}, batch, given, train=True, rngs=rngs)[0]

  return loss(known), jax.grad(loss)(known)


def test_hard_distillation():
  labels, log = np.asarray(LABELS), np.asarray(jax.nn.log_softmax(LOGITS))
  second = np.asarray(jax.nn.log_softmax(2 * LOGITS))  # The second head of `Sum`.
  taught = np.asarray(LOGITS * jnp.array([[1.0, 3.0, 0.5]])).argmax(1)
  own, of_teacher = -log[[0, 1], labels].mean(), -second[[0, 1], taught].mean()
  loss, gradient = teach({'teacher_share': 0.3})
  np.testing.assert_allclose(loss, 0.7 * own + 0.3 * of_teacher, rtol=1e-6)
  np.testing.assert_array_equal(gradient, 0)
  usual, _ = teach({'teacher_share': 0.3}, heads=())  # One head learns from both.
  np.testing.assert_allclose(usual, 0.7 * own - 0.3 * log[[0, 1], taught].mean(), rtol=1e-6)


@pytest.mark.parametrize(('divergence', 'parts'), [('batch', 1), ('official', 3)])
def test_soft_distillation(divergence, parts):
  theirs = np.asarray(jax.nn.log_softmax(LOGITS * jnp.array([[1.0, 3.0, 0.5]]) / 2.0))
  ours = np.asarray(jax.nn.log_softmax(2 * LOGITS / 2.0))
  divergence_of = (np.exp(theirs) * (theirs - ours)).sum(1).mean() * 4 / parts
  own = -np.asarray(jax.nn.log_softmax(LOGITS))[[0, 1], np.asarray(LABELS)].mean()
  section = dict(distillation='soft', temperature=2.0, teacher_share=0.1, divergence=divergence)
  loss, gradient = teach(section)
  np.testing.assert_allclose(loss, 0.9 * own + 0.1 * divergence_of, rtol=1e-5)
  np.testing.assert_array_equal(gradient, 0)


def test_a_model_of_two_heads_learns_labels_in_both():
  batch = {'image': LOGITS[:, None, None], 'label': LABELS, 'weight': jnp.ones(2)}
  model = Sum(('class_token', 'distillation_token'))
  loss, _ = classification.Classification(model, lambda x: x).apply({}, batch, {}, train=False)
  apart = [classification.cross_entropy(LOGITS * i, LABELS, 'softmax').mean() for i in (1, 2)]
  np.testing.assert_allclose(loss, np.mean(apart), rtol=1e-6)


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (dict(mixup=-1.0), 'mixup=-1.0'),
    (dict(cutmix=-1.0), 'cutmix=-1.0'),
    (dict(mix_probability=1.5), 'mix_probability=1.5'),
    (dict(switch_probability=-0.5), 'switch_probability=-0.5'),
    (dict(erasing=2.0), 'erasing=2.0'),
    (dict(loss='sofmax'), "'softmax'"),
    (dict(label_smoothing=1.0), 'smoothing=1.0'),
  ],
)
def test_refusals(section, message):
  with pytest.raises(ValueError, match=message):
    classification.Classification(nn.Dense(1), lambda x: x, **section)


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (dict(teacher=None), 'teacher is not set'),
    (dict(distillation='har'), "'hard'"),
    (dict(divergence='mean'), 'batch, official'),
    (dict(teacher_share=2.0), 'teacher_share=2.0'),
    (dict(temperature=0.0), 'temperature=0.0'),
  ],
)
def test_refusals_of_distillation(section, message):
  with pytest.raises(ValueError, match=message):
    distillation.Distillation(nn.Dense(1), lambda x: x, **dict(teacher='T') | section)
