"""A look at every picture file before training starts: which cannot be read, remembered by file."""

from concurrent import futures
import hashlib
import json
import os
import pathlib

from absl import logging
from PIL import Image

from vit_jax.data import pictures
from vit_jax.runtime import devices, fetch
from vit_jax.runtime.progress import track

ON_ERROR = ('error', 'skip')


def check_files(files: list[str], root: pathlib.Path, on_error: str, decode_below: int) -> set[str]:
  """Opens every file, and decodes it where there are few; the result is kept in the cache.

  Returns:
    The files that cannot be read.

  Raises:
    ValueError: with `on_error='error'`, names the broken files.
  """
  # Who leaves out what is broken must know it: a header does not tell.
  whole = on_error == 'skip' or len(files) < decode_below
  seen = [(file, *written(file)) for file in files]
  key = hashlib.sha256(repr((whole, Image.__version__, seen)).encode()).hexdigest()[:16]
  record = fetch.cache_folder() / 'checked' / f'{key}.json'
  if record.exists():
    broken = json.loads(record.read_text())
  else:
    broken, lasting = find_broken(files, whole)
    if lasting:
      remember(record, broken)
  if not broken:
    return set()
  shown = '\n'.join(f'  {reason}' for reason in list(broken.values())[:20])
  more = f'\n  and {len(broken) - 20} more' if len(broken) > 20 else ''
  message = f'{root}: {len(broken)} of {len(files)} files cannot be read:\n{shown}{more}'
  if on_error == 'error':
    raise ValueError(f'{message}\nmend or delete them, or set config.data.on_error=skip')
  logging.warning('%s\nthey are skipped', message)
  return set(broken)


def written(file: str) -> tuple[int, int]:
  """The size of a file and when it was written, in ns; (-1, -1) of a link that leads nowhere."""
  try:
    stat = os.stat(file)
  except OSError:
    return -1, -1
  return stat.st_size, stat.st_mtime_ns


def remember(record: pathlib.Path, broken: dict[str, str]) -> None:
  """Keeps what was found, where that can be written."""
  try:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(f'.{os.getpid()}')
    partial.write_text(json.dumps(broken))
    partial.replace(record)  # Whole, for processes that start together.
  except OSError as error:
    logging.warning(
      'pictures will be checked again next time: %s (VIT_JAX_CACHE names another place)', error
    )


def find_broken(files: list[str], whole: bool) -> tuple[dict[str, str], bool]:
  """The broken files with what is wrong, by file; and whether that will be so tomorrow.

  What the system refuses, permission or a network drive, may be mended without touching the file.
  """
  refused = []

  def check(file: str) -> str | None:
    try:
      if whole or file.lower().endswith('.npy'):
        pictures.check(pictures.decode(pathlib.Path(file).read_bytes()))
      else:
        with Image.open(file) as image:
          pictures.check(image)
    except pictures.Damaged as error:
      return f'{file}: {error}'
    except pictures.BROKEN as error:
      if isinstance(error, OSError) and error.errno:  # Of Pillow's own none has a number.
        refused.append(file)
        return f'{file}: {error.strerror}'
      return f'{file}: not an image that Pillow can read ({error})'
    return None

  what = 'decoding' if whole else 'opening'
  with futures.ThreadPoolExecutor(devices.cores()) as pool:
    reasons = list(track(pool.map(check, files), len(files), f'{what} every picture', 'pictures'))
  broken = {file: reason for file, reason in zip(files, reasons, strict=True) if reason}
  return broken, not refused
