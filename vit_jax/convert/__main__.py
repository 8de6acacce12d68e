"""Weights from anywhere to anywhere, and what a weight file holds.

python -m vit_jax.convert SRC DST --to=TARGET [--check]

python -m vit_jax.convert --inspect FILE [--json]
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from absl import logging
import numpy as np

from vit_jax import predict, weights
from vit_jax.convert import peers, stablehlo
from vit_jax.formats import write
from vit_jax.formats.files import Arrays
from vit_jax.runtime import fetch
from vit_jax.runtime.choices import check_choice

TARGETS = ('vit_jax', 'official', 'timm', 'torchvision', 'huggingface', 'pth', 'stablehlo')


def convert(source: str, to: pathlib.Path, target: str, accept_loss: bool) -> None:
  """Writes the weights of `source` for `target` to `to`.

  Raises:
    FileNotFoundError, ValueError: `source` cannot be read, or `target` cannot hold it.
  """
  check_choice('--to', target, TARGETS)
  if to.exists() and not (to.is_file() or is_ours_to_replace(to)):
    raise ValueError(f'{to} is a folder with other things in it; choose another place')
  if target == 'stablehlo':
    stablehlo.write(predict.load(source), to)
  else:
    opened = weights.open_source(source)
    if target == 'vit_jax':
      write_ours(opened, to)
    else:
      write.check(target, opened.passport.model, to, accept_loss)
      sizes = opened.passport.build().sizes()
      write.write(target, opened.arrays, opened.passport, sizes, to)
  logging.info('%s -> %s (%s)', source, to, target)


def write_ours(opened: weights.Source, to: pathlib.Path) -> None:
  """Writes a folder with `weights.npz` and `model.json`: any family, nothing lost."""
  if to.is_file():
    raise ValueError(f'{to} is a file; --to=vit_jax writes a folder')
  weights.write_model(to, opened.tree(), opened.passport)


def is_ours_to_replace(folder: pathlib.Path) -> bool:
  """Whether a folder is empty, or an export that this command wrote."""
  names = {path.name for path in folder.iterdir()}
  return names <= {
    'config.json', 'preprocessor_config.json', 'model.safetensors', 'weights.npz', *stablehlo.FILES
  }  # fmt: skip


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


def check(source: str, to: pathlib.Path) -> list[dict[str, Any]]:
  """How far what was written, read back, is from its source: after each block and at the logits.

  Returns:
    A row for each place: the largest difference, in standard deviations of the source's values.
  """
  ours, theirs = predict.load(source), predict.load(to)
  images = pictures(ours.model.image_size, ours.model.channels)
  places = tuple(
    name for name in ours.output_names
    if name in theirs.output_names
    and (name in ('patches', 'tokens', 'features', 'logits') or name.endswith('/tokens'))
  )  # fmt: skip
  places = places or ('logits',)
  rows, expected, given = [], ours(images, places), theirs(images, places)
  for place in places:
    spread = float(expected[place].std()) or 1.0
    difference = float(np.abs(given[place] - expected[place]).max()) / spread
    rows.append({'place': place, 'difference': difference})
  return rows


def check_theirs(source: str, to: pathlib.Path, target: str) -> list[dict[str, Any]]:
  """The same at the logits of the library that it was written for, where that is installed."""
  if target not in peers.LIBRARIES:
    return []
  model = weights.open_source(source).passport.model
  reason = peers.missing(target, model)
  if reason:
    logging.info('not compared with the model of %s: %s', peers.LIBRARIES[target], reason)
    return []
  images = pictures(model['image_size'], model['channels'])
  return [peers.check(source, to, target, images)]


def inspect(source: str) -> dict[str, Any]:
  """What a weight file holds, from names and shapes; only the head is read.

  Raises:
    FileNotFoundError, ValueError: it cannot be read.
  """
  path = fetch.local(source)
  opened = weights.open_source(path)
  passport = opened.passport
  model, origin, built = passport.model, passport.origin, passport.build()
  height, width = model['image_size']
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
    'fine_tune': f'--config=configs/finetune.py --config.init_from={source}',
  }


def head_of(arrays: Arrays) -> str:
  """'none', 'all zero' or 'trained'."""
  head = [e for name, e in arrays.items() if name.startswith('head/') and name.endswith('kernel')]
  if not head:
    return 'none'
  return 'trained' if any(entry.load().any() for entry in head) else 'all zero'


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.convert`."""
  parser = argparse.ArgumentParser('python -m vit_jax.convert', description=__doc__)
  parser.add_argument('paths', nargs='*', metavar='SRC DST', help='a run, a file, hf://OWNER/NAME')
  parser.add_argument('--to', help=', '.join(TARGETS))
  parser.add_argument('--check', action='store_true', help='read it back and compare, by block')
  parser.add_argument('--accept_loss', action='store_true', help='write what can be written')
  parser.add_argument('--inspect', metavar='FILE', help='print what a weight file holds')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  options = parser.parse_args(arguments)
  logging.set_verbosity(logging.INFO)
  try:
    run(options, parser)
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
  """Inspects, or converts and checks."""
  if options.inspect:
    found = inspect(options.inspect)
    width = max(map(len, found))
    print(json.dumps(found) if options.json else
          '\n'.join(f'{key:{width}}  {value}' for key, value in found.items()))  # fmt: skip
    return
  if len(options.paths) != 2 or not options.to:
    parser.error('give SRC, DST and --to, or --inspect FILE')
  source, to = options.paths[0], pathlib.Path(options.paths[1])
  convert(source, to, options.to, options.accept_loss)
  if options.check:
    rows = stablehlo.check(source, to) if options.to == 'stablehlo' else check(source, to)
    rows += check_theirs(source, to, options.to)
    for row in rows:
      print(json.dumps(row) if options.json else f'{row["place"]:20} {row["difference"]:.1e}')


if __name__ == '__main__':
  main()
