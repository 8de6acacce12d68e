"""Stand-alone self-attention: a ResNet whose 3 x 3 convolutions see by attention (1906.05909).

The bottlenecks are those of ResNet version 1, in the paper's ResNet-26, 38 and 50 form: local
attention takes the place of the middle convolution in the stages that `attention_stages` names, an
average pool of 2 x 2 behind it that of a stride; the stem is convolution or attention. As in the
other ResNets of this house, group norm and standardised 1 x 1 kernels take the place of batch norm,
with as many parameters. What else the paper leaves open: `local_attention.py`.
"""

from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import arithmetic, attention_stem, layers, local_attention, resnet
from vit_jax.models.protocol import Model
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import take

# Units of each stage: paper, section 4.1; digits is ours.
SIZES = {'digits': (1, 1), 'R26': (1, 2, 4, 1), 'R38': (2, 3, 5, 2), 'R50': (3, 4, 6, 3)}
VARIANTS = list(SIZES)
OFFICIAL = dict(
  variant='R50', attention_stages='all', kernel=7, num_heads=8, positions='relative',
  content=True, stem='attention', mixtures=4, standardise='official', group_norm_epsilon=1e-6,
)  # fmt: skip
STEMS = ('attention', 'convolution')
REMAT = ('none', 'blocks')  # What the backward pass computes again: nothing, or units.
WIDTH = 64  # of the stem, and of the bottlenecks in the first stage


class Unit(resnet.PostUnit):
  """A bottleneck whose middle is local attention.

  Attributes:
    local: what takes the place of the 3 x 3 convolution; None: nothing does.
  """

  local: local_attention.LocalAttention | None = None

  def middle(self, x: Float[Array, 'B H W C']) -> tuple[Float[Array, 'B h w C'], dict[str, Array]]:
    if self.local is None:
      return super().middle(x)
    y, weights = self.local.copy(name='attention')(x)
    if self.stride > 1:
      y = nn.avg_pool(y, (2, 2), (2, 2), 'SAME', count_include_pad=False)
    return y, {'local/attention_weights': weights}


class StandAloneResNet(Model):
  """A ResNet of local attention, from normalised images to logits in float32.

  `stage_0` to `stage_3` are the maps `B h w C` after each stage; bottlenecks are counted through
  all stages: `block_7/tokens` is the map after the last one of a ResNet-26, and
  `block_7/local/attention_weights`, `B h w heads k*k`, the weights of its neighbourhoods.

  Attributes:
    units: bottlenecks of each stage.
    attending: whether each stage has attention, or convolution.
    kernel: side k of a neighbourhood.
    mixtures: of the values in a stem of attention.
  """

  units: tuple[int, ...]
  attending: tuple[bool, ...]
  stem: str
  kernel: int
  num_heads: int
  positions: str
  content: bool
  mixtures: int
  standardise: str
  group_norm_epsilon: float
  remat: str = 'none'
  dtype: str = 'float32'

  @property
  def grid(self) -> tuple[int, int]:
    """(height, width) of the last map."""
    return self.maps[-1]

  @property
  def maps(self) -> list[tuple[int, int]]:
    """(height, width) of the map that each stage ends with, every halving rounded up."""
    return grids(self.image_size, len(self.units))

  @property
  def blocks(self) -> list[tuple[int, int]]:
    """The (stage, unit) of each bottleneck, both from 0."""
    return [(stage, unit) for stage, count in enumerate(self.units) for unit in range(count)]

  def stride(self, stage: int, unit: int) -> int:
    """The stride of a bottleneck: the first of each stage but the first one halves the map."""
    return 2 if stage and not unit else 1

  def layer_groups(self) -> tuple[str, ...]:
    """The stem, each bottleneck, and the head."""
    units = [f'{name_of(stage, unit)}/.*' for stage, unit in self.blocks]
    return '.*', *units, 'head/.*'

  def attention_map(self, outputs: dict[str, Any], block: int) -> Any:
    """Attention of a bottleneck over its whole map, 0 beyond the neighbourhood."""
    weights = outputs.get(f'block_{block}/local/attention_weights')
    return None if weights is None else local_attention.over_map(weights, self.kernel)

  def attention_grid(self, block: int) -> tuple[int, int]:
    """The (height, width) of the map that a bottleneck attends over: before its pool."""
    stage, unit = self.blocks[block]
    return self.maps[stage if unit else max(0, stage - 1)]

  def resampled(self) -> dict[str, str]:
    """The kernel that sees the pixels."""
    return {'conv_root/kernel': 'channels'} if self.stem == 'convolution' else {}

  def sizes(self) -> dict[str, Any]:
    """The width of the features, layers as in the name, heads and the side of a neighbourhood."""
    return {
      'width': 4 * WIDTH * 2 ** (len(self.units) - 1), 'depth': 3 * sum(self.units) + 2,
      'num_heads': self.num_heads, 'kernel': self.kernel,
    }  # fmt: skip

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image, by part (`arithmetic.of_local_resnet`)."""
    return arithmetic.of_local_resnet(self, WIDTH)

  def summary(self) -> str:
    """The stem, what each stage sees by, and the maps, in a line."""
    height, width = self.image_size
    kinds = [('convolution', 'attention')[attends] for attends in self.attending]
    maps = ', '.join(f'{h} x {w}' for h, w in self.maps)
    return (
      f'ResNet-{self.sizes()["depth"]}: stem of {self.stem}, stages of {", ".join(kinds)} '
      f'({self.kernel} x {self.kernel}) on maps of {maps}, from images of {height} x {width} x '
      f'{self.channels}'
    )

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W C'], *, train: bool = False
  ) -> tuple[Float[Array, 'B K'], dict[str, Array]]:
    del train  # It has no dropout.
    x = self.root(images)
    outputs = {'root': x}
    for i, (stage, unit) in enumerate(self.blocks):
      x, named = self.unit(stage, unit)(x)
      outputs |= {f'block_{i}/{key}': value for key, value in named.items()}
      outputs[f'block_{i}/tokens'] = outputs[f'stage_{stage}'] = x
    features = logits = x.astype(jnp.float32).mean((1, 2))
    if self.num_classes:
      logits = layers.Dense(self.num_classes, kernel_init=local_attention.LINEAR, name='head')(
        features
      )
    read = {'features': features, 'pre_logits': features, 'logits': logits}
    return logits, outputs | {'tokens': x} | read

  def unit(self, stage: int, unit: int) -> Any:
    """The module of a bottleneck."""
    make: Any = nn.remat(Unit) if self.remat == 'blocks' else Unit
    width, local = WIDTH * 2**stage, None
    if self.attending[stage]:
      local = local_attention.LocalAttention(
        width, self.num_heads, self.kernel, self.positions, self.content, self.dtype, parent=None
      )
    settings = (self.standardise, self.group_norm_epsilon, self.dtype)
    own = (width, self.stride(stage, unit), *settings, local)
    return make(*own, name=name_of(stage, unit))

  def root(self, images: Float[Array, 'B H W C']) -> Float[Array, 'B h w D']:
    """A quarter of each side: attention in blocks, or 7 x 7 convolution and max-pool."""
    settings = (self.group_norm_epsilon, self.dtype)
    if self.stem == 'attention':
      make = attention_stem.AttentionStem
      return make(WIDTH, self.num_heads, self.mixtures, *settings, name='stem')(images)
    convolve = resnet.StandardisedConv(
      WIDTH, 7, 2, 'SAME', self.standardise, self.dtype, name='conv_root'
    )
    x = nn.relu(resnet.GroupNorm(self.group_norm_epsilon, name='gn_root')(convolve(images)))
    return nn.max_pool(x, (3, 3), (2, 2), 'SAME')


def name_of(stage: int, unit: int) -> str:
  """The name of a bottleneck's parameters, of a stage and a place in it, both from 0."""
  return f'block{stage + 1}_unit{unit + 1}'


def grids(image_size: tuple[int, int], count: int) -> list[tuple[int, int]]:
  """(height, width) of the map that each of so many stages ends with."""
  found = [arithmetic.halve(arithmetic.halve(image_size))]
  for _ in range(count - 1):
    found.append(arithmetic.halve(found[-1]))
  return found


def build(
  *, variant: str, image_size: tuple[int, int], attention_stages: str, **section
) -> StandAloneResNet:
  """A ResNet such as 'R50' for images of (height, width).

  Args:
    attention_stages: those with attention: all, none, or some from 1: '3,4'.

  Raises:
    ValueError: no such variant, or a value that is impossible or does not fit.
  """
  check_choice('config.model.variant', variant, SIZES)
  units = SIZES[variant]
  attending = stages_of(attention_stages, len(units))
  check_values(section, image_size)
  maps = grids(image_size, len(units))
  for i, grid in enumerate(maps):
    if attending[i]:
      # The first of several bottlenecks attends before its pool.
      check_kernel(section['kernel'], grid if units[i] > 1 or not i else maps[i - 1], i + 1)
  given: Any = dict(units=units, attending=attending, image_size=image_size)
  return take(StandAloneResNet, section, **given)


def stages_of(wanted: str, count: int) -> tuple[bool, ...]:
  """Which of so many stages attend, by what a person writes.

  Raises:
    ValueError: no such stage.
  """
  if wanted in ('all', 'none'):
    return (wanted == 'all',) * count
  words, known = str(wanted).split(','), [str(i + 1) for i in range(count)]
  for word in words:
    if word not in known:
      raise ValueError(
        f"config.model.attention_stages={wanted}: give stages from 1 to {count}, such as '1,2', "
        'all or none'
      )
  return tuple(stage in words for stage in known)


def check_kernel(kernel: int, grid: tuple[int, int], stage: int) -> None:
  """Raises a ValueError for a neighbourhood that reaches beyond a map from all of its places."""
  most = 2 * min(grid) - 1
  if kernel > most:
    raise ValueError(
      f'config.model.kernel={kernel} is larger than the map: of stage {stage}, {grid[0]} x '
      f'{grid[1]}, a place sees at most {most} x {most}; take a smaller kernel, larger images, or '
      f'leave {stage} out of config.model.attention_stages'
    )


def check_values(section: dict[str, Any], image_size: tuple[int, int]) -> None:
  """Raises a ValueError for names and numbers that cannot be, alone or together."""
  check_choice('config.model.stem', section['stem'], STEMS)
  check_choice('config.model.positions', section['positions'], local_attention.POSITIONS)
  check_choice('config.model.standardise', section['standardise'], resnet.STANDARDISE)
  check_choice('config.model.dtype', section['dtype'], layers.DTYPES)
  check_choice('config.model.remat', section['remat'], REMAT)
  kernel, heads = section['kernel'], section['num_heads']
  if kernel < 1 or kernel % 2 == 0:
    raise ValueError(f'config.model.kernel={kernel} must be odd, with a place in its middle')
  if heads < 1 or WIDTH % (2 * heads):
    raise ValueError(
      f'config.model.num_heads={heads} must divide {WIDTH}, the width of the first stage, into '
      'parts that rows and columns can halve: 1, 2, 4, 8, 16 or 32'
    )
  if section['mixtures'] < 1:
    raise ValueError(f'config.model.mixtures={section["mixtures"]} must be at least 1')
  if not section['content'] and section['positions'] != 'relative':
    raise ValueError(
      'config.model.content=False: with no relative positions nothing is left to attend by; set '
      'config.model.positions=relative'
    )
  side = attention_stem.SIDE
  if section['stem'] == 'attention' and any(length % side for length in image_size):
    raise ValueError(
      f'config.model.stem=attention cuts images into blocks of {side} x {side}, which do not '
      f'divide {image_size[0]} x {image_size[1]}; take other images, or stem=convolution'
    )
