"""Health of tokens by depth: norms and outliers, rank, similarity, entropy of attention, CKA."""

import argparse
from typing import Any

import numpy as np

from vit_jax.evaluation import token_health, token_pictures
from vit_jax.interpret.picture import Measured, Picture
from vit_jax.predict import Predictor


class Tokens(Picture):
  """Health of tokens by depth: norms, outliers, effective rank, similarity, entropy, CKA."""

  sees = 'images'
  count = 64

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
      '--factor',
      type=float,
      default=token_health.FACTOR,
      help='outliers: norms above so many medians of their block',
    )

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    found = token_health.measure(predictor, images, options.factor)
    content = {
      'images': len(images), 'grid': list(found.grid), 'prefix': list(found.prefix),
      'factor': found.factor, 'width': found.width,
    }  # fmt: skip
    entropy = {} if found.entropy is None else {'entropy': found.entropy}
    arrays = {'norms': found.norms, 'similarity': found.similarity, 'cka': found.cka,
              'rank': found.rank, **entropy}  # fmt: skip
    title = f'tokens of {len(images)} images, at the input and after each block'
    return [Measured(content | found.summary(), title, arrays)]

  def size(self, measured: Measured) -> tuple[float, float]:
    del measured
    return token_pictures.SIZE

  def draw(self, figure: Any, measured: Measured, scale: None) -> None:
    del scale
    content, arrays = measured.numbers, measured.arrays
    health = token_health.Health(
      tuple(content['prefix']), tuple(content['grid']), arrays['norms'], content['factor'],
      arrays['similarity'], arrays.get('entropy'), arrays['rank'], arrays['cka'],
      content['width'],
    )  # fmt: skip
    token_pictures.draw(figure, health)
