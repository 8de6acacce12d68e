"""Pictures and numbers from inside a checkpoint; a new one is a file and one line here.

A `Picture` measures and draws. `measure` and `draw` below are what the command is made of:

  found = interpret.measure('rollout', predictor, images, weighted='gradient')
  interpret.draw('rollout', found[:1])
"""

from collections.abc import Sequence
import math
import textwrap
from typing import Any

import numpy as np

from vit_jax import figures
from vit_jax.interpret.attention import Attention
from vit_jax.interpret.centres import Centres
from vit_jax.interpret.confusion import Confusion
from vit_jax.interpret.distance import Distance
from vit_jax.interpret.feature_maps import FeatureMaps
from vit_jax.interpret.filters import Filters
from vit_jax.interpret.flattening import Flattening
from vit_jax.interpret.knockouts import Knockouts
from vit_jax.interpret.lens import Lens
from vit_jax.interpret.patches import Patches
from vit_jax.interpret.picture import Measured, Picture, options_of
from vit_jax.interpret.positions import Positions
from vit_jax.interpret.readouts import Readouts
from vit_jax.interpret.rollout import Rollout
from vit_jax.interpret.sample import Sample
from vit_jax.interpret.shift import Shift
from vit_jax.interpret.token_probes import TokenProbes
from vit_jax.interpret.tokens import Tokens
from vit_jax.predict import Predictor
from vit_jax.runtime.choices import check_choice

PICTURES: dict[str, Picture] = {
  'patches': Patches(),
  'flattening': Flattening(),
  'feature_maps': FeatureMaps(),
  'readouts': Readouts(),
  'filters': Filters(),
  'positions': Positions(),
  'attention': Attention(),
  'rollout': Rollout(),
  'distance': Distance(),
  'centres': Centres(),
  'tokens': Tokens(),
  'token_probes': TokenProbes(),
  'lens': Lens(),
  'knockouts': Knockouts(),
  'confusion': Confusion(),
  'sample': Sample(),
  'shift': Shift(),
}
WIDEST = 24.0  # inches of a figure: what does not fit beside goes below
LETTERS, LINE = 13, 0.22  # letters of a title to an inch; inches from one line of it to the next


def measure(
  what: str, predictor: Predictor, images: Sequence[Any] | np.ndarray = (), **options: Any
) -> list[Measured]:
  """What a picture of PICTURES shows: one of each image, or one of all.

  Args:
    images: paths, Pillow images or uint8 arrays `H W C` of any size.
    options: those of the command, by name.

  Raises:
    ValueError: no such picture or option, the model has nothing of that kind, or no images.
  """
  check_choice('picture', what, PICTURES)
  picture = PICTURES[what]
  given = options_of(picture, options)
  if picture.sees in ('weights', 'test'):
    if len(images):
      raise ValueError(f'{what} is no picture of images ({picture.sees}): give none')
    return picture.measure(predictor, np.zeros((0, 0, 0, 0), np.uint8), given)
  if not len(images):
    raise ValueError(f'{what} is a picture of images: give some')
  seen = np.stack([predictor.preprocess(image) for image in images])
  return picture.measure(predictor, seen, given)


def draw(what: str, found: Sequence[Measured], labels: Sequence[str] = ()) -> Any:
  """A figure of what was measured; of several, beside one another and on one scale.

  Args:
    labels: written above each, such as the names of checkpoints; (): none.
  """
  picture, scale = PICTURES[what], PICTURES[what].scale(found)
  if len(found) > 1 and labels:
    figure = figures.blank(*picture.size(found[0]))
    if picture.overlay(figure, found, [figures.plain(label) for label in labels]):
      return figure
  sizes = [picture.size(one) for one in found]
  width = max(width for width, _ in sizes)
  headings = [
    heading(one, label, width)
    for one, label in zip(found, labels or [''] * len(found), strict=True)
  ]
  columns = min(len(found), max(1, int(WIDEST / width)))
  rows = math.ceil(len(found) / columns)
  height = max(height for _, height in sizes) + LINE * max(len(lines) for lines in headings)
  figure = figures.blank(columns * width, rows * height)
  parts = figure.subfigures(rows, columns, squeeze=False).flat
  for part, one, lines in zip(parts, found, headings, strict=False):
    if lines:
      part.suptitle(figures.plain('\n'.join(lines)), fontsize=10)
    picture.draw(part, one, scale)
  return figure


def heading(measured: Measured, label: str, width: float) -> list[str]:
  """The lines above a picture of so many inches: its label, then its title."""
  return [label] * bool(label) + textwrap.wrap(measured.title, max(20, int(LETTERS * width)))
