"""Times the readout lab against training the readouts one after another: JSON lines.

  python benchmarks/readouts.py --epochs 5 [--init_from C]

One after another: for each readout a head is trained through the whole frozen model, as the
token-readout study did, with the step compiled once for all single patches. Both see the same
batches, learning rate and initial heads, and are measured in the same run; times contain
compilation. Without a checkpoint the model is a fresh one of 8 x 8 patches on the digits.
"""

import argparse
import pathlib
import tempfile
import time

from absl import logging
import jax
from jax import numpy as jnp
import numpy as np
import optax
import work as works

from vit_jax import data, defaults, experiment, models, predict
from vit_jax.evaluation import candidates, features, fitting, probes
from vit_jax.models import tokens
from vit_jax.runtime import sharding

RATE = 3e-3


def build(options):
  """(model, params, section, data): of a checkpoint, or fresh."""
  if options.init_from:
    predictor = predict.load(options.init_from)
    dataset = data.build(**experiment.data_of(predictor.passport, options.init_from))
    return predictor.model, predictor.params, predictor.passport.model, dataset
  section = models.complete(defaults.part('model', 'vit').to_dict() | {'variant': 'digits/2'})
  model = models.build(**section, image_size=(16, 16), channels=1, num_classes=10)
  images = defaults.part('data', 'digits').to_dict() | {'image_size': (16, 16)}
  return model, models.init(model, jax.random.key(0)), section, data.build(**images)


def pictures(dataset, split):
  """All pictures of a split as the model sees them, and labels."""
  batches = list(dataset.epoch(split, 256))
  return tuple(np.concatenate([b[key][b['mask']] for b in batches]) for key in ('image', 'label'))


class OneByOne:
  """A head on one readout, trained through the model."""

  def __init__(self, model, params, dataset, settings):
    self.model, self.params, self.dataset, self.settings = model, params, dataset, settings
    self.train, self.test = pictures(dataset, 'train'), pictures(dataset, 'test')
    self.steps = {}

  def logits(self, own, params, images, module, patch):
    _, named = self.model.apply({'params': params}, self.dataset.preprocess.normalise(images))
    found = tokens.rows(named['tokens'])
    if module is None:  # A single patch, by a number that needs no compiling anew.
      read = jnp.take(found, patch + len(self.model.prefix) - 1, axis=1)
    else:
      read = module.apply({'params': own['readout']}, found)
    return probes.apply_head(own['head'], read)

  def compiled(self, candidate):
    """(step, evaluate), one pair for all single patches."""
    kind = 'patch' if candidate.patch else candidate.name
    module = None if candidate.patch else candidate.module
    optimizer = optax.adam(RATE)

    def step(own, state, params, images, labels, patch):
      def loss(own):
        logits = self.logits(own, params, images, module, patch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

      updates, state = optimizer.update(jax.grad(loss)(own), state)
      return optax.apply_updates(own, updates), state

    def predictions(own, params, images, patch):
      return self.logits(own, params, images, module, patch).argmax(-1)

    if kind not in self.steps:
      self.steps[kind] = (jax.jit(step), jax.jit(predictions), optimizer)
    return self.steps[kind]

  def run(self, candidate, own, seed: int) -> float:
    """Test accuracy after training."""
    step, predictions, optimizer = self.compiled(candidate)
    state, size, patch = optimizer.init(own), self.settings.batch_size, candidate.patch or 0
    (images, labels), rows = self.train, np.arange(len(self.train[1]))
    for epoch in range(self.settings.epochs):
      order = np.random.default_rng((seed, epoch)).permutation(rows)
      for start in range(0, len(rows), size):
        some = order[start : start + size]
        own, state = step(own, state, self.params, images[some], labels[some], patch)
    images, labels = self.test
    found = [predictions(own, self.params, images[i : i + 256], patch)
             for i in range(0, len(labels), 256)]  # fmt: skip
    return float((np.concatenate(found) == labels).mean())


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--init_from', help='a run of ours; without, a fresh model on the digits')
  parser.add_argument('--epochs', type=int, default=5)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--readouts', default='all', help='comma-separated')
  options = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  model, params, section, dataset = build(options)
  settings = probes.Settings(options.epochs, options.batch_size, schedule='constant')
  names = tuple(options.readouts.split(','))
  sizes = model.sizes()
  shape = sizes['num_tokens'], sizes['width']
  chosen = candidates.choose_candidates(names, model, section, shape)
  chosen = tuple(c for c in chosen if not c.control)
  some = probes.Probes(
    chosen, shape=shape, num_classes=len(dataset.class_names), first=len(model.prefix),
    settings=settings,
  )  # fmt: skip

  seeds = list(range(options.seeds))
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    given = features.Pass(model, params, section, dataset, sharding.make_mesh(1), ('tokens',),
                          pathlib.Path(folder), batch_size=256).run()  # fmt: skip
    passed = time.perf_counter() - start
    start = time.perf_counter()
    train, test = given['train']['tokens'], given['test']['tokens']
    rows = np.arange(len(train.labels)), np.arange(len(test.labels))
    rates = np.full((len(chosen), 1), RATE)
    fitted = fitting.fit(some, train, rows[0], test, rows[1], rates, seeds, every_epoch=False)
    together = fitted.test_accuracy[-1, :, :, 0]
    probed = time.perf_counter() - start

  one, alone = OneByOne(model, params, dataset, settings), np.zeros_like(together)
  start = time.perf_counter()
  for i, seed in enumerate(seeds):
    initial = some.init(seed, 1)
    for r, candidate in enumerate(chosen):
      if candidate.learned:
        own = jax.tree.map(lambda x: x[0], initial['learned'][candidate.name])
      else:
        head = initial['fixed'][str(candidate.width)]
        own = {'head': jax.tree.map(lambda x: x[0, 0], head), 'readout': {}}
      alone[i, r] = one.run(candidate, own, seed)
  apart = time.perf_counter() - start
  difference = together - alone
  works.show({
    'case': 'readouts', 'device': jax.devices()[0].device_kind, 'readouts': len(chosen),
    'epochs': options.epochs, 'seeds': options.seeds,
    'examples': len(rows[0]), 'tests': len(rows[1]),
    'seconds_tokens': round(passed, 2), 'seconds_probes': round(probed, 2),
    'seconds_one_by_one': round(apart, 2), 'times_faster_probes': round(apart / probed, 1),
    'times_faster_with_tokens': round(apart / (passed + probed), 1),
    'accuracy_together': round(float(together.mean()), 4),
    'accuracy_one_by_one': round(float(np.mean(alone)), 4),
    'largest_difference_of_accuracy': round(float(np.abs(difference).max()), 4),
    'machine': works.machine('jax', 'flax'),
  })  # fmt: skip


if __name__ == '__main__':
  main()
