"""Images per second and memory of ours, by size of the pictures and by number of devices.

  python benchmarks/scaling.py --models vit:Ti/16,hybrid:R50+B/16 --image_size 224,448 --devices 1,2

A JSON line for each model (FAMILY:VARIANT of `python -m vit_jax.models`), direction, size and
number of devices, each in a new process. On a CPU devices are made as asked: with more of them than
cores a line tells what cutting costs, not what it gains. `memory_gb` is the most that the process
had (on a card: the card), libraries and compiler included; `compiled_gb` is what the compiler says
that the program needs on each device.
"""

import argparse
import os
import statistics

import jax
import ours
from turns import FAILED, Timed, Turns
import work as works
from work import KINDS, show

from vit_jax.runtime import memory


def make(kind: str, model: str, settings: tuple[int, int, str], count: int) -> Timed:
  """A step of a model on so many devices.

  Args:
    model: FAMILY:VARIANT.
    settings: batch size, side in pixels, dtype.

  Raises:
    ValueError: there are fewer devices than asked for.
  """
  batch_size, image_size, _ = settings
  memory.keep_freed(batch_size * image_size**2)
  if memory.on_cpu(None):
    jax.config.update('jax_num_cpu_devices', count)
  chosen = jax.devices()[:count]
  if len(chosen) < count:
    raise ValueError(f'there are {len(chosen)} devices, not {count}')
  family, _, variant = model.partition(':')
  built = ours.build(ours.configure(family, variant, *settings), chosen)
  return ours.KINDS[kind](built)


def measure(case: dict, settings: tuple[int, int, str], rounds: int) -> dict:
  """The line of a case."""
  with Turns() as turns:
    about = turns.start('case', make, case['case'], case['model'], settings, case['devices'])
    times = turns.measure(['case'], rounds) if FAILED not in about else {}
  if not times:
    return case | {'case': 'left_out', 'name': case['case'], 'why': about.get(FAILED, 'it stopped')}
  return case | {
    'images_per_second': round(settings[0] / statistics.median(times['case']), 2),
    'memory_gb': round(about['memory'] / 1e9, 3),
    'compiled_gb': round(about['compiled'] / 1e9, 3),
    'rounds': rounds,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--models', default='vit:Ti/16,vit:S/16,vit:B/16', help='FAMILY:VARIANT,...')
  parser.add_argument('--image_size', default='224,384,512,896', help='sides in pixels')
  parser.add_argument('--devices', default='1,2')
  parser.add_argument('--batch_size', type=int, default=8, help='of all devices together')
  parser.add_argument('--kinds', default=','.join(KINDS))
  parser.add_argument('--dtype', help='float32 on a CPU, else bfloat16')
  parser.add_argument('--rounds', type=int, default=3)
  options = parser.parse_args()
  on_cpu = memory.on_cpu(None)
  if on_cpu:
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # Else plugins without a card say so at length.
  dtype = options.dtype or ('float32' if on_cpu else 'bfloat16')
  machine = works.machine('jax', 'flax')
  for model in options.models.split(','):
    for kind in options.kinds.split(','):
      for side in map(int, options.image_size.split(',')):
        for count in map(int, options.devices.split(',')):
          settings = (options.batch_size, side, dtype)
          case = {'case': kind, 'model': model, 'batch_size': options.batch_size}
          case |= {'image_size': side, 'dtype': dtype, 'devices': count}
          show(measure(case, settings, options.rounds) | {'machine': machine})


if __name__ == '__main__':
  main()
