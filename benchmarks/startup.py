"""Times starts up to the end of step 1, ours and a plain linen script's: one JSON line a case.

  python benchmarks/startup.py --rounds 3 [--cases digits,vit] [--variant Ti/16]

digits: the command `python -m vit_jax.main --config=configs/vit_digits.py`, from the start of the
process to the line of its first step, against `plain_digits.py`. Cold is with no compiled programs,
warm the second start with those that the first one kept; a plain script keeps none unless it is
told to, which `plain_cached` tells it.

vit: the parts of a start of a ViT at 224 px in seconds: import, init, compile, step. Ours compiles
init and step at once, under 'compile'; plain compiles within its first step. Nothing is kept.

Each start is a new process, cases take turns, and medians of the rounds are shown.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import work as works
from work import show

from vit_jax.runtime import memory

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIRST_STEP = re.compile(r'\bstep 1/\d+ ')
KEPT = ('VIT_JAX_CACHE', 'JAX_COMPILATION_CACHE_DIR')  # what says where compiled programs lie


def ours(variant: str, batch_size: int) -> dict[str, float]:
  """Seconds of the parts of our start."""
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
  """Seconds of the parts of a plain linen script's start."""
  marks = [time.perf_counter()]
  import jax
  from jax import numpy as jnp
  import optax
  import plain
  import plain_digits  # What such a script has at its top.

  marks.append(time.perf_counter())
  work = works.of('training', variant, batch_size, 224, 'float32')
  model, images = plain.build(work), jnp.zeros((batch_size, 224, 224, 3))
  params = jax.jit(model.init)(jax.random.key(0), images)['params']
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-3, 0.9))
  state = plain_digits.train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=optimizer
  )
  jax.block_until_ready(state.params)
  marks.append(time.perf_counter())
  marks.append(time.perf_counter())
  labels = jnp.zeros(batch_size, jnp.int32)
  jax.block_until_ready(plain_digits.train_step(state, images, labels))
  return phases(marks)


def phases(marks: list[float]) -> dict[str, float]:
  """Seconds between marks, by name, the last one until now."""
  marks = [*marks, time.perf_counter()]
  names = ('import', 'init', 'compile', 'step')
  spans = [round(b - a, 2) for a, b in itertools.pairwise(marks)]
  return dict(zip(names, spans, strict=True)) | {'total': round(marks[-1] - marks[0], 2)}


def environment(**more: str) -> dict[str, str]:
  """This one without a place for compiled programs, unless `more` has one."""
  given = {key: value for key, value in os.environ.items() if key not in KEPT}
  if memory.on_cpu(None):
    given.setdefault('JAX_PLATFORMS', 'cpu')  # Else plugins without a card say so at length.
  return given | more


def seconds_to_first_step(words: list, given: dict[str, str]) -> float:
  """Seconds from the start of a process to the line of its first step; then it is ended.

  Raises:
    RuntimeError: it ends without such a line; has what it said.
  """
  start, said = time.perf_counter(), []
  process = subprocess.Popen(
    [sys.executable, *map(str, words)], cwd=ROOT, env=given, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip
  try:
    for line in process.stdout or ():
      said.append(line)
      if FIRST_STEP.search(line):
        return time.perf_counter() - start
  finally:
    process.kill()
    process.wait()
  raise RuntimeError(''.join(['no step was taken:\n', *said[-20:]]))


def start_ours(folder: pathlib.Path) -> float:
  """Seconds of our command on the digits, with the compiled programs that lie in a folder."""
  with tempfile.TemporaryDirectory() as workdir:
    words = ['-m', 'vit_jax.main', '--config=configs/vit_digits.py', f'--workdir={workdir}/run']
    words += ['--config.log_every=1']
    return seconds_to_first_step(words, environment(VIT_JAX_CACHE=str(folder)))


def start_plain(folder: pathlib.Path | None) -> float:
  """Seconds of the plain script, which keeps compiled programs where a folder is given."""
  more = {'JAX_COMPILATION_CACHE_DIR': str(folder)} if folder else {}
  more |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'} if folder else {}
  return seconds_to_first_step([ROOT / 'benchmarks/plain_digits.py'], environment(**more))


def digits(rounds: int) -> dict:
  """The line of the digits: medians, and ratios to the plain script."""
  times: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    given = pathlib.Path(folder)
    start_plain(given / 'plain')  # Its files are read for the first time, and its cache is filled.
    for turn in range(rounds):
      fresh = given / f'ours_{turn}'
      cases = {
        'ours_cold': lambda: start_ours(fresh),  # noqa: B023
        'ours_warm': lambda: start_ours(fresh),  # noqa: B023
        'plain': lambda: start_plain(None),
        'plain_cached': lambda: start_plain(given / 'plain'),
      }
      for name, run in cases.items():
        times.setdefault(name, []).append(run())
    kept = len([path for path in fresh.glob('compiled/**/*') if path.is_file()])
  medians = {name: statistics.median(values) for name, values in times.items()}
  line: dict = {'case': 'digits'} | {f'{name}_seconds': round(x, 2) for name, x in medians.items()}
  for name in ('ours_cold', 'ours_warm'):
    line[f'{name}_over_plain'] = round(medians[name] / medians['plain'], 3)
  line['ours_warm_over_plain_cached'] = round(medians['ours_warm'] / medians['plain_cached'], 3)
  return line | {'compiled_files_kept': kept, 'rounds': rounds}


def vit(options: argparse.Namespace) -> list[dict]:
  """The lines of a ViT at 224 px: medians of the parts of each start, and the ratio."""
  runs: dict[str, list[dict]] = {'ours': [], 'plain': []}
  words = ['--variant', options.variant, '--batch_size', str(options.batch_size), '--only']
  for _ in range(options.rounds):
    for case, found in runs.items():
      command = [sys.executable, __file__, *words, case]
      done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment())
      found.append(json.loads(done.stdout))
  rows = {
    case: {key: statistics.median(run[key] for run in found) for key in found[0]}
    for case, found in runs.items()
  }
  ratio = {'ours_over_plain': round(rows['ours']['total'] / rows['plain']['total'], 3)}
  named = [{'case': case, **row} for case, row in rows.items()] + [{'case': 'ratio', **ratio}]
  return [row | {'variant': options.variant, 'batch_size': options.batch_size} for row in named]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cases', default='digits,vit')
  parser.add_argument('--variant', default='Ti/16', help='of vit')
  parser.add_argument('--batch_size', type=int, default=8, help='of vit')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--only', choices=['ours', 'plain'], help='one start of vit, in this process')
  options = parser.parse_args()
  if options.only:
    print(json.dumps(globals()[options.only](options.variant, options.batch_size)))
    return
  machine = works.machine('jax', 'flax')
  lines = [digits(options.rounds)] if 'digits' in options.cases else []
  lines += vit(options) if 'vit' in options.cases else []
  for line in lines:
    show(line | {'machine': machine})


if __name__ == '__main__':
  main()
