"""The section of the readout lab's page on the health of the tokens that were read."""

import pathlib

import numpy as np

from vit_jax import figures
from vit_jax.data import Dataset
from vit_jax.evaluation import token_health, token_pictures
from vit_jax.evaluation.token_health import Health
from vit_jax.explore.page import Block, Heading, Picture, Text
from vit_jax.predict import Predictor

IMAGES = 64  # of the test split, spread over it


def health(folder: pathlib.Path, predictor: Predictor, dataset: Dataset) -> list[Block]:
  """Norms, outliers, rank and similarity of the tokens by depth; draws `tokens.png` into `folder`.

  Of a model without tokens on one grid at every depth the section says so.
  """
  heading = Heading('Are the tokens healthy?')
  source = dataset.splits['test']
  rows = np.unique(np.linspace(0, len(source) - 1, min(IMAGES, len(source))).round().astype(int))
  pictures, _ = source.read(rows)
  images = np.stack([predictor.preprocess(picture) for picture in pictures])
  try:
    found = token_health.measure(predictor, images)
  except ValueError as error:
    return [heading, Text(f'Not measured: {error}.')]
  figure = figures.blank(*token_pictures.SIZE)
  token_pictures.draw(figure, found)
  path = folder / 'tokens.png'
  figure.savefig(path)
  caption = (
    f'{len(images)} test pictures, at the input and after each block. Effective rank: RankMe of '
    f'{token_health.SAMPLED} patches a picture, CKA of the same; entropy over all tokens.'
  )
  return [heading, Text(in_words(found)), Picture(path, caption)]


def in_words(found: Health) -> str:
  """What stands out, in a few sentences."""
  shares = found.outliers.mean((1, 2))
  worst = token_pictures.widest(found)
  outliers = (
    f'{shares[worst]:.2%} of the patches after block {worst} are outliers, whose norm is more than '
    f'{found.factor:g} times the median there: such patches may hold global information instead of '
    'their own (arXiv:2309.16588)'
    if shares.any()
    else f'No patch is an outlier (more than {found.factor:g} times the median norm of its block)'
  )
  alike = found.similarity.mean(1)
  return (
    f'{outliers}. Two patches of a picture have a cosine of {alike[0]:.2f} at the input and '
    f'{alike[-1]:.2f} after the last block; the effective rank of patches goes from '
    f'{found.rank[0]:.1f} to {found.rank[-1]:.1f} of {found.width}.'
  )
