"""Parameters, FLOPs, memory and speed of models by size; exaFLOPs of whole trainings.

  python -m vit_jax.explore.compute --models=vit:Ti/16,vit:S/16,bit:R50x1 --image_size=224,384 --out=DIR
  python -m vit_jax.explore.compute --models=vit:B/16 --epochs=7 --examples=303e6 --quick --out=DIR
  python -m vit_jax.explore.compute --config=configs/vit_tfds.py:cifar10_long --out=DIR

As appendix D.5 of the ViT paper does (arXiv:2010.11929), and its table 6. `DIR/compute.json` holds
a record for each model and size (`counted.py`), `DIR/compute.png` draws them; a table is printed,
or with --json a record a line.
"""  # noqa: E501

import argparse
from collections.abc import Iterator
import json
import pathlib
import sys
from typing import Any

from absl import logging
import jax

import vit_jax
from vit_jax import defaults, models, recipe
from vit_jax.defaults import Config
from vit_jax.explore import compute_page, counted, plan
from vit_jax.explore.counted import Asked
from vit_jax.explore.estimate import Run
from vit_jax.explore.plan_page import rounded
from vit_jax.runtime import atomic, compilation, memory, messages, targets
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

MODELS_ONLY = ('image_size', 'batch_size', 'dtype', 'epochs', 'examples')


def words(text: str) -> list[str]:
  """'a, b' -> ['a', 'b']."""
  return [word.strip() for word in text.split(',') if word.strip()]


def sizes(text: str) -> list[int]:
  """'224,384' -> [224, 384]."""
  try:
    found = [int(word) for word in words(text)]
  except ValueError:
    found = []
  if not found or min(found) < 1:
    raise argparse.ArgumentTypeError(f'{text!r}: sides in pixels with commas between: 224,384')
  return found


def parser() -> argparse.ArgumentParser:
  """The options of the command."""
  made = argparse.ArgumentParser(
    'python -m vit_jax.explore.compute', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  add = made.add_argument
  add('--out', required=True, type=pathlib.Path, metavar='DIR')
  add('--models', type=words, help='FAMILY:VARIANT with commas between: vit:S/16,bit:R50x1')
  add('--image_size', type=sizes, help='sides of square images; 224')
  add('--num_classes', type=int, help='of the head; 1000, or those of the data of a recipe')
  add('--batch_size', type=int, help='at which memory and speed are told; 8')
  add('--dtype', help='of the computation; float32')
  add('--epochs', type=float, help='of a whole training, whose exaFLOPs are told')
  add('--examples', type=float, help='of one of these epochs: 303e6')
  add('--target', help='compile for devices that need not be here, h100 say; implies --fit')
  add('--fit', action='store_true', help='the largest batch of a train step that fits')
  add('--time', action='store_true', help='measure images a second on one device here')
  add('--quick', action='store_true', help='counts alone: nothing is compiled')
  add('--json', action='store_true', help='print a JSON object a line instead of a table')
  return made


def check(options: argparse.Namespace, rest: list[str]) -> None:
  """Refuses options that contradict one another.

  Raises:
    ValueError: names them, and what to write instead.
  """
  named = any(word.lstrip('-').startswith('config=') or word == '--config' for word in rest)
  if bool(options.models) == named:
    raise ValueError('name either --models=vit:S/16,... or --config=RECIPE')
  if options.models and rest:
    raise ValueError(f'unexpected {rest}; keys of a config belong to --config=RECIPE')
  given = [key for key in MODELS_ONLY if getattr(options, key) is not None]
  if named and given:
    raise ValueError(f'--{given[0]} belongs to --models; a recipe has its own: --config.KEY=VALUE')
  if (options.epochs is None) != (options.examples is None):
    raise ValueError('--epochs and --examples belong together: images that a training sees')
  if any(x is not None and x <= 0 for x in (options.epochs, options.examples)):
    raise ValueError('--epochs and --examples must be above 0')
  if options.batch_size is not None and options.batch_size < 1:
    raise ValueError(f'--batch_size={options.batch_size} must be at least 1')
  if options.target and options.time:
    raise ValueError('--time measures the devices that are here: leave --target out')
  if options.quick and (options.time or options.fit or options.target):
    raise ValueError('--quick compiles nothing: leave out --time, --fit and --target')


def config_of(word: str, side: int, options: argparse.Namespace) -> Config:
  """The config of a model for square images, trained by AdamW on one device.

  Raises:
    ValueError: no such family, or a word without a variant.
  """
  name, _, variant = word.partition(':')
  check_choice('family in --models (write FAMILY:VARIANT)', name, models.MODELS)
  if not variant:
    raise ValueError(f'--models={word}: name a variant, {name}:{models.MODELS[name].VARIANTS[0]}')
  config = defaults.complete(defaults.get_config(), {'model': name, 'data': 'tfds'})
  config.model.variant, config.data.image_size = variant, (side, side)
  config.model.dtype = options.dtype or 'float32'
  config.batch_size = config.evaluation.batch_size = options.batch_size or 8
  config.devices = 1
  return config


def runs_of_models(options: argparse.Namespace, target: targets.Target) -> list[tuple[str, Run]]:
  """Every model at every size that it can have; those that it cannot are named.

  Raises:
    ValueError: a model that can have none of the sizes.
  """
  found: list[tuple[str, Run]] = []
  classes = 1000 if options.num_classes is None else options.num_classes
  for word in options.models:
    before, refused = len(found), None
    for side in options.image_size or [224]:
      run = plan.open_run(config_of(word, side, options), options.out, target, classes)
      try:
        run.build()
      except ValueError as error:
        refused = error
        logging.warning('%s at %d is left out: %s', word, side, error)
        continue
      found.append((word, run))
    if len(found) == before and refused:
      raise ValueError(f'--models={word}: {refused}')
  return found


def run_of_recipe(
  rest: list[str], options: argparse.Namespace, target: targets.Target
) -> tuple[str, Run]:
  """A recipe's run, by its address."""
  address, _, _ = recipe.sort_words(rest)
  run = plan.open_run(recipe.read(rest), options.out, target, options.num_classes)
  return str(address), run


def jobs(options: argparse.Namespace, rest: list[str]) -> tuple[list[tuple[str, Run]], Asked]:
  """What to look at, and what to tell of it."""
  target = targets.open_target(options.target)
  if options.models:
    found = runs_of_models(options, target)
    images = (options.epochs or 0) * (options.examples or 0)
  else:
    title, run = run_of_recipe(rest, options, target)
    found, images = [(title, run)], run.config.batch_size * run.config.total_steps
  fit = options.fit or bool(options.target)
  return found, Asked(not options.quick, options.time, fit, images)


def records(found: list[tuple[str, Run]], asked: Asked) -> Iterator[dict[str, Any]]:
  """A record for each model and size, as they are ready."""
  for title, run in track(found, len(found), 'counting', 'models'):
    yield rounded(counted.record(title, run, asked))
    jax.clear_caches()  # Else the programs of all models stay in memory.


def compute(options: argparse.Namespace, rest: list[str]) -> list[dict[str, Any]]:
  """Counts, prints and writes.

  Raises:
    ValueError: options that contradict one another, or a model that cannot be.
  """
  check(options, rest)
  found, asked = jobs(options, rest)
  rows: list[dict[str, Any]] = []
  for row in records(found, asked):
    if not options.json and not rows:
      print(compute_page.header(row))
    print(json.dumps(row) if options.json else compute_page.line(row), flush=True)
    rows.append(row)
    write(options.out, rows)  # After each, as the next may take long.
  compute_page.picture(rows).savefig(options.out / 'compute.png')
  logging.info('%s\nwritten: %s and compute.png', counted.CONVENTION, options.out / 'compute.json')
  return rows


def write(folder: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes `compute.json`."""
  about = {'version': vit_jax.__version__, 'jax': jax.__version__, 'flops': counted.CONVENTION}
  text = json.dumps(about | {'rows': rows}, indent=2)
  atomic.write_text(folder / 'compute.json', text + '\n')


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.explore.compute`."""
  messages.show()
  options, rest = parser().parse_known_args(arguments)
  memory.keep_freed(memory.LARGE)  # As a run has it, whose speed is measured.
  compilation.keep()
  try:
    compute(options, rest)
  except (ValueError, TypeError, OSError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
