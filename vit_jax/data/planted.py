"""Tokens and pictures whose evidence is known: which patches tell the class, and which do not.

code                one patch holds the code of the class, all others noise
joint               two patches hold a code each, alone of chance: their sum (modulo K) is the class
digit_on_noise      a digit in a quarter of a canvas of noise
digit_among_digits  a digit in a quarter, other digits in the others, whose labels do not count
"""

import dataclasses

from jaxtyping import Bool, Float32, Int32, UInt8
import numpy as np

from vit_jax.data import sources

TOKENS, PICTURES = ('code', 'joint'), ('digit_on_noise', 'digit_among_digits')
KINDS = (*TOKENS, *PICTURES)
SIDE = 8  # pixels of a digit, half of a canvas


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokens of noise with codes in some.

  Attributes:
    possible: the share of examples whose class a reader of the codes would tell.
  """

  values: Float32[np.ndarray, 'n N D']
  labels: Int32[np.ndarray, 'n']
  evidence: Bool[np.ndarray, 'N']
  possible: float


@dataclasses.dataclass(frozen=True)
class Canvases:
  """Pictures of 2 x 2 digits, or of one in noise; `quarter`, row by row, is the one that counts."""

  images: UInt8[np.ndarray, 'n H W 1']
  labels: Int32[np.ndarray, 'n']
  quarter: int


def plant_code(
  kind: str, rng: np.random.Generator, count: int, patches: int, width: int, classes: int,
  strength: float,
) -> Tokens:  # fmt: skip
  """Tokens of unit noise, to which codes of length `strength` are added in one patch, or two."""
  places = rng.choice(patches, 1 + (kind == 'joint'), replace=False)
  codes = rng.normal(size=(classes, width))
  codes *= strength / np.linalg.norm(codes, axis=1, keepdims=True)
  values, labels = rng.normal(size=(count, patches, width)), rng.integers(0, classes, count)
  # Of two parts the first is of chance, the second what is left: each alone says nothing.
  first = rng.integers(0, classes, count)
  parts = [labels] if kind == 'code' else [first, (labels - first) % classes]
  told = np.zeros(count, int)
  for place, part in zip(places, parts, strict=True):
    values[:, place] += codes[part]
    told += (values[:, place] @ codes.T).argmax(1)
  possible = float((told % classes == labels).mean())
  evidence = np.isin(np.arange(patches), places)
  return Tokens(values.astype(np.float32), labels.astype(np.int32), evidence, possible)


def paste_digits(
  kind: str, rng: np.random.Generator, digits: sources.Source, count: int, quarter: int
) -> Canvases:
  """Canvases of 16 x 16 pixels with a digit of a class that counts in one quarter.

  Args:
    digits: 8 x 8 pixels each.
  """
  pictures, known = digits.read(np.arange(len(digits)))
  pixels, chosen = np.stack([np.asarray(x) for x in pictures]), rng.integers(0, len(known), count)
  quarters = pixels[rng.integers(0, len(known), (count, 4))]
  if kind == 'digit_on_noise':
    quarters = rng.integers(0, 256, quarters.shape, np.uint8)
  quarters[:, quarter] = pixels[chosen]
  rows = quarters.reshape(count, 2, 2, SIDE, SIDE, 1).transpose(0, 1, 3, 2, 4, 5)
  images = rows.reshape(count, 2 * SIDE, 2 * SIDE, 1)
  return Canvases(images, known[chosen].astype(np.int32), quarter)


def patches_of(quarter: int, grid: tuple[int, int]) -> Bool[np.ndarray, 'N']:
  """Which patches of a grid have their centre in a quarter."""
  row, column = divmod(quarter, 2)
  rows, columns = (((np.arange(size) + 0.5) * 2 // size).astype(int) for size in grid)
  return ((rows == row)[:, None] & (columns == column)[None]).reshape(-1)


def cut(images: UInt8[np.ndarray, 'n H W 1'], side: int) -> Float32[np.ndarray, 'n N D']:
  """The pixels of each patch as a token, row by row, in -1..1: what an encoder starts from."""
  count, height, width, _ = images.shape
  shape = (count, height // side, side, width // side, side)
  patches = images.reshape(shape).transpose(0, 1, 3, 2, 4)
  return (patches.reshape(count, -1, side * side) / 127.5 - 1).astype(np.float32)
