"""Refuses a name that is not among the choices, and shows the nearest spelling."""

from collections.abc import Iterable
import difflib


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
  """Refuses a name that is not among the choices.

  Raises:
    ValueError: `value` is not among `choices`; lists them and the nearest.
  """
  choices = [str(choice) for choice in choices]
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), choices, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise ValueError(f'unknown {what} {value!r}; choose from {", ".join(choices)}{hint}')
