"""Losses by hand-made numbers."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives import classification

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
LABELS = jnp.array([0, 2])


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_softmax(smoothing):
  log = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(1, keepdims=True))
  targets = np.eye(3)[[0, 2]] * (1 - smoothing) + smoothing / 3
  given = classification.cross_entropy(LOGITS, LABELS, 'softmax', smoothing)
  np.testing.assert_allclose(given, -(targets * log).sum(1), rtol=1e-6)


def test_sigmoid():
  p = 1 / (1 + np.exp(-np.asarray(LOGITS)))
  targets = np.eye(3)[[0, 2]]
  expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1)
  given = classification.cross_entropy(LOGITS, LABELS, 'sigmoid')
  np.testing.assert_allclose(given, expected, rtol=1e-5)


class Sum(nn.Module):
  """Logits that are linear in the picture, so that mixtures can be followed by hand."""

  @nn.compact
  def __call__(self, images, *, train):
    return images.sum((1, 2)), {}


def test_mixup_mixes_pictures_and_targets_alike():
  rng, before = np.random.default_rng(0), np.array([3, 0, 1, 2])
  images, labels = jnp.asarray(rng.normal(size=(4, 2, 2, 3))), jnp.array([0, 1, 2, 1])
  batch = {'image': images, 'label': labels, 'weight': jnp.ones(4)}
  mixed = classification.Classification(Sum(), lambda x: x, mixup=0.2)
  shares = []
  for seed in range(40):
    key = jax.random.key(seed)
    loss, _ = mixed.apply({}, batch, {}, train=True, rngs={'mixup': key})
    # The share, from the pictures that `mix` gives back for the key that the module draws.
    probe = classification.Classification(Sum(), lambda x: x, mixup=0.2)
    key = probe.apply({}, rngs={'mixup': key}, method=lambda self: self.make_rng('mixup'))
    changed, share = classification.mix(key, images, 0.2)
    np.testing.assert_allclose(changed, share * images + (1 - share) * images[before], 1e-6)
    targets = share * np.eye(3)[labels] + (1 - share) * np.eye(3)[labels[before]]
    log = jax.nn.log_softmax(changed.sum((1, 2)))
    np.testing.assert_allclose(loss, -(targets * log).sum(1).mean(), rtol=1e-5)
    shares.append(float(share))
  assert 0.5 <= min(shares) < 0.7 < 0.95 < max(shares) <= 1
  plain = classification.Classification(Sum(), lambda x: x).apply({}, batch, {}, train=False)
  assert mixed.apply({}, batch, {}, train=False) == plain


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (dict(mixup=-1.0), 'mixup=-1.0'),
    (dict(loss='sofmax'), "'softmax'"),
    (dict(label_smoothing=1.0), 'smoothing=1.0'),
  ],
)
def test_refusals(section, message):
  with pytest.raises(ValueError, match=message):
    classification.Classification(nn.Dense(1), lambda x: x, **section)
