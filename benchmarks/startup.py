"""Times a start up to the end of step 1, ours and a plain linen script: one JSON line each.

  python benchmarks/startup.py --variant Ti/16 --rounds 3

Each start is a new process. The plain script is written as google-research/vision_transformer does
it: everything imported at the top, `model.init` run eagerly, a step compiled at its first call.
Phases in seconds: import, init, compile, step. Ours compiles init and step at once, under
'compile'; plain compiles within its first step.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time


def ours(variant: str, batch_size: int) -> dict[str, float]:
  marks = [time.perf_counter()]
  import jax
  import numpy as np

  from vit_jax import defaults, experiment, step
  from vit_jax.runtime import sharding

  marks.append(time.perf_counter())
  config = defaults.get_config()
  config.data.update(image_size=(224, 224), channels=3)
  config.model.variant, config.batch_size = variant, batch_size
  config.optimizer = defaults.part('optimizer', 'sgd')
  built = experiment.build(config)
  shapes = step.state_shapes(built)
  marks.append(time.perf_counter())
  state, train_step = step.prepare(built, shapes, None)
  jax.block_until_ready(state)
  marks.append(time.perf_counter())
  wanted = built.objective.batch_shapes(built.data.image_shape, batch_size)
  batch = {key: np.ones(x.shape, x.dtype) for key, x in wanted.items()}
  placed = sharding.place_batch(batch, built.mesh)
  jax.block_until_ready(train_step(state, placed, built.constants))
  return phases(marks)


def plain(variant: str, batch_size: int) -> dict[str, float]:
  marks = [time.perf_counter()]
  # What such a script has at its top, needed in this run or not.
  from clu import metrics, parameter_overview  # noqa: F401
  from flax.training import train_state
  import jax
  from jax import numpy as jnp
  import matplotlib.pyplot as plt  # noqa: F401
  import ml_collections  # noqa: F401
  import optax
  import orbax.checkpoint  # noqa: F401
  import sklearn.datasets
  from step import PlainVisionTransformer
  import tensorflow_datasets  # noqa: F401

  marks.append(time.perf_counter())
  sklearn.datasets.load_digits()
  model = PlainVisionTransformer(variant, 'float32')
  images = jnp.zeros((batch_size, 224, 224, 3))
  params = model.init(jax.random.key(0), images)['params']
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-3, 0.9))
  state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
  jax.block_until_ready(state.params)
  marks.append(time.perf_counter())

  @jax.jit
  def train_step(state, images, labels):
    def loss(params):
      logits = state.apply_fn({'params': params}, images)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value

  marks.append(time.perf_counter())
  jax.block_until_ready(train_step(state, images, jnp.zeros(batch_size, jnp.int32)))
  return phases(marks)


def phases(marks: list[float]) -> dict[str, float]:
  marks = [*marks, time.perf_counter()]
  names = ('import', 'init', 'compile', 'step')
  spans = [round(b - a, 2) for a, b in itertools.pairwise(marks)]
  return dict(zip(names, spans, strict=True)) | {'total': round(marks[-1] - marks[0], 2)}


def start(case: str, options: argparse.Namespace) -> dict[str, float]:
  words = [sys.executable, __file__, '--only', case, '--variant', options.variant]
  words += ['--batch_size', str(options.batch_size)]
  return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--variant', default='Ti/16')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--only', choices=['ours', 'plain'], help='run one start in this process')
  options = parser.parse_args()
  if options.only:
    print(json.dumps(globals()[options.only](options.variant, options.batch_size)))
    return
  totals: dict[str, list[dict]] = {'ours': [], 'plain': []}
  for _ in range(options.rounds):
    for case, runs in totals.items():
      runs.append(start(case, options))
  rows = {
    case: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    for case, runs in totals.items()
  }
  for case, row in rows.items():
    print(json.dumps({'case': case, 'variant': options.variant, **row}))
  ratio = rows['ours']['total'] / rows['plain']['total']
  print(
    json.dumps({'case': 'ratio', 'variant': options.variant, 'ours_over_plain': round(ratio, 2)})
  )


if __name__ == '__main__':
  main()
