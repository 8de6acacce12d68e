"""The encoder: positions, blocks, norm; its parts are given, every intermediate has a name."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
from flax.core.scope import LazyRng
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import attention, dropout, fused_attention, layers
from vit_jax.models.normalisation import LayerNorm
from vit_jax.models.position import POSITIONS, Nothing
from vit_jax.runtime import stacked
from vit_jax.runtime.sections import take

STACK = 'encoderblock_*'  # All blocks in one, as `stacked.py` says.
# What the backward pass computes again instead of keeping it; `attention` does so by itself.
REMAT = ('none', 'attention', 'dots', 'blocks')
# Operations whose results `dots` keeps: products, and what fused attention is made of.
PRODUCTS = (
  'dot_general', 'dot_product_attention_fwd_wrapper', 'pallas_call', 'shard_map',
)  # fmt: skip
Body = Callable[..., Any]  # -> (x, outputs by name)


class Encoder(nn.Module):
  """Positions -> dropout -> blocks -> norm; every intermediate is returned by name.

  A block is computed as a function of its parameters, so that a loop over blocks (`scan`) and what
  is computed again (`remat`) stand in one place.

  Attributes:
    position: what is added to the tokens (`position.py`).
    position_at: where: input; shared, which adds the same before each block; or every, where
      blocks have positions of their own.
    blocks: `block(x, train) -> (x, outputs by name)`, all with parameters of the same shapes; with
      `scan` all alike but for `drop_path`.
    norm: after the last block.
    remat: one of REMAT.
    scan: whether blocks run in one compiled loop, their parameters stacked; outputs are then, in
      training, their tokens alone.
    normed: blocks before the last whose tokens pass the norm too, outputs 'block_0/normed'.
  """

  position: nn.Module
  blocks: tuple[nn.Module, ...]
  norm: nn.Module
  dropout: float = 0.0
  remat: str = 'none'
  scan: bool = False
  position_at: str = 'input'
  normed: int = 0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    places: Any = None
    if self.position_at != 'every':
      places = self.position.copy(name='posembed_input')(x).astype(x.dtype)
      x = x + places
    outputs = {'embedded': x}
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    if self.is_initializing():
      self.draw_blocks(x)
    scope: Any = self.scope
    rng = scope.rngs.get('dropout') if train else None
    again = places if self.position_at == 'shared' else None
    # What changes some blocks alone lies apart, as the blocks in files do.
    scan = self.scan and not {'perturbations', 'replacements'} & {*self.variables}
    x, named = (self.scan_blocks if scan else self.loop_blocks)(x, rng, train, again)
    norm, last = self.norm.copy(name='encoder_norm'), len(self.blocks) - 1
    for i in range(last - self.normed, last):
      outputs[f'block_{i}/normed'] = norm(named[f'block_{i}/tokens'])
    x = norm(x)
    return x, outputs | named | {'tokens': x}

  @property
  def relative(self) -> bool:
    """Whether attention has relative positions."""
    block: Any = self.blocks[0]
    return block.attention.relative

  def places(self, params: dict[str, Any], length: int, width: int) -> Array | None:
    """What is added to each token, `T D`: at the input, or before the first block; None: nothing.

    Args:
      params: of the encoder, as files have them.
      length: tokens.
    """
    if isinstance(self.position, Nothing):
      return None
    home = params['encoderblock_0'] if self.position_at == 'every' else params
    own = home.get('posembed' if self.position_at == 'every' else 'posembed_input', {})
    own = jax.tree.map(jnp.asarray, own)  # files give NumPy arrays
    table: Any = self.position.apply({'params': own}, jnp.zeros((1, length, width)))
    return table[0]

  def normalise(self, params: dict[str, Any], x: Any) -> Float[Array, '*B T D']:
    """Tokens of any block through the norm after the last one.

    Args:
      params: of the encoder.
    """
    norm: Any = self.norm.clone(parent=None, name=None)
    own = jax.tree.map(jnp.asarray, params['encoder_norm'])
    return norm.apply({'params': own}, x)

  def resampled(self) -> dict[str, str]:
    """Tables of positions that follow the grid, and how, as `Model.resampled` says."""
    homes = ['posembed_input']
    if self.position_at == 'every':
      homes = [f'{name}/posembed' for name in stacked.names(STACK, len(self.blocks))]
    tables: dict[str, str] = getattr(self.position, 'tables', {})
    return {f'{home}/{name}': how for home in homes for name, how in tables.items()}

  def loop_blocks(self, x, rng, train: bool, again) -> tuple[Array, dict[str, Array]]:
    """The blocks one after another, each compiled by itself; before all but the first, `again`.

    While parameters are drawn nothing but shapes counts, and the first block stands for all: what
    `init_with_output` returns has the shapes of a forward pass, and not its values.
    """
    outputs, named = {}, {}
    for i, name in enumerate(stacked.names(STACK, len(self.blocks))):
      if self.is_initializing() and i:
        outputs |= {f'block_{i}/{key}': value for key, value in named.items()}
        continue
      own, mine = self.get_variable('params', name), rng and LazyRng.create(rng, name)
      changes = self.get_variable('perturbations', name)
      x = replaced(x, self.get_variable('replacements', name))
      x = x if again is None or not i else x + again
      x, named = remember(body_of(self.blocks[i], train), self.remat, False)(x, own, mine, changes)
      outputs |= {f'block_{i}/{key}': value for key, value in named.items()}
    return x, outputs

  def scan_blocks(self, x, rng, train: bool, again) -> tuple[Array, dict[str, Array]]:
    """The blocks in a loop over their stacked parameters: one is compiled for all of them."""
    params = self.get_variable('params', STACK)
    if params is None:  # As files have them.
      apart = [self.get_variable('params', name) for name in stacked.names(STACK, len(self.blocks))]
      params = jax.tree.map(lambda *arrays: jnp.stack(arrays), *apart)
    first, count = self.blocks[0].clone(parent=None, name=None), len(self.blocks)
    rates: Any = [block.drop_path for block in self.blocks]  # pyright: ignore
    rates = jnp.array(rates) if any(rates) else None

    def step(x, given):
      i, own, rate = given
      block = first if rate is None else first.clone(drop_path=rate)
      mine = rng and dropout.number_block(rng, STACK, i, count)
      x = x if again is None else x + again * (i > 0).astype(x.dtype)
      x, named = remember(body_of(block, train), self.remat, True)(x, own, mine)
      # A gradient runs through all that a loop returns, read or not.
      return x, {'tokens': x} if train else named

    x, named = jax.lax.scan(step, x, (jnp.arange(count), params, rates))
    return x, {f'block_{i}/{name}': named[name][i] for i in range(count) for name in named}

  def draw_blocks(self, x: Float[Array, 'B T D']) -> None:
    """Draws the parameters of all blocks at once."""
    drawn = draw(self.blocks, self.make_rng('params'), x)
    if self.scan:
      self.put_variable('params', STACK, drawn)
      return
    for i, name in enumerate(stacked.names(STACK, len(self.blocks))):
      own = jax.tree.map(lambda array, i=i: array[i], drawn)
      self.put_variable('params', name, own)


def replaced(x: Float[Array, 'B T D'], change: Any) -> Float[Array, 'B T D']:
  """Tokens, those of which `change['mask']` (`B T 1`) is true being those of `change['tokens']`."""
  return x if change is None else jnp.where(change['mask'], change['tokens'].astype(x.dtype), x)


def draw(blocks: Any, key: Any, x: Float[Array, 'B T D']) -> Any:
  """The parameters of blocks that have the same shapes, stacked.

  One random program for each kind of array instead of one for each array: XLA compiles the
  initialisation of Ti/16 in half the time (4.2 to 2.2 s on two cores).
  """
  one = blocks[0].clone(parent=None, name=None)
  keys = jax.random.split(key, len(blocks))
  return jax.vmap(lambda key: one.init(key, x, False)['params'])(keys)


def body_of(block: Any, train: bool) -> Body:
  """A block as a function `(x, parameters, source of keys or None) -> (x, outputs by name)`.

  A fourth argument, where there is one, is its part of the collection 'perturbations'.
  """
  block = block.clone(parent=None, name=None)

  def body(x, params, rng, changes=None):
    rngs = {} if rng is None else {'dropout': rng}
    also = {} if changes is None else {'perturbations': changes}
    return block.apply({'params': params} | also, x, train, rngs=rngs)

  return body


def remember(body: Body, remat: str, scan: bool) -> Body:
  """`body`, of which the backward pass keeps what `remat` says.

  A loop keeps products alone without being asked: what a compiler would compute again by itself
  cannot cross its border (ViT-B/16, 128 pictures on an H100: 14.3 GB of temporary memory else).
  """
  if remat == 'blocks':
    return jax.checkpoint(body)
  return jax.checkpoint(body, policy=is_product) if remat == 'dots' or scan else body


def is_product(primitive: Any, *_: Any, **__: Any) -> bool:
  """Whether an operation is worth keeping: a matrix product, or a kernel of attention."""
  return primitive.name in PRODUCTS


def build(
  section: dict[str, Any], prefix: int, grid: tuple[int, int], length: int | None = None
) -> Encoder:
  """The published encoder; each part takes its settings from a ViT's complete section.

  Args:
    prefix: how many tokens stand before those of the grid.
    length: how many a token attends to at most; None: all.

  Raises:
    ValueError: a kernel of attention is asked for that cannot run.
  """
  length = length or prefix + grid[0] * grid[1]
  section['attention'] = fused_attention.choose(section, section['device'], length)
  section['elementwise_again'] = section['device'].platform == 'gpu'
  depth, rate = section['depth'], section['drop_path']
  # Eight H100, 64 pictures each: 4.5 instead of 5.0 GB (5.3 with fsdp=8), as it is kept in float32.
  make_norm: Any = section.get('norm', LayerNorm)
  make_norm = nn.remat(make_norm) if section['elementwise_again'] else make_norm
  norm = make_norm(section['epsilon'], dtype=section['dtype'])
  relative = section['positions'] == 'relative'
  attend = take(attention.Attention, section, relative=relative)
  mlp = take(layers.MLPS[section['mlp']], section)
  places = take(POSITIONS[section['positions']], section, prefix=prefix, grid=grid)
  own = places if section['position_at'] == 'every' else None
  make = functools.partial(
    layers.Block, attend, mlp, norm, section['projection_dropout'], section['layer_scale'],
    position=own,
  )  # fmt: skip
  # Linear in depth: the first block is never dropped, the last one at the full rate.
  blocks = tuple(make(drop_path=rate * i / max(1, depth - 1)) for i in range(depth))
  return take(Encoder, section, position=places, blocks=blocks, norm=norm)
