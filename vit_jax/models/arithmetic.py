"""Multiply-adds of a forward pass of one image in closed form, part by part.

Those of products alone: a multiplication and an addition count once here and as two FLOPs
elsewhere. Norms, softmax, biases and activations are left out; the border that a convolution adds
to its input counts as input, as in every published table.
"""

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
  return {
    'embedding': patches * model.embedding_side**2 * features * width,
    'projections': depth * tokens * 4 * width**2,
    'attention': depth * 2 * tokens**2 * width,
    'mlp': depth * tokens * 2 * width * sizes['mlp_dim'],
    'readout': model.readout.multiply_adds(width),
    'head': of_head(model.readout.shape(width), model.pre_logits or 0, model.num_classes),
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
  image_size: Size, channels: int, width: int, units: tuple[int, ...]
) -> dict[str, int]:
  """A ResNet's `root`, a 7 x 7 convolution in steps of 2 before a pool that does the same, and
  `stage_1` and so on, of bottlenecks whose first one halves the grid but in the first stage.

  Args:
    width: of the root, and of the bottlenecks in the first stage.
    units: bottlenecks of each stage.
  """
  grid = halve(image_size)
  found = {'root': math.prod(grid) * 7 * 7 * channels * width}
  grid, features = halve(grid), width
  for stage, count in enumerate(units):
    inner, total = width * 2**stage, 0
    for unit in range(count):
      after = halve(grid) if stage and not unit else grid
      total += of_bottleneck(math.prod(grid), math.prod(after), features, inner)
      grid, features = after, 4 * inner
    found[f'stage_{stage + 1}'] = total
  return found


def of_bottleneck(before: int, after: int, features: int, inner: int) -> int:
  """A bottleneck: 1 x 1, 3 x 3, 1 x 1 and, where shapes change, the shortcut's projection.

  Args:
    before, after: places of the map that goes in, and of the one that comes out.
    features: channels that go in; four times `inner` come out.
  """
  out = 4 * inner
  projected = features != out or before != after
  reduce, kernel, expand = before * features * inner, after * 9 * inner**2, after * inner * out
  return reduce + kernel + expand + after * features * out * projected


def halve(grid: Size) -> Size:
  """The (height, width) after a step of 2, rounded up."""
  return -(-grid[0] // 2), -(-grid[1] // 2)


def total(model: Model) -> int | None:
  """All multiply-adds of a forward pass of one image; None where a family does not say."""
  parts = model.multiply_adds()
  return sum(parts.values()) if parts else None
