"""What weights know of the data that they were trained on, held against data that are asked for."""

from collections.abc import Callable
import hashlib
import os
import pathlib
from typing import Any

from absl import logging

from vit_jax.data import Dataset, are_named, sources
from vit_jax.data.preprocess import Preprocess
from vit_jax.runtime.sections import fields_of

# What names the pictures of a data set, and what decides which of them are tested.
WHICH = ('name', 'path', 'dataset', 'task')
SPLIT = (
  'split_seed', 'test_fraction', 'validation_fraction', 'test_folder', 'train_split', 'test_split',
)  # fmt: skip


def of_pictures(dataset: Dataset) -> dict[str, Any]:
  """What a passport keeps of the training pictures, by which they are known again; {}: nothing."""
  found = fingerprint(dataset.splits['train'])
  return {'train': found} if found else {}


def tells(there: list[str], here: list[str]) -> bool:
  """Whether weights tell the classes of some data, in their order.

  Files of others often have no names: then their number counts, and the log says so.
  """
  if there == here or len(there) != len(here) or are_named(there):
    return there == here
  logging.info(
    'the weights do not name their %d classes: taken in the order of the data', len(here)
  )
  return True


def check_classes(what: str, passport: Any, dataset: Dataset) -> None:
  """Raises a ValueError where weights tell other classes than the data have."""
  there, here = list(passport.class_names), list(dataset.class_names)
  if not tells(there, here):
    raise ValueError(
      f'{what} tells {len(there)} classes ({", ".join(there[:5])}, ...), the data have {len(here)} '
      f'({", ".join(here[:5])}, ...); take one that was trained on these, or fine-tune it first'
    )


def fingerprint(source: sources.Source) -> dict[str, Any] | None:
  """The number of files of a source and the hash of their names; None: it lists no files."""
  listed = source.images if isinstance(source, sources.Listed) else []
  names = [name for name in listed if isinstance(name, str)]
  if not names:
    return None
  start = len(os.path.commonpath(names))  # Another machine may have them elsewhere.
  lines = '\n'.join(name[start:] for name in names)
  hashed = hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()
  return {'pictures': len(names), 'sha256': hashed[:16]}


def check_unchanged(passport: Any, dataset: Dataset, place: Any) -> None:
  """Raises a ValueError where a run would go on with other training pictures or classes.

  Args:
    passport: of the newest checkpoint of the run in `place`.
  """
  then, now = passport.origin.get('train'), fingerprint(dataset.splits['train'])
  classes = len(passport.class_names), len(dataset.class_names)
  remedy = (
    'put back what was there, or start anew from these weights: '
    f'--config.init_from={place} with another --workdir'
  )
  if [*passport.class_names] != [*dataset.class_names]:
    raise ValueError(
      f'{place} was trained on {classes[0]} classes ({", ".join(passport.class_names[:5])}, ...), '
      f'and the data have {classes[1]} now ({", ".join(dataset.class_names[:5])}, ...); {remedy}'
    )
  if then and now and then != now:
    raise ValueError(
      f'{place} was trained on {then["pictures"]} pictures, and of {now["pictures"]} now some are '
      f'others, so that what was trained on could be tested; {remedy}'
    )


def check_untrained(
  dataset: Dataset,
  section: dict[str, Any],
  there: dict[str, Any],
  place: Any,
  build: Callable[..., Dataset],
) -> str:
  """A warning, also in the log, where pictures that are tested may have been trained on; else ''.

  Args:
    dataset: that `section` describes, of which all splits but 'train' are tested.
    there: the section of the data that the weights in `place` were trained on; {}: nobody knows.
    build: what makes data of a section.

  Raises:
    ValueError: some were trained on, or chose the best checkpoint.
  """
  keys = [key for key in SPLIT if key != 'validation_fraction' or 'validation' in dataset.splits]
  is_same = bool(there) and which(there) == which(section)
  differ = [key for key in keys if is_same and there.get(key) != section.get(key)]
  if not differ:
    return ''
  asked = ', '.join(f'config.data.{key}={section.get(key)}' for key in differ)
  own = ', '.join(f'{key}={there.get(key)}' for key in differ)
  remedy = f'take the split of the weights ({own}, or --config.data.name=checkpoint)'
  counts = trained_on(dataset, section, there, build)
  for split, count in counts.items():
    if count:
      raise ValueError(
        f'{asked}: {place} was trained on {count} of these {len(dataset.splits[split])} pictures '
        f'of {split}, whose accuracy would say nothing; {remedy}'
      )
  if counts:
    return ''
  words = (
    f'{asked}: {place} may have been trained on some of the pictures that are tested; {remedy}.'
  )
  logging.warning(words)
  return words


def which(section: dict[str, Any]) -> list[Any]:
  """What names the pictures of a section of data; a path however it is written."""
  path = section.get('path') and pathlib.Path(section['path']).expanduser().resolve()
  return [path if key == 'path' else section.get(key) for key in WHICH]


def trained_on(
  dataset: Dataset, section: dict[str, Any], there: dict[str, Any], build: Callable[..., Dataset]
) -> dict[str, int]:
  """How many pictures of each split but 'train' weights have seen; {}: nobody can tell.

  Pictures are told by their names. Of a TFDS set these count from the start of a slice, and what
  the weights' own split needs, such as a list of pictures to exclude, need not be here.
  """
  if section['name'] == 'tfds':
    return {}
  try:
    before = build(**there | {key: section[key] for key in WHICH if key in section}).splits
  except (ValueError, OSError):
    return {}
  seen = {name for split, source in before.items() if split != 'test' for name in names_of(source)}
  return {
    split: len(seen & {*names_of(source)})
    for split, source in dataset.splits.items() if split != 'train'
  }  # fmt: skip


def names_of(source: sources.Source) -> list[str]:
  """What messages call each picture."""
  return [source.name(i) for i in range(len(source))]


def check_seen(
  section: dict[str, Any], normal: dict[str, Any], seen: Preprocess, place: Any
) -> None:
  """Raises a ValueError where a section asks to prepare pictures otherwise than weights know them.

  Args:
    section: of data.
    normal: the defaults of these data; what is as there asks for nothing.
    seen: what the weights in `place` take.
  """
  keys = sorted(fields_of(Preprocess) & section.keys() - {'channels'})
  takes = {key: of_channels(getattr(seen, key), key, seen.channels) for key in keys}
  asked = {key: section[key] for key in keys if section[key] != normal[key]}
  other = [key for key, x in asked.items() if of_channels(x, key, seen.channels) != takes[key]]
  if other:
    raise ValueError(
      f'{", ".join(f"config.data.{key}={asked[key]}" for key in other)}, but the model in {place} '
      f'takes {", ".join(f"{key}={takes[key]}" for key in other)}, and is judged by that: leave it '
      'out'
    )


def of_channels(value: Any, key: str, channels: int) -> Any:
  """A setting of preprocessing; one mean or deviation for all channels as one for each."""
  return value * channels if key in ('mean', 'std') and len(value) == 1 else value
