"""Pictures: every mode, orientation and decoder gives Pillow's pixels; crops keep their bounds."""

import csv
import dataclasses
import io

from conftest import real_data
import numpy as np
from PIL import Image, ImageOps
import pytest

from vit_jax import data as datasets
from vit_jax.data import augment, jpeg, pictures, preprocess, resize, sources

RGB = preprocess.Preprocess((6, 4), 3, 'nearest', (0.5,), (0.5,))


def noise(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_bytes(image, kind='JPEG', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize('mode', ['RGB', 'L', '1', 'P', 'CMYK', 'RGBA', 'LA', 'I;16', 'I'])
def test_every_mode_becomes_the_models(tmp_path, mode):
  image = Image.fromarray(noise(6, 4))
  if mode.startswith('I'):
    wide = np.asarray(image.convert('L')).astype(np.uint16) * 257
    image = Image.fromarray(wide if mode == 'I;16' else wide.astype(np.int32))
  else:
    image = image.convert(mode)
  path = tmp_path / ('a.TIF' if mode in ('CMYK', 'I') else 'a.PNG')
  image.save(path)
  given = RGB(path)
  expected = image if not mode.startswith('I') else Image.fromarray(noise(6, 4)).convert('L')
  np.testing.assert_array_equal(given, np.asarray(expected.convert('RGB')))


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
  """Its file says how many bits there are, whatever its values."""
  Image.fromarray(np.full((2, 3), 255, np.uint16)).save(tmp_path / 'a.png')
  assert (RGB(tmp_path / 'a.png') == 0).all()
  assert (RGB(Image.fromarray(np.full((2, 3), 255, np.int32))) == 255).all()


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('orientation', [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
def test_orientations(kind, orientation):
  """Against Pillow's own; what is not one of 1 to 8 is ignored."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = as_bytes(Image.fromarray(noise(32, 48)), kind, exif=exif)
  expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  np.testing.assert_array_equal(pictures.read(data, 3), expected)
  height, width, _ = expected.shape
  region = (3, 5, height - 7, width - 15)
  part = pictures.read(data, 3, lambda *size: region if size == (height, width) else None)
  np.testing.assert_array_equal(part, expected[3 : height - 4, 5 : width - 10])
  for least in ((2, 3), (7, 7), (10, 4)):
    assert_decoders_agree(data, region, least)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')  # pytest forgets the library's own.
def test_unreadable_exif_is_ignored():
  data = as_bytes(Image.fromarray(noise(32, 48)), exif=b'Exif\0\0MM\0*nonsense' + b'\xff' * 40)
  np.testing.assert_array_equal(
    pictures.read(data, 3), np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
  )


def test_transparency_stands_on_white():
  data = as_bytes(Image.new('RGBA', (4, 6), (0, 0, 0, 0)), 'PNG')
  assert RGB(data).min() == 255
  assert pictures.read(data, 4).max() == 0  # Four channels keep it.


def assert_decoders_agree(data, region, least):
  """Where both shrink a picture while decoding it, they give the same bits."""
  with pytest.MonkeyPatch.context() as patch:
    short = jpeg.decode(data, lambda *_: region, least)
    patch.setattr(jpeg, '_with_turbo', lambda *_: None)
    long = jpeg.decode(data, lambda *_: region, least)
  assert (short is None) == (long is None)
  if short is not None:
    np.testing.assert_array_equal(short, long, err_msg=f'{region} {least}')
    by = resize.shrink(region[2:], least)
    assert short.shape == (region[2] // by, region[3] // by, 3)


def test_the_real_photos_equal_pillow():
  """256 photos of all sizes, modes and EXIF states, whole and in part; no warning is left."""
  folder, rng, fast = real_data('imagenet_samples'), np.random.default_rng(0), 0
  rows = list(csv.DictReader((folder / 'index.csv').open()))
  for row in rows:
    path = folder / row['file']
    image = Image.open(path)
    expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    np.testing.assert_array_equal(pictures.read(path, 3), expected, err_msg=row['file'])
    height, width = expected.shape[:2]
    for _ in range(2):
      top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
      rows_, columns = (
        int(rng.integers(1, height - top + 1)),
        int(rng.integers(1, width - left + 1)),
      )
      region = (top, left, rows_, columns)
      part = pictures.read(path, 3, lambda *_, region=region: region)
      cut = expected[top : top + rows_, left : left + columns]
      np.testing.assert_array_equal(part, cut, err_msg=f'{row["file"]} {region}')
      data = path.read_bytes()
      fast += jpeg.decode(data, lambda *_, region=region: region) is not None
      assert_decoders_agree(data, region, (1 + rows_ // 3, 1 + columns // 5))
  assert len(rows) == 256
  assert fast > 400 or jpeg.library() is None  # Most take the short way.


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
@pytest.mark.parametrize('progressive', [False, True])
def test_regions_of_every_kind_of_jpeg(subsampling, progressive, monkeypatch):
  """With and without the library that decodes regions: the same bits."""
  data = as_bytes(
    Image.fromarray(noise(61, 83)), subsampling=subsampling, progressive=progressive, quality=80
  )
  regions = [(0, 0, 61, 83), (1, 1, 59, 80), (17, 33, 1, 1), (40, 64, 21, 19), (60, 82, 1, 1)]
  short = [pictures.read(data, 3, lambda *_, r=region: r) for region in regions]
  monkeypatch.setattr(jpeg, 'decode', lambda *_: None)
  for region, pixels in zip(regions, short, strict=True):
    np.testing.assert_array_equal(pictures.read(data, 3, lambda *_, r=region: r), pixels)
    assert pixels.shape == (*region[2:], 3)
  for least in ((61, 83), (30, 40), (15, 20), (7, 10), (1, 1)):
    for region in regions:
      assert_decoders_agree(data, region, least)


def four_neighbours(pixels, size):
  """Half-pixel centres, edges repeated; in float64."""
  out = pixels.astype(float)
  for axis, new in enumerate(size):
    old = out.shape[axis]
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(places).astype(int)
    share = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
    high = np.minimum(low + 1, old - 1)
    out = out.take(low, axis) * (1 - share) + out.take(high, axis) * share
  return out


@pytest.mark.parametrize('size', [(20, 30), (45, 64), (33, 41), (41, 33)])
@pytest.mark.parametrize('channels', [1, 3, 4, 5])
def test_linear_takes_four_neighbours(size, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, channels), np.uint8)
  given = resize.resize(pixels, size, 'linear')
  by = resize.shrink((40, 50), size)
  assert by == 1
  np.testing.assert_allclose(given, four_neighbours(pixels, size), atol=1.01)


@pytest.mark.parametrize('channels', [2, 5, 8, 9])
def test_linear_shrinks_any_number_of_channels(channels):
  """OpenCV alone refuses more than four where it averages squares that do not fit."""
  pixels = np.random.default_rng(0).integers(0, 256, (51, 53, channels), np.uint8)
  assert resize.shrink((51, 53), (20, 20)) == 2
  apart = [resize.resize(pixels[..., i : i + 1], (20, 20), 'linear') for i in range(channels)]
  np.testing.assert_array_equal(
    resize.resize(pixels, (20, 20), 'linear'), np.concatenate(apart, axis=-1)
  )


def test_linear_skips_no_pixel():
  """Stripes one pixel wide become grey: squares are averaged first."""
  stripes = np.zeros((48, 48, 3), np.uint8)
  stripes[:, ::2] = 254
  for side, by in ((24, 2), (23, 2), (12, 4), (6, 8), (3, 8)):
    assert resize.shrink((48, 48), (side, side)) == by
    given = resize.resize(stripes, (side, side), 'linear')
    np.testing.assert_allclose(given, 127, atol=1.01)
  assert resize.shrink((50, 20), (25, 20)) == 1


def test_a_crop_is_the_same_from_a_jpeg_and_from_its_pixels():
  """Nearly: a shrinking decoder works on frequencies, and cuts at multiples of 2, 4 or 8 pixels."""
  ramp = np.stack(np.broadcast_arrays(*np.ogrid[0:240:480j, 0:240:640j], 90), -1)
  data = as_bytes(Image.fromarray(ramp.astype(np.uint8)), quality=98)
  crop = augment.Augment('random_resized', flip=True)
  small = preprocess.Preprocess((32, 48), 3, 'bilinear', (0.5,), (0.5,))
  for seed in range(20):
    given = [
      crop(picture, np.random.default_rng(seed), small)
      for picture in (data, pictures.read(data, 3))
    ]
    np.testing.assert_allclose(*np.array(given, float), atol=6)


def test_bad_pictures_are_named(tmp_path):
  (tmp_path / 'words.png').write_text('not an image')
  for name in ('cut.png', 'cut.jpg'):
    Image.fromarray(noise(64, 64)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
  (tmp_path / 'empty.jpg').write_bytes(b'')
  for name in ('words.png', 'cut.png', 'cut.jpg', 'empty.jpg'):
    with pytest.raises(pictures.Damaged, match=name):
      RGB(tmp_path / name)


def test_any_number_of_channels(tmp_path):
  """Five bands from an array; each is resized as a grey picture."""
  bands = np.random.default_rng(0).integers(0, 256, (8, 6, 5), np.uint8)
  np.save(tmp_path / 'a.npy', bands)
  five = preprocess.Preprocess((4, 3), 5, 'bilinear', (0.5,), (0.5,))
  given = five(tmp_path / 'a.npy')
  for i in range(5):
    expected = Image.fromarray(bands[..., i]).resize((3, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(given[..., i], np.asarray(expected))
  with pytest.raises(ValueError, match=r'5 channels, not config\.data\.channels=3'):
    RGB(tmp_path / 'a.npy')
  with pytest.raises(ValueError, match=r'channels=5: give such pictures as \.npy'):
    five(Image.new('RGB', (4, 4)))


@pytest.mark.parametrize('size', [(40, 60), (60, 40), (33, 33), (500, 375), (28, 28), (32, 32)])
@pytest.mark.parametrize('name', ['bilinear', 'bicubic'])
def test_centre_crop_is_torchvisions(size, name):
  """Resize(256 / 224 of the side), CenterCrop: int() of the longer side, round() of the offset."""
  image = Image.fromarray(noise(*size))
  crop = preprocess.Preprocess((28, 28), 3, name, (0.5,), (0.5,), 'crop', 32)
  height, width = size
  new = (32 * height // width, 32) if height > width else (32, 32 * width // height)
  resized = image.resize((new[1], new[0]), resize.FILTERS[name])
  top, left = round((new[0] - 28) / 2), round((new[1] - 28) / 2)
  expected = np.asarray(resized)[top : top + 28, left : left + 28]
  np.testing.assert_array_equal(crop(image), expected)


@pytest.mark.parametrize('size', [(1, 60000), (60000, 1)])
def test_a_picture_too_slim_to_be_cropped_is_refused(tmp_path, size):
  """Its shorter side becomes 256, and the other one fifteen million."""
  Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / 'slim.png')
  crop = preprocess.Preprocess((224, 224), 3, fit='crop')
  with pytest.raises(pictures.Damaged, match=r'slim\.png: \d+ x \d+ pixels are too slim: to cut'):
    crop(tmp_path / 'slim.png')
  assert crop(np.zeros((1, 1000, 3), np.uint8)).shape == (224, 224, 3)
  squash = preprocess.Preprocess((224, 224), 3)
  assert squash(tmp_path / 'slim.png').shape == (224, 224, 3)


def test_squash_is_pillows_resize():
  image = Image.fromarray(noise(50, 30))
  squash = preprocess.Preprocess((20, 24), 3, 'bicubic', (0.5,), (0.5,))
  np.testing.assert_array_equal(squash(image), np.asarray(image.resize((24, 20), 3)))


def test_normalise():
  import jax.numpy as jnp

  values = RGB.normalise(jnp.array([[[[0, 255, 51]]]], jnp.uint8))
  np.testing.assert_allclose(values.ravel(), [-1, 1, -0.6], atol=1e-6)


def test_random_resized_crop_keeps_its_bounds_and_fills_them():
  crop = augment.Augment('random_resized', crop_area=(0.1, 0.5), crop_ratio=(0.5, 2.0))
  rng = np.random.default_rng(0)
  regions = np.array([crop.region(400, 300, rng) for _ in range(2000)])
  top, left, height, width = regions.T
  assert (top >= 0).all()
  assert (left >= 0).all()
  assert (top + height <= 400).all()
  assert (left + width <= 300).all()
  area, ratio = height * width / 120_000, width / height
  assert 0.095 < area.min() < 0.12
  assert 0.45 < area.max() < 0.51
  assert 0.48 < ratio.min() < 0.55
  assert 1.6 < ratio.max() < 2.05
  assert np.corrcoef(area, ratio)[0, 1] < 0.2
  # A strip too narrow for any ratio: the largest centred region.
  assert crop.region(1000, 10, rng) == (490, 0, 20, 10)


def test_crop_flip_and_padding():
  pixels = noise(6, 4)
  plain = augment.Augment()(pixels, np.random.default_rng(0), RGB)
  np.testing.assert_array_equal(plain, pixels)
  flip, rng = augment.Augment(flip=True), np.random.default_rng(0)
  flipped = [np.array_equal(flip(pixels, rng, RGB), pixels[:, ::-1]) for _ in range(200)]
  assert 70 < sum(flipped) < 130
  padded, seen = augment.Augment('padded', crop_padding=1), set()
  frame = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
  windows = {
    frame[top : top + 6, left : left + 4].tobytes() for top in range(3) for left in range(3)
  }
  for _ in range(200):
    seen.add(padded(pixels, rng, RGB).tobytes())
  assert seen == windows


def test_affine_moves_pixels_but_not_the_picture():
  image = np.zeros((9, 9, 1), np.uint8)
  image[4, 4] = 255
  rng = np.random.default_rng(0)
  assert augment.Augment().affine(image, rng) is image
  turned = augment.Augment(rotate=90.0, scale=0.2, shear=10.0).affine(image, rng)
  assert np.unravel_index(turned[..., 0].argmax(), (9, 9)) == (4, 4)  # The centre stays.
  shift = augment.Augment(translate=0.2)
  assert len({int(shift.affine(image, rng).argmax()) for _ in range(20)}) > 5


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(crop='randomresized'), "did you mean 'random_resized'"),
    (dict(crop_area=(0.5, 1.5)), r'crop_area=\(0.5, 1.5\) .* at most 1'),
    (dict(crop_ratio=(2.0, 1.0)), 'crop_ratio'),
    (dict(crop_padding=-1), 'crop_padding=-1'),
    (dict(crop_resize='bilinaer'), "did you mean 'bilinear'"),
  ],
)
def test_impossible_changes_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    augment.Augment(**options)


def test_threads_change_nothing_and_name_what_is_broken():
  data = [as_bytes(Image.fromarray(noise(40, 50, seed))) for seed in range(20)]
  source = sources.Listed(data, np.arange(20, dtype=np.int32))
  crop = augment.Augment('random_resized', flip=True)
  small = preprocess.Preprocess((16, 16), 3, 'bilinear', (0.5,), (0.5,))

  def batch(threads, source=source):
    splits, names = {'train': source}, tuple(map(str, range(20)))
    made = datasets.Dataset(splits, names, small, crop, threads=threads)
    return made.batch_at(3, batch_size=20, seed=1)

  one, four = batch(1), batch(4)
  for key in one:
    np.testing.assert_array_equal(one[key], four[key])
  broken = sources.Listed([*data[:-1], data[-1][:200]], source.labels)
  with pytest.raises(pictures.Damaged, match='picture 19: damaged'):
    batch(2, broken)


def test_the_squashed_crop_is_a_window_of_the_squashed_picture():
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  whole = dataclasses.replace(RGB, image_size=(6, 8))(pixels)
  cut, small = (
    augment.Augment('squashed', crop_from=(6, 8)),
    dataclasses.replace(RGB, image_size=(4, 4)),
  )
  seen = {cut(pixels, np.random.default_rng(i), small).tobytes() for i in range(200)}
  expected = {whole[y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(5)}
  assert seen == expected
  with pytest.raises(ValueError, match='crop_from'):
    cut.squashed_size((7, 7))
