"""Blocks whose parameters lie in one array each, as a loop over them wants: names with a star.

  encoderblock_*/LayerNorm_0/scale  `L D`   in a run with `config.model.scan`
  encoderblock_0/LayerNorm_0/scale  `D`     in every file, and in every other run

Files know nothing of stacks: a run goes on with or without them. Everything here takes any tree,
the state of an optimizer included, and leaves one without stars as it is.
"""

from typing import Any

import jax
from jax import numpy as jnp

STAR = '*'


def has_stack(tree: Any) -> bool:
  """Whether a tree is a dictionary with a starred name."""
  return isinstance(tree, dict) and any(STAR in name for name in tree)


def names(name: str, count: int) -> list[str]:
  """The names of the blocks in a stack of `count`; a name without a star alone."""
  return [name.replace(STAR, str(i)) for i in range(count)] if STAR in name else [name]


def unstack(tree: Any) -> Any:
  """A tree in which every block has its own arrays, by its own name."""

  def split(node):
    if not has_stack(node):
      return node
    found: dict[str, Any] = {}
    for name, value in node.items():
      if STAR not in name:
        found[name] = unstack(value)
        continue
      for i, own in enumerate(names(name, len(jax.tree.leaves(value)[0]))):
        found[own] = jax.tree.map(lambda x, i=i: _take(x, i), value)
    return found

  return jax.tree.map(split, tree, is_leaf=has_stack)


def unstack_shapes(tree: Any) -> Any:
  """The shapes of what `unstack` gives, where the tree holds shapes."""
  return jax.eval_shape(unstack, tree)


def stack_like(wanted: Any, tree: Any) -> Any:
  """The inverse of `unstack`: the arrays of `tree` in the structure of `wanted`, stars and all."""
  there = dict(jax.tree_util.tree_flatten_with_path(tree)[0])

  def find(path, shape):
    at = [i for i, key in enumerate(path) if STAR in str(getattr(key, 'key', ''))]
    if not at:
      return there[path]
    (i,) = at
    keys = [jax.tree_util.DictKey(name) for name in names(path[i].key, shape.shape[0])]
    return jnp.stack([there[(*path[:i], key, *path[i + 1 :])] for key in keys])

  return jax.tree_util.tree_map_with_path(find, wanted)


@jax.jit
def _take(x: jax.Array, i: int | jax.Array) -> jax.Array:
  # One program for each shape, whichever the block.
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
