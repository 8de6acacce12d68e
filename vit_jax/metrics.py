"""Numbers of a run: metrics.jsonl, TensorBoard events, progress with a rate and an ETA, curves."""

from collections.abc import Iterator
import json
import math
import pathlib
import sys
import time

from absl import logging


def read(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics file; a half-written last line is left out."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')
  return [json.loads(line) for line in lines[:-1] if line]


class Writer:
  """Appends to `metrics.jsonl` and TensorBoard, one line a step.

  Starting at `step` forgets the lines of later steps, which a resumed run writes again.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    from tensorboardX import SummaryWriter

    path = workdir / 'metrics.jsonl'
    kept = [row for row in read(path) if row['step'] <= step]
    whole = path.with_suffix('.partial')
    whole.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    whole.replace(path)
    self._file = path.open('a')
    self._events = SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    for key, value in values.items():
      self._events.add_scalar(key, value, step)

  def close(self) -> None:
    self._file.close()
    self._events.close()


class Progress:
  """A bar in a terminal, plain lines elsewhere; both with images per second and ETA."""

  def __init__(self, first: int, last: int, batch_size: int):
    self._last, self._batch_size = last, batch_size
    self._mark = (first, time.perf_counter())
    self._bar = None
    if sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=last, initial=first, unit='step', dynamic_ncols=True)

  def step(self) -> None:
    if self._bar is not None:
      self._bar.update()

  def rate(self, step: int) -> float:
    """Images per second since the last call."""
    (then, start), now = self._mark, time.perf_counter()
    self._mark = (step, now)
    return (step - then) * self._batch_size / max(now - start, 1e-9)

  def report(self, step: int, values: dict[str, float], rate: float) -> None:
    text = '  '.join(f'{key} {value:.4g}' for key, value in values.items())
    left = clock((self._last - step) * self._batch_size / max(rate, 1e-9))
    line = f'step {step}/{self._last}  {text}  {rate:,.0f} images/s  ETA {left}'
    if self._bar is not None:
      self._bar.set_postfix_str(f'{rate:,.0f} images/s')
    self.say(line)

  def say(self, line: str) -> None:
    if self._bar is not None:
      self._bar.write(line, file=sys.stderr)
    else:
      logging.info(line)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def clock(seconds: float) -> str:
  """'1:05:09', '5:09'."""
  minutes, seconds = divmod(math.ceil(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def wilson(correct: int, count: int) -> tuple[float, float]:
  """The 95 % score interval of a share (Wilson 1927)."""
  z, share = 1.959963984540054, correct / count
  centre = (share + z * z / (2 * count)) / (1 + z * z / count)
  spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
  return max(0.0, centre - spread), min(1.0, centre + spread)


def finite(values: dict[str, float]) -> bool:
  return all(math.isfinite(value) for value in values.values())


def series(rows: list[dict]) -> Iterator[tuple[str, list[int], list[float]]]:
  """(name, steps, values) of every metric in the rows of a metrics file."""
  for key in dict.fromkeys(key for row in rows for key in row if key != 'step'):
    points = [(row['step'], row[key]) for row in rows if key in row]
    yield key, [step for step, _ in points], [value for _, value in points]
