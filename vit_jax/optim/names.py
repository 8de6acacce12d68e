"""Parameters by name: learning rates, freezing and decay, of blocks in a stack too.

Parameters are spoken of by their whole names, 'Transformer/encoderblock_0/LayerNorm_0/scale'.
"""

from collections.abc import Callable
import functools
import re
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp

from vit_jax.runtime import stacked

Multipliers = tuple[tuple[str, float], ...]


def by_depth(train: str, layer_decay: float, groups: tuple[str, ...]) -> Multipliers:
  """Learning rates by a parameter's depth, as multipliers.

  Args:
    train: 'all'; 'head', which includes readout and pre-logits; or 'last:N', N blocks more.
    layer_decay: d: block i of L has d^(L - i), with i from 1, what lies below d^L; 1: all the same.
    groups: what lies below the blocks, each block, the head; a name belongs to the last that fits.

  Raises:
    ValueError: no such choice, more blocks than there are, no blocks, or a decay that would do
      nothing.
  """
  kind, _, count = train.partition(':')
  if train not in ('all', 'head') and not (kind == 'last' and count.isdecimal()):
    raise ValueError(f'config.optimizer.train={train!r} must be all, head, or last:N with N blocks')
  if not 0 < layer_decay <= 1:
    raise ValueError(f'config.optimizer.layer_decay={layer_decay} must be in (0, 1]')
  below, *blocks, head = groups
  if train == 'all' and layer_decay == 1:
    return ()
  if train == 'head':
    if layer_decay != 1:
      raise ValueError(
        f'config.optimizer.layer_decay={layer_decay} does nothing with train=head, which trains no '
        'block; leave it out, or train last:N or all'
      )
    return (head, 1.0), ('.*', 0.0)
  if not blocks:
    raise ValueError('config.optimizer.train=last:N and layer_decay need a model with blocks')
  trained = len(blocks) if train == 'all' else int(count)
  if trained > len(blocks):
    raise ValueError(f'config.optimizer.train={train!r}: the model has {len(blocks)} blocks')
  factors = [layer_decay**up for up in range(trained)]  # from the last block down
  rates = zip(reversed(blocks), factors, strict=False)
  rest = layer_decay ** len(blocks) if train == 'all' else 0.0
  return (head, 1.0), *rates, (below if train == 'all' else '.*', rest)


def match(pattern: str, name: str) -> bool:
  """Whether a pattern covers a parameter's whole name; the model's own go without 'model/'."""
  return re.fullmatch(pattern, name.removeprefix('model/')) is not None


def by_name(function: Callable[[str], Any], tree):
  """A tree of `function(name)` in the shape of `tree`; for a stack of blocks that differ, an array.

  The array has a number for each block, in a shape that multiplies the stack.
  """

  def value(name: str, x) -> Any:
    found = [function(own) for own in names_of(name, x)]
    if all(one == found[0] for one in found):
      return found[0]
    return jnp.array(found).reshape(-1, *[1] * (x.ndim - 1))

  flat = traverse_util.flatten_dict(tree, sep='/')
  return traverse_util.unflatten_dict({name: value(name, x) for name, x in flat.items()}, sep='/')


def names_of(name: str, x) -> list[str]:
  """The names that files have for a parameter: one, or one for each block of a stack."""
  return stacked.names(name, x.shape[0] if x.ndim else 0)


def multiplier(name: str, multipliers: Multipliers) -> float:
  """The factor of the first pattern that matches `name`, else 1."""
  return next((factor for pattern, factor in multipliers if match(pattern, name)), 1.0)


def is_trained(multipliers: Multipliers, name: str) -> bool:
  """Whether a parameter moves: a factor of 0 freezes it."""
  return multiplier(name, multipliers) != 0


def scale_by_name(updates, multipliers: Multipliers):
  """Updates, each times the factor of its parameter's name."""
  factors = by_name(lambda name: multiplier(name, multipliers), updates)
  return jax.tree.map(lambda update, factor: update * factor, updates, factors)


def alike(key: str, function: Callable[[str], bool], name: str, x) -> bool:
  """What `function` says of a parameter, or of all blocks of a stack.

  Raises:
    ValueError: it says yes of some blocks, and no of others.
  """
  found = {function(own) for own in names_of(name, x)}
  if len(found) > 1:
    raise ValueError(
      f'config.model.scan computes all blocks alike, but config.optimizer.{key} treats those of '
      f'{name.removeprefix("model/")} differently; leave scan out'
    )
  return found.pop()


def make_mask(pattern: str) -> Callable[[Any], Any]:
  """A function from a tree of parameters to a tree of whether `pattern` covers each.

  The function raises a ValueError where the pattern covers some blocks of a stack and others not.
  """

  def mask(tree):
    flat = traverse_util.flatten_dict(tree, sep='/')
    covered = functools.partial(match, pattern)
    found = {name: alike('decay_pattern', covered, name, x) for name, x in flat.items()}
    return traverse_util.unflatten_dict(found, sep='/')

  return mask


def partition(params, multipliers: Multipliers) -> tuple[dict, dict]:
  """`params` as (trainable, frozen) trees; a multiplier of 0 freezes.

  Raises:
    ValueError: a pattern that matches no parameter, or nothing left to train.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  for pattern, _ in multipliers:
    if not any(match(pattern, own) for name, x in flat.items() for own in names_of(name, x)):
      raise ValueError(
        f'config.optimizer.multipliers: {pattern!r} matches no parameter (whole names are matched, '
        f'such as "head/kernel"; see the parameter table)'
      )
  trained = functools.partial(is_trained, multipliers)
  trainable = {name: x for name, x in flat.items() if alike('multipliers', trained, name, x)}
  frozen = {name: x for name, x in flat.items() if name not in trainable}
  if not trainable:
    raise ValueError(
      'config.optimizer.multipliers freezes every parameter; nothing is left to train'
    )
  unflatten = traverse_util.unflatten_dict
  return unflatten(trainable, sep='/'), unflatten(frozen, sep='/')


def merge(trainable, frozen):
  """One tree of trainable and frozen parameters: the inverse of `partition`."""
  flat = traverse_util.flatten_dict(trainable) | traverse_util.flatten_dict(frozen)
  return traverse_util.unflatten_dict(flat)
