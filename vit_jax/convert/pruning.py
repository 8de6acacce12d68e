"""Leaves out heads that attend along a line or everywhere, as Cordonnier et al. do before tuning.

Heads by offset whose precision has a condition above 1,000 or an eigenvalue below 1e-5 go, with
what reads them; the rest is as it was, and `config.init_from` fine-tunes it.
"""

import dataclasses
import pathlib

from absl import logging

from vit_jax import weights

Place = str | pathlib.Path


def prune(source: Place, to: Place) -> list[list[int]]:
  """Writes the weights of `source` without their degenerate heads to the folder `to`.

  Returns:
    The heads that went, from 0, block by block.

  Raises:
    FileNotFoundError, ValueError: `source` cannot be read, is of a family whose heads do not attend
      by offset, has no such head, or would lose all of a block; or `to` is there already.
  """
  to = pathlib.Path(to)
  if to.exists():
    raise ValueError(f'{to} exists; choose another place for the pruned weights')
  params, passport = weights.load(source)
  model = passport.build()
  gone = model.degenerate_heads(params)
  if not any(gone):
    raise ValueError(f'{source}: no head of it is degenerate, so there is nothing to prune')
  changes, fewer = model.without_heads(params, gone)
  weights.write_model(to, fewer, dataclasses.replace(passport, model=passport.model | changes))
  logging.info('%s -> %s (%s)', source, to, in_words(gone))
  return gone


def in_words(gone: list[list[int]]) -> str:
  """'without heads 2, 3 of block 1', all from 1."""
  parts = [
    f'{", ".join(str(head + 1) for head in heads)} of block {i + 1}'
    for i, heads in enumerate(gone) if heads
  ]  # fmt: skip
  return f'without heads {"; ".join(parts)}'
