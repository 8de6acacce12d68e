"""The data of an exploration: prepared as the weights know them, each class with examples."""

import dataclasses
import pathlib
from typing import Any

from absl import logging
import numpy as np

from vit_jax import data, experiment, predict
from vit_jax.data.preprocess import Preprocess
from vit_jax.defaults import Config, part
from vit_jax.runtime.sections import fields_of

# What names the pictures of a data set, and what decides which of them are test examples.
WHICH = ('name', 'path', 'dataset', 'task')
SPLIT = ('split_seed', 'test_fraction', 'test_folder', 'train_split', 'test_split')


def build_data(config: Config, predictor: predict.Predictor) -> data.Dataset:
  """The data set, prepared as the weights know it, all of train in one split."""
  section = experiment.data_section(config, predictor.passport)
  if section['validation_fraction'] and config.data.name != 'checkpoint':
    raise ValueError(
      'config.data.validation_fraction: here learning rates are chosen on '
      'config.explore.validation_fraction of the training examples'
    )
  section['validation_fraction'] = 0.0
  dataset = data.build(**section)
  check_prepared(config, dataset.preprocess, predictor.preprocess)
  check_classes(dataset.class_names)
  if dataset.multi_label:
    raise ValueError(
      'config.run=explore reads one label a picture, and these data have several; take others'
    )
  for split, source in dataset.splits.items():
    known = getattr(source, 'labels', None)
    if isinstance(known, np.ndarray):
      check_labels(split, known, dataset.class_names)
  return dataclasses.replace(dataset, preprocess=predictor.preprocess)


def check_prepared(config: Config, asked: Preprocess, known: Preprocess) -> None:
  """Raises a ValueError where a person asks for pictures of another kind than the weights know.

  Args:
    asked, known: what the data and the weights say; what is not asked for is as the weights say.
  """
  normal = part('data', config.data.name)
  there = {key: seen(known, key, known.channels) for key in fields_of(Preprocess) & {*config.data}}
  other = sorted(
    key for key, value in there.items()
    if config.data[key] != normal[key] and seen(asked, key, known.channels) != value
  )  # fmt: skip
  if other:
    named = ', '.join(f'config.data.{key}={config.data[key]} ({there[key]})' for key in other)
    raise ValueError(
      f'pictures are prepared as the weights of {config.init_from} know them, and {named} would be '
      'ignored: leave out what is not as in parentheses'
    )


def seen(preprocess: Preprocess, key: str, channels: int) -> Any:
  """A setting of preprocessing; one mean or deviation for all channels as one for each."""
  value = getattr(preprocess, key)
  return value * channels if key in ('mean', 'std') and len(value) == 1 else value


def check_unseen(
  section: dict[str, Any], predictor: predict.Predictor, dataset: data.Dataset
) -> str:
  """A warning, also in the log, where weights may have been trained on test examples; else ''.

  Raises:
    ValueError: they were.
  """
  there = predictor.passport.origin.get('data') or {}
  is_same = bool(there) and which(there) == which(section)
  other = [key for key in SPLIT if is_same and there.get(key) != section.get(key)]
  if not other:
    return ''
  asked = ', '.join(f'config.data.{key}={section.get(key)}' for key in other)
  own = ', '.join(f'{key}={there.get(key)}' for key in other)
  remedy = f'take the split of the weights ({own}, or --config.data.name=checkpoint)'
  count = count_seen(section, predictor, dataset)
  if count:
    raise ValueError(
      f'{asked}: the weights were trained on {count} of these {len(dataset.splits["test"])} test '
      f'examples, whose accuracy would say nothing; {remedy}'
    )
  if count == 0:
    return ''
  words = f'{asked}: the weights may have been trained on some of these test examples; {remedy}.'
  logging.warning(words)
  return words


def which(section: dict[str, Any]) -> list[Any]:
  """What names the pictures of a section of data; a path however it is written."""
  path = section.get('path') and pathlib.Path(section['path']).expanduser().resolve()
  return [path if key == 'path' else section.get(key) for key in WHICH]


def count_seen(
  section: dict[str, Any], predictor: predict.Predictor, dataset: data.Dataset
) -> int | None:
  """How many test examples the weights were trained on, or chosen by; None: nobody can tell.

  Pictures are told by their names. Of a TFDS set these count from the start of a slice, and what
  the weights' own split needs, such as a list of pictures to exclude, need not be here.
  """
  if section['name'] == 'tfds':
    return None
  there = experiment.data_of(predictor.passport, None)
  try:
    before = data.build(**there | {key: section[key] for key in WHICH if key in section}).splits
  except (ValueError, OSError):
    return None
  known = {name for split, source in before.items() if split != 'test' for name in names_of(source)}
  return len(known & {*names_of(dataset.splits['test'])})


def names_of(source: data.sources.Source) -> list[str]:
  """What messages call each picture."""
  return [source.name(i) for i in range(len(source))]


def check_classes(class_names: tuple[str, ...]) -> None:
  """Raises a ValueError where there is nothing to tell apart."""
  if len(class_names) < 2:
    raise ValueError(f'a classifier needs two classes at least, not {class_names}')


def check_labels(split: str, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
  """Raises a ValueError that names the classes without an example."""
  counts = np.bincount(labels, minlength=len(class_names))
  empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
  if empty:
    raise ValueError(f'no {split} example of {", ".join(empty[:10])}: its accuracy is undefined')
