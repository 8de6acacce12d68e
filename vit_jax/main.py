"""The command: train, explore or sweep as a config says, or evaluate what a run left behind.

  python -m vit_jax.main --config=configs/vit_digits.py --workdir=runs/digits [--mode=evaluate]
  python -m vit_jax.main --config=configs/explore_readouts.py --config.init_from=C --workdir=W
  python -m vit_jax.main --config=configs/sweep_readouts.py --workdir=W [--mode=list]

Any key can be overridden: --config.model.readout=mean, --config.optimizer.name=sgd.
"""

import importlib.util
import json
from logging import Formatter, getLogger
import math
import pathlib
import re
import signal
import sys
from types import ModuleType

from absl import flags, logging
from ml_collections import config_flags

from vit_jax import defaults, distributed, memory
from vit_jax.choices import choose
from vit_jax.defaults import Config

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', None, 'folder of the run; made when missing', required=True)
flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate', 'list'],
  'train: what config.run says; evaluate a finished run; list the runs of a sweep as commands',
)  # fmt: skip
flags.DEFINE_bool('traceback', False, 'show where in the code an error arose')
flags.DEFINE_string('coordinator', None, 'several processes: HOST:PORT where process 0 listens')
flags.DEFINE_integer('num_processes', None, 'several processes: how many there are')
flags.DEFINE_integer('process_id', None, 'several processes: which one this is, from 0')
flags.DEFINE_integer('connect_timeout', 300, 'seconds for all processes to come together')


def open_recipe(address: str) -> tuple[ModuleType, list[str]]:
  """The module of a recipe, and what stands behind its colon: `path.py:text`.

  Raises:
    ValueError: no such file, or no `get_config` in it.
  """
  path, _, argument = address.partition('.py')
  path += '.py'
  if not pathlib.Path(path).is_file():
    raise ValueError(f'--config={address}: no such recipe; see configs/')
  spec = importlib.util.spec_from_file_location('recipe', path)
  assert spec is not None and spec.loader is not None  # Never for a path that ends in .py.
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ValueError(f'--config={address}: it defines no get_config()')
  return module, [argument[1:]] if argument else []


def load_recipe(address: str) -> Config:
  """What `get_config` of a recipe returns."""
  module, arguments = open_recipe(address)
  return module.get_config(*arguments)


def sort_words(argv: list[str]) -> tuple[str | None, list[str], list[tuple[str, str]]]:
  """The recipe, the words without it, and the (key, value) pairs that override it."""
  recipe, rest, given = None, [], []
  words = iter(argv)
  for word in words:
    key, equals, value = re.sub('^--?', '--', word).partition('=')
    if key == '--config':
      recipe = value if equals else next(words, '')
      continue
    rest.append(word)
    if key.startswith('--config.'):
      given.append((key.removeprefix('--config.'), value))
  return recipe, rest, given


def parse(argv: list[str]) -> list[str]:
  """Defines the flag `config` from the recipe and the parts that the command line names.

  Raises:
    ValueError: an unknown key or part, or a value of the wrong type; nothing has run yet.
  """
  recipe, rest, given = sort_words(argv)
  if recipe is None:
    return FLAGS(rest)
  names = {key.split('.')[0]: value for key, value in given if key.endswith('.name')}
  config = defaults.complete(load_recipe(recipe), names)
  for key, _ in given:
    defaults.check_key(config, key)
  config_flags.DEFINE_config_dict('config', config, flag_values=FLAGS, sys_argv=rest)
  return FLAGS(rest)


def run(argv: list[str], words: list[str]) -> None:
  """Does what the flags say; `words` are all of the command line."""
  if 'config' not in FLAGS:
    raise ValueError('--config is missing: a recipe such as --config=configs/vit_digits.py')
  if len(argv) > 1:
    raise ValueError(f'unexpected {argv[1:]}; options look like --config.total_steps=100')
  config, workdir = FLAGS.config, pathlib.Path(FLAGS.workdir)
  choose('config.run', config.run, defaults.RUNS)
  allowed = {'train': ('train', 'evaluate'), 'explore': ('train',), 'sweep': ('train', 'list')}
  if FLAGS.mode not in allowed[config.run]:
    raise ValueError(
      f'--mode={FLAGS.mode} with config.run={config.run}: choose {" or ".join(allowed[config.run])}'
    )
  pixels = config.batch_size * math.prod(config.data.get('image_size', (224, 224)))
  memory.keep_freed(pixels // max(1, config.accumulation_steps))
  distributed.connect(
    FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.connect_timeout
  )
  if distributed.several() and not distributed.is_first():
    logging.set_verbosity(logging.WARNING)  # Process 0 tells what happens.
  {'train': run_one, 'explore': run_explore, 'sweep': run_sweep}[config.run](config, workdir, words)


def run_one(config: Config, workdir: pathlib.Path, _: list[str]) -> None:
  """Trains or evaluates."""
  from vit_jax import train  # JAX loads here, once the command line is known to be sound.

  if FLAGS.mode == 'train':
    train.train(config, workdir)
    return
  report = train.evaluate(config, workdir)
  shown = {key: report[key] for key in report if key not in ('per_class', 'confusion')}
  if shown:  # Process 0 has it.
    print(json.dumps(shown, indent=2))


def run_explore(config: Config, workdir: pathlib.Path, _: list[str]) -> None:
  from vit_jax.explore import readouts

  readouts.explore(config, workdir)


def run_sweep(config: Config, workdir: pathlib.Path, words: list[str]) -> None:
  """Every run of a recipe's `sweep()`, or the list of them as commands."""
  from vit_jax.explore import sweep

  recipe, rest, _ = sort_words(words)
  assert recipe is not None  # Else there would be no config.
  module, arguments = open_recipe(recipe)
  if not hasattr(module, 'sweep'):
    raise ValueError(f'config.run=sweep: {recipe} defines no sweep()')
  runs = sweep.plan(config, module.sweep(*arguments), workdir)
  if FLAGS.mode == 'list':
    print('\n'.join(sweep.commands(runs, recipe, rest[1:])))
  else:
    sweep.sweep(runs, workdir, getattr(module, 'TUNED', ('optimizer.learning_rate',)))


def main(argv: list[str] | None = None) -> None:
  """Runs the command; a person's mistake ends it with one line instead of a traceback."""
  logging.use_absl_handler()
  handler = logging.get_absl_handler()
  handler.setFormatter(Formatter('%(message)s'))
  getLogger('jax').setLevel('WARNING')  # Else it lists the backends that are not there.
  logging.set_verbosity(logging.INFO)
  argv = sys.argv if argv is None else argv
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C; the loop takes both over.
  try:
    run(parse(argv), argv)
  except KeyboardInterrupt:
    sys.exit('stopped; what was saved before stays')
  except (ValueError, TypeError, OSError, FloatingPointError, flags.Error) as error:
    if '--traceback' in argv:
      raise
    if distributed.several() and not isinstance(error, FloatingPointError):
      distributed.stop(distributed.explain(error))
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
