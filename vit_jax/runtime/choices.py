"""Refuses what a person may not choose: a name that there is not, an option that has no use."""

import argparse
from collections.abc import Iterable
import difflib

MANY = 200  # names that are all listed; of more the first few


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
  """Refuses a name that is not among the choices.

  Raises:
    ValueError: `value` is not among `choices`; lists them, or some of many, and the nearest.
  """
  choices = [str(choice) for choice in choices]
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), choices, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  listed = ', '.join(choices if len(choices) <= MANY else choices[:10])
  more = f' and {len(choices) - 10:,} more' if len(choices) > MANY else ''
  raise ValueError(f'unknown {what} {value!r}; choose from {listed}{more}{hint}')


def check_used(options: argparse.Namespace, names: Iterable[str], when: str) -> None:
  """Refuses options that were given and would be ignored.

  Args:
    options: what was parsed; an option that was not given is None or False.
    names: those that have no use.
    when: that is so, such as 'without --features'.

  Raises:
    ValueError: some were given; names them.
  """
  given = [
    f'--{name}'
    for name in names
    if getattr(options, name) is not None and getattr(options, name) is not False
  ]
  if given:
    raise ValueError(f'{", ".join(given)} would be ignored {when}: leave out what you do not mean')
