"""The data of an exploration: prepared as the weights know them, each class with examples."""

import dataclasses
from typing import Any

import numpy as np

from vit_jax import data, experiment, predict
from vit_jax.data.preprocess import Preprocess
from vit_jax.defaults import Config, part
from vit_jax.runtime.sections import fields_of


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
