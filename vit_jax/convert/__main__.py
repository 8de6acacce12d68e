"""The command that converts weights and says what a weight file holds.

python -m vit_jax.convert SRC DST --to=TARGET [--check]

python -m vit_jax.convert --inspect FILE [--json]

python -m vit_jax.convert SRC DST --prune
"""

import argparse
import json
import sys

from absl import logging

from vit_jax.convert import TARGETS, check, check_equal, check_theirs, convert, inspect, pruning
from vit_jax.runtime import messages
from vit_jax.runtime.choices import check_used


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.convert`."""
  parser = argparse.ArgumentParser('python -m vit_jax.convert', description=__doc__)
  parser.add_argument('paths', nargs='*', metavar='SRC DST', help='a run, a file, hf://OWNER/NAME')
  parser.add_argument('--to', help=', '.join(TARGETS))
  parser.add_argument(
    '--check', action='store_true', help='read it back and compare, by block; fails above 1e-3'
  )
  parser.add_argument('--accept_loss', action='store_true', help='write what can be written')
  parser.add_argument('--inspect', metavar='FILE', help='print what a weight file holds')
  parser.add_argument('--prune', action='store_true', help='leave out heads without a centre')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  options = parser.parse_args(arguments)
  logging.set_verbosity(logging.INFO)
  try:
    with messages.printing():
      run(options, parser)
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
  """Inspects, or converts and checks."""
  if options.inspect:
    check_used(options, ('to', 'check', 'accept_loss', 'prune'), 'with --inspect')
    if options.paths:
      parser.error('--inspect FILE takes no SRC and DST')
    found = inspect(options.inspect)
    width = max(map(len, found))
    print(json.dumps(found) if options.json else
          '\n'.join(f'{key:{width}}  {value}' for key, value in found.items()))  # fmt: skip
    return
  if len(options.paths) != 2 or bool(options.to) == options.prune:
    parser.error('give SRC, DST and --to or --prune, or --inspect FILE')
  source, to = options.paths
  if not options.check:
    check_used(options, ('json',), 'without --check or --inspect')
  if options.prune:
    check_used(options, ('check', 'accept_loss'), 'with --prune')
    print(pruning.in_words(pruning.prune(source, to)))
    return
  convert(source, to, options.to, options.accept_loss)
  if options.check:
    rows = check(source, to, options.to) + check_theirs(source, to, options.to)
    for row in rows:
      print(json.dumps(row) if options.json else f'{row["place"]:20} {row["difference"]:.1e}')
    check_equal(rows)


if __name__ == '__main__':
  main()
