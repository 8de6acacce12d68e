"""The confusion matrix of a checkpoint on the test data that belong to it."""

import argparse
from typing import Any

import jax
import numpy as np

from vit_jax import figures
from vit_jax.evaluation.classification import Classification, Result
from vit_jax.evaluation.subject import Subject
from vit_jax.interpret import images as test_images
from vit_jax.interpret.picture import Measured, Picture
from vit_jax.predict import Predictor
from vit_jax.runtime import devices, sharding

BATCH = 256


class Confusion(Picture):
  """True against predicted classes, over all test pictures of the checkpoint's own data."""

  sees = 'test'

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    del images, options
    result = evaluate(predictor)
    report = result.report(tuple(predictor.class_names))
    low, high = report['accuracy_interval']
    title = (
      f'{report["n_examples"]} test pictures: accuracy {report["accuracy"]:.1%} '
      f'(95 % {low:.1%} to {high:.1%})'
    )
    return [Measured({'class_names': list(predictor.class_names)} | report, title)]

  def size(self, measured: Measured) -> tuple[float, float]:
    return figures.confusion_size(measured.numbers['class_names'])

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    counts = np.array(measured.numbers['confusion'])
    figures.draw_confusion(figure, counts, measured.numbers['class_names'])


def evaluate(predictor: Predictor) -> Result:
  """The evaluation of every test picture.

  Raises:
    ValueError: the weights do not say which data are theirs, have no head, or several labels.
  """
  passport = predictor.passport
  dataset = test_images.own_data(predictor, 'confusion')
  size = passport.preprocess.image_size
  chosen = devices.choose(None, 0, BATCH * size[0] * size[1])
  mesh = sharding.make_mesh(1, chosen)
  subject = Subject(predictor.model, predictor.forward, passport, dataset, mesh, BATCH)
  evaluator = Classification(subject, mistakes=0, top=(5,), bins=15)
  params = jax.device_put(predictor.params, sharding.replicated(mesh))
  return evaluator.evaluate(params, 'test')
