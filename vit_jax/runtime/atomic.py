"""Files that are replaced at once: a crash leaves the old one or the new one, never a half."""

from collections.abc import Iterator
import contextlib
import pathlib


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A file beside `path` that takes its place at the end; after an error nothing is left."""
  partial = path.with_name(path.name + '.partial')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file, in UTF-8."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')
