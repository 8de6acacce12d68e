"""Draws pictures from a model of pixels, one pixel after another, with a cache of keys and values.

Each step computes one token: its attention reads the keys and values that earlier ones left. The
blocks are those of the model with another attention, run in a loop over their stacked parameters.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from vit_jax.models import attention
from vit_jax.runtime.progress import track
from vit_jax.runtime.sections import fields_of

Params = dict[str, Any]


class CachedAttention(attention.Attention):
  """Attention of the next token of a sequence, whose keys and values it adds to the cache.

  Attributes:
    length: of the whole sequence.
  """

  length: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B 1 D'], train: bool
  ) -> tuple[Float[Array, 'B 1 D'], Float[Array, 'B h 1 N']]:
    del train
    batch, _, width = x.shape
    head_dim = width // self.num_heads
    qkv = self.project(x, False).reshape(batch, 1, 3, self.num_heads, head_dim)
    kept = self.variable(
      'cache', 'kept', jnp.zeros, (batch, self.length, 2, self.num_heads, head_dim), qkv.dtype
    )
    place = self.variable('cache', 'place', jnp.zeros, (), jnp.int32)
    kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, qkv[:, :, 1:], place.value, 1)
    scale = head_dim**-0.5 if self.qk_scale is None else self.qk_scale
    keys, values = kept.value[:, :, 0], kept.value[:, :, 1]
    scores = jnp.einsum(
      'bhd,bshd->bhs', qkv[:, 0, 0] * scale, keys, preferred_element_type=jnp.float32
    )
    seen = jnp.arange(self.length) <= place.value
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    y = jnp.einsum('bhs,bshd->bhd', weights.astype(values.dtype), values)
    place.value += 1
    return self.project_out(y.reshape(x.shape)), weights[:, :, None]


def draw(
  model: Any,
  params: Params,
  keys: Any,
  known: Int[np.ndarray, 'B N'],
  given: int,
  temperature: float = 1.0,
  batch_size: int = 16,
) -> Int[np.ndarray, 'B N']:
  """The numbers of the colours of pictures, of which the first pixels are known.

  A picture is a function of its key, whatever batch it is drawn in.

  Args:
    model: causal, with a palette.
    keys: a random key for each picture, `B`.
    known: colours, of which the first `given` of each picture stay.
    temperature: logits are divided by it; 0: always the likeliest colour.
    batch_size: pictures at a time, each with a cache of its own.

  Raises:
    ValueError: the model tells no pixel from those before it, or a temperature below 0.
  """
  check(model, temperature)
  height, count = model.grid[0], len(known)
  whole = stack(params, model.sizes()['depth'])
  size = min(batch_size, count)
  starts = [min(i, count - size) for i in range(0, count, size)]
  done = np.array(known)
  work = [(start, row) for start in starts for row in range(height)]
  state: Any = None
  for start, row in track(work, len(work), 'drawing pixels', 'rows'):
    part = slice(start, start + size)
    if not row:
      state = begin(model, params, jnp.asarray(known[part], jnp.int32))
    state = advance(model, whole, state, keys[part], row, given, temperature)
    if row == height - 1:
      done[part] = np.asarray(state[0])
  return done


def check(model: Any, temperature: float) -> None:
  """Raises a ValueError where nothing can be drawn."""
  if not model.clusters:
    raise ValueError(
      f'a {type(model).__name__} has no palette, so it draws no pixels: give a run of '
      'config.model.name=igpt that was trained with config.objective.name=autoregressive'
    )
  if not model.is_causal:
    raise ValueError(
      'the model was trained as BERT (config.model.causal=False): its pixels see each other, so it '
      'cannot draw one after another; give one of config.objective.name=autoregressive'
    )
  if temperature < 0:
    raise ValueError(f'temperature={temperature} must be at least 0 (0: the likeliest colour)')


def stack(params: Params, depth: int) -> Params:
  """Parameters whose blocks lie in one, as a loop wants them."""
  rest = dict(params['Transformer'])
  blocks = [rest.pop(f'encoderblock_{i}') for i in range(depth)]
  stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *blocks)
  return jax.device_put(params | {'Transformer': rest, 'blocks': stacked})


def cached(model: Any) -> Any:
  """A block of the model that computes one token."""
  block, length = model.Transformer.blocks[0], model.grid[0] * model.grid[1]
  fields = {key: getattr(block.attention, key) for key in fields_of(attention.Attention)}
  return block.clone(attention=CachedAttention(**fields, length=length), parent=None, name=None)


def begin(model: Any, params: Params, colours: Int[Array, 'B N']) -> Any:
  """(colours, empty caches of all blocks) before the first pixel."""
  one = jnp.zeros((len(colours), 1, model.width), model.dtype)
  first = params['Transformer']['encoderblock_0']
  run = functools.partial(cached(model).apply, mutable=['cache'])
  _, made = jax.eval_shape(lambda own, x: run({'params': own}, x, False), first, one)
  depth = model.sizes()['depth']
  caches = jax.tree.map(lambda x: jnp.zeros((depth, *x.shape), x.dtype), made['cache'])
  return colours, caches


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(
  model: Any, params: Params, state: Any, keys: Any, row: Any, given: Any, temperature: Any
):
  """The state after the pixels of one more row, from 0."""
  width = model.grid[1]

  def step(state, place):
    logits, caches = next_logits(model, params, state, place)
    own = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
    new = jax.vmap(functools.partial(choose, temperature=temperature))(own, logits)
    colours = state[0].at[:, place].set(jnp.where(place < given, state[0][:, place], new))
    return (colours, caches), None

  return jax.lax.scan(step, state, row * width + jnp.arange(width))[0]


def next_logits(model: Any, params: Params, state: Any, place: Any) -> Any:
  """(logits of the colour at a place `B K`, caches) of a state with all pixels before it."""
  colours, caches = state
  before = colours[:, jnp.maximum(place - 1, 0)][:, None]
  x = model.apply({'params': params}, before, method='embed_colours')
  x = jnp.where(place == 0, params['start'].astype(x.dtype), x)
  x = x + model.position_embeddings(params)[place].astype(x.dtype)
  block = cached(model)

  def through(x, given):
    own, cache = given
    (x, _), changed = block.apply({'params': own, 'cache': cache}, x, False, mutable=['cache'])
    return x, changed['cache']

  x, caches = jax.lax.scan(through, x, (params['blocks'], caches))
  x = model.Transformer.norm.apply({'params': params['Transformer']['encoder_norm']}, x)
  return model.apply({'params': params}, x, method='predict')[:, 0], caches


def choose(key: Any, logits: Float[Array, 'K'], temperature: Any) -> Int[Array, '']:
  """A colour by its logits; at temperature 0 the likeliest."""
  drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
  return jnp.where(temperature > 0, drawn, logits.argmax(-1))
