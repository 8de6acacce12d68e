"""Perceptual hashes: 64 bits of a picture that outlast another size, JPEG quality or brightness.

A picture in grey, squashed to 32 x 32; of its cosine transform the 64 lowest frequencies without
the mean; each a bit, which says whether it lies above their median. So does pHash (Zauner 2010),
which takes a square of frequencies instead of a triangle. The number of bits in which two pictures
differ tells how far they are apart: 32 of unrelated ones, few of copies.
"""

from collections.abc import Iterator
from concurrent import futures

from jaxtyping import Int, UInt8, UInt64
import numpy as np

from vit_jax.data import pictures, pipeline, resize
from vit_jax.data.sources import Source
from vit_jax.runtime import devices
from vit_jax.runtime.progress import track

SIDE = 32
BITS = 64
GREY = (0.299, 0.587, 0.114)  # Luma, which JPEG keeps best.
CHUNK = 512  # pictures that are held at once
ROWS, COLUMNS = 64, 2**16  # hashes that are compared at once, 32 MB: what caches and threads like


def triangle() -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns of the lowest frequencies, the mean left out: those of the smallest sums."""
  row, column = np.divmod(np.arange(SIDE**2), SIDE)
  order = np.argsort(row + column, kind='stable')[1 : BITS + 1]
  return row[order], column[order]


def small(picture: pictures.Picture, channels: int) -> UInt8[np.ndarray, '32 32 1']:
  """A picture in grey at 32 x 32, read with so many channels.

  Raises:
    pictures.Damaged: it cannot be read.
  """
  # A JPEG may come at a quarter of its size: the same picture, sooner.
  pixels = pictures.read(picture, channels, least=(2 * SIDE, 2 * SIDE))
  weights = GREY if channels == 3 else np.full(channels, 1 / channels)
  grey = np.rint(pixels.astype(np.float32) @ np.asarray(weights, np.float32)).astype(np.uint8)
  return resize.resize(grey[..., None], (SIDE, SIDE), 'bilinear')


def hashes(images: UInt8[np.ndarray, 'B 32 32 1']) -> UInt64[np.ndarray, 'B']:
  """The hash of each grey picture."""
  from scipy.fft import dctn

  grey = images[..., 0].astype(np.float32)
  waves = np.asarray(dctn(grey, axes=(1, 2), norm='ortho'))
  low = waves[:, *triangle()]
  bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
  return np.ascontiguousarray(bits).view('>u8')[:, 0].astype(np.uint64)


def hash_source(
  source: Source, channels: int, what: str, threads: int | None = None
) -> UInt64[np.ndarray, 'N']:
  """The hash of every picture of a source, in its order.

  Args:
    what: is said of the work while it runs.
    threads: that decode; None: one a core.

  Raises:
    pictures.Damaged: a picture that cannot be read; names it.
  """
  found = np.empty(len(source), np.uint64)

  def chunks() -> Iterator[int]:
    for start in range(0, len(source), CHUNK):
      indices = np.arange(start, min(start + CHUNK, len(source)))
      images, _ = pipeline.load(
        source, indices, (SIDE, SIDE, 1), threads, lambda picture, _: small(picture, channels)
      )
      found[indices] = hashes(images)
      yield len(indices)

  for _ in track(chunks(), len(source), what, 'pictures'):
    pass
  return found


def near(
  first: UInt64[np.ndarray, 'N'], second: UInt64[np.ndarray, 'M'], distance: int, most: int
) -> Int[np.ndarray, 'P 3']:
  """Pairs of hashes that differ in at most `distance` bits, the nearest first.

  Blocks are compared one after another in threads, so that memory does not grow with N or M.

  Args:
    most: how many pairs there may be.

  Returns:
    a row (place in `first`, place in `second`, bits) for each pair.

  Raises:
    ValueError: there are more of them.
  """

  def block(start: int) -> tuple[np.ndarray, int]:
    rows, found = first[start : start + ROWS, None], []
    for begin in range(0, len(second), COLUMNS):
      apart = np.bitwise_count(rows ^ second[None, begin : begin + COLUMNS])
      i, j = np.nonzero(apart <= distance)
      found.append(np.stack([i + start, j + begin, apart[i, j]], axis=1))
    return np.concatenate(found).astype(np.int64), len(rows)

  def blocks() -> Iterator[int]:
    count = 0
    with futures.ThreadPoolExecutor(devices.cores()) as pool:
      for pairs, rows in pool.map(block, range(0, len(first), ROWS)):
        parts.append(pairs)
        count += len(pairs)
        if count > most:
          pool.shutdown(cancel_futures=True)
          raise ValueError(f'more than {most:,} pairs differ in at most {distance} bits')
        yield rows

  parts = [np.zeros((0, 3), np.int64)]
  if len(second):
    for _ in track(blocks(), len(first), 'comparing', 'pictures'):
      pass
  pairs = np.concatenate(parts)
  return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]
