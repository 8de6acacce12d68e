"""Near-duplicates between what a recipe trains on and its test split, or pictures of a folder.

  python -m vit_jax.explore.duplicates --config=RECIPE [--config.KEY=VALUE ...] --out=DIR
    [--against test FOLDER_OR_FILE ...] [--distance=6]

Pictures are compared by perceptual hashes (`data/perceptual.py`): the same picture at another size,
quality or brightness is found, a crop or a mirror image is not. DIR/duplicates.json lists the
pairs, the nearest first, DIR/duplicates.png shows them. `--config.data.exclude=DIR/duplicates.json`
then leaves the training pictures among them out.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
from typing import Any

from absl import logging
import numpy as np

from vit_jax import data, experiment, figures, recipe, weights
from vit_jax.data import exclude, perceptual, preprocess, sources
from vit_jax.defaults import Config
from vit_jax.runtime import atomic, messages

DISTANCE = 6  # bits of 64
MOST = 1_000_000  # pairs; so many are no duplicates, but pictures that are all alike
TEST = 'test'


@dataclasses.dataclass(frozen=True)
class Group:
  """Pictures with their hashes, under a name: a split, or what a person named."""

  name: str
  source: sources.Source
  hashes: np.ndarray

  def title(self, index: int, root: str) -> str:
    """The name of a picture; a file's path from `root` on."""
    name = self.source.name(index)
    return os.path.relpath(name, root) if root and self.holds_files else name

  @functools.cached_property
  def holds_files(self) -> bool:
    """Whether pictures are named by their files."""
    return bool(len(self.source)) and isinstance(self.source.read(np.arange(1))[0][0], str)


def open_data(config: Config) -> data.Dataset:
  """All that a recipe trains and is tested on, whatever it leaves out."""
  known = None
  if config.data.name == 'checkpoint' and config.init_from:
    known = weights.open_source(config.init_from).passport
  section = experiment.data_section(config, known)
  section |= {'exclude': None, 'train_examples': None}
  return data.build(**section)


def open_files(path: str) -> sources.Listed:
  """The pictures of a folder, at any depth, or of one file.

  Raises:
    FileNotFoundError: no such path, or a folder without pictures.
  """
  files = [str(file) for file in preprocess.find_images([path])]
  return sources.Listed(files, np.zeros(len(files), np.int32))


def open_groups(dataset: data.Dataset, against: list[str]) -> tuple[list[Group], list[Group]]:
  """What is trained on (train, and validation where there is one), and what that is compared with.

  Raises:
    pictures.Damaged: a picture that cannot be read.
  """
  trained = {name: source for name, source in dataset.splits.items() if name != TEST}
  others = {path: dataset.splits[TEST] if path == TEST else open_files(path) for path in against}

  def group(name: str, source: sources.Source) -> Group:
    channels, threads = dataset.preprocess.channels, dataset.threads
    found = perceptual.hash_source(source, channels, f'hashing {name}', threads)
    return Group(name, source, found)

  return [group(*item) for item in trained.items()], [group(*item) for item in others.items()]


def find(
  trained: list[Group], others: list[Group], distance: int
) -> list[tuple[Group, Group, int, int, int]]:
  """(trained on, other, index, index, bits) of each pair, the nearest first.

  Raises:
    ValueError: there are more than MOST.
  """
  try:
    found = [
      (one, other, int(i), int(j), int(bits))
      for one in trained
      for other in others
      for i, j, bits in perceptual.near(one.hashes, other.hashes, distance, MOST)
    ]
  except ValueError as error:
    raise ValueError(f'--distance={distance}: {error}; lower it') from None
  return sorted(found, key=lambda pair: pair[4])


def root_of(groups: list[Group]) -> str:
  """The folder that all files lie in; '' where there are none."""
  files = [one.source.name(i) for one in groups if one.holds_files for i in range(len(one.source))]
  return os.path.commonpath([os.path.dirname(file) for file in files]) if files else ''


def as_json(
  pairs: list[tuple[Group, Group, int, int, int]],
  trained: list[Group],
  others: list[Group],
  distance: int,
  config: Config,
) -> dict[str, Any]:
  """The content of `duplicates.json`."""
  root = root_of(trained)
  roots = {other.name: root_of([other]) for other in others}
  return {
    'format': exclude.FORMAT,
    'data': json.loads(json.dumps(config.data.to_dict())),
    'distance': distance,
    'examples': sum(len(one.source) for one in trained),
    'splits': {one.name: len(one.source) for one in trained},
    'against': {one.name: len(one.source) for one in others},
    'pairs': [
      {
        'distance': bits, 'split': one.name, 'index': i, 'name': one.title(i, root),
        'against': other.name, 'other_index': j, 'other': other.title(j, roots[other.name]),
      }
      for one, other, i, j, bits in pairs
    ],
  }  # fmt: skip


def draw(
  dataset: data.Dataset,
  pairs: list[tuple[Group, Group, int, int, int]],
  rows: list[dict[str, Any]],
  heading: str,
) -> Any:
  """The nearest pairs: what is trained on above, the other below."""

  def picture(group: Group, index: int) -> np.ndarray:
    found, _ = group.source.read(np.array([index]))
    return dataset.preprocess(found[0])

  titles = [
    f'{shorten(row["name"])}\n{shorten(row["other"])}\n{row["distance"]} of 64 bits'
    for row in rows[: len(pairs)]
  ]
  first = [picture(one, i) for one, _, i, _, _ in pairs]
  second = [picture(other, j) for _, other, _, j, _ in pairs]
  return figures.pairs(first, second, titles, heading)


def shorten(name: str, most: int = 24) -> str:
  """The end of a long name."""
  return name if len(name) <= most else f'...{name[3 - most :]}'


def duplicates(
  config: Config, out: pathlib.Path, against: list[str], distance: int, count: int
) -> dict[str, Any]:
  """Finds near-duplicates, writes and draws them; returns the content of `duplicates.json`.

  Args:
    against: 'test', folders and files.
    distance: the most bits in which two hashes may differ.
    count: how many pairs are drawn.

  Raises:
    ValueError: a distance that cannot be, data that cannot be read, or too many pairs.
  """
  if not 0 <= distance < perceptual.BITS // 2:
    half = perceptual.BITS // 2
    raise ValueError(f'--distance={distance} must be in 0..{half - 1}: {half} is chance')
  dataset = open_data(config)
  trained, others = open_groups(dataset, against)
  pairs = find(trained, others, distance)
  report = as_json(pairs, trained, others, distance, config)
  atomic.write_text(out / 'duplicates.json', json.dumps(report, indent=2) + '\n')
  twins = len({(one.name, i) for one, _, i, _, _ in pairs})
  text = (
    f'{len(pairs):,} pairs within {distance} bits: {twins:,} of {report["examples"]:,} pictures '
    f'that are trained on have a near-duplicate in {", ".join(against)}'
  )
  (out / 'duplicates.png').unlink(missing_ok=True)  # Of an earlier search.
  if pairs:
    draw(dataset, pairs[:count], report['pairs'], text).savefig(out / 'duplicates.png')
  remedy = f'; --config.data.exclude={out / "duplicates.json"} leaves them out' if pairs else ''
  logging.info('%s%s', text, remedy)
  return report


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.explore.duplicates`."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.explore.duplicates', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--against', nargs='+', default=[TEST], metavar='FOLDER_OR_FILE',
                      help='test, the test split of the recipe, and paths')  # fmt: skip
  parser.add_argument('--distance', type=int, default=DISTANCE, help='bits of 64 at most')
  parser.add_argument('--show', type=int, default=24, help='pairs in the picture')
  messages.show()
  options, rest = parser.parse_known_args(arguments)
  try:
    report = duplicates(
      recipe.read(rest), options.out, options.against, options.distance, options.show
    )
  except (ValueError, TypeError, OSError) as error:
    sys.exit(f'error: {error}')
  print(json.dumps({key: report[key] for key in ('examples', 'splits', 'against')}
                   | {'pairs': len(report['pairs'])}))  # fmt: skip


if __name__ == '__main__':
  main()
