"""A picture of the inside of a checkpoint in two steps: what is measured, and how it is drawn.

One checkpoint and several beside one another share both: `vit_jax/interpret/__init__.py`.
"""

import abc
import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any, ClassVar, Literal

import numpy as np

from vit_jax.predict import Predictor

# Which part of a model is asked for: its weights alone; one image a picture; any number of images
# in one picture; all of its own test data.
Sees = Literal['weights', 'image', 'images', 'test']


@dataclasses.dataclass(frozen=True)
class Measured:
  """What was measured, before it is drawn.

  Attributes:
    numbers: what goes into JSON.
    title: what is shown and how it was computed, in a line; '': the axes say it.
    arrays: by name, what is too large for JSON.
    image: uint8 `H W C` as the model sees it, where the picture is of one.
  """

  numbers: dict[str, Any]
  title: str = ''
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  image: np.ndarray | None = None

  @property
  def pixels(self) -> np.ndarray:
    """The image of a picture that is of one.

    Raises:
      ValueError: it is of none.
    """
    if self.image is None:
      raise ValueError('this was not measured on one image')
    return self.image


class Picture(abc.ABC):
  """A kind of picture; its docstring's first line is the help of the command.

  Attributes:
    sees: what is measured.
    count: test pictures that are taken where no images are given.
  """

  sees: ClassVar[Sees] = 'image'
  count: ClassVar[int] = 1

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    """Declares its own options, each with a default; here none."""
    del parser

  @abc.abstractmethod
  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    """What is drawn: of one image each, or one of all. It changes nothing in the model.

    Args:
      images: uint8 `N H W C` as the model sees them; none where `sees` asks for none.

    Raises:
      ValueError: the model has nothing of that kind, or an option does not fit it.
    """

  def scale(self, found: Sequence[Measured]) -> Any:
    """What all parts of one figure share, such as the limits of a colour; None: nothing."""
    del found

  def overlay(self, figure: Any, found: Sequence[Measured], labels: Sequence[str]) -> bool:
    """Draws several checkpoints into the same axes; False: it cannot, they go side by side."""
    del figure, found, labels
    return False

  @abc.abstractmethod
  def size(self, measured: Measured) -> tuple[float, float]:
    """Inches that it needs: width and height, without the title."""

  @abc.abstractmethod
  def draw(self, figure: Any, measured: Measured, scale: Any) -> None:
    """Draws into a figure, or a part of one, which has no axes yet."""


def options_of(picture: Picture, given: dict[str, Any]) -> argparse.Namespace:
  """The options of a picture: those given, else their defaults.

  Raises:
    ValueError: it has no such option.
  """
  parser = argparse.ArgumentParser()
  picture.add_options(parser)
  options = parser.parse_args([])
  for key, value in given.items():
    if key not in options:
      known = ', '.join(vars(options)) or 'none'
      raise ValueError(f'unknown option {key!r} of this picture; it has {known}')
    setattr(options, key, value)
  return options


def numbers(text: str) -> list[int]:
  """'1,14,91' -> [1, 14, 91], for an option."""
  try:
    return [int(word) for word in text.split(',')]
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r}: whole numbers with commas between') from None


def folder(text: str) -> pathlib.Path:
  """The folder of an option `--out`, which need not exist yet: a file in its place is refused."""
  path = pathlib.Path(text)
  there = next((place for place in (path, *path.parents) if place.exists()), path)
  if there.exists() and not there.is_dir():
    raise argparse.ArgumentTypeError(f'{there} is a file: give a folder')
  return path


def rounded(values: Any, digits: int = 6) -> Any:
  """An array as nested lists of numbers with so many significant digits, for JSON."""
  if np.ndim(values):
    return [rounded(value, digits) for value in values]
  return float(f'{float(values):.{digits}g}')
