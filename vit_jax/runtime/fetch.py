"""Data sets and weights from elsewhere: download with a hash, keep in a cache."""

from collections.abc import Iterator
import contextlib
import hashlib
from http import client
import os
import pathlib
import re
from urllib import error as url_error
from urllib import parse, request

from vit_jax.runtime import archives
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

try:
  import fcntl
except ImportError:  # Windows has no such locks.
  fcntl = None

BLOCK = 2**20  # bytes
TIMEOUT = 60  # seconds without a byte


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
    return archives.unpack(archive, unpacked(hash_of(archive)))
  local = pathlib.Path(path).expanduser()
  if not local.exists():
    raise FileNotFoundError(f'{path} does not exist')
  if local.is_dir():
    return local
  if not archives.is_archive(local):
    raise ValueError(f'{path} is neither a folder nor an archive ({" ".join(archives.ENDINGS)})')
  found = hash_of(local)
  check_hash(path, found, sha256)
  return archives.unpack(local, unpacked(found))


def unpacked(sha256: str) -> pathlib.Path:
  """Where the cache has what an archive holds."""
  return cache_folder() / 'unpacked' / sha256[:16].lower()


HUB = 'https://huggingface.co'
HUB_FILES = ('config.json', 'preprocessor_config.json', 'model.safetensors')
# An address that is none, an answer that is not HTTP, or one cut off: of the third kind.
UNREACHED = (OSError, url_error.URLError, client.HTTPException)
TORCHVISION = 'https://download.pytorch.org/models'
# Names of torchvision's files; each ends in the beginning of its SHA-256.
TORCHVISION_FILES = {'vit_b_16': 'vit_b_16-c867db91.pth'}


def local(source: str | pathlib.Path) -> pathlib.Path:
  """Weights on disk: a path as it is; an address from the cache, or fetched into it.

  hf://OWNER/NAME (or hf://OWNER/NAME@REVISION) is a folder; torchvision://vit_b_16 and https
  addresses are files, whose hash stands in their name or after '#sha256='.

  Raises:
    FileNotFoundError: no such path.
    ValueError: the address cannot be reached, or holds another file than its hash says.
  """
  text = str(source)
  if text.startswith('hf://'):
    return hub_folder(text.removeprefix('hf://'))
  if text.startswith('torchvision://'):
    name = text.removeprefix('torchvision://')
    check_choice('torchvision model', name, TORCHVISION_FILES)
    text = f'{TORCHVISION}/{TORCHVISION_FILES[name]}'
  if is_address(text):
    address, _, wanted = text.partition('#sha256=')
    return download(address, wanted or hash_in_name(address))
  path = pathlib.Path(source).expanduser()
  if not path.exists():
    raise FileNotFoundError(f'{source} does not exist')
  return path


def in_one_line(error: Exception) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def hash_in_name(address: str) -> str | None:
  """'.../vit_b_16-c867db91.pth' -> 'c867db91': torch's files carry the start of their hash."""
  match = re.search(r'-([0-9a-f]{8,64})\.\w+$', address)
  return match[1] if match else None


def hub_folder(name: str) -> pathlib.Path:
  """The files of a model on the Hugging Face hub, in one folder of the cache.

  `$HF_ENDPOINT` is another hub. What is there is used without asking the hub again.
  """
  owner, _, revision = name.partition('@')
  base = os.environ.get('HF_ENDPOINT', HUB)
  target = cache_folder() / 'hub' / owner.replace('/', '--') / (revision or 'main')
  if (target / 'complete').exists():
    return target
  target.mkdir(parents=True, exist_ok=True)
  with alone(target / 'fetching'):
    if not (target / 'complete').exists():
      fetch_model(base, name, target)
  return target


def fetch_model(base: str, name: str, target: pathlib.Path) -> None:
  """Fetches the files of a model on a hub into a folder, each as far as it is not there.

  Raises:
    ValueError: it cannot be reached, or is another file than the hub tells.
  """
  owner, _, revision = name.partition('@')
  for file in HUB_FILES:
    partial = target / f'{file}.partial'
    try:
      told = receive(f'{base}/{owner}/resolve/{revision or "main"}/{file}', partial)
    except url_error.HTTPError as error:
      if file == 'preprocessor_config.json' and error.code == 404:
        continue
      raise ValueError(f'hf://{name}: {file}: {error}') from None
    except UNREACHED as error:
      raise ValueError(
        f'hf://{name}: {file}: {in_one_line(error)}; what arrived is kept, try again to go on'
      ) from None
    found = hash_of(partial)
    if told and found != told:
      partial.unlink()
    check_hash(f'hf://{name}: {file}', found, told)
    partial.replace(target / file)
  (target / 'complete').touch()


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
  """A context in which no other process of this machine has the same path: the others wait.

  All processes of a run start with the same download, and would write into one file.
  """
  if fcntl is None:
    yield
    return
  with path.with_name(f'{path.name}.lock').open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def is_address(path: str) -> bool:
  return path.startswith(('http://', 'https://'))


def hash_of(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def check_hash(what: str, found: str, wanted: str | None) -> None:
  if wanted and not found.startswith(wanted.lower()):
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
  if sha256:
    for known in downloads.glob(f'{sha256[:16].lower()}*-{name}'):
      return known
  downloads.mkdir(parents=True, exist_ok=True)
  partial = downloads / f'{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}.partial'
  with alone(partial):
    if sha256 and (target := downloads / f'{sha256[:16].lower()}-{name}').exists():
      return target  # Another process was faster.
    try:
      receive(address, partial)
    except UNREACHED as error:
      raise ValueError(
        f'{address}: {in_one_line(error)}; what arrived is kept, try again to go on'
      ) from None
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


class Redirects(request.HTTPRedirectHandler):
  """Follows redirections and keeps the hash that the hub sends with the first of them."""

  told = ''

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    self.told = headers.get('X-Linked-Etag') or self.told
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def receive(address: str, partial: pathlib.Path) -> str | None:
  """Appends to `partial` what it lacks of the file at `address`, and shows progress.

  Returns:
    Its SHA-256, where the server tells (the Hugging Face hub does).
  """
  have = partial.stat().st_size if partial.exists() else 0
  asked = request.Request(address, headers={'Range': f'bytes={have}-'} if have else {})
  redirects = Redirects()
  try:
    answer = request.build_opener(redirects).open(asked, timeout=TIMEOUT)
  except url_error.HTTPError as error:
    if error.code == 416:  # Nothing is missing; the hash decides.
      return None
    raise
  with answer:
    resumed = answer.status == 206
    left = int(answer.headers.get('Content-Length') or 0)
    with partial.open('ab' if resumed else 'wb') as file:
      for _ in track(copy(answer, file), left, f'fetching {address}', 'B', scale=True):
        pass
    if left and partial.stat().st_size != left + have * resumed:
      raise OSError('the connection ended too early')
    told = (redirects.told or answer.headers.get('ETag') or '').strip('"')
  return told if re.fullmatch('[0-9a-f]{64}', told) else None


def copy(source, target) -> Iterator[int]:
  """Copies block by block and hands out how many bytes each has."""
  while block := source.read(BLOCK):
    target.write(block)
    yield len(block)
