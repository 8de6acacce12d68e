"""Numbers of a run: metrics.jsonl, TensorBoard events, progress with a rate and an ETA, curves."""

from collections.abc import Sequence
import contextlib
import json
import math
import pathlib
import sys
import time
from typing import Any

from absl import logging
import jax

from vit_jax.defaults import Config
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import clock


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; a half-written last line is left out; null is NaN."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')
  return [
    {key: math.nan if value is None else value for key, value in json.loads(line).items()}
    for line in lines[:-1] if line
  ]  # fmt: skip


def line_of(row: dict[str, Any]) -> str:
  """A line of a metrics file. JSON has no NaN, with which a run that diverges ends: it is null."""
  return json.dumps({key: x if math.isfinite(x) else None for key, x in row.items()}) + '\n'


class Writer:
  """Appends to `metrics.jsonl` and TensorBoard, one line a step.

  Starting at `step` forgets the lines of later steps, which a resumed run writes again.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    kept = [row for row in read(path) if row['step'] <= step]
    whole = path.with_suffix('.partial')
    whole.write_text(''.join(map(line_of, kept)))
    whole.replace(path)
    self._file = path.open('a')
    self._events = events(workdir / 'tensorboard', step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    self._file.write(line_of({'step': step, **values}))
    self._file.flush()
    for key, value in values.items():
      self._events.add_scalar(key, value, step)

  def close(self) -> None:
    self._file.close()
    self._events.close()


def events(folder: pathlib.Path, first: int) -> Any:
  """A writer of TensorBoard events from step `first` on."""
  with without('torch'):  # It imports that where it can, in seconds, and needs it for no scalar.
    from tensorboardX import SummaryWriter

  return SummaryWriter(str(folder), purge_step=first)


@contextlib.contextmanager
def without(name: str):
  """A context in which a package that is not loaded yet seems not to be installed."""
  if name in sys.modules:
    yield
    return
  sys.modules[name] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    del sys.modules[name]


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

  @contextlib.contextmanager
  def paused(self):
    """A context whose time counts for no rate."""
    start = time.perf_counter()
    yield
    then, mark = self._mark
    self._mark = (then, mark + time.perf_counter() - start)

  def rate(self, step: int) -> float:
    """Images per second of training since the last call."""
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


def due(every: int, step: int) -> bool:
  """Whether something with a period is due; 0: never."""
  return bool(every) and step % every == 0


class Recorder:
  """Reads each step's metrics one step late, so that the device never waits for the host.

  Writes one line a step at most: what training and evaluation say of a step stands together.
  """

  def __init__(self, config: Config, workdir: pathlib.Path, first: int):
    self._workdir, self._first = workdir, first
    self._every, self._last = config.log_every, config.total_steps
    self._unread: tuple[int, dict] | None = None
    self._row: dict[str, float] = {}
    self._step = first
    self._progress = Progress(first, config.total_steps, config.batch_size)
    self._writer: Writer | None = None  # Opened with the first line: a failed start leaves none.

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._flush()
    self._progress.close()
    if self._writer:
      self._writer.close()

  def paused(self):
    """A context for what is no training: it does not lower the images per second."""
    return self._progress.paused()

  def push(self, step: int, values: dict[str, jax.Array]) -> None:
    """Takes what step `step`, just dispatched, will compute; reads the step before it."""
    self.settle()
    self._flush()
    self._unread = (step, values)
    self._progress.step()

  def settle(self) -> None:
    """Waits for the last step's metrics.

    Raises:
      FloatingPointError: they are not finite; names the step.
    """
    if self._unread is None:
      return
    (step, values), self._unread = self._unread, None
    numbers = {f'train/{key}': float(value) for key, value in jax.device_get(values).items()}
    bad = [key for key, value in numbers.items() if not math.isfinite(value)]
    if self._every and (due(self._every, step) or step == self._last or bad):
      rate = self._progress.rate(step)
      self._step, self._row = step, numbers | {'train/images_per_second': rate}
      self._progress.report(step, numbers, rate)
    if bad:
      raise FloatingPointError(
        f'step {step}: {", ".join(bad)} not finite; the last checkpoint is kept. Lower the '
        'learning rate, lengthen the warm-up or clip the gradient; once there is a checkpoint, in '
        'another --workdir'
      )

  def add(self, step: int, numbers: dict[str, float]) -> None:
    """Adds evaluations of the step that was settled last, and writes its line."""
    if numbers:
      text = '  '.join(f'{key} {value:.4f}' for key, value in numbers.items())
      self._progress.say(f'step {step}/{self._last}  {text}')
    self._step, self._row = step, self._row | numbers
    self._flush()

  def _flush(self) -> None:
    if self._row and jax.process_index() == 0:
      self._writer = self._writer or Writer(self._workdir, self._first)
      self._writer.write(self._step, self._row)
    self._row = {}


class Bands:
  """What a recipe expects of its numbers, and whether they are there: `config.bands`.

  Each is judged once, at the first evaluation from its step on that has its number; what the lines
  of a run up to `first`, which is resumed, have judged already is not judged again.
  """

  def __init__(self, config: Config, workdir: pathlib.Path, first: int):
    rows = [row for row in read(workdir / 'metrics.jsonl') if row['step'] <= first]
    self._open = [
      band for band in config.bands
      if not any(row['step'] >= band[0] and band[1] in row for row in rows)
    ]  # fmt: skip

  def judge(self, step: int, numbers: dict[str, float]) -> None:
    """Says of each number that is due whether it lies within its band, ends included."""
    due_now = [band for band in self._open if band[0] <= step and band[1] in numbers]
    self._open = [band for band in self._open if band not in due_now]
    for at, name, low, high in due_now if jax.process_index() == 0 else ():
      text = f'step {step}: {name} {numbers[name]:.4g}'
      if low <= numbers[name] <= high:
        logging.info('%s is within %g to %g, as expected from step %d on', text, low, high, at)
        continue
      logging.warning(
        '%s is outside %g to %g, which config.bands expects from step %d on; look at train/loss in '
        'metrics.jsonl (does it fall?), the learning rate, and the data (classes, pixel values)',
        text, low, high, at,
      )  # fmt: skip


def check_bands(bands: Sequence[Any], names: Sequence[str]) -> None:
  """Refuses bands that could never be judged.

  Raises:
    ValueError: not (step, name, low, high), no such number among `names`, or low above high.
  """
  for band in bands:
    if not is_band(band):
      raise ValueError(
        f'config.bands={bands!r}: {band!r} is not (step, name, low, high) with a step from 1 '
        "on and low <= high; one band is ((1000, 'test/accuracy', 0.9, 1.0),)"
      )
    check_choice('number in config.bands (config.evaluators compute none of that name)', band[1],
                 names)  # fmt: skip


def is_band(band: Any) -> bool:
  """Whether something is (step, name, low, high), with numbers that can be."""
  if not isinstance(band, tuple | list) or [type(x) for x in band[:2]] != [int, str]:
    return False
  limits = [x for x in band[2:] if isinstance(x, int | float)]
  return len(band) == 4 and len(limits) == 2 and band[0] >= 1 and limits[0] <= limits[1]


def wilson(correct: int | float, count: int) -> tuple[float, float]:
  """The 95 % score interval of a share (Wilson 1927); `correct` may be a mean over seeds."""
  z, share = 1.959963984540054, correct / count
  centre = (share + z * z / (2 * count)) / (1 + z * z / count)
  spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
  return max(0.0, centre - spread), min(1.0, centre + spread)
