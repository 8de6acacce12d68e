"""A finished run as one function: images in, named outputs out; and the command that prints them.

python -m vit_jax.predict RUN_OR_WEIGHTS FILE_OR_FOLDER... [--json] [--top=5]
python -m vit_jax.predict RUN_OR_WEIGHTS FILE_OR_FOLDER... --features --layers=all --out=x.npz
"""

import argparse
from collections.abc import Iterator
import functools
import json
import pathlib
import sys
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
from PIL import Image

from vit_jax import defaults, models, tokens, weights
from vit_jax.data import preprocess
from vit_jax.progress import track

Outputs = dict[str, np.ndarray]


class Predictor:
  """A trained model with everything that belongs to it.

  Attributes:
    model: the linen module; `params` are its parameters (numpy).
    class_names: in the order of the logits.
    preprocess: what turns a picture into the model's input, as in training.
    passport: all that is known of the weights: step, origin, sizes.
  """

  def __init__(self, params: dict, passport: dict[str, Any]):
    self.passport = passport
    self.class_names: list[str] = passport['class_names']
    settings: dict[str, Any] = {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in passport['preprocess'].items()
    }
    self.preprocess = preprocess.Preprocess(**settings)
    section = passport['model'] | {'image_size': tuple(passport['model']['image_size'])}
    section = defaults.part('model', section['name']).to_dict() | section  # Keys of later versions.
    self.model = models.build(**section)
    self.params = params
    self._forward = functools.cache(self._compile)

  def __call__(self, images, outputs: tuple[str, ...] = ('logits', 'probabilities')) -> Outputs:
    """Named outputs for a batch of images.

    Args:
      images: uint8 `B H W C` of any size; float `B H W C`, already normalised; or a path, a Pillow
        image, or a list of them.
      outputs: some of `output_names`: 'features', 'tokens', 'block_0/attention_weights', ...

    Raises:
      ValueError: an unreadable image, or an unknown output.
    """
    unknown = set(outputs) - set(self.output_names)
    if unknown:
      raise ValueError(f'unknown outputs {sorted(unknown)}; choose from {self.output_names}')
    batch = self._batch(images)
    return jax.device_get(self._forward(tuple(outputs))(self.params, batch))

  @functools.cached_property
  def output_names(self) -> list[str]:
    """Everything that the model returns by name."""
    image = jax.ShapeDtypeStruct((1, *self.model.image_size, self.model.channels), jnp.float32)
    return list(jax.eval_shape(self._named, self.params, image))

  def _named(self, params, images):
    outputs: Any = self.model.apply({'params': params}, images)
    logits, named = outputs
    return named | {'logits': logits, 'probabilities': jax.nn.softmax(logits)}

  def _compile(self, outputs: tuple[str, ...]):
    def forward(params, images):
      if images.dtype == jnp.uint8:
        images = self.preprocess.normalise(images)
      named = self._named(params, images)
      return {name: named[name] for name in outputs}

    return jax.jit(forward)

  def _batch(self, images) -> np.ndarray:
    if isinstance(images, str | pathlib.Path | Image.Image):
      images = [images]
    if isinstance(images, list | tuple):
      return np.stack([self.preprocess(image) for image in images])
    images = np.asarray(images)
    if images.ndim != 4:
      raise ValueError(f'images must be (batch, height, width, channels), not {images.shape}')
    if images.dtype == np.uint8:
      return np.stack([self.preprocess(image) for image in images])
    if not np.issubdtype(images.dtype, np.floating):
      raise ValueError(f'images must be uint8 (0 to 255) or normalised floats, not {images.dtype}')
    return images.astype(np.float32)

  def top(self, probabilities: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The `count` likeliest classes of one image."""
    order = np.argsort(-probabilities, kind='stable')[:count]
    return [{'class': self.class_names[i], 'probability': float(probabilities[i])} for i in order]


def load(path: str | pathlib.Path) -> Predictor:
  """The model of a run's folder or of its `model/`.

  Raises:
    FileNotFoundError: no such path.
    ValueError: it holds no model that can be read.
  """
  return Predictor(*weights.load(path))


def outputs_of_files(
  predictor: Predictor,
  paths: list[pathlib.Path],
  batch_size: int,
  outputs: tuple[str, ...],
  broken: list[str],
) -> Iterator[tuple[pathlib.Path, Outputs]]:
  """Each readable file with its outputs; `broken` gets what is wrong with the rest."""
  for start in range(0, len(paths), batch_size):
    images, readable = [], []
    for path in paths[start : start + batch_size]:
      try:
        images.append(predictor.preprocess(path))
        readable.append(path)
      except (ValueError, OSError) as error:
        broken.append(str(error))
    if images:
      # Padded to one shape, so that the last batch does not compile anew.
      padding = [images[0]] * (min(batch_size, len(paths)) - len(images))
      rows = predictor(np.stack(images + padding), outputs)
      for i, path in enumerate(readable):
        yield path, {name: rows[name][i] for name in outputs}


def write_features(
  predictor: Predictor, paths: list[pathlib.Path], options: argparse.Namespace
) -> list[str]:
  """Writes `paths` and an array `(images, tokens, width)` for each layer into one .npz file.

  Returns:
    What is wrong with files that could not be read.
  """
  if not options.out:
    raise ValueError('--features needs --out=FILE.npz')
  if 'tokens' not in predictor.output_names:
    names, wanted = ('features',), None
  else:
    names, wanted = tokens.layer_names(predictor.output_names, options.layers), options.tokens
  found: dict[str, list] = {name: [] for name in ('paths', *names)}
  broken: list[str] = []
  rows = outputs_of_files(predictor, paths, options.batch_size, names, broken)
  for path, outputs in track(rows, len(paths), 'computing features', 'pictures'):
    found['paths'].append(str(path))
    for name in names:
      x = outputs[name]
      found[name].append(x if wanted is None else tokens.choose(predictor.model, x, wanted))
  arrays: dict[str, Any] = {name: np.array(values) for name, values in found.items()}
  with open(options.out, 'wb') as file:
    np.savez(file, **arrays)
  return broken


def write_predictions(
  predictor: Predictor, paths: list[pathlib.Path], options: argparse.Namespace
) -> list[str]:
  """Prints each file's likeliest classes; returns what is wrong with the rest."""
  if not predictor.class_names:
    raise ValueError(f'{options.model} has no head, so it knows no classes; use --features')
  show, broken = show_json if options.json else show_row, []
  names = ('probabilities',)
  for path, row in outputs_of_files(predictor, paths, options.batch_size, names, broken):
    show(path, predictor.top(row['probabilities'], options.top))
  return broken


def show_json(path: pathlib.Path, predictions: list[dict]) -> None:
  print(json.dumps({'path': str(path), 'predictions': predictions}, ensure_ascii=False))


def show_row(path: pathlib.Path, predictions: list[dict]) -> None:
  cells = [f'{row["class"]:>12} {row["probability"]:7.2%}' for row in predictions]
  print(f'{path}  ' + '  '.join(cells))


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m vit_jax.predict', description=__doc__)
  parser.add_argument('model', help='a run, a weight file, or an address')
  parser.add_argument('images', nargs='+', help='image files, or folders of them')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  parser.add_argument('--top', type=int, default=5, help='classes shown for each image')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--features', action='store_true', help='write tokens instead, to --out')
  parser.add_argument('--layers', default='last', help='last, all, or blocks from 1: 1,2,12')
  parser.add_argument('--tokens', default='all', help='all, class, patches, mean, or patches: 1,2')
  parser.add_argument('--out', metavar='FILE.npz')
  options = parser.parse_args(arguments)
  if options.top < 1 or options.batch_size < 1:
    parser.error('--top and --batch_size must be at least 1')
  try:
    predictor = load(options.model)
    paths = preprocess.find_images(options.images)
    broken = (write_features if options.features else write_predictions)(predictor, paths, options)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
  if broken:
    sys.exit('\n'.join(f'error: {line}' for line in broken))


if __name__ == '__main__':
  main()
