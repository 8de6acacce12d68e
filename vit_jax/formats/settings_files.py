"""Files of settings beside weights, config.json and its like: read, and of the right types.

`from_torch.py` understands what they say; `configs.py` writes them.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
import pathlib
from typing import Any


def read(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file of JSON.

  Raises:
    ValueError: it is damaged, or holds something else; names the file.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from None
  if not isinstance(content, dict):
    raise ValueError(f'{path} holds a {type(content).__name__} instead of an object')
  return content


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
  """What a damaged passport raises, while it is understood and its model built, in one line.

  Args:
    path: of the passport, or of the weights that it belongs to.

  Raises:
    ValueError: in the place of any of these; names the file.
  """
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  except (KeyError, TypeError, AttributeError) as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(
      f'{path} describes no model that can be built ({type(error).__name__}: {reason}): take the '
      'passport as it was written, or export the weights again'
    ) from None


def said(path: pathlib.Path) -> dict[str, Any]:
  """What a library's settings say, without what they leave open by null.

  Raises:
    ValueError: as `read`, or a setting that is used here has another type; names the file.
  """
  settings = without_null(read(path))
  check(settings, path)
  return settings


def without_null(settings: dict[str, Any]) -> dict[str, Any]:
  return {
    key: without_null(value) if isinstance(value, dict) else value
    for key, value in settings.items()
    if value is not None
  }


def check(settings: dict[str, Any], path: pathlib.Path) -> None:
  for words, (fits, keys) in KINDS.items():
    for key in keys:
      if key in settings and not fits(settings[key]):
        raise ValueError(f'{path} says {key}={settings[key]!r}, which is not {words}')
  for part in ('model_args', 'pretrained_cfg'):  # timm's
    if part in settings:
      check(settings[part], path)


def is_whole(value: Any) -> bool:
  return type(value) is int and value > 0  # True is an int, too.


def is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def is_list_of(fits: Callable[[Any], bool], *lengths: int) -> Callable[[Any], bool]:
  """Whether a value is a list of so many things, of any number of them where none is given."""
  return lambda value: (
    isinstance(value, list)
    and (len(value) in lengths if lengths else bool(value))
    and all(map(fits, value))
  )


def is_text(value: Any) -> bool:
  return isinstance(value, str)


def are_numbered(value: Any) -> bool:
  """Whether it is an object with a text for each number."""
  return (
    isinstance(value, dict) and all(map(str.isdecimal, value)) and all(map(is_text, value.values()))
  )


# What a setting must be, in words and as a question; the keys of all families that are read here.
KINDS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
  'an object': (lambda x: isinstance(x, dict), ('model_args', 'pretrained_cfg')),
  'a whole number above 0': (is_whole, ('num_attention_heads', 'n_head')),
  'a whole number above 0, or one for each stage': (
    lambda x: is_whole(x) or is_list_of(is_whole)(x), ('num_heads',)
  ),
  'a side in pixels, or two': (
    lambda x: is_whole(x) or is_list_of(is_whole, 1, 2)(x), ('image_size', 'patch_size', 'img_size')
  ),
  'channels, height and width': (is_list_of(is_whole, 3), ('input_size',)),
  "a number of Pillow's filters from 0 to 3, of which we have each": (
    lambda x: type(x) is int and 0 <= x <= 3, ('resample',)
  ),
  'a side in pixels, two, or an object of such': (
    lambda x: is_whole(x) or is_list_of(is_whole, 1, 2)(x)
    or (isinstance(x, dict) and all(map(is_whole, x.values()))), ('size', 'crop_size')
  ),
  'true or false': (lambda x: isinstance(x, bool), ('do_center_crop', 'do_normalize')),
  'a list of numbers': (is_list_of(is_number), ('image_mean', 'image_std', 'mean', 'std')),
  'a number': (is_number, ('layer_norm_eps', 'layer_norm_epsilon', 'crop_pct')),
  'a word': (
    is_text, ('hidden_act', 'activation_function', 'act_layer', 'model_type', 'interpolation',
              'crop_mode', 'architecture', 'problem_type'),
  ),
  'an object with the name of each number': (are_numbered, ('id2label',)),
  'a list of names, or an object with the name of each number': (
    lambda x: x == [] or is_list_of(is_text)(x) or are_numbered(x), ('label_names',)
  ),
}  # fmt: skip
