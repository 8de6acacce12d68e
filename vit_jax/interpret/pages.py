"""Pages of this folder, each one HTML file that gets its data before it is written or served."""

import base64
import functools
import hashlib
import importlib.resources
import json
import re
from typing import Any

MARK = '/*DATA*/null'  # where the data go in a page


@functools.cache
def template(name: str) -> str:
  """A page without data, such as 'atlas.html'."""
  files = importlib.resources.files('vit_jax.interpret')
  return files.joinpath(name).read_text(encoding='utf-8')


def filled(name: str, content: dict[str, Any]) -> str:
  """A page with its data, none of which can end the script that they stand in."""
  return template(name).replace(MARK, json.dumps(content).replace('<', '\\u003c'))


def policy(text: str, **sources: str) -> str:
  """A Content-Security-Policy under which a page runs its own script and style, and no other.

  Args:
    text: the page with its data.
    sources: what else it may use, `img_src='data:'` for the directive `img-src`.
  """
  own = {'script-src': hashes(text, 'script'), 'style-src': hashes(text, 'style')}
  own |= {name.replace('_', '-'): value for name, value in sources.items()}
  own = {'default-src': "'none'", 'base-uri': "'none'", 'form-action': "'none'"} | own
  return '; '.join(f'{name} {value}' for name, value in own.items())


def hashes(text: str, tag: str) -> str:
  """The sources of a policy that allow what stands between a page's `<tag>` and `</tag>`."""
  inside = re.findall(f'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
  digests = (hashlib.sha256(part.encode()).digest() for part in inside)
  return ' '.join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
