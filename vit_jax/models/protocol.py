"""What callers may know of a model, whatever its family; a family changes what differs for it.

Callers name no family and reach into no submodule: they ask these fields and methods, and call
`model(images, train=False) -> (logits, outputs by name)`. Among the outputs

  tokens            `B T D`, `prefix` first and then `grid` row by row; or a map `B h w C`
  block_0/tokens    the same after each block (or stage), counted from 0, where there are blocks
  features          `B F`: what the head reads

are what `predict`, the token cache and the readout lab look for.
"""

from typing import Any

from flax import linen as nn

# Keys of a section that say how to compute, not what: they never travel with weights, so that
# weights made on one device load on any other.
EXECUTION = ('attention', 'remat', 'scan', 'dtype')


class Model(nn.Module):
  """A classifier of images, as its callers see it.

  Attributes:
    image_size: (height, width) in pixels.
    channels: of the images.
    num_classes: logits; 0: no head.
  """

  image_size: tuple[int, int]
  channels: int
  num_classes: int

  @property
  def grid(self) -> tuple[int, int] | None:
    """(height, width) of the final tokens or map; None where there is none."""
    return None

  @property
  def prefix(self) -> tuple[str, ...]:
    """Names of the tokens before the grid, such as ('class_token',)."""
    return ()

  @property
  def heads(self) -> tuple[str, ...]:
    """Names of heads whose own logits are outputs, 'logits_NAME', beside those of all together."""
    return ()

  def layer_groups(self) -> tuple[str, ...]:
    """Patterns of whole parameter names from the input to the head.

    A name belongs to the last group whose pattern covers it. The first group is what lies below
    the blocks, the last one what belongs to the task (head, readout); those between are the blocks.
    """
    return '.*', 'head/.*'

  def resampled(self) -> dict[str, str]:
    """Parameters whose shape follows the pictures' and how they change with it.

    'tokens' for `(1, T, D)`, prefix first and then the grid; 'channels' for kernels `h w C D`;
    'prefix' for a token of the prefix, which another model of the family may lack.
    """
    return {}

  def sizes(self) -> dict[str, Any]:
    """Sizes by name, for tables and weight files: 'width', 'depth', 'tokens', ..."""
    return {}

  def multiply_adds(self) -> dict[str, int]:
    """Multiply-adds of a forward pass of one image by part, in closed form; {}: nobody knows.

    Those of products alone, each two FLOPs: norms, softmax, biases and activations are left out,
    and the border of a convolution counts as input (`arithmetic.py`).
    """
    return {}

  def summary(self) -> str:
    """What becomes of an image, in a line: the first lines of a run show it."""
    height, width = self.image_size
    grid = f', grid of {self.grid[0]} x {self.grid[1]}' if self.grid else ''
    return f'{type(self).__name__}: images of {height} x {width} x {self.channels}{grid}'
