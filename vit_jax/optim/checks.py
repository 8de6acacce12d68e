"""What no optimizer can work with, refused before anything is compiled, by the key that says it."""

import math
import re
from typing import Any


def check_numbers(**values: float) -> None:
  """Refuses what turns a step around or ends in NaN: numbers that are not finite, or below 0.

  Raises:
    ValueError: names the key.
  """
  for key, value in values.items():
    if not 0 <= value < math.inf:
      raise ValueError(f'config.optimizer.{key}={value} must be a number of at least 0')


def check_shares(**shares: float) -> None:
  """Raises a ValueError for a weight from step to step that is not in [0, 1)."""
  for key, value in shares.items():
    if not 0 <= value < 1:
      raise ValueError(f'config.optimizer.{key}={value} must be in [0, 1)')


def check_pattern(key: str, pattern: Any) -> None:
  """Raises a ValueError for what is no regular expression, such as '*kernel'."""
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ValueError(
      f'config.optimizer.{key}: {pattern!r} is no regular expression ({error}); any letters are '
      "'.*': '.*/kernel'"
    ) from None


def check_multipliers(multipliers: Any) -> None:
  """Refuses what are no pairs of a pattern and a factor.

  Raises:
    ValueError: shows how they are written.
  """
  for pair in multipliers:
    if isinstance(pair, str) or len(pair) != 2:
      raise ValueError(
        f'config.optimizer.multipliers={multipliers!r} must be pairs of a pattern and a factor: '
        "(('head/.*', 1.0), ('.*', 0.1)), one with a comma behind it: (('head/.*', 1.0),)"
      )
    pattern, factor = pair
    check_pattern('multipliers', pattern)
    check_numbers(**{f'multipliers: {pattern!r}': factor})
