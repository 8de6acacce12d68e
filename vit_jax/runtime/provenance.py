"""Where numbers come from: the commands that filled a folder, with versions, commit and device."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import time
from typing import Any

import vit_jax
from vit_jax.runtime import atomic

NAME = 'commands.json'
PACKAGES = ('jax', 'flax', 'optax', 'numpy')


def note(folder: pathlib.Path, words: list[str], begun: float) -> None:
  """Adds a command that has ended to `folder/commands.json`, if it wrote anything there.

  Args:
    words: of the command line, the program first.
    begun: when it was started, in seconds as `time.time()` tells them.
  """
  if not any(is_newer(path, begun) for path in folder.rglob('*')):
    return  # Of a finished run nothing changes.
  import jax

  told = {
    'command': shlex.join(['python', '-m', 'vit_jax.main', *words[1:]]),
    'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'seconds': round(time.time() - begun, 1),
    'version': vit_jax.__version__,
    'commit': commit(),
    'python': platform.python_version(),
    'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'cores': os.cpu_count(),
    'processes': jax.process_count(),
  }
  atomic.write_text(folder / NAME, json.dumps([*read(folder), told], indent=2) + '\n')


def is_newer(path: pathlib.Path, begun: float) -> bool:
  """Whether a file was written since; not if it is gone by now."""
  try:
    return path.is_file() and path.stat().st_mtime > begun
  except FileNotFoundError:
    return False


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The commands that filled a folder, the first one first; none of those before 0.8.0."""
  path = folder / NAME
  return json.loads(path.read_text()) if path.exists() else []


def commit() -> str | None:
  """The commit of the source, with '+' where files differ from it; None of an installed package."""
  root = pathlib.Path(vit_jax.__file__).parent.parent
  if not (root / '.git').exists():
    return None
  try:
    head, changed = (
      subprocess.run(['git', '-C', str(root), *words], capture_output=True, text=True, check=True)
      for words in (['rev-parse', '--short=10', 'HEAD'], ['status', '--porcelain', '-uno'])
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return head.stdout.strip() + '+' * bool(changed.stdout.strip())
