"""Image folders and archives of them: layouts, splits, checks of every file, downloads."""

from concurrent import futures
import errno
import hashlib
import http.server
import io
import os
import pathlib
import shutil
import tarfile
import threading
import zipfile

from conftest import make_folder, real_data, small_config
import numpy as np
from PIL import Image
import pytest

from vit_jax import data
from vit_jax.data import checked, pictures
from vit_jax.runtime import archives, fetch

COUNTS = {'train/a b': 6, 'train/\u00e9t\u00e9': 8, 'test/a b': 2, 'test/\u00e9t\u00e9': 3}


def build(path, **overrides):
  keys = {f'data__{key}': value for key, value in overrides.items()}
  config = small_config(
    data__name='folder', data__path=str(path), data__image_size=(8, 8), **keys
  )  # fmt: skip
  return data.build(**config.data)


@pytest.fixture
def made(tmp_path):
  return make_folder(tmp_path / 'data set', COUNTS)


def sizes(dataset):
  return {name: len(source) for name, source in dataset.splits.items()}


def test_train_and_test_folders(made, caplog):
  picture = Image.open(made / 'train/a b/0.png').convert('RGB')
  picture.save(made / 'train/a b/B\u00e4r 1.JPeG')
  (made / 'train/a b/deeper').mkdir()
  picture.save(made / 'train/a b/deeper/x.TIFF')
  (made / 'train/.hidden').mkdir()
  for name in ('train/a b/notes.txt', 'train/a b/._0.png', 'train/.DS_Store'):
    (made / name).write_text('no picture')
  dataset = build(made)
  assert dataset.class_names == ('a b', '\u00e9t\u00e9')
  assert sizes(dataset) == {'train': 16, 'test': 5}
  assert '1 files are no pictures by their names: a b/notes.txt' in caplog.text
  _, labels = dataset.splits['test'].read(np.arange(5))
  assert labels.tolist() == [0, 0, 1, 1, 1]


def test_without_a_test_folder_a_seeded_share_is_taken(tmp_path, caplog):
  root = make_folder(tmp_path / 'x', {'a': 10, 'b': 20})
  names = [
    build(root, split_seed=seed, test_fraction=0.3).splits['test'].images for seed in (0, 0, 1)
  ]
  assert [len(x) for x in names] == [9] * 3
  assert names[0] == names[1] != names[2]
  assert sum('/a/' in name for name in names[0]) == 3
  assert '30% of train is the test split' in caplog.text
  both = build(root, validation_fraction=0.25)
  assert sizes(both) == {'train': 18, 'validation': 6, 'test': 6}
  files = [name for source in both.splits.values() for name in source.images]
  assert len(set(files)) == 30


def test_every_real_picture_is_seen_once():
  dataset = build(real_data('pizza_steak_sushi'))
  assert dataset.class_names == ('pizza', 'steak', 'sushi')
  assert sizes(dataset) == {'train': 225, 'test': 75}
  seen = np.concatenate([b['index'][b['mask']] for b in dataset.epoch('test', 32)])
  assert seen.tolist() == list(range(75))


def break_file(path):
  path.write_bytes(path.read_bytes()[:-40])


def test_broken_files_are_all_named(made):
  break_file(made / 'train/a b/1.png')
  (made / 'test/a b/0.png').write_text('words')
  with pytest.raises(ValueError, match=r'(?s)2 of 19 files.*a b/1\.png.*a b/0\.png.*on_error=skip'):
    build(made)


def test_broken_files_can_be_skipped(made, caplog):
  break_file(made / 'train/a b/1.png')
  dataset = build(made, on_error='skip')
  assert sizes(dataset) == {'train': 13, 'test': 5}
  assert '1 of 19 files cannot be read' in caplog.text
  assert 'a b/1.png: damaged image' in caplog.text
  for file in (made / 'train/a b').iterdir():
    break_file(file)
  with pytest.raises(ValueError, match=r"no pictures for the classes \['a b'\]"):
    build(made, on_error='skip')


def test_what_is_no_picture_is_found_before_training(made):
  """Arrays that are no pixels, floats of no known range, a link that leads nowhere."""
  np.save(made / 'train/a b/floats.npy', np.zeros((8, 8, 3), np.float32))
  np.save(made / 'train/a b/flat.npy', np.zeros((8, 8), np.uint8))
  np.save(made / 'train/a b/none.npy', np.zeros((0, 8, 3), np.uint8))
  Image.new('F', (8, 8), 0.5).save(made / 'train/a b/floats.tiff')
  (made / 'train/a b/link.png').symlink_to(made / 'nowhere.png')
  names = ('floats.npy', 'flat.npy', 'none.npy', 'floats.tiff', 'link.png')
  for below in (4096, 5):  # Every picture is decoded; or headers alone are read.
    with pytest.raises(ValueError, match='5 of 24 files cannot be read') as caught:
      build(made, decode_below=below)
    assert all(name in str(caught.value) for name in names)
    assert sizes(build(made, on_error='skip', decode_below=below)) == {'train': 14, 'test': 5}


def test_the_check_is_remembered_until_a_file_changes(made, monkeypatch):
  build(made)
  asked = []
  find = lambda files, whole: asked.append(whole) or ({}, True)  # noqa: E731
  monkeypatch.setattr(checked, 'find_broken', find)
  build(made)
  assert asked == []
  Image.new('RGB', (30, 30)).save(made / 'train/a b/0.png')
  build(made)
  assert asked == [True]
  build(made, decode_below=19)
  assert asked == [True, False]


def test_large_folders_stop_at_the_first_broken_body(made):
  break_file(made / 'train/a b/1.png')
  dataset = build(made, decode_below=5)  # Headers alone.
  with pytest.raises(pictures.Damaged, match=r'a b/1\.png: damaged'):
    dataset.batch_at(1, batch_size=14, seed=0)
  assert sizes(build(made, on_error='skip', decode_below=5)) == {'train': 13, 'test': 5}
  (made / 'train/a b/2.png').write_text('words')
  with pytest.raises(ValueError, match=r'1 of 19 files cannot be read:\n.*2\.png'):
    build(made, decode_below=5)


def test_what_the_system_refuses_is_asked_again(made, monkeypatch):
  read, refused = pathlib.Path.read_bytes, made / 'train/a b/1.png'

  def read_bytes(path):
    if path == refused:
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return read(path)

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, 'read_bytes', read_bytes)
    with pytest.raises(ValueError, match=r'1\.png: Permission denied'):
      build(made)
  assert sizes(build(made)) == {'train': 14, 'test': 5}


def test_a_cache_that_cannot_be_written_stops_nothing(made, monkeypatch, caplog):
  monkeypatch.setenv('VIT_JAX_CACHE', '/proc/nope')
  assert sizes(build(made)) == {'train': 14, 'test': 5}
  assert 'VIT_JAX_CACHE names another place' in caplog.text


def test_links_in_a_circle_are_followed_once(made):
  (made / 'train/a b/self').symlink_to('.')
  (made / 'train/a b/up').symlink_to('../..')
  assert sizes(build(made)) == {'train': 14, 'test': 5}


def test_no_folder_of_pictures_is_passed_over_unasked(made):
  (made / 'test').rename(made / 'val')
  with pytest.raises(
    ValueError, match=r'no folder test, but val; set config\.data\.test_folder=val'
  ):
    build(made)
  assert sizes(build(made, test_folder='val')) == {'train': 14, 'test': 5}
  assert sizes(build(made, test_folder='', test_fraction=0.5)) == {'train': 7, 'test': 7}
  shutil.rmtree(made / 'val')
  with pytest.raises(ValueError, match='no folder vall; set an empty one'):
    build(made, test_folder='vall')


def test_a_class_that_test_lacks_is_a_warning(made, caplog):
  shutil.rmtree(made / 'test/a b')
  assert sizes(build(made)) == {'train': 14, 'test': 3}
  assert 'without a test picture: a b (6 in train)' in caplog.text


def unsorted(root):
  """Test pictures without labels, as competitions hand them out."""
  for i, file in enumerate([*(root / 'test').glob('*/*')]):
    file.rename(root / f'test/{i}.png')
  for folder in [*(root / 'test').iterdir()]:
    if folder.is_dir():
      folder.rmdir()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda root: shutil.rmtree(root), 'does not exist'),
    (lambda root: [shutil.rmtree(root / x) for x in ('train', 'test')], 'holds no pictures'),
    (lambda root: shutil.rmtree(root / 'train/a b'), 'one class only'),
    (lambda root: shutil.rmtree(root / 'train'), 'test but no folder train'),
    (lambda root: (root / 'train/dog').mkdir(), r"no pictures for the classes \['dog'\]"),
    (lambda root: make_folder(root, {'test/dog': 2}), r'classes that train lacks: dog \(2\)'),
    (unsorted, r'test holds no pictures in class folders.*test_folder= \(empty\)'),
  ],
  ids=['missing', 'empty', 'one class', 'no train', 'empty class', 'unknown class', 'unsorted'],
)  # fmt: skip
def test_impossible_folders_are_refused(made, change, message):
  change(made)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    build(made)


def test_a_path_is_needed():
  config = small_config(data__name='folder')
  with pytest.raises(ValueError, match=r'config\.data\.path is not set'):
    data.build(**config.data)


def pack(made, target):
  if target.suffix == '.zip':
    with zipfile.ZipFile(target, 'w') as file:
      for path in made.rglob('*'):
        file.write(path, path.relative_to(made.parent))
  else:
    with tarfile.open(target, 'w:gz') as file:
      file.add(made, 'inside')
  return target


@pytest.mark.parametrize('name', ['x.zip', 'x.tar.gz'])
def test_archives(made, tmp_path, name):
  archive = pack(made, tmp_path / name)
  assert sizes(build(archive)) == {'train': 14, 'test': 5}
  with pytest.raises(ValueError, match=r'has SHA-256 [0-9a-f]{64}, not 00'):
    build(archive, sha256='00' * 32)


def bad_archive(path, name, kind='file'):
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr(name, 'x')
  else:
    with tarfile.open(path, 'w') as file:
      member = tarfile.TarInfo(name if kind == 'file' else 'link')
      if kind == 'link':
        member.type, member.linkname = tarfile.SYMTYPE, name
      file.addfile(member, io.BytesIO())


@pytest.mark.parametrize(
  ('archive', 'name', 'kind'),
  [
    ('a.zip', '../../out.txt', 'file'),
    ('a.zip', '/tmp/vit_jax_out.txt', 'file'),
    ('a.zip', 'x\\..\\..\\out.txt', 'file'),
    ('a.tar', '../../out.txt', 'file'),
    ('a.tar', '../../etc', 'link'),
  ],
)
def test_archives_that_escape_are_refused(tmp_path, archive, name, kind):
  bad_archive(tmp_path / archive, name, kind)
  with pytest.raises(ValueError, match='outside'):
    build(tmp_path / archive)
  assert not pathlib.Path('/tmp/vit_jax_out.txt').exists()
  assert not list(tmp_path.rglob('out.txt'))
  assert not list(fetch.cache_folder().rglob('out.txt'))


@pytest.mark.parametrize(
  'kind', [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, 'encrypted', 'unknown', 'xz']
)
def test_damaged_archives_leave_nothing(tmp_path, kind):
  size = 400_000 if kind == 'xz' else 4_000  # Of a small one, the beginning is damaged too.
  content = (
    np.random.default_rng(0).integers(0, 4 if size < 9_000 else 256, size, np.uint8).tobytes()
  )
  path = tmp_path / ('a.tar.xz' if kind == 'xz' else 'a.zip')
  if kind == 'xz':
    with tarfile.open(path, 'w:xz') as file:
      member = tarfile.TarInfo('train/a/1.png')
      member.size = len(content)
      file.addfile(member, io.BytesIO(content))
  else:
    method = kind if isinstance(kind, int) else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, 'w', method) as file:
      file.writestr('train/a/1.png', content)
  whole = bytearray(path.read_bytes())
  if kind in ('encrypted', 'unknown'):  # A flag, or a method, in both of its headers.
    central = whole.index(b'PK\x01\x02')
    for at in (6, central + 8) if kind == 'encrypted' else (8, central + 10):
      whole[at] = 1 if kind == 'encrypted' else 9
    path.write_bytes(whole)
    damaged = [path]
  else:
    damaged = []
    for at in range(size // 2 if kind == 'xz' else 50, len(whole) - 120, size // 40):
      broken = whole.copy()
      broken[at] ^= 255
      damaged.append(tmp_path / f'{at}{path.name}')
      damaged[-1].write_bytes(broken)
  told = 0
  for file in damaged:
    try:
      archives.unpack(file, tmp_path / 'cache' / file.name)
    except ValueError as error:
      told += 'cannot be unpacked' in str(error)
  assert told and not list((tmp_path / 'cache').glob('*.partial'))


def test_no_archive_and_a_broken_one(tmp_path):
  (tmp_path / 'a.zip').write_text('words')
  with pytest.raises(ValueError, match='neither a folder nor an archive'):
    build(tmp_path / 'a.zip')


class Server(http.server.BaseHTTPRequestHandler):
  """Serves one file, from any byte on; breaks off once where asked to."""

  content, break_at, asked = b'', None, []

  def do_GET(self):
    start = int((self.headers.get('Range') or 'bytes=0-')[6:].rstrip('-'))
    Server.asked.append(start)
    if start >= len(self.content):
      self.send_error(416)
      return
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(self.content) - start))
    self.end_headers()
    stop, Server.break_at = self.break_at, None
    self.wfile.write(self.content[start:stop])

  def log_message(self, *_):
    pass


@pytest.fixture
def server(made, tmp_path):
  Server.content = pack(made, tmp_path / 'served.zip').read_bytes()
  Server.break_at, Server.asked = None, []
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/sets/served.zip'
    running.shutdown()


def test_download_goes_on_is_checked_and_is_kept(server):
  right = hashlib.sha256(Server.content).hexdigest()
  Server.break_at = 1000
  with pytest.raises(ValueError, match=r'what arrived is kept'):
    build(server, sha256=right)
  assert sizes(build(server, sha256=right)) == {'train': 14, 'test': 5}
  assert Server.asked == [0, 1000]
  build(server, sha256=right.upper())  # From the cache.
  assert Server.asked == [0, 1000]


def test_several_that_want_one_file_fetch_it_once(server, monkeypatch, tmp_path):
  """As all processes of a run do at its start."""
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  right = hashlib.sha256(Server.content).hexdigest()
  with futures.ThreadPoolExecutor(4) as pool:
    found = [pool.submit(fetch.folder, server, right) for _ in range(4)]
  assert len({one.result() for one in found}) == 1
  assert Server.asked == [0]


def test_an_address_needs_its_hash_and_shows_it(server):
  right = hashlib.sha256(Server.content).hexdigest()
  with pytest.raises(ValueError, match=f'set sha256={right}'):
    build(server)
  build(server, sha256=right)
  assert Server.asked == [0]
  with pytest.raises(ValueError, match=f'has SHA-256 {right}, not 11'):
    build(server, sha256='11' * 32)


def test_an_address_that_does_not_answer(server):
  closed = server.replace('127.0.0.1', '127.0.0.2').rpartition(':')[0] + ':9/x.zip'
  with pytest.raises(ValueError, match=r'127\.0\.0\.2:9/x\.zip: .*refused'):
    build(closed, sha256='0' * 64)
