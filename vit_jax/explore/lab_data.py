"""The data of an exploration: prepared as the weights know them, each class with examples."""

import dataclasses

import numpy as np

from vit_jax import data, experiment, predict
from vit_jax.data import known
from vit_jax.defaults import Config, part


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
  if config.data.name != 'checkpoint':
    normal = part('data', config.data.name).to_dict()
    known.check_seen(config.data.to_dict(), normal, predictor.preprocess, config.init_from)
  check_classes(dataset.class_names)
  if dataset.multi_label:
    raise ValueError(
      'config.run=explore reads one label a picture, and these data have several; take others'
    )
  for split, source in dataset.splits.items():
    labels = getattr(source, 'labels', None)
    if isinstance(labels, np.ndarray):
      check_labels(split, labels, dataset.class_names)
  return dataclasses.replace(dataset, preprocess=predictor.preprocess)


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


def doubt(config: Config, predictor: predict.Predictor, dataset: data.Dataset) -> str:
  """A warning where weights may have been trained on test examples; '': no reason to.

  Raises:
    ValueError: they were.
  """
  passport = predictor.passport
  there = experiment.data_of(passport, None) if passport.origin.get('data') else {}
  section = experiment.data_section(config, passport)
  return known.check_untrained(dataset, section, there, config.init_from, data.build)
