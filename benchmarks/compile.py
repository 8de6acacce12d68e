"""What the real compilers say of train steps on devices that are not here: a JSON line a case.

  pip install -e '.[cuda12,tpu]'
  python benchmarks/compile.py --targets h100,h100:8,v5e:2x2 --variants B/16 [--official CHECKOUT]
  python benchmarks/compile.py --rows scan --variants L/16 --targets here,h100 --batch_size 8
  python benchmarks/compile.py --check [h100_kernel,h100_fsdp,v5e,large,scan]

Rows: `ours` (its attention chosen for the device), `ours_plain` (attention=plain), `plain_linen`,
`official` (from --official; neither of the last two can cut its state), and `scan`: seconds of
compiling ours with the blocks in a loop, over those of one after another. A line has gigabytes of a
device (temporary memory, state, all together), its traffic, its collectives, the kernel that
attention runs in, and seconds of tracing and compiling on this machine's CPU.

`--check` compiles what the promises in CHECKS speak of, prints a line for each, and fails with the
names of those that are not kept.
"""

import argparse
import os
import sys

# The compilers need no device, and plugins without a card say so at length.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from programs import facts, scan
import work as works
from work import show

from vit_jax.runtime import targets

ROWS = ('ours', 'ours_plain', 'plain_linen', 'official')


def open_target(name: str) -> targets.Target:
  """Devices by name; 'here' for those of this machine.

  Raises:
    ValueError: there are none, or no compiler for them.
  """
  return targets.open_target(None if name == 'here' else name)


def machine() -> dict:
  """This machine and its compilers."""
  return works.machine('jax', 'flax', 'libtpu', 'jax-cuda12-plugin')


def expect(promise: str, found: dict, **limits: tuple[float | None, float | None]) -> list[str]:
  """Prints what was found of a promise; names each figure that is below or above its limits."""
  broken = []
  for key, (least, most) in limits.items():
    if (least is not None and found[key] < least) or (most is not None and found[key] > most):
      broken.append(f'{promise}: {key} is {found[key]}, not {least} to {most}')
  show(found | {'case': 'check', 'promise': promise, 'kept': not broken, 'machine': machine()})
  return broken


def check_h100_kernel() -> list[str]:
  """The default model trains in cuDNN's kernel, and in little memory."""
  found = facts('ours', open_target('h100'), 'B/16', 128)
  found['in_cudnn'] = int(found['attention'] == 'cudnn')
  return expect('h100_kernel', found, temporary_gb=(None, 10.0), in_cudnn=(1, None))


def check_h100_fsdp() -> list[str]:
  """Cutting the state over eight devices saves memory in total."""
  target, broken = open_target('h100:8'), []
  for variant, batch_size in (('B/16', 64), ('L/16', 64), ('H/14', 32)):
    one, eight = (facts('ours', target, variant, batch_size, fsdp=fsdp) for fsdp in (1, 8))
    keys = ('temporary_gb', 'state_gb', 'total_gb')
    found = {'variant': variant, 'batch_size_a_device': batch_size}
    found |= {f'{key}_fsdp_{x["fsdp"]}': x[key] for key in keys for x in (one, eight)}
    found['saved_gb'] = round(one['total_gb'] - eight['total_gb'], 3)
    broken += expect('h100_fsdp', found, saved_gb=(0.8, None))
  return broken


def check_v5e() -> list[str]:
  """No scores in float32 are written on a TPU."""
  found = facts('ours', open_target('v5e:2x2'), 'B/16', 128)
  return expect('v5e', found, traffic_gb=(None, 110.0), temporary_gb=(None, 10.0))


def check_large() -> list[str]:
  """The paper's batch of 4,096 fits where large models are trained."""
  broken = []
  for name, variant in (('v5e:16x16', 'L/16'), ('h100:64', 'H/14')):
    target = open_target(name)
    found = facts('ours', target, variant, 4096 // len(target.devices), fsdp=8)
    broken += expect('large', found | {'fits': int(found['fits'])}, fits=(1, None))
  return broken


def check_scan() -> list[str]:
  """A loop over blocks compiles in at most a third of the time, on a CPU and for a GPU."""
  broken = []
  for name, dtype in (('here', 'float32'), ('h100', 'bfloat16')):
    found = scan(open_target(name), 'L/16', 8, dtype=dtype)
    broken += expect('scan', found, ratio=(None, 1 / 3))
  return broken


CHECKS = {
  'h100_kernel': check_h100_kernel,
  'h100_fsdp': check_h100_fsdp,
  'v5e': check_v5e,
  'large': check_large,
  'scan': check_scan,
}


def check(names: list[str]) -> None:
  """Exits with what is broken of some promises."""
  broken = []
  for name in names:
    try:
      broken += CHECKS[name]()
    except (ValueError, RuntimeError) as error:  # The compiler is missing, or refuses the program.
      broken.append(f'{name}: {" ".join(str(error).split())[:300]}')
  if broken:
    sys.exit('\n'.join(['broken promises:', *broken]))


def parse() -> argparse.Namespace:
  """The options; lists are comma-separated."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--targets', default='h100,h100:8,v5e:2x2', help='or here, for this machine')
  parser.add_argument('--variants', default='B/16')
  parser.add_argument('--rows', default=','.join(ROWS), help='also: scan')
  parser.add_argument('--batch_size', type=int, default=128, help='of a device')
  parser.add_argument('--image_size', type=int, default=224, help='side in pixels')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--fsdp', type=int, default=1, help='devices that share a state of ours')
  parser.add_argument('--remat', default='none')
  parser.add_argument('--scan', action='store_true', help='one compiled block of ours for all')
  parser.add_argument('--official', help='a checkout of google-research/vision_transformer')
  parser.add_argument('--check', nargs='?', const=','.join(CHECKS), help='promises; all: --check')
  options = parser.parse_args()
  for key, known in (('rows', (*ROWS, 'scan')), ('check', CHECKS)):
    for name in (getattr(options, key) or '').split(','):
      if name and name not in known:
        parser.error(f'--{key}: {name!r} is none of {", ".join(known)}')
  return options


def show_rows(options: argparse.Namespace, target: targets.Target, variant: str) -> None:
  """Prints the rows of a target and a variant; of one that cannot be compiled, why."""
  given = dict(image_size=options.image_size, dtype=options.dtype, official=options.official)
  for row in options.rows.split(','):
    how = {}
    if row in ('ours', 'ours_plain', 'scan'):
      how = dict(fsdp=options.fsdp, model__remat=options.remat, model__scan=options.scan)
    make = scan if row == 'scan' else facts
    try:
      if row == 'official' and not options.official:
        raise ValueError('no --official=CHECKOUT')
      found = make(*([row] if make is facts else []), target, variant, options.batch_size,
                   **given, **how)  # fmt: skip
    except (ValueError, RuntimeError) as error:
      why = ' '.join(str(error).split())[:300]
      found = {'case': 'left_out', 'name': row, 'target': target.name, 'why': why}
    show(found | {'machine': machine()})


def main() -> None:
  options = parse()
  if options.check:
    check(options.check.split(','))
    return
  for name in options.targets.split(','):
    try:
      target = open_target(name)
    except ValueError as error:  # No such target, or no compiler for it.
      show({'case': 'left_out', 'name': name, 'why': str(error)})
      continue
    for variant in options.variants.split(','):
      show_rows(options, target, variant)


if __name__ == '__main__':
  main()
