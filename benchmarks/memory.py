"""Compares what a plan says of a run on this CPU with what the run takes: one JSON line a case.

  python benchmarks/memory.py --cases digits,S/16 --batch_size 8

Each case is planned and run in processes of their own, with a cache of compiled programs of their
own, so that both compile. `growth` is what the arrays of the train step take: planned, and as the
peak of the process in its steps above what it held when its programs were compiled. `process` is
all of it, what evaluation and saving take too.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

RECIPE = pathlib.Path(__file__).parent.parent / 'configs/vit_digits.py'
EVERY = 0.005  # seconds between two looks at the memory


def settings(case: str, options: argparse.Namespace) -> list[str]:
  """The options of a run: the digits as they are, or a ViT of a size on the digits made large."""
  words = ['--config.eval_every=0', '--config.checkpoint_every=0']
  if case == 'digits':
    return [*words, f'--config.total_steps={options.steps}']
  size = options.image_size
  return words + [
    f'--config.data.image_size=({size}, {size})', '--config.data.channels=3',
    f'--config.model.variant={case}', f'--config.batch_size={options.batch_size}',
    f'--config.evaluation.batch_size={options.batch_size}', '--config.total_steps=6',
  ]  # fmt: skip


def planned(case: str, options: argparse.Namespace, folder: pathlib.Path) -> dict:
  """What `--mode=plan` says."""
  words = [sys.executable, '-m', 'vit_jax.main', f'--config={RECIPE}', f'--workdir={folder}']
  words += [*settings(case, options), '--mode=plan', '--notable']
  return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def measure(words: list[str]) -> dict[str, float]:
  """Trains in this process, and looks at its memory all the time."""
  from vit_jax import checkpoint, main, train
  from vit_jax.explore import plan
  from vit_jax.runtime import compiled, memory

  seen: dict[str, float] = {'peak': 0}
  describe, save = train.describe, checkpoint.Checkpoints.save

  def before_the_first_step(exp, state, train_step):
    describe(exp, state, train_step)
    plan.process_size()  # Loads what the run would load later.
    seen['compiled'] = memory.resident() - compiled.size_on_device(state) * exp.mesh.size

  def after_the_last_step(*arguments):
    seen['steps'] = seen['peak']
    save(*arguments)

  def watch():
    while True:
      seen['peak'] = max(seen['peak'], memory.resident())
      time.sleep(EVERY)

  train.describe, checkpoint.Checkpoints.save = before_the_first_step, after_the_last_step
  threading.Thread(target=watch, daemon=True).start()
  main.main(['main', *words])
  return seen


def measured(case: str, options: argparse.Namespace, folder: pathlib.Path) -> dict[str, float]:
  """As `measure`, in a process of its own."""
  words = [sys.executable, __file__, '--run', f'--config={RECIPE}', f'--workdir={folder}']
  words += settings(case, options)
  return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def compare(case: str, options: argparse.Namespace) -> dict:
  """The line of a case."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    os.environ['VIT_JAX_CACHE'] = str(folder / 'cache of the plan')
    plan = planned(case, options, folder / 'plan')
    os.environ['VIT_JAX_CACHE'] = str(folder / 'cache of the run')
    seen = measured(case, options, folder / 'run')
  growth = plan['devices'] * plan['memory_gb']['total']
  row = {
    'growth_planned_gb': growth,
    'growth_measured_gb': (seen['steps'] - seen['compiled']) / 1e9,
    'process_planned_gb': growth + plan['process_gb'],
    'process_measured_gb': seen['peak'] / 1e9,
  }
  row |= {
    f'{key}_difference': row[f'{key}_planned_gb'] / row[f'{key}_measured_gb'] - 1
    for key in ('growth', 'process')
  }
  return {'case': case, 'devices': plan['devices'], **{k: round(x, 3) for k, x in row.items()}}


def main() -> None:
  if sys.argv[1:2] == ['--run']:
    seen = measure(sys.argv[2:])
    print(json.dumps(seen))
    return
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--cases', default='digits,S/16')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--steps', type=int, default=100, help='of the digits')
  options = parser.parse_args()
  for case in options.cases.split(','):
    print(json.dumps(compare(case, options)), flush=True)


if __name__ == '__main__':
  main()
