"""A function of one probe, for all of them: at once where that fits into memory, else in turn."""

from typing import Any

import jax


def in_turn(function: Any, axes: int) -> Any:
  """A function that `vmap`, so many times around it, makes a loop of instead of one large one.

  `sequential_vmap` does so any number of times, and leaves a call that has no gradient.
  """
  if not axes:
    return function
  inner = in_turn(function, axes - 1)
  looped = jax.custom_batching.custom_vmap(inner)

  @looped.def_vmap
  def loop(size, is_mapped, *given):
    leaves, tree = jax.tree.flatten(given)
    flags = jax.tree.leaves(is_mapped)

    def one(mapped):
      rest = iter(mapped)
      return inner(*tree.unflatten([next(rest) if f else x for x, f in zip(leaves, flags)]))

    found = jax.lax.map(one, [x for x, flag in zip(leaves, flags) if flag])
    return found, jax.tree.map(lambda _: True, found)

  return looped


def over(function: Any, axes: int, shared: int = 0) -> Any:
  """A function of one probe for all of them: mapped over the leading axes of its arguments.

  Args:
    shared: how many of its last arguments are the same for all seeds, which are the first axis.
  """
  for axis in range(axes):
    apart = shared if axis == axes - 1 else 0
    function = by_axis(function, apart)
  return function


def by_axis(function: Any, shared: int) -> Any:
  """A function mapped over the first axis of all arguments but the last `shared` ones."""

  def mapped(*given):
    axes = [0] * (len(given) - shared) + [None] * shared
    return jax.vmap(function, axes)(*given)

  return mapped
