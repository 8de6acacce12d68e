"""What weights know of the data that they were trained on, held against data that are asked for."""

from collections.abc import Callable
import hashlib
import os
from typing import Any

from absl import logging

from vit_jax.data import Dataset, are_named, sources
from vit_jax.data.preprocess import Preprocess
from vit_jax.runtime.sections import fields_of

SAME = ('name', 'path', 'dataset', 'task')  # Keys of a section that tell which data are meant,
DRAWN = ('test_fraction', 'validation_fraction', 'split_seed')  # and how a test split is drawn.


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


def check_apart(
  dataset: Dataset,
  section: dict[str, Any],
  there: dict[str, Any] | None,
  place: Any,
  build: Callable[..., Dataset],
) -> None:
  """Raises a ValueError where pictures that weights were trained on would be tested.

  Args:
    dataset: that `section` describes.
    there: the section of the data that the weights in `place` were trained on; None: nobody knows.
    build: what makes data of a section.
  """
  if not there or any(section.get(key) != there.get(key) for key in SAME):
    return
  differ = [key for key in DRAWN if key in there and section.get(key) != there[key]]
  if not differ:
    return
  train = build(**there).splits['train']
  trained = {train.name(i) for i in range(len(train))}
  for split, source in dataset.splits.items():
    seen = 0 if split == 'train' else sum(source.name(i) in trained for i in range(len(source)))
    if seen:
      rows = ', '.join(f'config.data.{key}={there[key]}' for key in differ)
      raise ValueError(
        f'{seen} of the {len(source)} pictures of {split} are among those that {place} was trained '
        f'on, as other splits were drawn then; set {rows}'
      )


def check_seen(
  section: dict[str, Any], normal: dict[str, Any], seen: Preprocess, place: Any
) -> None:
  """Raises a ValueError where a section asks to prepare pictures otherwise than weights know them.

  Args:
    section: of data.
    normal: the defaults of these data; what is as there asks for nothing.
    seen: what the weights in `place` take.
  """
  # Channels follow the pictures, which are fitted to those of the weights.
  for key in sorted(fields_of(Preprocess) & section.keys() - {'channels'}):
    asked, known = section[key], getattr(seen, key)
    if asked not in (known, normal[key]):
      raise ValueError(
        f'config.data.{key}={asked}, but the model in {place} takes {known}, and is judged by '
        'that: leave it out'
      )
