"""A stage of a Swin: patches merged, then blocks within windows (arXiv:2103.14030, section 3.1)."""

from typing import Any

from flax import linen as nn
from flax.core.scope import LazyRng
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import encoder, layers
from vit_jax.models.initialisers import INITIALISERS
from vit_jax.models.normalisation import LayerNorm
from vit_jax.models.windows import WindowAttention, Windows
from vit_jax.runtime.sections import take


class PatchMerging(nn.Module):
  """Four neighbours side by side, normalised, and mapped to twice the width."""

  epsilon: float
  dtype: str
  initialisers: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    x = LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(jnp.concatenate(quarters, -1))
    kernel = INITIALISERS[self.initialisers]('mlp', x.shape[-1])
    return layers.Dense(x.shape[-1] // 2, False, self.dtype, kernel, name='reduction')(x)


class Stage(nn.Module):
  """Blocks on one map; all stages but the first begin by merging patches.

  Attributes:
    blocks: as `layers.Block`, of `WindowAttention`.
    merge: what halves the map; None: nothing.
    remat: as an encoder's: what the backward pass computes again.
  """

  blocks: tuple[nn.Module, ...]
  merge: PatchMerging | None = None
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B H W C'], train: bool
  ) -> tuple[Float[Array, 'B h w D'], list[dict[str, Array]]]:
    """The last map, and what each block computed, by name."""
    if self.merge is not None:
      x = self.merge.copy(name='merging')(x)
    shape, outputs = x.shape, []
    x = x.reshape(shape[0], -1, shape[-1])
    names = [f'block_{i}' for i in range(len(self.blocks))]
    if self.is_initializing():
      drawn = encoder.draw(self.blocks, self.make_rng('params'), x)
      for i, name in enumerate(names):
        self.put_variable('params', name, jax.tree.map(lambda array, i=i: array[i], drawn))
    scope: Any = self.scope
    rng = scope.rngs.get('dropout') if train else None
    for name, block in zip(names, self.blocks, strict=True):
      if self.is_initializing() and outputs:  # As an encoder's: the first stands for all.
        outputs.append(outputs[0])
        continue
      run = encoder.remember(encoder.body_of(block, train), self.remat, False)
      own, mine = self.get_variable('params', name), rng and LazyRng.create(rng, name)
      x, named = run(x, own, mine)
      named['window/attention_weights'] = named.pop('attention_weights')
      outputs.append(named | {'tokens': x.reshape(shape)})
    return x.reshape(shape), outputs


def build_stage(
  section: dict[str, Any],
  width: int,
  num_heads: int,
  grid: tuple[int, int],
  rates: list[float],
  merge: bool,
) -> Stage:
  """A stage of as many blocks as there are rates of drop path."""
  norm = LayerNorm(section['epsilon'], dtype=section['dtype'])
  mlp = take(layers.MlpBlock, section, mlp_dim=4 * width)
  blocks = []
  for j, rate in enumerate(rates):
    windows = Windows.of(grid, section['window'], shifted=bool(j % 2))
    attend = take(WindowAttention, section, num_heads=num_heads, windows=windows)
    blocks.append(take(layers.Block, section, attention=attend, mlp=mlp, norm=norm, drop_path=rate))
  merging = take(PatchMerging, section) if merge else None
  return Stage(tuple(blocks), merging, section['remat'])
