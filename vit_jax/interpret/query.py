"""Which blocks of a model attend, and whose attention is shown: by what a person writes."""

import dataclasses
from typing import Any

import jax
from jax import numpy as jnp

from vit_jax.models import tokens
from vit_jax.predict import Predictor

MEAN = 'mean'


@dataclasses.dataclass(frozen=True)
class Query:
  """The token, or tokens, whose attention is shown.

  Attributes:
    name: 'class' or another token of the prefix; 'mean': the mean over the rows of all patches; or
      the number of a patch from 1.
    model: whose tokens are asked.
    grid: that patches are numbered in.
  """

  name: str
  model: Any
  grid: tuple[int, int]

  @property
  def before(self) -> list[str]:
    """What a row has before the patches, as a person writes it."""
    return short_names(self.model.sources)

  def of(self, weights: Any, grid: tuple[int, int]) -> Any:
    """The row of the query, by what is read: `... T T` -> `... S`, `before` and then the patches.

    On another grid it is that of the same place.
    """
    return self.model.by_source(self._row(weights, grid))

  def _row(self, weights: Any, grid: tuple[int, int]) -> Any:
    first, short = len(self.model.prefix), short_names(self.model.prefix)
    if self.name == MEAN:
      return weights[..., first:, :].mean(-2)
    if self.name in short:
      return weights[..., short.index(self.name), :]
    row, column = divmod(int(self.name) - 1, self.grid[1])
    row = int((row + 0.5) * grid[0] / self.grid[0])
    column = int((column + 0.5) * grid[1] / self.grid[1])
    return weights[..., first + row * grid[1] + column, :]

  @property
  def words(self) -> str:
    """What it is, for a title."""
    if self.name == MEAN:
      return 'the patches (mean)'
    kind = 'patch' if self.name.isdecimal() else 'token'
    return f'patch {self.name}' if kind == 'patch' else f'the {self.name} token'


def short_names(prefix: tuple[str, ...]) -> list[str]:
  """Tokens of a prefix as a person writes them: 'class_token' -> 'class'."""
  return [name.removesuffix('_token') for name in prefix]


def query_of(model: Any, wanted: str | None, grid: tuple[int, int]) -> Query:
  """The query that was asked for; by default the class token, or the mean over patches without.

  Raises:
    ValueError: there is no such token.
  """
  short = short_names(model.prefix)
  name = wanted or ('class' if 'class' in short else MEAN)
  last = grid[0] * grid[1]
  if name not in (*short, MEAN) and not (name.isdecimal() and 1 <= int(name) <= last):
    raise ValueError(
      f'--query={name}: give {", ".join([*short, MEAN])}, or a patch of the grid of {grid[0]} x '
      f'{grid[1]} from 1 (top left) to {last}, row by row'
    )
  return Query(name, model, grid)


@dataclasses.dataclass(frozen=True)
class Attending:
  """A block that attends.

  Attributes:
    block: its number from 0.
    heads: how many there are.
    grid: (height, width) of the patches that it sees.
  """

  block: int
  heads: int
  grid: tuple[int, int]

  @property
  def layer(self) -> int:
    """Its number from 1, as people write it."""
    return self.block + 1


def attending(predictor: Predictor, layers: str = 'all') -> list[Attending]:
  """The blocks that attend, from the first to the last.

  Args:
    layers: 'all', 'last', or numbers from 1: '1,12'.

  Raises:
    ValueError: the model has none, or not those.
  """
  model, names = predictor.model, predictor.output_names
  image = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), jnp.float32)
  count = len(tokens.block_names(names))

  def maps(params, images):
    named = predictor.forward(params, images)[1]
    return {block: model.attention_map(named, block) for block in range(count)}

  shapes = jax.eval_shape(maps, predictor.params, image)
  found = [
    Attending(block, x.shape[1], model.attention_grid(block) or (1, x.shape[-1]))
    for block, x in shapes.items() if x is not None
  ]  # fmt: skip
  if not found:
    raise ValueError(
      f'a {predictor.passport.model["name"]} has no attention to show: give the weights of a model '
      'that attends, such as a ViT'
    )
  return choose(found, layers, names)


def choose(found: list[Attending], layers: str, names: list[str]) -> list[Attending]:
  """Some of the blocks that attend.

  Raises:
    ValueError: no such block.
  """
  if layers in ('all', 'last'):
    return found if layers == 'all' else found[-1:]
  wanted = [int(name.partition('/')[0].removeprefix('block_'))
            for name in tokens.layer_names(names, layers)]  # fmt: skip
  by_number = {one.block: one for one in found}
  lacking = [block + 1 for block in wanted if block not in by_number]
  if lacking:
    raise ValueError(f'--layers={layers}: block {lacking[0]} has no attention')
  return [by_number[block] for block in wanted]
