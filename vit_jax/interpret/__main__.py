"""Looks inside a checkpoint: a picture and its numbers for each image.

  python -m vit_jax.interpret WHAT CHECKPOINT [IMAGES...] --out=DIR
  python -m vit_jax.interpret batch --config=RECIPE [--config.KEY=VALUE ...] --out=DIR
  python -m vit_jax.interpret masked RUN [IMAGES...] --out=DIR

WHAT is patches, flattening, feature_maps or readouts. CHECKPOINT is a run, a weight file or an
address; without IMAGES test pictures of its data are taken. `batch` shows what training sees,
`masked` what a run of masked patch prediction hides and predicts.
"""

import argparse
from collections.abc import Iterator
import json
import pathlib
import sys
from typing import Any

import numpy as np

from vit_jax import data, experiment, interpret, predict, recipe
from vit_jax.data import preprocess
from vit_jax.interpret import batch, masked


def images_of(
  predictor: predict.Predictor, options: argparse.Namespace
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, image as the model sees it): the files given, else test pictures.

  Raises:
    ValueError: there are none, or they cannot be read.
  """
  if options.images:
    for path in preprocess.find_images(options.images):
      yield path.stem, predictor.preprocess(path)
    return
  if not predictor.passport.origin.get('data'):
    raise ValueError(f'{options.checkpoint} does not say what it was trained on: give IMAGES')
  section = experiment.data_of(predictor.passport, options.checkpoint)
  source = data.build(**section).splits['test']
  for index in range(min(options.count, len(source))):
    found, _ = source.read(np.array([index]))
    yield f'test_{index}', predictor.preprocess(found[0])


def numbers(text: str) -> list[int]:
  """'1,14,91' -> [1, 14, 91]."""
  try:
    return [int(word) for word in text.split(',')]
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r}: whole numbers with commas between') from None


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.interpret`."""
  words = sys.argv[1:] if arguments is None else arguments
  try:
    own = {'batch': write_batch, 'masked': write_masked}
    own.get(words[0] if words else '', write_pictures)(words)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


def write_batch(words: list[str]) -> None:
  """Draws the first pictures that a recipe trains on."""
  parser = argparse.ArgumentParser('python -m vit_jax.interpret batch', description=batch.__doc__)
  parser.add_argument('what')
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--count', type=int, default=16, help='pictures')
  options, rest = parser.parse_known_args(words)
  figure, found = batch.batch(recipe.read(rest), options.count)
  save(figure, found, options.out / 'batch.png')


def write_masked(words: list[str]) -> None:
  """Draws what a run of masked patch prediction predicts of each image."""
  options = masked.parse(words)
  predictor = predict.load(options.checkpoint)
  opened = masked.open_objective(predictor, options.checkpoint)
  for i, (name, image) in enumerate(images_of(predictor, options)):
    figure, found = masked.masked(*opened, image, options.seed)
    path = options.out / f'masked_{name}.png'
    if path.exists() and i:  # Of two folders, the same name.
      path = path.with_stem(f'{path.stem}_{i}')
    save(figure, {'image': name} | found, path)


def write_pictures(words: list[str]) -> None:
  """Draws one of PICTURES for each image."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.interpret',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('what', choices=['batch', 'masked', *interpret.PICTURES])
  parser.add_argument('checkpoint', help='a run, a weight file, or an address')
  parser.add_argument('images', nargs='*', help='image files, or folders of them')
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--count', type=int, default=1, help='test pictures, without IMAGES')
  parser.add_argument('--tokens', type=numbers, help='readouts: patches to mark, from 1')
  parser.add_argument('--channels', type=numbers, help='feature_maps: channels, from 0')
  options = parser.parse_args(words)
  predictor = predict.load(options.checkpoint)
  for i, (name, image) in enumerate(images_of(predictor, options)):
    figure, found = interpret.PICTURES[options.what](predictor, image, options)
    path = options.out / f'{options.what}_{name}.png'
    if path.exists() and i:  # Of two folders, the same name.
      path = path.with_stem(f'{path.stem}_{i}')
    save(figure, {'image': name} | found, path)


def save(figure: Any, found: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a picture and, beside it, its numbers; says where."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  path.with_suffix('.json').write_text(json.dumps(found) + '\n')
  print(path)


if __name__ == '__main__':
  main()
