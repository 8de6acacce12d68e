"""A finished run as one function: images in, named outputs out; and the command that prints them.

python -m vit_jax.predict RUN_OR_WEIGHTS FILE_OR_FOLDER... [--json] [--top=5]
python -m vit_jax.predict RUN_OR_WEIGHTS FILE_OR_FOLDER... --features --layers=all --out=x.npz
"""

import argparse
from collections.abc import Callable, Iterator
import functools
import json
import pathlib
import sys
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax import weights
from vit_jax.data import preprocess
from vit_jax.models import tokens
from vit_jax.objectives.classification import probabilities
from vit_jax.runtime import atomic, compilation, devices, memory, messages, sharding
from vit_jax.runtime.choices import check_used
from vit_jax.runtime.progress import track

Outputs = dict[str, np.ndarray]
TOP = 5


class Predictor:
  """A trained model with everything that belongs to it.

  Attributes:
    model: the linen module; `params` are its parameters (numpy).
    execution: how it computes, as `load` was told.
    class_names: in the order of the logits.
    preprocess: what turns a picture into the model's input, as in training.
    passport: all that is known of the weights: step, origin, sizes.
  """

  def __init__(self, params: dict, passport: weights.Passport, **execution):
    self.params, self.passport, self.execution = params, passport, execution
    self.class_names, self.preprocess = passport.class_names, passport.preprocess
    self.model = passport.build(**execution)
    self.forward = weights.make_forward(self.model, self.preprocess)
    self._compiled = functools.lru_cache(64)(sharding.jit_on)
    self._chosen, self._placed = functools.cache(self._choose), functools.cache(self._place)

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
    return self._run(self._chosen(tuple(outputs)), self.preprocess.batch(images))

  def measure(self, images, function: Callable[[dict[str, Any]], Any], batch_size: int = 8) -> Any:
    """What `function` makes of the named outputs of any number of images, in batches.

    It is compiled with the forward pass. So of what it only reads, such as attention weights, no
    more is in memory at once than it needs at a time: return what is small.

    Args:
      images: uint8 or float `N H W C` as in a call, or a list of paths and Pillow images.
      function: from arrays `B ...` by name to arrays `B ...` in any tree, in JAX's operations.
      batch_size: images computed at a time; the last batch is filled up.

    Returns:
      The tree, its arrays in numpy, a row an image.

    Raises:
      ValueError: an unreadable image, or none.
    """
    return self.stream(images, self.program(function), batch_size)

  def program(self, function: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """`(params, images) -> function(outputs by name)`, which `measure` compiles."""
    return lambda params, images: function(self._named(params, images))

  def stream(self, images, program: Callable[..., Any], batch_size: int = 8) -> Any:
    """As `measure`, of any `program(params, images) -> arrays `B ...` in a tree`."""
    if not len(images):
      raise ValueError('no images to measure')
    size = min(batch_size, len(images))
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    rows = [self._run(program, self.preprocess.batch(part), size) for part in parts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)

  def computed(self, **execution) -> 'Predictor':
    """The same weights, computed in another way, such as remat='blocks'."""
    return Predictor(self.params, self.passport, **self.execution | execution)

  @property
  def output_names(self) -> list[str]:
    """Everything that the model returns by name."""
    return list(self._shapes)

  @functools.cached_property
  def _shapes(self) -> dict[str, Any]:
    image = jax.ShapeDtypeStruct((1, *self.model.image_size, self.model.channels), jnp.float32)
    return jax.eval_shape(self._named, self.params, image)

  def check_answers(self) -> None:
    """Refuses weights that do not say of an image which class it is.

    Raises:
      ValueError: they have no head, or give several answers an image.
    """
    if not self.class_names:
      raise ValueError('these weights have no head, so they know no classes')
    if self._shapes['logits'].ndim != 2:
      raise ValueError('these weights give several answers an image, not one')

  def _named(self, params, images):
    logits, named = self.forward(params, images)
    read = {'logits': logits, 'probabilities': probabilities(logits, self.passport.predictions)}
    return named | read

  def _count(self, batch: np.ndarray) -> int:
    """How many devices compute a batch: all that it is worth, or one for fewer rows than that."""
    chosen = devices.choose(None, 0, batch[..., 0].size)
    count = min(len(chosen), jax.local_device_count())
    return count if len(batch) >= count else 1

  def _place(self, count: int):
    """A mesh of so many devices, and the parameters on it, where they stay."""
    mesh = sharding.make_mesh(1, jax.local_devices()[:count])
    return mesh, jax.device_put(self.params, sharding.replicated(mesh))

  def _choose(self, outputs: tuple[str, ...]) -> Callable[..., Outputs]:
    return self.program(lambda named: {name: named[name] for name in outputs})

  def _run(self, program: Callable[..., Any], batch: np.ndarray, size: int = 0) -> Any:
    """What a program makes of a batch, which is filled up to `size` rows and over the devices."""
    rows = len(batch)
    batch = fill(batch, max(size, rows))
    count = self._count(batch)
    mesh, params = self._placed(count)
    batch = fill(batch, -(-len(batch) // count) * count)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    found = jax.device_get(self._compiled(mesh, program)(params, placed))
    return jax.tree.map(lambda x: x[:rows], found)

  def top(self, probabilities: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The `count` likeliest classes of one image."""
    order = np.argsort(-probabilities, kind='stable')[:count]
    return [{'class': self.class_names[i], 'probability': float(probabilities[i])} for i in order]


def fill(batch: np.ndarray, size: int) -> np.ndarray:
  """A batch of `size` rows: copies of the first one stand at its end."""
  return np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])


def load(path: str | pathlib.Path, **execution) -> Predictor:
  """The model of a run's folder, of its `model/`, of a weight file or an address.

  Args:
    execution: how to compute, such as dtype='bfloat16'.

  Raises:
    FileNotFoundError: no such path.
    ValueError: it holds no model that can be read.
  """
  return Predictor(*weights.load(path), **execution)


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
  if options.out.is_dir():
    raise ValueError(f'--out={options.out} is a folder: give a file')
  if 'tokens' not in predictor.output_names:
    check_used(options, ('layers', 'tokens'), f'with {options.model}, which names no tokens')
    names, wanted = ('features',), None
  else:
    layers = 'last' if options.layers is None else options.layers
    names = tokens.layer_names(predictor.output_names, layers)
    wanted = 'all' if options.tokens is None else options.tokens
  found: dict[str, list] = {name: [] for name in ('paths', *names)}
  broken: list[str] = []
  rows = outputs_of_files(predictor, paths, options.batch_size, names, broken)
  with atomic.replacing(options.out) as partial, open(partial, 'wb') as file:  # Before the work.
    for path, outputs in track(rows, len(paths), 'computing features', 'pictures'):
      found['paths'].append(str(path))
      for name in names:
        x = outputs[name]
        found[name].append(
          x if wanted is None else tokens.choose(predictor.model, x[None], wanted)[0]
        )
    arrays: dict[str, Any] = {name: np.array(values) for name, values in found.items()}
    np.savez(file, **arrays)
  return broken


def write_predictions(
  predictor: Predictor, paths: list[pathlib.Path], options: argparse.Namespace
) -> list[str]:
  """Prints each file's likeliest classes; returns what is wrong with the rest."""
  try:
    predictor.check_answers()
  except ValueError as error:
    raise ValueError(f'{options.model}: {error}; use --features') from None
  show, broken = show_json if options.json else show_row, []
  names = ('probabilities',)
  for path, row in outputs_of_files(predictor, paths, options.batch_size, names, broken):
    show(path, predictor.top(row['probabilities'], options.top or TOP))
  return broken


def show_json(path: pathlib.Path, predictions: list[dict]) -> None:
  """Prints one JSON object for a picture."""
  plain = sys.stdout.encoding.lower() not in ('utf-8', 'utf8')  # What it lacks were no JSON else.
  print(json.dumps({'path': str(path), 'predictions': predictions}, ensure_ascii=plain))


def show_row(path: pathlib.Path, predictions: list[dict]) -> None:
  """Prints one line for a picture, for a person."""
  cells = [f'{row["class"]:>12} {row["probability"]:7.2%}' for row in predictions]
  print(f'{path}  ' + '  '.join(cells))


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.predict`."""
  parser = argparse.ArgumentParser('python -m vit_jax.predict', description=__doc__)
  parser.add_argument('model', help='a run, a weight file, or an address')
  parser.add_argument('images', nargs='+', help='image files, or folders of them')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  parser.add_argument('--top', type=int, help=f'classes shown for each image (else {TOP})')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--features', action='store_true', help='write tokens instead, to --out')
  parser.add_argument('--layers', help='last (else), all, or blocks from 1: 1,2,12')
  parser.add_argument('--tokens', help='all (else), class, patches, mean, or patches: 1,2')
  parser.add_argument('--out', type=pathlib.Path, metavar='FILE.npz')
  options = parser.parse_args(arguments)
  if min(1 if options.top is None else options.top, options.batch_size) < 1:
    parser.error('--top and --batch_size must be at least 1')
  try:
    if options.features:
      check_used(options, ('json', 'top'), 'with --features')
    else:
      check_used(options, ('layers', 'tokens', 'out'), 'without --features')
    memory.keep_freed(options.batch_size * memory.LARGE)
    compilation.keep()
    devices.prepare()
    predictor = load(options.model)
    paths = preprocess.find_images(options.images)
    with messages.printing():
      write = write_features if options.features else write_predictions
      broken = write(predictor, paths, options)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
  if broken:
    sys.exit('\n'.join(f'error: {line}' for line in broken))


if __name__ == '__main__':
  main()
