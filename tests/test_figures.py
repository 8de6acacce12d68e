"""Figures: pictures of any number of channels can be drawn."""

import io

import numpy as np
from PIL import Image
import pytest

from vit_jax import figures


def drawn(figure):
  """The pixels of a figure, as its file has them."""
  content = io.BytesIO()
  figure.savefig(content, format='png')
  return np.asarray(Image.open(content))


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5])
def test_pictures_of_any_number_of_channels_are_shown(channels):
  image = np.random.default_rng(0).integers(0, 256, (8, 6, channels), np.uint8)
  figure = figures.gallery([image], ['a'])
  drawn(figure)
  (shown,) = figure.axes[0].images
  expected = image if channels in (3, 4) else image.mean(-1)
  np.testing.assert_array_equal(shown.get_array(), expected)
  assert shown.get_clim() == (0, 255)
