"""Looks inside a checkpoint: a picture and its numbers for each image.

python -m vit_jax.interpret WHAT CHECKPOINT [IMAGES...] --out=DIR

WHAT is patches, flattening, feature_maps or readouts. CHECKPOINT is a run, a weight file or an
address; without IMAGES test pictures of its data are taken.
"""

import argparse
from collections.abc import Iterator
import json
import pathlib
import sys

import numpy as np

from vit_jax import data, experiment, interpret, predict
from vit_jax.data import preprocess


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
  parser = argparse.ArgumentParser('python -m vit_jax.interpret', description=__doc__)
  parser.add_argument('what', choices=list(interpret.PICTURES))
  parser.add_argument('checkpoint', help='a run, a weight file, or an address')
  parser.add_argument('images', nargs='*', help='image files, or folders of them')
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--count', type=int, default=1, help='test pictures, without IMAGES')
  parser.add_argument('--tokens', type=numbers, help='readouts: patches to mark, from 1')
  parser.add_argument('--channels', type=numbers, help='feature_maps: channels, from 0')
  options = parser.parse_args(arguments)
  try:
    predictor = predict.load(options.checkpoint)
    for i, (name, image) in enumerate(images_of(predictor, options)):
      figure, found = interpret.PICTURES[options.what](predictor, image, options)
      options.out.mkdir(parents=True, exist_ok=True)
      path = options.out / f'{options.what}_{name}.png'
      if path.exists() and i:  # Of two folders, the same name.
        path = path.with_stem(f'{path.stem}_{i}')
      figure.savefig(path)
      path.with_suffix('.json').write_text(json.dumps({'image': name} | found) + '\n')
      print(path)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
