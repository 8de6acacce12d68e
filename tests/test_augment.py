"""Changes of training pictures: they occur as often and as strongly as they are defined to."""

import dataclasses
import functools
import itertools
import math

from conftest import small_config
import numpy as np
from peers import need
from PIL import Image, ImageFilter
import pytest

from vit_jax import data
from vit_jax.data import augment, colour, pipeline, preprocess, randaugment, shift, sources

RGB = preprocess.Preprocess((24, 32), 3, 'bicubic', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = preprocess.Preprocess((24, 32), 1, 'bicubic', (0.4,), (0.2,))
POINTWISE = [name for name, op in randaugment.OPERATIONS.items() if not op.geometric]
each_operation = pytest.mark.parametrize('name', randaugment.OPERATIONS)


def photo(height=24, width=32, channels=3, seed=0):
  """A gradient with noise on it, within 20..200: it has contrast, colour and edges."""
  rows, columns = np.mgrid[0:height, 0:width]
  ramp = 20 + 150 * (rows / height + columns / width)[..., None] / 2 * np.ones(channels)
  noise = np.random.default_rng(seed).uniform(0, 30, ramp.shape)
  return (ramp + noise).astype(np.uint8)


def apply(name, pixels, magnitude, sign=1, resample=Image.Resampling.BILINEAR):
  fill = 7 if pixels.shape[-1] == 1 else (7, 8, 9)
  operation = randaugment.OPERATIONS[name]
  return operation(pixels, float(magnitude), sign, resample=resample, fillcolor=fill)


def mean_change(given, pixels):
  return np.abs(given.astype(int) - pixels.astype(int)).mean()


def near(share, count, expected):
  """Whether a share of `count` draws is within four standard deviations of what is expected."""
  return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


# Definitions of the operations.


def test_magnitudes_are_those_of_the_definition():
  def argument(name, magnitude, sign=1):
    return randaugment.OPERATIONS[name].argument(float(magnitude), sign)

  assert argument('Rotate', 10) == 30 and argument('Rotate', 5, -1) == -15
  assert argument('ShearX', 10) == pytest.approx(0.3)
  assert argument('TranslateYRel', 10, -1) == pytest.approx(-0.45)
  assert [argument('Posterize', x) for x in (0, 2.4, 2.5, 10)] == [0, 0, 1, 4]
  assert [argument('PosterizeIncreasing', x) for x in (0, 2.4, 2.5, 10, 20)] == [4, 4, 3, 0, 0]
  assert [argument('Solarize', x) for x in (0, 5, 10, 15)] == [0, 128, 256, 256]
  assert [argument('SolarizeIncreasing', x) for x in (0, 5, 10, 15)] == [256, 128, 0, 0]
  assert [argument('SolarizeAdd', x) for x in (0, 5, 10, 20)] == [0, 55, 110, 128]
  assert argument('Color', 0) == 0.1 and argument('Color', 5) == 1
  assert argument('ColorIncreasing', 0) == 1 and argument('ColorIncreasing', 10) == 1.9
  assert argument('ColorIncreasing', 20) == pytest.approx(2.8)
  assert argument('ColorIncreasing', 20, -1) == 0.1


def test_what_each_operation_does():
  pixels = photo()
  assert (apply('Invert', pixels, 9) == 255 - pixels).all()
  np.testing.assert_array_equal(apply('Invert', apply('Invert', pixels, 9), 9), pixels)
  wide = apply('AutoContrast', pixels, 9)
  assert wide.min() == 0 and wide.max() == 255
  levels = np.sort(apply('Equalize', photo(64, 64), 9).ravel())
  assert np.abs(levels - np.linspace(0, 255, levels.size)).max() < 6  # Uniform.
  assert set(np.unique(apply('PosterizeIncreasing', pixels, 5) % 64)) == {0}  # Two bits.
  assert apply('PosterizeIncreasing', pixels, 15).max() == 0
  turned = apply('SolarizeIncreasing', pixels, 5)
  np.testing.assert_array_equal(turned, np.where(pixels < 128, pixels, 255 - pixels))
  added = apply('SolarizeAdd', pixels, 2)
  np.testing.assert_array_equal(added, np.where(pixels < 128, pixels + 22, pixels))
  brighter = apply('BrightnessIncreasing', pixels, 5, -1)
  np.testing.assert_allclose(brighter, pixels * 0.55, atol=1)
  flat = apply('ContrastIncreasing', pixels, 10, -1)
  assert flat.std() == pytest.approx(pixels.std() * 0.1, rel=0.1)
  grey = apply('Color', pixels, 0)
  assert grey.std(-1).mean() < 0.2 * pixels.std(-1).mean()
  edges = np.abs(np.diff(apply('Sharpness', pixels, 10).astype(int), axis=1)).mean()
  assert edges > np.abs(np.diff(pixels.astype(int), axis=1)).mean()


@pytest.mark.parametrize('channels', [1, 3])
def test_geometric_operations_move_pixels_and_fill(channels):
  pixels = photo(21, 21, channels)
  fill = np.array([7, 8, 9][:channels])
  assert (apply('TranslateXRel', pixels, 10 * 3 / 21 / 0.45)[:, :18] == pixels[:, 3:]).all()
  assert (apply('TranslateXRel', pixels, 10 * 3 / 21 / 0.45)[:, 18:] == fill).all()
  assert (apply('TranslateYRel', pixels, 10 * 2 / 21 / 0.45, -1)[2:] == pixels[:19]).all()
  assert (apply('TranslateYRel', pixels, 10 * 2 / 21 / 0.45, -1)[:2] == fill).all()
  np.testing.assert_array_equal(apply('Rotate', pixels, 30), np.rot90(pixels))
  nearest = Image.Resampling.NEAREST
  sheared = apply('ShearX', pixels, 10 / 0.3, resample=nearest)  # One pixel more a row.
  for row in range(20):
    np.testing.assert_array_equal(sheared[row, : 20 - row], pixels[row, row + 1 : 21][: 20 - row])
  straight = apply('ShearY', pixels.swapaxes(0, 1), 10 / 0.3, resample=nearest)
  np.testing.assert_array_equal(straight, sheared.swapaxes(0, 1))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('resample', [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_moves_along_one_axis_are_pillows(resample, channels):
  """Flat parts, steps of one pixel, and offsets that rounding splits, which Pillow itself does."""
  pixels = np.random.default_rng(0).integers(0, 256, (37, 41, channels), np.uint8)
  pixels[:9], pixels[12:15] = 255, 17
  outside = {'resample': resample, 'fillcolor': (7, 8, 9) if channels == 3 else 7}
  image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
  draws = np.random.default_rng(1).uniform(-1, 1, (60, 2)) * (0.9, 30)
  draws[::2, 0], draws[1::4, 1] = 0, 0
  for slope, offset in [*draws.tolist(), (0.0, 0.0), (1.0, 0.0), (0.0, -(2.0**-54)), (0.0, 99.0)]:
    for axis, rows in ((1, (1, slope, offset, 0, 1, 0)), (0, (1, 0, 0, slope, 1, offset))):
      expected = image.transform(image.size, Image.Transform.AFFINE, rows, **outside)
      given = shift.move(pixels, axis, slope, offset, **outside)
      expected = np.asarray(expected).reshape(pixels.shape)
      np.testing.assert_array_equal(given, expected, err_msg=f'{axis} {slope} {offset}')
  tiny = {'resample': resample, 'fillcolor': outside['fillcolor']}
  assert shift._move_rows(pixels, 0.0, -(2.0**-54), **tiny) is None


@pytest.mark.parametrize('size', [(40, 30), (3, 3), (2, 5), (1, 1)])
def test_smoothing_is_pillows(size):
  pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  expected = np.asarray(Image.fromarray(pixels).filter(ImageFilter.SMOOTH))
  np.testing.assert_array_equal(colour.smooth(pixels), expected)


@each_operation
def test_grey_pictures_change_as_rgb_ones_do(name):
  grey = photo(channels=1)
  given = apply(name, grey, 7, -1)
  assert given.shape == grey.shape and given.dtype == np.uint8
  if 'Color' in name:
    np.testing.assert_array_equal(given, grey)
  elif name in POINTWISE:
    rgb = apply(name, np.repeat(grey, 3, axis=-1), 7, -1)
    np.testing.assert_array_equal(np.repeat(given, 3, axis=-1), rgb)


@each_operation
def test_operations_leave_their_input_and_survive_flat_pictures(name):
  for pixels in (photo(), np.full((5, 4, 3), 90, np.uint8), np.zeros((1, 1, 1), np.uint8)):
    before = pixels.copy()
    for magnitude in (0.0, 4.4, 10.0, 15.0, 20.0, 40.0):
      given = apply(name, pixels, magnitude, -1)
      assert given.shape == pixels.shape and given.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize('name', [n for n in randaugment.choices(True)[3:] if n != 'SolarizeAdd'])
def test_increasing_operations_change_more_at_larger_magnitudes(name):
  pixels = photo(64, 64)
  low, high, highest = (mean_change(apply(name, pixels, m), pixels) for m in (1.0, 9.0, 20.0))
  assert low < high <= highest


def test_both_sets_have_15_operations():
  growing, plain = randaugment.choices(True), randaugment.choices(False)
  assert len(growing) == len(plain) == 15
  assert set(growing) | set(plain) == set(randaugment.OPERATIONS)
  assert set(growing) & set(plain) == {
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'SolarizeAdd', 'ShearX', 'ShearY',
    'TranslateXRel', 'TranslateYRel',
  }  # fmt: skip


# How often and how strongly.


def test_operations_are_drawn_as_defined():
  """8,000 pictures: uniform with replacement, half applied, N(9, 0.5) clipped at 10, both signs."""
  change, rng = randaugment.RandAugment(2, 9.0, 0.5, 0.5), np.random.default_rng(0)
  drawn = [change.draw(rng) for _ in range(8000)]
  lengths = np.bincount([len(picture) for picture in drawn], minlength=3)
  for length, share in enumerate((0.25, 0.5, 0.25)):
    assert near(lengths[length] / 8000, 8000, share)
  rows = [row for picture in drawn for row in picture]
  names, magnitudes, signs, filters = zip(*rows, strict=True)
  for name in randaugment.choices(True):
    assert near(names.count(name) / len(rows), len(rows), 1 / 15), name
  both = [picture for picture in drawn if len(picture) == 2]
  assert near(np.mean([a[0] == b[0] for a, b in both]), len(both), 1 / 15)  # With replacement.
  assert near(np.mean(np.array(signs) == 1), len(rows), 0.5)
  assert near(np.mean(np.array(filters) == Image.Resampling.BICUBIC), len(rows), 0.5)
  values = np.array(magnitudes)
  assert values.max() == 10 and near(np.mean(values == 10), len(values), 0.02275)
  assert np.median(values) == pytest.approx(9, abs=0.03)
  assert np.percentile(values, 15.87) == pytest.approx(8.5, abs=0.05)


def test_magnitudes_without_noise_and_uniform_ones():
  rng = np.random.default_rng(0)
  fixed = randaugment.RandAugment(2, 15.0, 0.0, 1.0, largest=20.0, resize='bicubic')
  rows = [row for _ in range(100) for row in fixed.draw(rng)]
  assert len(rows) == 200  # Probability 1: all of them.
  assert {row[1] for row in rows} == {15.0}
  assert {row[3] for row in rows} == {Image.Resampling.BICUBIC}
  uniform = randaugment.RandAugment(2, 8.0, math.inf, 1.0)
  values = np.array([row[1] for _ in range(2000) for row in uniform.draw(rng)])
  assert values.max() < 8
  np.testing.assert_allclose(np.quantile(values, (0.1, 0.5, 0.9)), (0.8, 4, 7.2), atol=0.3)
  assert not [row for _ in range(50) for row in randaugment.RandAugment(0).draw(rng)]


def test_region_has_the_distribution_of_its_definition():
  """Where every try fits, area is uniform and the logarithm of the ratio too, independently."""
  crop = augment.Augment('random_resized', crop_area=(0.08, 0.5), crop_ratio=(3 / 4, 4 / 3))
  rng = np.random.default_rng(0)
  regions = np.array([crop.region(3000, 3000, rng) for _ in range(4000)])
  area = regions[:, 2] * regions[:, 3] / 9e6
  ratio = np.log(regions[:, 3] / regions[:, 2]) / math.log(4 / 3)
  quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
  for values, low, high in ((area, 0.08, 0.5), (ratio, -1, 1)):
    expected = low + (high - low) * np.array(quantiles)
    np.testing.assert_allclose(np.quantile(values, quantiles), expected, atol=0.04 * (high - low))
  assert abs(np.corrcoef(area, ratio)[0, 1]) < 0.06
  free = (3000 - regions[:, 2:]).astype(float)
  np.testing.assert_allclose((regions[:, :2] / free).mean(0), 0.5, atol=0.02)  # Anywhere.


def test_half_of_the_pictures_are_mirrored():
  pixels, flip = photo(), augment.Augment(flip=True)
  given = [flip(pixels, np.random.default_rng((0, 5, row)), RGB) for row in range(1000)]
  assert near(np.mean([np.array_equal(x, pixels[:, ::-1]) for x in given]), 1000, 0.5)
  assert all(np.array_equal(x, pixels) or np.array_equal(x, pixels[:, ::-1]) for x in given)


def test_jitter_draws_each_factor_within_its_range_and_any_order(monkeypatch):
  drawn = []

  def note(which, pixels, factor):
    drawn.append((which, factor))
    return pixels

  monkeypatch.setattr(colour, 'JITTERED', tuple(functools.partial(note, i) for i in range(3)))
  rng = np.random.default_rng(0)
  for _ in range(3000):
    colour.jitter(photo(2, 2), 0.3, rng)
  order = np.array([which for which, _ in drawn]).reshape(3000, 3)
  kinds, counts = np.unique(order, axis=0, return_counts=True)
  assert len(kinds) == 6 and all(near(count / 3000, 3000, 1 / 6) for count in counts)
  for kind in range(3):
    factors = [factor for which, factor in drawn if which == kind]
    np.testing.assert_allclose(np.quantile(factors, (0, 0.5, 1)), (0.7, 1, 1.3), atol=0.02)
    assert min(factors) >= 0.7 and max(factors) <= 1.3
  drawn.clear()
  for _ in range(500):
    colour.jitter(photo(2, 2), 1.5, rng)
  assert 0 <= min(factor for _, factor in drawn) < 0.05  # Not below 0.


def test_jitter_of_grey_pictures_and_of_none():
  rng = np.random.default_rng(0)
  pixels = photo(channels=1)
  assert colour.jitter(pixels, 0.0, rng) is pixels
  assert rng.random() == np.random.default_rng(0).random()  # Nothing was drawn.
  given = augment.Augment(colour_jitter=0.4)(pixels, rng, GREY)
  assert given.shape == pixels.shape and mean_change(given, pixels) > 1


@pytest.mark.parametrize('border', ['black', 'reflect'])
def test_the_padded_crop_is_a_window_of_the_bordered_picture(border):
  pixels = photo(6, 4)
  small = dataclasses.replace(RGB, image_size=(6, 4))
  crop = augment.Augment('padded', crop_padding=2, crop_border=border)
  mode = {'black': 'constant', 'reflect': 'reflect'}[border]
  frame = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode)
  expected = {frame[y : y + 6, x : x + 4].tobytes() for y in range(5) for x in range(5)}
  given = {crop(pixels, np.random.default_rng(i), small).tobytes() for i in range(400)}
  assert given == expected and len(given) == 25


# A pure function of (seed, step, row).

EVERYTHING = augment.Augment(
  'random_resized', flip=True, colour_jitter=0.4, randaugment=2, randaugment_probability=1.0,
  rotate=10.0,
)  # fmt: skip


@pytest.mark.parametrize('plain', [RGB, GREY])
def test_one_generator_gives_one_picture(plain):
  pixels = photo(40, 50, plain.channels)
  first = EVERYTHING(pixels, np.random.default_rng((0, 3, 1)), plain)
  np.random.seed(1)  # Nothing global takes part.
  EVERYTHING(pixels, np.random.default_rng((0, 3, 2)), plain)
  again = EVERYTHING(pixels, np.random.default_rng((0, 3, 1)), plain)
  np.testing.assert_array_equal(first, again)
  others = {EVERYTHING(pixels, np.random.default_rng((0, 3, i)), plain).tobytes() for i in range(9)}
  assert len(others) == 9


def test_changes_come_in_their_order():
  """Colour after geometry of the crop, RandAugment's fill not jittered, the affine map's black."""
  pixels, rng = photo(40, 50), np.random.default_rng(5)
  given = EVERYTHING(pixels, np.random.default_rng(5), RGB)
  expected = EVERYTHING.cropped(pixels, rng, RGB)
  if rng.random() < 0.5:
    expected = expected[:, ::-1].copy()
  expected = colour.jitter(expected, 0.4, rng)
  expected = EVERYTHING.operations(expected, rng, (124, 116, 104))
  np.testing.assert_array_equal(given, EVERYTHING.affine(expected, rng))


def test_no_change_costs_no_draw():
  """Runs without the new changes see the pictures that they saw before there were any."""
  old = augment.Augment('random_resized', flip=True, rotate=10.0)
  rng = np.random.default_rng(0)
  old(photo(40, 50), rng, RGB)
  known = np.random.default_rng(0)
  old.cropped(photo(40, 50), known, RGB)
  known.random()
  known.uniform(-1, 1, 6)
  assert rng.random() == known.random()


def test_the_fill_is_the_mean_colour():
  assert randaugment.fill_of((0.485, 0.456, 0.406), 3) == (124, 116, 104)
  assert randaugment.fill_of((0.5,), 3) == (128, 128, 128)
  assert randaugment.fill_of((0.5,), 1) == (128,)


# Which pictures, in which order.


def numbered(size, **options):
  """Pictures of one pixel whose value is their number."""
  pixels = np.arange(size, dtype=np.uint8).reshape(size, 1, 1, 1)
  plain = preprocess.Preprocess((1, 1), 1, 'bilinear', (0.0,), (1.0,))
  source = sources.Listed(pixels, np.arange(size, dtype=np.int32))
  return data.Dataset({'train': source}, ('a', 'b'), plain, augment.Augment(), **options)


def labels_of(dataset, batch_size, steps):
  batches = [dataset.batch_at(i, batch_size=batch_size, seed=0) for i in range(1, steps + 1)]
  return np.concatenate([batch['label'][batch['mask']] for batch in batches])


@pytest.mark.parametrize('batch_size', [4, 6, 15, 60])
def test_repeats_stand_apart_however_batches_are_cut(batch_size):
  once = labels_of(numbered(10), 20, 1).reshape(2, 10)
  copies = labels_of(numbered(10, repeats=3), batch_size, 60 // batch_size)
  np.testing.assert_array_equal(copies, np.repeat(once[:, None], 3, axis=1).reshape(-1))


@pytest.mark.parametrize(('size', 'repeats'), [(100, 3), (64, 2), (33, 4), (5, 3)])
def test_every_picture_is_repeated_in_its_epoch_and_meets_others(size, repeats):
  epoch = size * repeats
  places = pipeline.picture_of(np.arange(2 * epoch), repeats, epoch)
  for part, first in ((places[:epoch], 0), (places[epoch:], size)):
    np.testing.assert_array_equal(np.bincount(part - first), [repeats] * size)
    if size % pipeline.SPREAD != 1:  # Whose last picture has no other beside it.
      assert (np.diff(part) != 0).all()  # Mixup's partner is another picture.
  group = pipeline.SPREAD * repeats
  if size >= pipeline.SPREAD:
    np.testing.assert_array_equal(places[:group], np.tile(np.arange(pipeline.SPREAD), repeats))


@pytest.mark.parametrize('parts', [2, 4, 16, 32, 64])
def test_copies_do_not_meet_in_the_parts_of_a_batch(parts):
  """A part takes every n-th row, and mixup's partner is the next of these."""
  places = pipeline.picture_of(np.arange(1024), 3, 100_000 * 3)
  for i in range(parts):
    part = places[i::parts]
    assert (part[1:] == part[:-1]).mean() < 0.05


def test_each_copy_has_its_own_changes():
  shift = augment.Augment(colour_jitter=0.9)
  dataset = dataclasses.replace(numbered(30, repeats=3), augment=shift)
  batch = dataset.batch_at(1, batch_size=90, seed=0)
  copies = batch['image'].reshape(3, 30).T
  bright = batch['label'].reshape(3, 30)[0] > 5
  assert all(len(set(row)) > 1 for row in copies[bright])


def test_whole_epochs_of_repeats():
  dataset = numbered(10, repeats=3, whole_epochs=True)
  masks = [dataset.batch_at(i, batch_size=16, seed=0)['mask'].sum() for i in range(1, 5)]
  assert masks == [16, 14, 16, 14]
  np.testing.assert_array_equal(np.bincount(labels_of(dataset, 16, 2)), [3] * 10)


def test_processes_share_repeats(monkeypatch):
  dataset = numbered(10, repeats=3)
  whole = dataset.batch_at(2, batch_size=8, seed=0)
  monkeypatch.setattr(pipeline.jax, 'process_count', lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(pipeline.jax, 'process_index', lambda index=index: index)
    shares.append(dataset.batch_at(2, batch_size=8, seed=0)['image'])
  np.testing.assert_array_equal(np.concatenate(shares), whole['image'])


def digits(**overrides):
  return data.build(**small_config(**{f'data__{key}': x for key, x in overrides.items()}).data)


def contents(source):
  return [pixels.tobytes() for pixels in source.read(np.arange(len(source)))[0]]


def test_a_part_of_train_keeps_the_shares_of_classes_and_takes_none_of_validation():
  whole = digits(validation_fraction=0.1)
  part = digits(validation_fraction=0.1, train_examples=200)
  counts, every = (np.bincount(x.splits['train'].labels, minlength=10) for x in (part, whole))
  assert counts.sum() == 200
  assert np.abs(counts - every * 200 / every.sum()).max() < 1
  seen = set(contents(part.splits['train']))
  assert seen <= set(contents(whole.splits['train']))
  for name in ('validation', 'test'):
    assert contents(part.splits[name]) == contents(whole.splits[name])
    assert not seen & set(contents(part.splits[name]))


def test_parts_are_seeded_and_nested():
  source = digits().splits['train']
  parts = [contents(sources.subset(source, size, 0)) for size in (30, 100, 500)]
  for small, large in itertools.pairwise(parts):
    assert set(small) <= set(large)
  assert contents(sources.subset(source, 100, 0)) == parts[1]
  assert set(contents(sources.subset(source, 100, 1))) != set(parts[1])
  assert contents(sources.subset(source, len(source), 0)) == contents(source)


@dataclasses.dataclass(frozen=True)
class Unlabelled:
  """A source whose labels are not known beforehand, as those of TFDS."""

  indices: np.ndarray

  def __len__(self):
    return len(self.indices)

  def read(self, indices):
    return list(self.indices[indices]), self.indices[indices]

  def name(self, index):
    return str(index)

  def take(self, indices):
    return Unlabelled(self.indices[indices])


def test_a_part_of_pictures_without_known_labels_is_any_part():
  part = sources.subset(Unlabelled(np.arange(1000)), 100, 0).indices
  assert len(set(part)) == 100
  assert 400 < part.mean() < 600


# What is impossible.


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (dict(randaugment=-1), r'config\.data\.randaugment=-1'),
    (dict(randaugment_magnitude=15.0), r'randaugment_magnitude=15.0 .*randaugment_max=10.0; raise'),
    (dict(randaugment_magnitude=-1.0), 'randaugment_magnitude=-1.0'),
    (dict(randaugment_std=-0.5), 'randaugment_std=-0.5'),
    (dict(randaugment_probability=1.5), 'randaugment_probability=1.5'),
    (dict(randaugment_max=0.0), 'randaugment_max=0.0'),
    (dict(randaugment_resize='bicubik'), "did you mean 'bicubic'"),
    (dict(colour_jitter=-0.1), 'colour_jitter=-0.1'),
    (dict(crop_border='reflekt'), "did you mean 'reflect'"),
    (dict(repeats=0), 'repeats=0'),
    (dict(train_examples=2000), 'train_examples=2000 must be between 1 and 1437'),
    (dict(train_examples=0), 'train_examples=0'),
    (dict(channels=4, randaugment=2), r'randaugment=2 is for 1 channel .*channels=4'),
    (dict(channels=2, colour_jitter=0.1), r'colour_jitter=0.1 is for 1 channel .*channels=2'),
  ],
)
def test_impossible_settings_are_refused(overrides, message):
  with pytest.raises(ValueError, match=message):
    digits(**overrides)


def test_data_that_are_not_here_are_described_with_every_key():
  section = small_config(data__repeats=3, data__train_examples=50).data.to_dict()
  assert data.describe(num_classes=10, **section).repeats == 3
  with pytest.raises(ValueError, match='repeats=0'):
    data.describe(num_classes=10, **(section | {'repeats': 0}))


# timm's RandAugment and torchvision's ColorJitter.


def timms():
  need('timm')
  import timm.data.auto_augment

  return timm.data.auto_augment


def as_timm(pixels):
  return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


@pytest.mark.slow
@each_operation
def test_arguments_are_timms(name, monkeypatch):
  auto = timms()
  ours, peers = randaugment.OPERATIONS[name].argument, auto.LEVEL_TO_ARG[name]
  assert (ours is None) == (peers is None)
  for sign in (1, -1) if ours else ():
    monkeypatch.setattr(auto.random, 'random', lambda sign=sign: 0.25 if sign > 0 else 0.75)
    for magnitude in np.linspace(0, 10, 101).tolist() + [12.0, 15.0, 20.0]:
      expected = peers(magnitude, {})[0]
      if name == 'PosterizeIncreasing':  # Bits below 0: Pillow takes none, and 0 means the same.
        expected = max(0, expected)
      assert ours(magnitude, sign) == expected, (magnitude, sign)


@pytest.mark.slow
@each_operation
@pytest.mark.parametrize('channels', [1, 3])
def test_pixels_are_timms(name, channels):
  auto = timms()
  fill = (124, 116, 104) if channels == 3 else 124
  pictures = [photo(50, 61, channels, seed) for seed in range(3)]
  pictures += [np.random.default_rng(0).integers(0, 256, (37, 29, channels), np.uint8)]
  pictures += [np.full((9, 8, channels), 200, np.uint8)]
  for pixels in pictures:
    for magnitude in (0.0, 0.7, 3.3, 5.0, 7.9, 9.0, 9.9, 15.0):
      for sign, resample in ((1, Image.Resampling.BICUBIC), (-1, Image.Resampling.BILINEAR)):
        operation = randaugment.OPERATIONS[name]
        words = (operation.argument(magnitude, sign),) if operation.argument else ()
        if 'Posterize' in name and words[0] == 0:
          continue  # Pillow refuses to keep no bit.
        image = auto.NAME_TO_OP[name](as_timm(pixels), *words, fillcolor=fill, resample=resample)
        given = operation(pixels, magnitude, sign, fillcolor=fill, resample=resample)
        np.testing.assert_array_equal(given[..., 0] if channels == 1 else given, np.asarray(image))


@pytest.mark.slow
@pytest.mark.parametrize('increasing', [False, True])
def test_the_sets_are_timms(increasing):
  auto = timms()
  assert set(randaugment.choices(increasing)) == set(auto.rand_augment_choices('', increasing))


@pytest.mark.slow
@pytest.mark.parametrize('factor', [0.0, 0.3, 0.77, 1.0, 1.4, 2.0])
@pytest.mark.parametrize('channels', [1, 3])
def test_jitters_changes_are_torchvisions(factor, channels):
  need('torchvision')
  from torchvision.transforms import functional

  peers = (
    functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation
  )  # fmt: skip
  pixels = photo(40, 30, channels)
  for change, peer in zip(colour.JITTERED, peers, strict=True):
    given, expected = change(pixels, factor), np.asarray(peer(as_timm(pixels), factor))
    np.testing.assert_array_equal(given[..., 0] if channels == 1 else given, expected)
