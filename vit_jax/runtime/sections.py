"""A config section cut into the keyword arguments of the parts that it builds."""

from collections.abc import Callable, Collection
import dataclasses
import functools
from typing import Any, TypeVar

Part = TypeVar('Part')


def fields_of(part: Callable) -> set[str]:
  """The names of the fields that a dataclass, a linen module or a partial of one still takes."""
  given: Collection[str] = ()
  while isinstance(part, functools.partial):
    given, part = {*given, *part.keywords}, part.func
  hidden = ('parent', 'name')  # linen's own
  return {field.name for field in dataclasses.fields(part)} - {*given, *hidden}  # pyright: ignore


def take(part: Callable[..., Part], section: dict[str, Any], **given: Any) -> Part:
  """`part` from those keys of `section` that it has a field for; `given` go before them."""
  keys = fields_of(part) & section.keys()
  return part(**{key: section[key] for key in keys} | given)
