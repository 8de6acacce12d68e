"""Figures: pictures of any number of channels, and names of any letters, can be drawn."""

import io

import numpy as np
from PIL import Image
import pytest

from vit_jax import figures, interpret
from vit_jax.explore import against, series
from vit_jax.explore import pictures as explored
from vit_jax.interpret.picture import Measured


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


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_patches_lie_apart_in_one_picture(channels):
  """A picture of 2 x 3 patches: enlarged, white between them, and each as it is."""
  image = np.random.default_rng(0).integers(0, 255, (8, 12, channels), np.uint8)
  figure = figures.patches(image, 4)
  assert len(figure.axes) == 2
  shown = figures.apart(image, 4)
  by, gap = 1000 // 12, round(0.08 * 4 * (1000 // 12))
  assert shown.shape == (8 * by + gap, 12 * by + 2 * gap, channels)
  white = (shown == 255).all(-1)
  assert white[4 * by : 4 * by + gap].all() and white.sum() == white.size - 96 * by**2
  np.testing.assert_array_equal(shown[4 * by + gap :: by, : 4 * by : by], image[4:, :4])
  drawn(figure)


def test_a_picture_of_many_patches_is_drawn_at_once():
  """Of one pixel each: axes of their own took minutes."""
  image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  assert len(figures.patches(image, 1).axes) == 2
  drawn(figures.patches(image, 1))


def test_dollars_in_names_are_no_formulas():
  names = ['usd_$_5', 'usd_$_10', '${', r'\$']
  pictures = [np.zeros((4, 4, 3), np.uint8)] * 2
  title = f'{names[0]} taken for {names[1]}'
  counts = np.eye(4, dtype=int)
  measured = Measured({'class_names': names, 'confusion': counts.tolist()}, title)
  for figure in (
    figures.gallery(pictures, [title, names[3]], title),
    figures.pairs(pictures, pictures, [title, names[2]], title),
    figures.confusion(counts, [*names[:3], title]),
    interpret.draw('confusion', [measured] * 2, [title, names[2]]),
    explored.ranking([title, *names[1:]], np.full(4, 0.5), np.full((4, 2), 0.5), 0),
    series.lines({title: {'test/probe_0': 0.5, 'test/probe_1': 0.6}}, 'test/probe'),
    against.draw({name: {(): [(1.0, 0.5)]} for name in (title, '')}, ('compute', 'test/accuracy')),
  ):
    drawn(figure)


def test_names_that_are_no_utf8_are_drawn():
  drawn(figures.confusion(np.eye(2, dtype=int), ['caf\udce9', 'tea']))


def test_legends_keep_names_that_begin_with_an_underscore():
  axes = figures.new_figure(3.0, 3.0)[1]
  for name in ('_background_', 'cat'):
    axes[0, 0].plot([0, 1], label=figures.plain(name))
  assert [x.strip() for x in axes[0, 0].get_legend_handles_labels()[1]] == ['_background_', 'cat']


def test_dollars_stand_for_themselves():
  def pixels(text, **options):
    figure = figures.blank(3.0, 1.0)
    figure.text(0.1, 0.5, text, **options)
    return drawn(figure)

  text = r'a $x$ \$ b'
  expected = pixels(text, parse_math=False)
  np.testing.assert_array_equal(pixels(figures.plain(text)), expected)
  assert (pixels(text) != expected).any()
