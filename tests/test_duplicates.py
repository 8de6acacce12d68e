"""Near-duplicates: what hashes outlast, pairs in bounded memory, what is left out of training."""

import csv
import io
import json
import logging

from conftest import make_folder, real_data, small_config
import numpy as np
from PIL import Image, ImageEnhance
import prepared
import pytest

from vit_jax import data, defaults, experiment
from vit_jax.data import exclude, perceptual, sources
from vit_jax.explore import duplicates


def waves(seed, size=(90, 120)):
  """A picture with structure: a few random waves in colour."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: size[0], : size[1]] / 100
  total = sum(
    rng.normal(size=3)
    * np.sin(rng.normal(0, 12) * x + rng.normal(0, 12) * y + rng.uniform(0, 6))[..., None]
    for _ in range(8)
  )
  return np.clip(128 + 40 * total, 0, 255).astype(np.uint8)


def hash_of(picture, channels=3):
  return perceptual.hashes(perceptual.small(picture, channels)[None])[0]


def apart(first, second):
  return int(np.bitwise_count(hash_of(first) ^ hash_of(second)))


# Copies of a picture, each as its file or as Pillow has it.


def recompressed(image):
  return prepared.encoded(np.asarray(image), 'JPEG', quality=40)


def resized(image):
  return image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.BICUBIC)


def squashed(image):
  return image.resize((224, 224), Image.Resampling.BILINEAR)


def brighter(image):
  return ImageEnhance.Brightness(image).enhance(1.1)


def flatter(image):
  return ImageEnhance.Contrast(image).enhance(0.85)


def grey(image):
  return image.convert('L').convert('RGB')


COPIES = [recompressed, resized, squashed, brighter, flatter, grey]


@pytest.mark.parametrize('change', COPIES)
def test_a_copy_has_nearly_the_same_hash(change):
  image = Image.fromarray(waves(0))
  assert apart(change(image), image) <= duplicates.DISTANCE


def test_other_pictures_have_other_hashes():
  found = np.array([hash_of(waves(seed)) for seed in range(40)])
  bits = np.bitwise_count(found[:, None] ^ found)[np.triu_indices(40, 1)]
  assert bits.min() > duplicates.DISTANCE and 26 < bits.mean() < 38


def test_a_hash_is_half_ones_and_the_same_everywhere():
  """Stored numbers: hashes are compared with those of another machine."""
  y, x = np.mgrid[:64, :64]
  picture = ((np.sin(x / 9) + np.cos(y / 7) + np.sin((x + 2 * y) / 5) + 3) * 42).astype(np.uint8)
  found = hash_of(np.repeat(picture[..., None], 3, -1))
  assert int(np.bitwise_count(found)) == 32
  assert f'{found:016x}' == STORED


STORED = 'ab81f603ef00795b'


def test_a_picture_is_turned_as_exif_says():
  """Lying in its file with a mark, or upright: the same hash."""
  image = Image.fromarray(waves(3))
  exif = Image.Exif()
  exif[0x0112] = 6
  file = io.BytesIO()
  image.transpose(Image.Transpose.ROTATE_90).save(file, 'JPEG', quality=95, exif=exif.tobytes())
  assert apart(file.getvalue(), image) <= 2
  assert apart(image.transpose(Image.Transpose.ROTATE_90), image) > 2 * duplicates.DISTANCE


def test_pictures_of_other_numbers_of_channels():
  pixels = waves(1)
  five = np.concatenate([pixels, pixels[..., :2]], axis=-1)
  assert perceptual.small(five, 5).shape == (32, 32, 1)
  assert hash_of(pixels.mean(-1, keepdims=True).astype(np.uint8), 1).dtype == np.uint64


# Pairs.


@pytest.mark.parametrize('sizes', [(300, 200), (64, 1), (1, 64), (0, 5), (5, 0)])
def test_pairs_are_those_of_all_with_all(sizes, monkeypatch):
  monkeypatch.setattr(perceptual, 'COLUMNS', 32)
  rng = np.random.default_rng(0)
  first, second = (rng.integers(0, 2**64, size, np.uint64) for size in sizes)
  second[::3] = rng.choice(first, len(second[::3])) if len(first) else second[::3]
  second[::6] ^= np.uint64(0b101)
  found = perceptual.near(first, second, 20, 10_000)
  bits = np.bitwise_count(first[:, None] ^ second[None])
  i, j = np.nonzero(bits <= 20)
  expected = {(*pair, int(bits[pair])) for pair in zip(i.tolist(), j.tolist(), strict=True)}
  assert {tuple(row) for row in found.tolist()} == expected
  assert (np.diff(found[:, 2]) >= 0).all() and found.shape[1] == 3


def test_too_many_pairs_are_refused():
  same = np.zeros(200, np.uint64)
  with pytest.raises(ValueError, match='more than 1,000 pairs differ in at most 6 bits'):
    perceptual.near(same, same, 6, 1000)


def test_memory_does_not_grow_with_the_pictures():
  """40,000 x 40,000 distances would take 1.6 GB as bytes; the search takes a twentieth of that."""
  import tracemalloc

  rng = np.random.default_rng(0)
  first, second = (rng.integers(0, 2**64, 40_000, np.uint64) for _ in range(2))
  tracemalloc.start()
  assert len(perceptual.near(first[:2000], second, 6, 100)) == 0
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 400e6


# The command.


def photos(root, counts):
  """Class folders of JPEG files of waves; pixels depend on the place."""
  seed = 0
  for name, count in counts.items():
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f'{i}.jpg').write_bytes(prepared.encoded(waves(seed), 'JPEG', quality=90))
      seed += 1
  return root


@pytest.fixture(scope='module')
def leaky(tmp_path_factory):
  """A folder whose test split has copies of three training pictures, one of them twice."""
  root = photos(tmp_path_factory.mktemp('leaky'),
                {f'{split}/{kind}': 8 for split in ('train', 'test') for kind in 'ab'})  # fmt: skip
  image = {name: Image.open(root / f'train/{name}.jpg') for name in ('a/1', 'a/2', 'b/3')}
  brighter(image['a/1']).save(root / 'test/a/copy.jpg', quality=50)
  resized(image['a/1']).save(root / 'test/a/again.png')
  squashed(image['a/2']).save(root / 'test/b/other.jpg')
  image['b/3'].save(root / 'test/b/same.jpg', quality=20)
  return root


def config_of(root, **overrides):
  settings = {'data__name': 'folder', 'data__path': str(root), 'data__image_size': (16, 16),
              'data__channels': 3} | overrides  # fmt: skip
  return small_config(**settings)


LEAKED = ['a/1.jpg', 'a/2.jpg', 'b/3.jpg']


def test_copies_are_found_listed_drawn_and_left_out(leaky, tmp_path, caplog):
  report = duplicates.duplicates(config_of(leaky), tmp_path, ['test'], 6, 24)
  found = {(pair['name'], pair['other']) for pair in report['pairs']}
  assert found == {
    ('a/1.jpg', 'a/copy.jpg'), ('a/1.jpg', 'a/again.png'), ('a/2.jpg', 'b/other.jpg'),
    ('b/3.jpg', 'b/same.jpg'),
  }  # fmt: skip
  assert report == json.loads((tmp_path / 'duplicates.json').read_text())
  assert [pair['distance'] for pair in report['pairs']] == sorted(
    pair['distance'] for pair in report['pairs']
  )
  assert (report['examples'], report['against']) == (16, {'test': 20})
  assert (tmp_path / 'duplicates.png').stat().st_size > 10_000
  assert '4 pairs within 6 bits: 3 of 16' in caplog.text
  path = str(tmp_path / 'duplicates.json')
  whole = data.build(**config_of(leaky, data__exclude=path).data)
  left = [whole.splits['train'].name(i) for i in range(13)]
  assert len(whole.splits['train']) == 13 and len(whole.splits['test']) == 20
  assert not {name[-7:] for name in left} & {*LEAKED}
  assert f'left out by config.data.exclude={path}: 3 of 16 of train' in caplog.text
  again = duplicates.duplicates(config_of(leaky, data__exclude=path), tmp_path, ['test'], 6, 24)
  assert again['pairs'] == report['pairs']  # What is left out already is still looked at.


def test_the_same_file_serves_however_validation_is_cut(leaky, tmp_path):
  duplicates.duplicates(config_of(leaky), tmp_path, ['test'], 6, 0)
  path = str(tmp_path / 'duplicates.json')
  for fraction, examples in ((0.25, None), (0.5, 4)):
    config = config_of(leaky, data__exclude=path, data__validation_fraction=fraction,
                       data__train_examples=examples)  # fmt: skip
    splits = data.build(**config.data).splits
    kept = len(splits['train']) + len(splits['validation'])
    assert kept == 13 if examples is None else len(splits['train']) == examples
    names = {s.name(i)[-7:] for key in ('train', 'validation') for s in [splits[key]]
             for i in range(len(s))}  # fmt: skip
    assert not names & {*LEAKED}
  report = duplicates.duplicates(
    config_of(leaky, data__validation_fraction=0.25), tmp_path, ['test'], 6, 0
  )
  assert {pair['name'] for pair in report['pairs']} == {*LEAKED}


def test_pictures_of_a_folder_and_single_files(leaky, tmp_path):
  others = photos(tmp_path / 'others', {'x': 2})
  Image.open(leaky / 'train/b/5.jpg').rotate(0).save(others / 'x/copy.webp', quality=60)
  single = leaky / 'train/a/7.jpg'
  report = duplicates.duplicates(
    config_of(leaky), tmp_path / 'out', ['test', str(others), str(single)], 6, 0
  )
  assert report['against'] == {'test': 20, str(others): 3, str(single): 1}
  exact = {(p['name'], p['against'], p['other'], p['distance']) for p in report['pairs']}
  assert ('a/7.jpg', str(single), '7.jpg', 0) in exact
  assert any(row[:3] == ('b/5.jpg', str(others), 'copy.webp') for row in exact)
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    duplicates.duplicates(config_of(leaky), tmp_path / 'out', ['nowhere'], 6, 0)


def test_the_command(leaky, tmp_path, quick):
  words = (
    '--config=configs/vit_folder.py:small', f'--config.data.path={leaky}', f'--out={tmp_path}',
    '--distance=6',
  )  # fmt: skip
  done = quick(*words, module='vit_jax.explore.duplicates')
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)['pairs'] == 4
  assert f'--config.data.exclude={tmp_path}/duplicates.json leaves them out' in done.stderr
  done = quick(*words, '--distance=32', module='vit_jax.explore.duplicates')
  assert done.returncode == 1 and done.stderr.startswith('error: --distance=32 must be in 0..31')


# What is left out.


def test_a_list_of_names(leaky, tmp_path):
  path = tmp_path / 'names.txt'
  path.write_text('# those that look bad\n\na/1.jpg\ntrain/b/3.jpg\na/1.jpg\n')
  train_split = data.build(**config_of(leaky, data__exclude=str(path)).data).splits['train']
  assert len(train_split) == 14
  path.write_text('# nothing yet\n')
  assert len(data.build(**config_of(leaky, data__exclude=str(path)).data).splits['train']) == 16


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('a/99.jpg\na/1.jpg', r"1 of its 2 names are of no training picture, 'a/99\.jpg' first"),
    ('1.jpg', r"'1\.jpg' is the name of 2 pictures; write more of the path"),
    ('\n'.join(f'a/{i}.jpg' for i in range(8)), r'leaves no picture of class 0 .* in train'),
    ('test/a/copy.jpg', 'of no training picture'),
  ],
)
def test_names_that_are_of_other_data(leaky, tmp_path, content, message):
  path = tmp_path / 'names.txt'
  path.write_text(content)
  with pytest.raises(ValueError, match=f'config.data.exclude={path}.*{message}'):
    data.build(**config_of(leaky, data__exclude=str(path)).data)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'format': 1, 'examples': 15, 'pairs': []}, 'of 15 training pictures, and these data have 16'),
    ({'format': 1, 'examples': 16, 'pairs': [{'name': 'c/1.jpg'}]}, "'c/1.jpg' first"),
    ({'format': 2, 'examples': 16, 'pairs': []}, 'format 2; this version reads 1'),
    ({'rows': []}, 'no list of duplicates'),
    ([1], 'no list of duplicates'),
    ('{', 'no list of duplicates'),
  ],
)
def test_a_list_that_is_of_other_data(leaky, tmp_path, content, message):
  path = tmp_path / 'duplicates.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  with pytest.raises(ValueError, match=message):
    data.build(**config_of(leaky, data__exclude=str(path)).data)


def test_a_list_that_is_not_there(leaky):
  with pytest.raises(FileNotFoundError, match=r'exclude=nowhere\.json is no file'):
    data.build(**config_of(leaky, data__exclude='nowhere.json').data)


def test_digits(tmp_path):
  """Of the built-in digits some are alike; the rest is trained on, and the run says how."""
  config = small_config(data__validation_fraction=0.1)
  report = duplicates.duplicates(config, tmp_path, ['test'], 3, 8)
  names = {pair['name'] for pair in report['pairs']}
  assert report['splits'] == {'train': 1293, 'validation': 144} and 0 < len(names) < 400
  path = str(tmp_path / 'duplicates.json')
  config = small_config(data__exclude=path)
  splits = data.build(**config.data).splits
  assert len(splits['train']) == 1437 - len(names) and len(splits['test']) == 360
  assert not names & {splits['train'].name(i) for i in range(len(splits['train']))}
  said = experiment.build(config).passport.to_json()  # Of which a run keeps a copy.
  assert said['origin']['data']['exclude'] == path


def test_a_prepared_set(tmp_path):
  import tensorflow_datasets

  kinds = tensorflow_datasets.features
  known = {'image': kinds.Image(shape=(None, None, 3)), 'label': kinds.ClassLabel(num_classes=2)}
  rows = [{'image': prepared.encoded(waves(i)), 'label': i % 2} for i in range(14)]
  rows[12]['image'] = recompressed(Image.fromarray(waves(5)))
  prepared.write(tmp_path, 'bits', '1.0.0', known, {'train': rows[:10], 'test': rows[10:]})
  config = small_config(
    data__name='tfds', data__dataset='bits', data__data_dir=str(tmp_path),
    data__image_size=(16, 16), data__channels=3,
  )  # fmt: skip
  report = duplicates.duplicates(config, tmp_path / 'out', ['test'], 6, 8)
  (pair,) = report['pairs']
  assert (pair['name'], pair['other']) == ('example 5 of bits train', 'example 2 of bits test')
  config.data.exclude = str(tmp_path / 'out/duplicates.json')
  source = data.build(**config.data).splits['train']
  assert [source.name(i) for i in range(9)] == [
    f'example {i} of bits train' for i in range(10) if i != 5
  ]
  config.data.train_split = 'train[:9]'
  with pytest.raises(ValueError, match='of 10 training pictures, and these data have 9'):
    data.build(**config.data)


def test_numbers_of_pictures_outlast_every_cut():
  whole = sources.Listed(np.zeros((9, 4, 4, 1), np.uint8), np.arange(9) % 3)
  part = whole.take(np.array([2, 5, 8])).take(np.array([0, 2]))
  assert [part.name(i) for i in range(2)] == ['picture 2', 'picture 8']
  assert exclude.ends('a/b/c', {0, 1, 5}) == {'a/b/c', 'c', 'b/c'}


def test_plans_need_neither_data_nor_list():
  section = {**defaults.part('data', 'folder')} | {'exclude': 'nowhere.json'}
  assert data.describe(num_classes=3, **section).splits.keys() == {'train', 'test'}


# Real photographs.


@pytest.fixture(scope='module')
def photographs():
  folder = real_data('imagenet_samples')
  return sorted(str(path) for path in folder.iterdir() if path.suffix != '.csv')


def test_copies_of_real_photographs_are_found_and_others_are_not(photographs, tmp_path):
  """256 photographs: every copy within the default distance, every other pair beyond it."""
  source = sources.Listed(photographs, np.zeros(len(photographs), np.int32))
  found = perceptual.hash_source(source, 3, 'hashing')
  bits = np.bitwise_count(found[:, None] ^ found)[np.triu_indices(len(found), 1)]
  logging.getLogger(__name__).info('smallest distance of distinct photographs: %d', bits.min())
  assert bits.min() > duplicates.DISTANCE
  chosen = photographs[::8]
  for change in (recompressed, resized, brighter):
    copies = [change(upright(path)) for path in chosen]
    far = [
      int(np.bitwise_count(hash_of(copy) ^ own))
      for copy, own in zip(copies, found[::8], strict=True)
    ]
    assert max(far) <= duplicates.DISTANCE, (change.__name__, far)


def upright(path):
  from vit_jax.data import pictures

  return Image.fromarray(pictures.read(path, 3))


def test_the_known_leaks_of_the_flowers(tmp_path):
  """26 training pictures that copy test pictures, which somebody listed: 23 are found."""
  root = real_data('flowers12')
  leaked = root / '_leaked_train_dups'
  config = config_of(root)
  report = duplicates.duplicates(config, tmp_path, [str(leaked)], 6, 0)
  clean = report['pairs']
  with (root / 'leaked_train_dups.csv').open() as file:
    known = {row['train_file'].partition('/')[2]: row['test_file_it_duplicates'].partition('/')[2]
             for row in csv.DictReader(file)}  # fmt: skip
  test = data.build(**config.data).splits['test']
  files = duplicates.open_files(str(leaked))
  one, other = (perceptual.hash_source(source, 3, 'hashing') for source in (files, test))
  pairs = perceptual.near(one, other, 6, 10_000)
  found = {(files.name(i)[len(str(leaked)) + 1 :], test.name(j)[len(str(root / 'test')) + 1 :])
           for i, j, _ in pairs.tolist()}  # fmt: skip
  missed = {name for name, copy in known.items() if (name, copy) not in found}
  # Two crops, and a mirror image.
  assert missed == {'windflower/image_1202.jpg', 'sunflower/image_0764.jpg', MIRRORED}
  assert not clean  # They were taken out of train, and nothing else there is like them.


MIRRORED = 'bluebell/image_0242.jpg'


def test_a_stale_picture_goes(leaky, tmp_path):
  (tmp_path / 'duplicates.png').write_text('of an earlier search')
  root = make_folder(tmp_path / 'd', {f'{s}/{k}': 4 for s in ('train', 'test') for k in 'ab'})
  report = duplicates.duplicates(config_of(root), tmp_path, ['test'], 0, 8)
  assert not report['pairs'] and not (tmp_path / 'duplicates.png').exists()
