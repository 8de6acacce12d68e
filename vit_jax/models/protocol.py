"""What callers may know of a model, whatever its family; a family changes what differs for it.

Callers name no family and reach into no submodule: they ask these fields and methods, and call
`model(images, train=False) -> (logits, outputs by name)`. Among the outputs

  tokens            `B T D`, `prefix` first and then `grid` row by row; or a map `B h w C`
  block_0/tokens    the same after each block (or stage), counted from 0, where there are blocks
  block_0/attention_weights   `B h T T` over all tokens, where a block has attention of that form
  features          `B F`: what the head reads
  colour_logits     `B N K`, of the palette's colours, where a model has a palette

are what `predict`, the token cache, the readout lab and `interpret` look for.
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

  @property
  def log_probabilities(self) -> bool:
    """Whether logits are logarithms of softmax probabilities, of which no sigmoid can be taken."""
    return False

  @property
  def has_stages(self) -> bool:
    """Whether `embed`, `encode` and `read` can be called alone: a family has all three, or none.

    Calling the model is then one after the other, and `sizes()` has 'patch_size' and 'width'.
    """
    return type(self).embed is not Model.embed

  @property
  def cached_pixels(self) -> int:
    """How many pixels a device of a CPU trains on at once: what it makes stays in the cache.

    ViT-S/16 at 224 pixels, 32 pictures on two devices: 5.8 images/s in two parts each, 5.1 in one.
    """
    return 2**19

  @property
  def clusters(self) -> int:
    """Colours of the palette that pixels are told in; 0: its input is no sequence of colours.

    With a palette a family has stages whose patches are pixels, and `read` also names
    'colour_logits', `B N K`: of the colour at each place.
    """
    return 0

  @property
  def is_causal(self) -> bool:
    """Whether a token sees those before its own place alone, so that pixels can be drawn so."""
    return False

  def colours_of(self, images: Any) -> Any:
    """Normalised images `B H W C` -> the number of each pixel's colour `B N`, row by row.

    Raises:
      ValueError: the family has no palette.
    """
    raise ValueError(self._refusal('palette', 'pixels, config.model.name=igpt'))

  def check_images(self, images: Any) -> None:
    """Raises a ValueError where images `B H W C` are not of the model's size and channels."""
    expected = (*self.image_size, self.channels)
    if images.shape[1:] != expected:
      raise ValueError(
        f'images of (height, width, channels) {images.shape[1:]} given to a model of {expected}'
      )

  def embed(self, images: Any) -> Any:
    """Normalised images `B H W C` -> patch embeddings `B N D`, row by row, without positions.

    Raises:
      ValueError: the family has no stages.
    """
    raise ValueError(self._refusal("stage 'embed'"))

  def encode(self, patches: Any, *, train: bool = False) -> Any:
    """Patch embeddings -> (tokens of the last block `B T D`, the prefix first, outputs by name).

    Raises:
      ValueError: the family has no stages.
    """
    raise ValueError(self._refusal("stage 'encode'"))

  def read(self, tokens: Any) -> Any:
    """Tokens of the last block -> (logits, outputs by name).

    Raises:
      ValueError: the family has no stages.
    """
    raise ValueError(self._refusal("stage 'read'"))

  def _refusal(self, what: str, instead: str = 'patches, such as a ViT') -> str:
    return f'a {type(self).__name__} has no {what}: take a model of {instead}'

  def layer_groups(self) -> tuple[str, ...]:
    """Patterns of whole parameter names from the input to the head.

    A name belongs to the last group whose pattern covers it. The first group is what lies below
    the blocks, the last one what belongs to the task (head, readout); those between are the blocks.
    """
    return '.*', 'head/.*'

  def resampled(self) -> dict[str, str]:
    """Parameters whose shape follows the pictures' and how they change with it.

    'tokens' for `(1, T, D)`, prefix first and then the grid; 'rows' and 'columns' for one
    axis of the grid, `(1, n, D)`; 'channels' for kernels `h w C D`;
    'prefix' for a token of the prefix, which another model of the family may lack; 'offsets' for
    `((2w - 1)^2, h)`, by offset in square windows of side w.
    """
    return {}

  def position_embeddings(self, params: dict[str, Any]) -> Any:
    """What is added to each token at the input: `T D`, prefix first; None where nothing is."""
    name = next((name for name, kind in self.resampled().items() if kind == 'tokens'), None)
    return None if name is None else parameter(params, name)[0]

  def normalise(self, params: dict[str, Any], tokens: Any) -> Any:
    """Tokens `B T D` of any block, as the norm after the last one makes them.

    Raises:
      ValueError: the family has no such norm.
    """
    raise ValueError(self._refusal('norm after its last block'))

  def attention_map(self, outputs: dict[str, Any], block: int) -> Any:
    """Attention of a block, from 0, over the whole image: queries by keys, `B h T T`.

    Tokens are `prefix` first and then `attention_grid(block)`, row by row; a row sums to 1, and is
    0 where a query cannot see. A family whose blocks see windows or axes puts them together here.

    Args:
      outputs: of the model, by name; or what shall be shown like its weights, under their name.

    Returns:
      None where the block has no attention.
    """
    return outputs.get(f'block_{block}/attention_weights')

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of what `by_source` puts before the grid: the prefix, or what a family has there."""
    return self.prefix

  def by_source(self, weights: Any) -> Any:
    """Weights over keys, `... T`, by what is read at each: `sources`, then the grid, `... S`.

    A key is what its place was fed. That is the token of the place itself, but in a family whose
    tokens tell what stands at their place, and so are fed what stands before it.
    """
    return weights

  def attention_grid(self, block: int) -> tuple[int, int] | None:
    """The (height, width) of the grid that `attention_map` of a block, from 0, is over."""
    del block
    return self.grid

  def attention_gaussians(self, params: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Where heads look from a token, block by block, of a family whose heads attend by offset.

    Returns:
      For each block the centres `h 2`, in tokens (rows down, columns right) from query to key, and
      the precisions `h 2 2`, inverses of the covariances; of attention without its content.

    Raises:
      ValueError: the family's heads have no such centres.
    """
    del params
    raise ValueError(self._refusal('attention by offset', 'that, config.model.name=cordonnier'))

  def degenerate_heads(self, params: dict[str, Any]) -> list[list[int]]:
    """Heads of each block, from 0, whose attention by offset has no centre to speak of.

    Raises:
      ValueError: the family's heads do not attend by offset.
    """
    self.attention_gaussians(params)
    return []

  def without_heads(
    self, params: dict[str, Any], heads: list[list[int]]
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """What changes in the section, and the parameters, without some heads of each block, from 0.

    Raises:
      ValueError: the family cannot, or a block would have no head left.
    """
    del params, heads
    raise ValueError(self._refusal('heads that can go', 'those, config.model.name=cordonnier'))

  def perturbation(self, block: int) -> str | None:
    """A name in the collection 'perturbations': what lies there is added to attention weights.

    To those of a block, from 0, in the shape of its output 'attention_weights'; the gradient of
    what is added is that of the weights. None: the family does not offer it.
    """
    del block
    return None

  def replacement(self, block: int) -> str | None:
    """A name in the collection 'replacements': what lies there replaces tokens before a block.

    Before a block, from 0: 'tokens' `B T D` where 'mask' `B T 1` is true. None: the family does not
    offer it.
    """
    del block
    return None

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


def parameter(params: dict[str, Any], name: str) -> Any:
  """The array of a whole name, 'embedding/kernel', in a tree of parameters."""
  found: Any = params
  for word in name.split('/'):
    found = found[word]
  return found
