"""The encoder: positions, blocks, layer norm; every intermediate by name."""

from flax import linen as nn
import jax
from jaxtyping import Array, Float

from vit_jax.models import initialisers, layers


class PositionEmbedding(nn.Module):
  """A learned vector for each token, the class token's first (table 8, '1-D')."""

  initial: layers.Init = initialisers.official

  @nn.compact
  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    init = self.initial('position', x.shape[-1])
    return x + self.param('pos_embedding', init, (1, *x.shape[1:])).astype(x.dtype)


class Encoder(nn.Module):
  """Positions -> dropout -> blocks -> layer norm; every intermediate is returned by name."""

  depth: int
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  projection_dropout: float = 0.0
  drop_path: float = 0.0
  qkv_bias: bool = True
  qk_scale: float | None = None
  gelu: str = 'tanh'
  epsilon: float = 1e-6
  attention: str = 'auto'
  remat: bool = False
  dtype: str = 'float32'
  initial: layers.Init = initialisers.official

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], train: bool
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    x = PositionEmbedding(self.initial, name='posembed_input')(x)
    outputs = {'embedded': x}
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    if self.is_initializing():
      self.draw_blocks(x)
    for i in range(self.depth):
      x, named = self.block(i, name=f'encoderblock_{i}')(x, train)
      outputs |= {f'block_{i}/{name}': value for name, value in named.items()}
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='encoder_norm')(x)
    return x, outputs | {'tokens': x}

  def block(self, index: int, **kwargs) -> nn.Module:
    """Block `index`, counted from 0."""
    make = nn.remat(layers.Block, static_argnums=(2,)) if self.remat else layers.Block
    return make(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      projection_dropout=self.projection_dropout,
      # Linear in depth: the first block is never dropped, the last one at the full rate.
      drop_path=self.drop_path * index / max(1, self.depth - 1),
      qkv_bias=self.qkv_bias,
      qk_scale=self.qk_scale,
      gelu=self.gelu,
      epsilon=self.epsilon,
      attention=self.attention,
      dtype=self.dtype,
      initial=self.initial,
      **kwargs,
    )

  def draw_blocks(self, x: Float[Array, 'B T D']) -> None:
    """Draws the parameters of all blocks at once.

    One random program for each kind of array instead of one for each array: XLA compiles the
    initialisation of Ti/16 in half the time (4.2 to 2.2 s on two cores).
    """
    one, keys = self.block(0, parent=None), jax.random.split(self.make_rng('params'), self.depth)
    drawn = jax.vmap(lambda key: one.init(key, x, False)['params'])(keys)
    for i in range(self.depth):
      own = jax.tree.map(lambda array, i=i: array[i], drawn)
      self.put_variable('params', f'encoderblock_{i}', own)
