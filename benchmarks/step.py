"""Times inference and training, ours beside others': a JSON line for each batch, size and model.

  pip install -e '.[benchmark,torch]'
  python benchmarks/step.py --variants Ti/16,S/16,B/16 --batch_size 8,32 [--official CHECKOUT]

Each lives in a process of its own, as its users run it, and none runs while another does: they are
measured in turns, and a case reports the median of the rounds. A line has images per second of
each; how many times as fast ours is; and the share of the peak: FLOPs of the model's matrix
products a second, over those of one large product by the same library, measured in the same rounds;
and the most memory that each had: of its process on a CPU, of the card on a card.
Before anything is timed, the logits of ours, of plain linen and of the official code are compared.

  ours               as the command runs it: on a CPU a device for each core where a step is large
  ours_one_device    the same on one device
  plain_linen        linen's own layers, as its users run it
  plain_kept         the same with memory that is kept, as `vit_jax/runtime/memory.py` does
  official           google-research/vision_transformer's own file, from --official
  timm, timm_compiled, transformers, transformers_sdpa     in torch, on all cores

On a CPU nothing else should run: torch's threads wait for one another at every operation, so that a
busy core slows it many times more than JAX. On a card: bfloat16 unless --dtype says otherwise;
torch with autocast and channels-last.
"""

import argparse
from collections.abc import Callable
import os
import statistics
from typing import Any

import numpy as np
import ours
import peers
from turns import FAILED, Turns
import work as works
from work import Work, show

from vit_jax.runtime import memory

TOLERANCE = {'float32': 1e-4, 'bfloat16': 5e-2}  # Largest difference of logits of about 1.
# Name: the library whose peak counts, the function that makes it, and what follows the work.
CASES: dict[str, tuple[str, Callable, tuple]] = {
  'ours': ('jax', ours.make, (False,)),
  'ours_one_device': ('jax', ours.make, (True,)),
  'plain_linen': ('jax', ours.make_other, (None, False)),
  'plain_kept': ('jax', ours.make_other, (None, True)),
  'official': ('jax', ours.make_other, (None, False)),  # None: what --official says.
  'timm': ('torch', peers.make, (False,)),
  'timm_compiled': ('torch', peers.make, (True,)),
  'transformers': ('torch', peers.make, (False,)),
  'transformers_sdpa': ('torch', peers.make, (False,)),
}
PEAKS = {'peak_jax': 'jax', 'peak_jax_spread': 'jax', 'peak_torch': 'torch'}


def start(turns: Turns, name: str, work: Work, options: argparse.Namespace) -> dict:
  """Starts a case; what it says of itself."""
  _, make, rest = CASES[name]
  if name == 'official':
    rest = (options.official, False)
  if make is peers.make:
    return turns.start(name, make, name.removesuffix('_compiled'), work, *rest)
  return turns.start(name, make, work, *rest)


def start_peaks(turns: Turns, options: argparse.Namespace) -> list[str]:
  """Starts the matrix products that the libraries in use are measured by."""
  side = options.peak_side
  makers: dict[str, tuple[Any, ...]] = {
    'peak_jax': (ours.peak, options.dtype, side, False),
    'peak_jax_spread': (ours.peak, options.dtype, side, True),
    'peak_torch': (peers.peak, options.dtype, side),
  }
  wanted = {CASES[name][0] for name in options.cases}
  names = [name for name, library in PEAKS.items() if library in wanted]
  return [name for name in names if not left_out(name, turns.start(name, *makers[name]))]


def left_out(name: str, about: dict, **where) -> bool:
  """Whether a case cannot run, of which a line tells."""
  if FAILED in about:
    show(where | {'case': 'left_out', 'name': name, 'why': about[FAILED]})
  return FAILED in about


def check_logits(ready: dict[str, dict], work: Work) -> None:
  """Raises a ValueError where two that read the same parameters tell different logits."""
  logits = {name: about['logits'] for name, about in ready.items() if 'logits' in about}
  for name, values in logits.items():
    difference = float(np.abs(values - next(iter(logits.values()))).max())
    if not difference < TOLERANCE[work.dtype]:
      raise ValueError(f'{work.name}: logits of {name} differ by {difference}')


def compare(turns: Turns, work: Work, peaks: list[str], options: argparse.Namespace) -> dict | None:
  """The line of a step: medians of each case over the rounds; None where no case can run."""
  ready = {name: start(turns, name, work, options) for name in options.cases}
  ready = {name: x for name, x in ready.items() if not left_out(name, x, **work.about())}
  check_logits(ready, work)
  times = turns.measure([*ready, *peaks], options.rounds)
  for name in ready:
    if name in times:
      turns.stop(name)
    else:
      left_out(name, {FAILED: 'it stopped while it was measured'}, **work.about())
  medians = {name: statistics.median(values) for name, values in times.items()}
  cases = {name: medians[name] for name in ready if name in medians}
  if not cases:
    return None
  found = work.about() | line(cases, medians, work, options)
  return found | {'memory_gb': {name: round(ready[name]['memory'] / 1e9, 2) for name in cases}}


def line(cases: dict, medians: dict, work: Work, options: argparse.Namespace) -> dict:
  """Images per second, ratios and shares of the peak from median seconds."""
  flops = 2.0 * options.peak_side**3
  peak: dict[str, float] = {}
  for name, library in PEAKS.items():
    if name in medians:
      peak[library] = max(peak.get(library, 0.0), flops / medians[name])
  found: dict[str, Any] = {
    'images_per_second': {name: round(work.batch_size / x, 2) for name, x in cases.items()}
  }
  if 'ours' in cases:
    others = {name: x for name, x in cases.items() if name != 'ours'}
    found['ours_over'] = {name: round(x / cases['ours'], 2) for name, x in others.items()}
  shares = {name: work.flops / x / peak.get(CASES[name][0], np.nan) for name, x in cases.items()}
  found['share_of_peak'] = {name: round(x, 3) for name, x in shares.items() if x == x}
  found['peak_gflops'] = {name: round(x / 1e9, 1) for name, x in peak.items()}
  return found | {'gflop_a_step': round(work.flops / 1e9, 1), 'rounds': options.rounds}


def parse() -> argparse.Namespace:
  """The options; lists are comma-separated."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--variants', default='Ti/16,S/16,B/16', help='of ViT; of another family: swin:T/4'
  )
  parser.add_argument('--batch_size', default='8,32')
  parser.add_argument('--kinds', default='inference,training')
  parser.add_argument(
    '--cases', default=','.join(CASES), help='on a card, all of them hold what they took of it'
  )
  parser.add_argument('--image_size', type=int, default=224, help='side in pixels')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--dtype', choices=list(TOLERANCE))
  parser.add_argument('--official', help='a checkout of google-research/vision_transformer')
  parser.add_argument('--peak_side', type=int, help='of the square matrices of the peak')
  options = parser.parse_args()
  on_cpu = memory.on_cpu(None)
  options.dtype = options.dtype or ('float32' if on_cpu else 'bfloat16')
  options.peak_side = options.peak_side or (2048 if on_cpu else 8192)
  options.cases = options.cases.split(',')
  for name in options.cases:
    if name not in CASES:
      parser.error(f'--cases: {name} is none of {", ".join(CASES)}')
  if 'official' in options.cases and not options.official:
    options.cases.remove('official')
    show({'case': 'left_out', 'name': 'official', 'why': 'no --official=CHECKOUT'})
  return options


def main() -> None:
  options = parse()
  if memory.on_cpu(None):
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # Else plugins without a card say so at length.
  # Several processes share a card, so none may take most of it at its start.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  machine = works.machine()
  with Turns() as turns:
    peaks = start_peaks(turns, options)
    for kind in options.kinds.split(','):
      for variant in options.variants.split(','):
        for batch_size in map(int, options.batch_size.split(',')):
          work = works.of(kind, variant, batch_size, options.image_size, options.dtype)
          found = compare(turns, work, peaks, options)
          if found:
            show(found | {'machine': machine})


if __name__ == '__main__':
  main()
