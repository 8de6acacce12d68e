"""Rules that look at an array as a whole, for stacks of blocks: each block by itself.

Most rules treat each number alone, and a stack is to them an array like any other. Adafactor takes
means over the axes of a matrix, and a root mean square over all of it: what it does to a stack
`L D1 D2` must be what it does to L matrices `D1 D2`.
"""

from collections.abc import Callable
from typing import Any

from flax import traverse_util
import jax
import optax

from vit_jax.runtime.stacked import STAR


def each_block(rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """A rule that treats the blocks of a stack as if each had arrays of its own.

  Args:
    rule: a transformation whose state is scalars and trees like the parameters, and which treats
      each array of a tree apart from all others.
  """

  def init(params):
    single, stacks = part(params, starred=False), part(params, starred=True)
    if not stacks:
      return rule.init(params)
    return join(rule.init(single), jax.vmap(rule.init)(stacks))

  def update(updates, state, params=None):
    stacks = part(updates, starred=True)
    if not stacks:
      return rule.update(updates, state, params)
    single = [part(tree, starred=False) for tree in (updates, state, params)]
    stacked = [part(tree, starred=True) for tree in (updates, state, params)]
    axes = trees(lambda _: 0, stacked[1], other=lambda _: None)  # Scalars belong to all blocks.
    mapped = jax.vmap(rule.update, in_axes=(0, axes, 0), out_axes=(0, axes))
    return join(rule.update(*single), mapped(*stacked))

  return optax.GradientTransformation(init, update)


def part(tree: Any, starred: bool) -> Any:
  """A tree, or a state with trees in it, with the stacks alone or without them."""

  def keep(node):
    flat = traverse_util.flatten_dict(node)
    names = [name for name in flat if any(STAR in word for word in name) == starred]
    return traverse_util.unflatten_dict({name: flat[name] for name in names})

  return trees(keep, tree)


def join(single: Any, stacks: Any) -> Any:
  """The inverse of `part`; scalars are those of `single`."""

  def both(a, b):
    flat = traverse_util.flatten_dict(a) | traverse_util.flatten_dict(b)
    return traverse_util.unflatten_dict(flat)

  return trees(both, single, stacks, other=lambda a, _: a)


def trees(function: Callable, state: Any, *more: Any, other: Callable = lambda x: x) -> Any:
  """A state with `function` of each dictionary in it, and `other` of what is in none."""

  def apply(*nodes):
    return (function if isinstance(nodes[0], dict) else other)(*nodes)

  return jax.tree.map(apply, state, *more, is_leaf=lambda x: isinstance(x, dict))
