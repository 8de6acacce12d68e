"""Weights from anywhere to anywhere, and what a weight file holds; `__main__` is the command."""

import pathlib
from typing import Any

from absl import logging
import numpy as np

from vit_jax import predict, weights
from vit_jax.convert import peers, stablehlo
from vit_jax.formats import settings_files, write
from vit_jax.formats import weights as format_weights
from vit_jax.formats.files import Arrays
from vit_jax.runtime import fetch
from vit_jax.runtime.choices import check_choice

Place = str | pathlib.Path  # A run, a file, a folder; as a source, an address too.
TARGETS = ('vit_jax', 'official', 'timm', 'torchvision', 'huggingface', 'pth', 'stablehlo')
# What `--check` bears, in standard deviations. Right exports differ by at most a fifth of it (see
# README), those with heads interleaved, a grid turned round or a bias left out by more.
LIMIT = 1e-3
CACHED = '__pycache__'  # Python leaves it where a StableHLO export's load.py was imported.
# By target that makes a folder, all that it writes there.
FOLDERS = write.FOLDERS | {'vit_jax': ('weights.npz', 'model.json'), 'stablehlo': stablehlo.FILES}


def convert(source: Place, to: Place, target: str, accept_loss: bool = False) -> None:
  """Writes the weights of `source` for `target` to `to`.

  Args:
    source: a run, a weight file, a folder of Hugging Face, or an address.
    to: a file or a folder, by `target`; see `vit_jax/convert/README.md`.
    target: one of `TARGETS`.
    accept_loss: write what `target` can hold where it cannot hold everything.

  Raises:
    FileNotFoundError, ValueError: `source` cannot be read, `target` cannot hold it, or `to` is
      where `source` lies, or holds something else than an earlier export for `target`.
  """
  check_choice('--to', target, TARGETS)
  to = pathlib.Path(to)
  check_apart(fetch.local(source), to)
  check_replaceable(to, target)
  if target == 'stablehlo':
    stablehlo.write(predict.load(source), to)
  else:
    opened = weights.open_source(source)
    if target == 'vit_jax':  # Any family, nothing lost.
      weights.write_model(to, opened.tree(), opened.passport)
    else:
      sizes = opened.passport.build().sizes()
      write.check(target, opened.passport, sizes, to, accept_loss)
      write.write(target, opened.arrays, opened.passport, sizes, to)
  logging.info('%s -> %s (%s)', source, to, target)


def check_apart(source: pathlib.Path, to: pathlib.Path) -> None:
  """Raises a ValueError where writing to `to` would replace `source` itself, or a part of it."""
  read, named = weights.own_folder(source) or source, source.resolve()
  part = to.is_file() and read.resolve() in to.resolve().parents
  if part or to.resolve() in (read.resolve(), named, *named.parents):
    raise ValueError(f'{to} is where {source} itself lies; choose another place')


def check_replaceable(to: pathlib.Path, target: str) -> None:
  """Raises a ValueError where `to` is there, and no earlier export for the same target.

  What an export for another target would leave there could be taken for the new one.
  """
  is_folder = target in FOLDERS and (target not in write.FOLDERS or write.is_folder(target, to))
  if to.exists() and to.is_dir() != is_folder:
    kinds = ('a file', 'a folder')
    raise ValueError(f'{to} is {kinds[not is_folder]}; --to={target} writes {kinds[is_folder]}')
  if not is_folder:
    check_replaceable_file(to, target)
  there = {path.name for path in to.iterdir()} if to.is_dir() else set()
  # What an export that was killed left half written is replaced too.
  ends = ('', '.new', '.partial', '.new.partial')
  own = {name + end for name in (*FOLDERS.get(target, ()), 'partial.npz') for end in ends}
  others = there - own - {CACHED}
  if others:
    raise ValueError(
      f'{to} is a folder with other things in it than --to={target} writes '
      f'({format_weights.shown(others)}); choose another place'
    )


def check_replaceable_file(to: pathlib.Path, target: str) -> None:
  """The same of a file: what an export wrote has its passport beside it, which names the target."""
  beside = write.beside(to)
  if not (to.exists() or beside.exists()):
    return
  try:
    content = settings_files.read(beside)
    weights.check_content(content)
  except (ValueError, OSError):
    raise ValueError(
      f'{to if to.exists() else beside} is there, and no earlier export: one has its passport in '
      f'{beside.name} beside it; choose another place'
    ) from None
  other = content.get('target', target)  # Before 1.4.1 none was noted.
  if other != target:
    raise ValueError(f'{to} is an export for {other}; choose another place for --to={target}')


def pictures(image_size: tuple[int, int], channels: int, count: int = 2) -> np.ndarray:
  """Structured, normalised images, so that a grid turned round is noticed."""
  y, x = np.mgrid[: image_size[0], : image_size[1]] / max(image_size)
  waves = [
    np.sin(9 * x * (i + 1) + c) + np.cos(5 * y * (c + 1) + i)
    for i in range(count)
    for c in range(channels)
  ]
  images = np.reshape(waves, (count, channels, *image_size)) / 2
  return np.moveaxis(images, 1, -1).astype(np.float32)


def check(source: Place, to: Place, target: str | None = None) -> list[dict[str, Any]]:
  """How far what was written, read back, is from its source: after each block and at the logits.

  Args:
    source, to: as `convert` was given them.
    target: that `to` was written for; None: 'stablehlo' where `to` holds its files and no others.

  Returns:
    A row for each place: the largest difference, in standard deviations of the source's values.
    Of a StableHLO export, which has no blocks, one row.
  """
  to = pathlib.Path(to)
  there = {path.name for path in to.iterdir()} - {CACHED} if to.is_dir() else set()
  if target == 'stablehlo' or (target is None and there == {*stablehlo.FILES}):
    return stablehlo.check(source, to)
  ours, theirs = predict.load(source), predict.load(to)
  images = pictures(ours.model.image_size, ours.model.channels)
  places = tuple(
    name for name in ours.output_names
    if name in theirs.output_names
    and (name in ('patches', 'tokens', 'features', 'logits') or name.endswith('/tokens'))
  )  # fmt: skip
  places = places or ('logits',)
  same = as_seen(images, ours.preprocess, theirs.preprocess)
  rows, expected, given = [], ours(images, places), theirs(same, places)
  for place in places:
    spread = float(expected[place].std()) or 1.0
    difference = float(np.abs(given[place] - expected[place]).max()) / spread
    rows.append({'place': place, 'difference': difference})
  return rows


def as_seen(images: np.ndarray, by: Any, other: Any) -> np.ndarray:
  """Images `B H W C` normalised as `by` says, of the same pixels as `other` says."""
  old, new = (tuple(map(np.float32, (x.mean, x.std))) for x in (by, other))
  return images * (old[1] / new[1]) + (old[0] - new[0]) / new[1]


def check_theirs(source: Place, to: Place, target: str) -> list[dict[str, Any]]:
  """The same at the logits of the library that it was written for, where that is installed."""
  if target not in peers.LIBRARIES:
    return []
  model = weights.open_source(source).passport.model
  reason = peers.missing(target, model)
  if reason:
    logging.info('not compared with the model of %s: %s', peers.LIBRARIES[target], reason)
    return []
  images = pictures(model['image_size'], model['channels'])
  return [peers.check(source, pathlib.Path(to), target, images)]


def check_equal(rows: list[dict[str, Any]]) -> None:
  """Raises a ValueError where a difference is above `LIMIT`, or no number.

  Args:
    rows: of `check` and `check_theirs`.
  """
  off = [row for row in rows if not row['difference'] <= LIMIT]
  if off:
    raise ValueError(
      f'what was written computes something else: {off[0]["place"]} is off by '
      f'{off[0]["difference"]:.1e} standard deviations, more than {LIMIT:.0e}'
    )


def inspect(source: Place) -> dict[str, Any]:
  """What a weight file holds, from names and shapes; only the head is read.

  Raises:
    FileNotFoundError, ValueError: it cannot be read.
  """
  path = fetch.local(source)
  opened = weights.open_source(path)
  passport = opened.passport
  model, origin, built = passport.model, passport.origin, passport.build()
  height, width = model['image_size']
  family = '' if model['name'] == 'vit' else f' --config.model.name={model["name"]}'
  return {
    'path': str(source),
    'family': origin.get('family', 'vit_jax'),
    'model': f'{model["name"]} {model["variant"]}',
    'patch': built.sizes().get('patch_size'),
    'grid': list(built.grid) if built.grid else None,
    'image_size': [height, width],
    'channels': model['channels'],
    'classes': model['num_classes'],
    'class_token': model.get('class_token'),
    'readout': model.get('readout'),
    'pre_logits': model.get('pre_logits'),
    'head': head_of(opened.arrays),
    'parameters': sum(int(np.prod(entry.shape)) for entry in opened.arrays.values()),
    'sha256': fetch.hash_of(path) if path.is_file() else None,
    'notes': origin.get('notes', []),
    'fine_tune': f'--config=configs/finetune.py --config.init_from={source}{family}',
  }


def head_of(arrays: Arrays) -> str:
  """'none', 'all zero' or 'trained'."""
  head = [e for name, e in arrays.items() if name.startswith('head/') and name.endswith('kernel')]
  if not head:
    return 'none'
  return 'trained' if any(entry.load().any() for entry in head) else 'all zero'
