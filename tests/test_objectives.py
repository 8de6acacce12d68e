"""Losses by hand-made numbers."""

from flax import linen as nn
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


@pytest.mark.parametrize(
  ('section', 'message'),
  [(dict(loss='sofmax'), "'softmax'"), (dict(label_smoothing=1.0), 'smoothing=1.0')],
)
def test_refusals(section, message):
  with pytest.raises(ValueError, match=message):
    classification.Classification(model=nn.Dense(1), **section)
