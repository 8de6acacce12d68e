"""What a model of pixels draws: pictures from nothing, and the lower halves of others."""

import argparse
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Int, UInt8
import numpy as np

from vit_jax import figures
from vit_jax.interpret.picture import Measured, Picture
from vit_jax.models import sampling
from vit_jax.predict import Predictor

GREY = 128  # where nothing is given


class Sample(Picture):
  """Pictures that a model of pixels draws: completions of images, and some from nothing."""

  sees = 'images'
  count = 8

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--temperature', type=float, default=1.0, help='0: the likeliest colours')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--half', type=float, default=0.5, help='share of the rows that is given')
    parser.add_argument('--completions', type=int, default=2, help='of each image')
    parser.add_argument('--samples', type=int, help='from nothing; else as many as images')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    model: Any = predictor.model
    sampling.check(model, options.temperature)
    given = rows_given(options, model.grid[0])
    known, losses = look(predictor, images)
    samples = len(images) if options.samples is None else options.samples
    done = complete(predictor, known, given, options)
    fresh = invent(predictor, samples, options)
    arrays = {'images': paint(predictor, known), 'given': paint(predictor, known)}
    arrays['given'][:, given:] = GREY
    arrays |= {f'completion_{i + 1}': paint(predictor, one) for i, one in enumerate(done)}
    arrays['samples'] = paint(predictor, fresh)
    numbers = {
      'temperature': options.temperature, 'seed': options.seed, 'rows_given': given,
      'rows': model.grid[0], 'colours': model.clusters,
      'bits_per_pixel': [round(float(x), 6) for x in losses / np.log(2)],
    }  # fmt: skip
    title = (
      f'{model.clusters} colours, temperature {options.temperature:g}, seed {options.seed}; images '
      f'at {np.mean(losses) / np.log(2):.3g} bits a pixel'
    )
    return [Measured(numbers, title, arrays)]

  def size(self, measured: Measured) -> tuple[float, float]:
    columns, rows = layout(measured)
    return 1.1 * columns + 1.3, 1.1 * len(rows) + 0.2

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    columns, rows = layout(measured)
    axes = figure.subplots(len(rows), columns + 1, squeeze=False)
    for line, (name, images) in zip(axes, rows, strict=True):
      for axis in line:
        axis.axis('off')
      line[0].text(1.0, 0.5, name, ha='right', va='center', transform=line[0].transAxes, fontsize=8)
      for axis, image in zip(line[1:], images, strict=False):
        figures.show(axis, image)


def rows_given(options: argparse.Namespace, height: int) -> int:
  """How many rows of an image are given.

  Raises:
    ValueError: a share or a number that cannot be.
  """
  if not 0 <= options.half <= 1:
    raise ValueError(f'--half={options.half} must be in 0..1, a share of the rows')
  if options.completions < 0 or (options.samples or 0) < 0:
    raise ValueError('--completions and --samples must be at least 0')
  return round(options.half * height)


def look(
  predictor: Predictor, images: UInt8[np.ndarray, 'n H W C']
) -> tuple[Int[np.ndarray, 'n N'], np.ndarray]:
  """The colours of images, and what they cost the model: nats a pixel."""
  model: Any = predictor.model

  def program(params, batch):
    pixels = predictor.preprocess.normalise(batch)
    colours = model.apply({'params': params}, pixels, method='colours_of')
    logits = jax.nn.log_softmax(predictor.forward(params, batch)[1]['colour_logits'])
    own = jnp.take_along_axis(logits, colours[..., None], axis=-1)
    return colours, -own.mean((1, 2))

  return predictor.stream(images, program)


def complete(
  predictor: Predictor, known: Int[np.ndarray, 'n N'], given: int, options: argparse.Namespace
) -> list[Int[np.ndarray, 'n N']]:
  """Each image as often as it shall be completed; the first `given` rows stay."""
  model: Any = predictor.model
  times = options.completions
  if not times:
    return []
  keys = jax.random.split(jax.random.key(options.seed), times * len(known))
  pixels = given * model.grid[1]
  done = sampling.draw(
    model, predictor.params, keys, np.tile(known, (times, 1)), pixels, options.temperature
  )
  return [*done.reshape(times, *known.shape)]


def invent(predictor: Predictor, count: int, options: argparse.Namespace) -> Int[np.ndarray, 'n N']:
  """Pictures of which nothing is given."""
  model: Any = predictor.model
  nothing = np.zeros((count, model.grid[0] * model.grid[1]), np.int32)
  if not count:
    return nothing
  keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), 1), count)
  return sampling.draw(model, predictor.params, keys, nothing, 0, options.temperature)


def paint(predictor: Predictor, colours: Int[np.ndarray, 'n N']) -> UInt8[np.ndarray, 'n H W C']:
  """Pictures of the palette's colours, as pixel values."""
  model: Any = predictor.model
  mean, std = (np.asarray(x) for x in (predictor.preprocess.mean, predictor.preprocess.std))
  pixels = (np.asarray(model.palette) * std + mean) * 255
  palette = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  return palette[colours].reshape(len(colours), *model.grid, palette.shape[-1])


def layout(measured: Measured) -> tuple[int, list[tuple[str, np.ndarray]]]:
  """How many columns there are, and (name, pictures) of each row."""
  found = measured.arrays
  columns = max(1, len(found['images']))
  rows = [(name.replace('_', ' '), x) for name, x in found.items() if name != 'samples']
  for start in range(0, len(found['samples']), columns):
    rows.append(('from nothing', found['samples'][start : start + columns]))
  return columns, rows
