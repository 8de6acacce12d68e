"""Multiply-adds of a forward pass of one image in closed form, part by part.

Those of products alone: a multiplication and an addition count once here and as two FLOPs
elsewhere. Norms, softmax, biases and activations are left out; the border that a convolution adds
to its input counts as input, as in every published table.
"""

from collections.abc import Callable
import math
from typing import Any

from vit_jax.models.protocol import Model

Size = tuple[int, int]


def of_transformer(model: Any, features: int) -> dict[str, int]:
  """The parts of a ViT: `projections` are query, key, value and output; `attention` the products of
  queries with keys and of weights with values.

  Args:
    model: a VisionTransformer.
    features: channels of what is cut into patches.
  """
  sizes, width, patches = model.sizes(), model.width, math.prod(model.grid)
  depth, tokens = sizes['depth'], sizes['num_tokens']
  mlp = model.Transformer.blocks[0].mlp
  offsets = (2 * tokens - 1) * model.Transformer.relative
  return {
    'embedding': patches * model.embedding_side**2 * features * width,
    'projections': depth * tokens * 4 * width**2,
    'attention': depth * tokens * (2 * tokens + offsets) * width,
    'mlp': depth * tokens * mlp.products * width * mlp.mlp_dim,
    'readout': model.readout.multiply_adds(width),
    'head': of_head(model.readout.shape(width), model.pre_logits or 0, model.num_classes),
  }


def of_axial(model: Any) -> dict[str, int]:
  """The parts of an Axial-ViT: as a ViT's, with two attentions along lines and two MLPs a block."""
  parts, relative = of_transformer(model, model.channels), model.Transformer.relative
  depth, tokens = model.sizes()['depth'], math.prod(model.grid)
  keys = sum(2 * line + (2 * line - 1) * relative for line in model.grid)
  return parts | {
    'projections': 2 * parts['projections'],
    'attention': depth * tokens * keys * model.width,
    'mlp': 2 * parts['mlp'],
  }


def of_swin(model: Any) -> dict[str, int]:
  """The parts of a Swin: `merging` is what halves maps; a map is filled up to whole windows.

  Args:
    model: a SwinTransformer.
  """
  side, width = model.patch_size, model.width
  found = dict.fromkeys(('embedding', 'projections', 'attention', 'mlp', 'merging', 'head'), 0)
  found['embedding'] = math.prod(model.maps[0]) * side**2 * model.channels * width
  for i, (stage, grid) in enumerate(zip(model.stages, model.maps, strict=True)):
    inner, places = width * 2**i, math.prod(grid)
    found['merging'] += places * 2 * inner * inner * (i > 0)
    for block in stage.blocks:
      windows = block.attention.windows
      filled = math.prod(windows.filled)
      found['projections'] += filled * 4 * inner**2
      found['attention'] += filled * 2 * math.prod(windows.size) * inner
      found['mlp'] += places * 2 * inner * block.mlp.mlp_dim
  last = width * 2 ** (len(model.stages) - 1)
  return found | {'head': last * model.num_classes}


def of_convolving(model: Any) -> dict[str, int]:
  """The parts of a model whose heads attend by offset, each over whole tokens.

  Args:
    model: a ConvolvingTransformer.
  """
  sizes, width = model.sizes(), model.width
  depth, tokens = sizes['depth'], sizes['num_tokens']
  found = {'embedding': tokens * model.patch_size**2 * model.channels * width}
  found |= dict.fromkeys(('positions', 'projections', 'attention'), 0)
  for block in model.Transformer.blocks:
    heads, content = block.attention.encoding.num_heads, block.attention.content
    found['positions'] += heads * block.attention.encoding.multiply_adds()
    found['projections'] += tokens * width**2 * (1 + heads * (1 + 2 * content))
    found['attention'] += tokens**2 * width * heads * (1 + content)
  return found | {
    'mlp': depth * tokens * 2 * width * sizes['mlp_dim'],
    'head': width * model.num_classes,
  }


def of_head(shape: tuple[int, ...], pre_logits: int, num_classes: int) -> int:
  """The layers from the features of an image, of this shape, to its logits.

  Args:
    pre_logits: width of a layer before the head; 0: there is none.
  """
  *rows, width = shape
  if not pre_logits:
    return math.prod(rows) * width * num_classes
  return math.prod(rows) * pre_logits * (width + num_classes)


def of_resnet(
  image_size: Size,
  channels: int,
  width: int,
  units: tuple[int, ...],
  middle: Callable[[Size, Size, int], int] | None = None,
  root: int = 7,
) -> dict[str, int]:
  """A ResNet's `root`, a convolution, and `stage_1` and so on, of bottlenecks, whose first one
  halves the grid but in the first stage.

  Args:
    width: of the root, and of the bottlenecks in the first stage.
    units: bottlenecks of each stage.
    middle: multiply-adds of a bottleneck's middle, of the maps before and after it and its width;
      None: a 3 x 3 convolution.
    root: side of its kernel: 7, in steps of 2 before a pool of such steps; or 3, in steps of 1.
  """
  middle = middle or (lambda before, after, inner: math.prod(after) * 9 * inner**2)
  grid = halve(image_size) if root == 7 else image_size
  found = {'root': math.prod(grid) * root**2 * channels * width}
  grid, features = halve(grid) if root == 7 else grid, width
  for stage, count in enumerate(units):
    inner, total = width * 2**stage, 0
    for unit in range(count):
      after = halve(grid) if stage and not unit else grid
      total += of_bottleneck(math.prod(grid), math.prod(after), features, inner)
      total += middle(grid, after, inner)
      grid, features = after, 4 * inner
    found[f'stage_{stage + 1}'] = total
  return found


def of_bottleneck(before: int, after: int, features: int, inner: int) -> int:
  """A bottleneck but for its middle: 1 x 1, 1 x 1 and, where shapes change, the shortcut's.

  Args:
    before, after: places of the map that goes in, and of the one that comes out.
    features: channels that go in; four times `inner` come out.
  """
  out = 4 * inner
  projected = features != out or before != after
  reduce, expand = before * features * inner, after * inner * out
  return reduce + expand + after * features * out * projected


def of_lines(before: Size, after: Size, inner: int) -> int:
  """Attention along columns and rows of the map that goes in, relative in queries, keys, values."""
  del after  # Its steps are a pool behind it.
  places = math.prod(before)
  each = [3 * inner**2 + (3 * line + 2 * (2 * line - 1)) * inner for line in before]
  return places * sum(each)


def of_local_resnet(model: Any, width: int) -> dict[str, int]:
  """The parts of a ResNet of local attention, whose neighbours beyond the border count.

  Args:
    model: a StandAloneResNet.
    width: of the stem, and of the bottlenecks in the first stage.
  """
  attending = {width * 2**stage: attends for stage, attends in enumerate(model.attending)}

  def middle(before: Size, after: Size, inner: int) -> int:
    if not attending[inner]:
      return math.prod(after) * 9 * inner**2
    projections = 2 + model.content
    return math.prod(before) * inner * (projections * inner + 2 * model.kernel**2)

  found = of_resnet(model.image_size, model.channels, width, model.units, middle)
  if model.stem == 'attention':
    found['root'] = of_attention_stem(math.prod(model.image_size), model, width)
  last = 4 * width * 2 ** (len(model.units) - 1)
  return found | {'head': last * model.num_classes}


def of_attention_stem(pixels: int, model: Any, width: int) -> int:
  """Attention in blocks of 4 x 4 pixels, whose values each place makes by a kernel of its own."""
  mixture = 16 * model.mixtures * width * (1 + model.channels)
  return pixels * width * (3 * model.channels + 3 * 16) + mixture


def halve(grid: Size) -> Size:
  """The (height, width) after a step of 2, rounded up."""
  return -(-grid[0] // 2), -(-grid[1] // 2)


def total(model: Model) -> int | None:
  """All multiply-adds of a forward pass of one image; None where a family does not say."""
  parts = model.multiply_adds()
  return sum(parts.values()) if parts else None
