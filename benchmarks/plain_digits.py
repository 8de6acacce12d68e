"""The model of configs/vit_digits.py trained by a plain linen script; `startup.py` starts it.

It is written as google-research/vision_transformer is: everything is imported at the top, needed in
this run or not, and `model.init` and the step are compiled at their first call. It augments no
pictures and averages no weights, so that it has less to do than ours.

  python benchmarks/plain_digits.py --steps 1600
"""

import argparse

from clu import metrics, parameter_overview  # noqa: F401
from flax.training import train_state
import jax
from jax import numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401
import ml_collections  # noqa: F401
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401
import plain
import sklearn.datasets
import sklearn.model_selection
import tensorflow_datasets  # noqa: F401

BATCH_SIZE = 128


def make_state(steps: int) -> train_state.TrainState:
  """Fresh parameters with AdamW."""
  model = plain.VisionTransformer(2, 64, 4, 4, 128, num_classes=10)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))['params']
  schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 100, max(101, steps))
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.3)
  )  # fmt: skip
  return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)


@jax.jit
def train_step(state, images, labels):
  def loss(params):
    logits = state.apply_fn({'params': params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  value, gradients = jax.value_and_grad(loss)(state.params)
  return state.apply_gradients(grads=gradients), value


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--steps', type=int, default=1600)
  steps = parser.parse_args().steps
  images, labels = sklearn.datasets.load_digits(return_X_y=True)
  images, _, labels, _ = sklearn.model_selection.train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
  )
  images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
  state, rng = make_state(steps), np.random.default_rng(0)
  for step in range(1, steps + 1):
    rows = rng.integers(0, len(images), BATCH_SIZE)
    state, loss = train_step(state, images[rows], labels[rows])
    if step == 1 or step % 100 == 0:
      print(f'step {step}/{steps}  loss {loss:.4f}', flush=True)


if __name__ == '__main__':
  main()
