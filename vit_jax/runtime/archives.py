"""Zip and tar files, unpacked safely: no path leads outside, and what is there is whole."""

import lzma
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib

# RuntimeError: of an encrypted file, or one packed in a way that is not known.
DAMAGED = (
  tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError,
)  # fmt: skip
ENDINGS = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')


def is_archive(path: pathlib.Path) -> bool:
  """Whether a file is one of these, by its content."""
  return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  """The folder that an archive holds, unpacked once into `target`.

  Raises:
    ValueError: not an archive, a damaged one, or one with a path that leads outside.
  """
  if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp('.partial', f'{target.name}.', target.parent))
    partial.chmod(0o755)  # A cache may be shared.
    try:
      extract(archive, partial)
    except BaseException as error:
      shutil.rmtree(partial)
      if isinstance(error, DAMAGED):
        raise ValueError(f'{archive}: cannot be unpacked ({error})') from None
      raise
    try:
      partial.rename(target)
    except OSError:  # Another process was faster.
      shutil.rmtree(partial)
      if not target.exists():
        raise
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
    raise ValueError(f'{archive} is not an archive ({" ".join(ENDINGS)})')
