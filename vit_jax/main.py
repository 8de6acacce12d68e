"""The command: train, explore or sweep as a config says, or evaluate what a run left behind.

  python -m vit_jax.main --config=configs/vit_digits.py --workdir=runs/digits [--mode=evaluate]
  python -m vit_jax.main --config=configs/vit_tfds.py --workdir=W --mode=plan --target=h100:8
  python -m vit_jax.main --config=configs/explore_readouts.py --config.init_from=C --workdir=W
  python -m vit_jax.main --config=configs/sweep_readouts.py --workdir=W [--mode=list]

Any key can be overridden: --config.model.readout=mean, --config.optimizer.name=sgd.
"""

import json
import math
import pathlib
import signal
import sys
import time
import traceback

from absl import flags, logging

from vit_jax import defaults, recipe
from vit_jax.defaults import Config
from vit_jax.runtime import distributed, memory, messages, provenance
from vit_jax.runtime.choices import check_choice

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', None, 'folder of the run; made when missing', required=True)
flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate', 'plan', 'list'],
  'train: what config.run says; evaluate a finished run; plan: what a run takes, on devices that '
  'need not be here; list the runs of a sweep as commands',
)  # fmt: skip
flags.DEFINE_string('target', None, 'plan: devices such as h100:8 or v5e:4x4; else those here')
flags.DEFINE_bool('fit', False, 'plan: also the largest batch, and what makes the asked one fit')
flags.DEFINE_bool('table', True, 'plan: also other batch sizes and shardings')
flags.DEFINE_integer('num_classes', None, 'plan: classes of data that need not be here')
flags.DEFINE_bool('traceback', False, 'show where in the code an error arose')
flags.DEFINE_string('coordinator', None, 'several processes: HOST:PORT where process 0 listens')
flags.DEFINE_integer('num_processes', None, 'several processes: how many there are')
flags.DEFINE_integer('process_id', None, 'several processes: which one this is, from 0')
flags.DEFINE_integer('connect_timeout', 300, 'seconds for all processes to come together')


# What a person may ask of each kind of run.
MODES = {
  'train': ('train', 'evaluate', 'plan'),
  'explore': ('train',),
  'sweep': ('train', 'list'),
}
OUT_OF_MEMORY = (
  'the device has too little memory for this run. In this order: --config.model.dtype=bfloat16, '
  '--config.accumulation_steps=4, --config.model.remat=blocks (on a CPU with '
  '--config.model.scan=True), --config.fsdp=N with N devices, a smaller --config.batch_size; all '
  'but the last may also change after a checkpoint'
)


def parse(argv: list[str]) -> list[str]:
  """Defines the flag `config` from the recipe and the parts that the command line names.

  Raises:
    ValueError: an unknown key or part, or a value of the wrong type; nothing has run yet.
  """
  return recipe.define(argv, FLAGS)


def run(argv: list[str], words: list[str]) -> None:
  """Does what the flags say: trains, explores, sweeps, evaluates; `words` are the command line."""
  if 'config' not in FLAGS:
    raise ValueError('--config is missing: a recipe such as --config=configs/vit_digits.py')
  if len(argv) > 1:
    raise ValueError(f'unexpected {argv[1:]}; options look like --config.total_steps=100')
  if not FLAGS.workdir:
    raise ValueError('--workdir is empty: name a folder, such as --workdir=runs/digits')
  config, workdir = FLAGS.config, pathlib.Path(FLAGS.workdir)
  check_mode(config)
  if FLAGS.target is None:  # Else nothing runs here.
    start(config)
  begun = time.time()
  {'train': run_one, 'explore': run_explore, 'sweep': run_sweep}[config.run](config, workdir, words)
  if FLAGS.mode == 'train' and distributed.is_first():
    provenance.note(workdir, words, begun)


def check_mode(config: Config) -> None:
  """Raises a ValueError for a mode that the config's run has not, or flags of another mode."""
  check_choice('config.run', config.run, defaults.RUNS)
  choices = MODES[config.run]
  if FLAGS.mode not in choices:
    raise ValueError(
      f'--mode={FLAGS.mode} with config.run={config.run}: choose {" or ".join(choices)}'
    )
  given = [key for key in ('target', 'fit', 'table', 'num_classes') if FLAGS[key].present]
  if given and FLAGS.mode != 'plan':
    raise ValueError(f'--{given[0]} belongs to --mode=plan')


def start(config: Config) -> None:
  """Prepares this process for computing, and joins it to the others of its run."""
  pixels = config.batch_size * math.prod(config.data.get('image_size', (224, 224)))
  memory.keep_freed(pixels // max(1, config.accumulation_steps), config.platform)
  from vit_jax.runtime import compilation, devices  # They load JAX.

  compilation.keep()
  if FLAGS.coordinator is None and not distributed.launched():
    devices.prepare(config.platform)
  distributed.connect(
    FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.connect_timeout
  )
  if distributed.several() and not distributed.is_first():
    logging.set_verbosity(logging.WARNING)  # Process 0 tells what happens.


def run_one(config: Config, workdir: pathlib.Path, _: list[str]) -> None:
  """Trains the one run that a config describes, evaluates it, or plans it."""
  if FLAGS.mode == 'plan':
    run_plan(config, workdir)
    return
  from vit_jax import train  # JAX loads here, once the command line is known to be sound.

  if FLAGS.mode == 'train':
    train.train(config, workdir)
    return
  report = train.evaluate(config, workdir)
  shown = {key: report[key] for key in report if key not in ('per_class', 'confusion')}
  if shown:  # Process 0 has it.
    print(json.dumps(shown, indent=2))


def run_plan(config: Config, workdir: pathlib.Path) -> None:
  """Says what a run would take, on devices that need not be here."""
  from vit_jax.explore import plan

  report = plan.plan(config, workdir, FLAGS.target, FLAGS.num_classes, FLAGS.fit, FLAGS.table)
  if distributed.is_first():
    print(json.dumps(report, indent=2))


def run_explore(config: Config, workdir: pathlib.Path, _: list[str]) -> None:
  """Reads a frozen model in every way that `config.explore` names."""
  from vit_jax import explore

  explore.run(config, workdir)


def run_sweep(config: Config, workdir: pathlib.Path, words: list[str]) -> None:
  """Starts every run of a recipe's `sweep()`, or lists them as commands."""
  from vit_jax.explore import sweep

  address, rest, _ = recipe.sort_words(words)
  assert address is not None  # Else there would be no config.
  module, arguments = recipe.open_recipe(address)
  if not hasattr(module, 'sweep'):
    raise ValueError(f'config.run=sweep: {address} defines no sweep()')
  tuned = getattr(module, 'TUNED', None)
  runs = sweep.plan(config, module.sweep(*arguments), workdir, tuned)
  if FLAGS.mode == 'list':
    print('\n'.join(sweep.commands(runs, address, rest[1:])))
  else:
    sweep.sweep(runs, workdir, module)


def main(argv: list[str] | None = None) -> None:
  """Runs the command; a person's mistake ends it with one line instead of a traceback."""
  messages.show()
  argv = sys.argv if argv is None else argv
  if {'--help', '-h'} & {*argv[1:]}:
    print(f'{__doc__}\n{FLAGS.main_module_help()}')
    return
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C; the loop takes both over.
  try:
    run(parse(argv), argv)
  except KeyboardInterrupt:
    sys.exit('stopped; what was saved before stays')
  except (ValueError, TypeError, OSError, FloatingPointError, flags.Error) as error:
    if '--traceback' in argv:
      raise
    if distributed.several() and not isinstance(error, FloatingPointError):
      distributed.stop_for(error)
    sys.exit(f'error: {error}')
  except (RuntimeError, MemoryError) as error:  # JAX's own, of which one is a person's to solve.
    exhausted = isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)
    if '--traceback' in argv or not exhausted:
      raise
    if distributed.several():
      distributed.stop(f'{OUT_OF_MEMORY} ({distributed.explain(error)[:300]})')
    traceback.clear_frames(error.__traceback__)  # They hold the arrays of the run.
    sys.exit(f'error: {remedies()}\n({" ".join(str(error).split())[:300]})')


def remedies() -> str:
  """What saves memory: compiled and measured for this run where that can be done, else in words."""
  try:
    check_choice('run', FLAGS.config.run, ['train'])
    from vit_jax.explore import plan

    logging.info('too little memory; compiling what could help')
    table = plan.too_large(FLAGS.config, pathlib.Path(FLAGS.workdir))
    return f'the device has too little memory for this run. What would help:\n{table}'
  except Exception:  # Whatever goes wrong here, the run has ended for want of memory.
    return OUT_OF_MEMORY


if __name__ == '__main__':
  main()
