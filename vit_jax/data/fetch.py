"""Data sets and weights from elsewhere: download with a hash, unpack safely, keep in a cache."""

from collections.abc import Iterator
import hashlib
import os
import pathlib
import shutil
import tarfile
from urllib import error as url_error
from urllib import parse, request
import zipfile

from vit_jax.progress import track

BLOCK = 2**20  # bytes
TIMEOUT = 60  # seconds without a byte
ARCHIVES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')


def cache_folder() -> pathlib.Path:
  """`$VIT_JAX_CACHE`, or `vit_jax` in the user's cache folder."""
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(os.environ.get('VIT_JAX_CACHE') or pathlib.Path(base) / 'vit_jax')


def folder(path: str, sha256: str | None) -> pathlib.Path:
  """A folder as it is; an archive, on disk or at an http(s) address, fetched and unpacked.

  Raises:
    FileNotFoundError: no such path.
    ValueError: neither folder nor archive, an address without a hash, another hash than given, or
      an archive that would write outside its folder.
  """
  if is_address(path):
    archive = download(path, sha256)
    return unpack(archive, hash_of(archive))
  local = pathlib.Path(path).expanduser()
  if not local.exists():
    raise FileNotFoundError(f'{path} does not exist')
  if local.is_dir():
    return local
  if not is_archive(local):
    raise ValueError(f'{path} is neither a folder nor an archive ({" ".join(ARCHIVES)})')
  found = hash_of(local)
  check_hash(path, found, sha256)
  return unpack(local, found)


def is_address(path: str) -> bool:
  return path.startswith(('http://', 'https://'))


def is_archive(path: pathlib.Path) -> bool:
  return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def hash_of(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def check_hash(what: str, found: str, wanted: str | None) -> None:
  if wanted and found != wanted.lower():
    raise ValueError(
      f'{what} has SHA-256 {found}, not {wanted}: another file than expected, or a damaged one'
    )


def download(address: str, sha256: str | None) -> pathlib.Path:
  """The file at an address, from the cache where it is there; a broken download goes on.

  Raises:
    ValueError: it cannot be reached, or has another hash; or no hash was given: shows it.
  """
  name = pathlib.PurePosixPath(parse.urlparse(address).path).name or 'file'
  downloads = cache_folder() / 'downloads'
  if sha256 and (downloads / f'{sha256[:16].lower()}-{name}').exists():
    return downloads / f'{sha256[:16].lower()}-{name}'
  downloads.mkdir(parents=True, exist_ok=True)
  partial = downloads / f'{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}.partial'
  try:
    receive(address, partial)
  except (OSError, url_error.URLError) as error:
    raise ValueError(f'{address}: {error}; what arrived is kept, try again to go on') from None
  found = hash_of(partial)
  try:
    check_hash(address, found, sha256)
  except ValueError:
    partial.unlink()
    raise
  target = downloads / f'{found[:16]}-{name}'
  partial.replace(target)
  if not sha256:
    raise ValueError(
      f'{address} was fetched; an address needs the hash of its file, so that every run sees the '
      f'same data: if you trust this one, set sha256={found}'
    )
  return target


def receive(address: str, partial: pathlib.Path) -> None:
  """Appends to `partial` what it lacks of the file at `address`, and shows progress."""
  have = partial.stat().st_size if partial.exists() else 0
  asked = request.Request(address, headers={'Range': f'bytes={have}-'} if have else {})
  try:
    answer = request.urlopen(asked, timeout=TIMEOUT)
  except url_error.HTTPError as error:
    if error.code == 416:  # Nothing is missing; the hash decides.
      return
    raise
  with answer:
    resumed = answer.status == 206
    left = int(answer.headers.get('Content-Length') or 0)
    with partial.open('ab' if resumed else 'wb') as file:
      for _ in track(copy(answer, file), left, f'fetching {address}', 'B', scale=True):
        pass
    if left and partial.stat().st_size != left + have * resumed:
      raise OSError('the connection ended too early')


def copy(source, target) -> Iterator[int]:
  """Copies block by block and hands out how many bytes each has."""
  while block := source.read(BLOCK):
    target.write(block)
    yield len(block)


def unpack(archive: pathlib.Path, sha256: str) -> pathlib.Path:
  """The folder that an archive holds, unpacked once into the cache.

  Raises:
    ValueError: not an archive, a damaged one, or one with a path that leads outside.
  """
  target = cache_folder() / 'unpacked' / sha256[:16].lower()
  if not target.exists():
    partial = target.with_name(f'{target.name}.{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
      extract(archive, partial)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
      shutil.rmtree(partial)
      raise ValueError(f'{archive}: cannot be unpacked ({error})') from None
    except ValueError:
      shutil.rmtree(partial)
      raise
    if target.exists():  # Another process was faster.
      shutil.rmtree(partial)
    else:
      partial.rename(target)
  inside = [path for path in target.iterdir() if path.name != '__MACOSX']
  return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def extract(archive: pathlib.Path, target: pathlib.Path) -> None:
  """Unpacks a zip or tar file; nothing is written before every path has been looked at."""
  if zipfile.is_zipfile(archive):
    with zipfile.ZipFile(archive) as file:
      for name in file.namelist():
        parts = pathlib.PurePosixPath(name.replace('\\', '/'))
        if parts.is_absolute() or '..' in parts.parts or ':' in name.split('/')[0]:
          raise ValueError(f'{archive}: {name!r} leads outside the archive; not unpacked')
      file.extractall(target)
  elif tarfile.is_tarfile(archive):
    with tarfile.open(archive) as file:
      try:
        members = [tarfile.data_filter(member, str(target)) for member in file]
      except tarfile.FilterError as error:
        raise ValueError(f'{archive}: {error}; not unpacked') from None
      file.extractall(target, members, filter='data')
  else:
    raise ValueError(f'{archive} is not an archive ({" ".join(ARCHIVES)})')
