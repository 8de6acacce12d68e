"""Progress of long work: a bar in a terminal, lines elsewhere; both with a rate and an ETA."""

from collections.abc import Iterable, Iterator
import math
import sys
import time
from typing import TypeVar

from absl import logging

T = TypeVar('T')
EVERY = 10.0  # seconds between two lines where there is no terminal


def track(work: Iterable[T], total: int, what: str, unit: str, scale: bool = False) -> Iterator[T]:
  """Hands `work` on and shows how far it is.

  Args:
    total: how many units there are; an item that is a whole number counts for so many, others for
      one.
    what: what is being done, 'reading pictures'.
    unit: what is counted, 'pictures'.
    scale: whether to write 1.2M instead of 1200000.
  """
  from tqdm import tqdm

  if sys.stderr.isatty():
    with tqdm(total=total, desc=what, unit=f' {unit}', unit_scale=scale) as bar:
      for item in work:
        yield item
        bar.update(item if isinstance(item, int) else 1)
    return
  done, start = 0, time.perf_counter()
  last = start
  for item in work:
    yield item
    done += item if isinstance(item, int) else 1
    now = time.perf_counter()
    if now - last > EVERY:
      last, rate = now, done / (now - start)
      logging.info(
        '%s: %s of %s %s, %s a second, ETA %s',
        what,
        tqdm.format_sizeof(done) if scale else done,
        tqdm.format_sizeof(total) if scale else total,
        unit,
        tqdm.format_sizeof(rate) if scale else f'{rate:.2g}' if rate < 10 else round(rate),
        clock((total - done) / rate),
      )


def clock(seconds: float) -> str:
  """Seconds as a clock shows them: '1:05:09', '5:09'."""
  minutes, seconds = divmod(math.ceil(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
