"""Parameters of one model for another of its family: other grid, channels, prefix, or task."""

import re
from typing import Any

import numpy as np

from vit_jax.formats import resample

Flat = dict[str, Any]  # arrays, or their shapes, by whole name


def adapt(
  given: Flat, want: Flat, old: Any, new: Any, source: str, method: str
) -> tuple[Flat, list[str]]:
  """Parameters of the model `old` as `new` needs them, and what was done, in words.

  What follows the pictures' shape is resampled (`new.resampled()`); tokens of the prefix that the
  new model lacks are left out, those that it has anew start as they would from scratch. What
  belongs to the task may be missing, extra, or of another shape.

  Args:
    given: arrays by name.
    want: shapes by name.
    old, new: the models; see `vit_jax/models/protocol.py`.
    source: what to call the weights in messages.
    method: 'official', 'bilinear' or 'bicubic'.

  Raises:
    ValueError: anything else differs; every difference is listed.
  """
  have, done, kinds = dict(given), [], new.resampled()
  for name in have.keys() & want.keys() & kinds.keys():
    if kinds[name] == 'tokens':
      have[name], notes = fit_tokens(have[name], old, new, method)
      done += notes
    if kinds[name] in ('rows', 'columns') and old.grid != new.grid:
      axis = ('rows', 'columns').index(kinds[name])
      have[name] = resample.line(have[name], new.grid[axis], method)
      done.append(f'{name}: {old.grid[axis]} {kinds[name]} to {new.grid[axis]}, {method}')
    if kinds[name] == 'offsets' and have[name].shape != want[name].shape:
      done.append(f'{name}: {have[name].shape[0]} offsets to {want[name].shape[0]}, bicubic')
      have[name] = resample.offsets(have[name], want[name].shape[0])
    if kinds[name] == 'channels' and have[name].shape[2] != want[name].shape[2]:
      done.append(f'{name}: {have[name].shape[2]} channels to {want[name].shape[2]}')
      have[name] = resample.channels(have[name], want[name].shape[2])
  same = {name for name in have.keys() & want.keys() if have[name].shape == want[name].shape}
  dropped, fresh = sorted(have.keys() - same), sorted(want.keys() - same)
  task = new.layer_groups()[-1]
  free = {name for name, kind in kinds.items() if kind == 'prefix'}
  wrong = sorted(
    name for name in {*dropped, *fresh} - free if not re.fullmatch(task, name)
  )  # fmt: skip
  if wrong:
    rows = [f'  {n}: {shape(have.get(n))} in the file, {shape(want.get(n))} here' for n in wrong]
    raise ValueError(f'{source} does not fit the model:\n' + '\n'.join(rows))
  done += [f'dropped: {", ".join(dropped) or "-"}', f'new: {", ".join(fresh) or "-"}']
  return {name: have[name] for name in same}, done


def fit_tokens(x: np.ndarray, old: Any, new: Any, method: str) -> tuple[np.ndarray, list[str]]:
  """`(1, T, D)` for the new prefix and grid; what was done, in words."""
  done, first = [], len(old.prefix)
  grid = resample.grid(x[:, first:], old.grid, new.grid, method)
  if old.grid != new.grid:
    (a, b), (c, d) = old.grid, new.grid
    done.append(f'positions: {a} x {b} to {c} x {d}, {method}')
  rows = dict(zip(old.prefix, np.split(x[:, :first], first, axis=1) if first else [], strict=True))
  for name in old.prefix:
    if name not in new.prefix:
      done.append(f'the {name.replace("_", " ")} and its position are left out')
  for name in new.prefix:
    if name not in old.prefix:
      rows[name] = np.zeros_like(x[:, :1])
      done.append(f'a {name.replace("_", " ")} is added, with position 0')
  return np.concatenate([*(rows[name] for name in new.prefix), grid], axis=1), done


def check_complete(arrays: Flat, want: Flat, source: Any) -> None:
  """Raises a ValueError that lists every array that a model needs in another shape, or at all."""
  names = sorted(name for name in arrays.keys() | want.keys()
                 if shape(arrays.get(name)) != shape(want.get(name)))  # fmt: skip
  if names:
    rows = [f'  {n}: {shape(arrays.get(n))} in the file, {shape(want.get(n))} asked' for n in names]
    raise ValueError(f'{source} does not fit its own sizes:\n' + '\n'.join(rows))


def shape(x: Any) -> str:
  """An array's shape in words."""
  return 'nothing' if x is None else str(tuple(x.shape))
