"""Outputs of a frozen model: computed once, kept on disk, memory-mapped, keyed, resumable.

FOLDER/<key>/identity.json      what they depend on; the key is its hash
FOLDER/<key>/progress.json      examples that are done, by split
FOLDER/<key>/<split>.<layer>    rows, such as `T D`: example after example, view after view
FOLDER/<key>/<split>.labels     int32
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import pathlib
import re
import time
from typing import Any

from absl import logging
import jax
from jax import numpy as jnp
from jaxtyping import Array
import numpy as np

from vit_jax import weights
from vit_jax.data import Dataset
from vit_jax.evaluation import store
from vit_jax.evaluation.store import Tokens
from vit_jax.models import tokens
from vit_jax.runtime import atomic, sharding
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

DTYPES = ('float32', 'bfloat16')
SAVE_EVERY = 5.0  # seconds of work that a kill -9 may cost


@dataclasses.dataclass(frozen=True)
class Pass:
  """A pass of a frozen model over a data set, and where its outputs go.

  Attributes:
    model, params: the linen module and its parameters.
    section: the model's section in the passport, which the cache's identity holds.
    data: with the preprocessing that belongs to the weights.
    mesh: the devices.
    layers: names of outputs: 'tokens', 'block_3/tokens', 'features', or any other.
    folder: below which caches lie.
    dtype: in which they are kept.
    views: of each training picture, changed as in training; 0: one, as evaluation sees it.
    plain: with views, one more of each training picture as evaluation sees it.
    seed: of those changes.
    batch_size: of all devices together.
    limit: bytes that the cache may take.
    readouts: modules without parameters by layer: what they make of its tokens is kept instead.
    raw: keep tokens as the blocks leave them, without the norm after the last one.
    earlier: of the layer 'tokens': class tokens of so many blocks before the last go before them.
    section_key: the section of the config that `limit` and `folder` come from, named in errors.
  """

  model: Any
  params: Any
  section: dict[str, Any]
  data: Dataset
  mesh: Any
  layers: tuple[str, ...]
  folder: pathlib.Path
  dtype: str = 'float32'
  views: int = 0
  plain: bool = False
  seed: int = 0
  batch_size: int = 256
  limit: float = 20e9
  readouts: dict[str, Any] = dataclasses.field(default_factory=dict)
  raw: bool = False
  earlier: int = 0
  section_key: str = 'config.explore'

  def run(self) -> dict[str, dict[str, Tokens]]:
    """Computes what is not on disk yet; what was kept by split and layer.

    With `plain`, the split 'train_plain' holds the training pictures as evaluation sees them.

    Raises:
      ValueError: no such output or tokens, a cache larger than `limit`, or another process is
        writing it.
      OSError: no space is left; what is done stays.
    """
    check_choice('config.explore.cache_dtype', self.dtype, DTYPES)
    self.check_size()
    folder = self.folder / self.key
    self.tell(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / 'identity.json', json.dumps(self.identity, indent=2))
    with store.locked(folder):
      done = store.read_progress(folder)
      for split in self.splits:
        if done.get(split, 0) < self.count(split):
          self.fill(folder, split, done)
    found = {split: self.open(folder, split) for split in self.splits}
    if self.plain:
      both = found['train']
      found['train'] = {k: Tokens(x.values[:-1], x.labels) for k, x in both.items()}
      found['train_plain'] = {k: Tokens(x.values[-1:], x.labels) for k, x in both.items()}
    return found

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(split for split in ('train', 'test') if split in self.data.splits)

  def views_of(self, split: str) -> int:
    """Rows of a file for each example."""
    return max(1, self.views + self.plain) if split == 'train' else 1

  def count(self, split: str) -> int:
    """Rows of a file: views times examples."""
    return self.views_of(split) * len(self.data.splits[split])

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """The shape of what is kept of one example, by layer."""
    image = jax.ShapeDtypeStruct((1, *self.data.image_shape), jnp.uint8)
    found = jax.eval_shape(self._forward, self.params, image)
    return {layer: x.shape[1:] for layer, x in found.items()}

  def row(self, layer: str) -> int:
    """Bytes of one example in one layer."""
    return math.prod(self.shapes[layer]) * jnp.dtype(self.dtype).itemsize

  @property
  def size(self) -> int:
    """Bytes of the whole cache."""
    rows = sum(self.count(split) for split in self.splits)
    return rows * sum(self.row(layer) for layer in self.layers)

  def check_size(self) -> None:
    """Raises a ValueError with the remedies when the cache would be too large."""
    if self.size > self.limit:
      remedies = ['raise it']
      remedies += ['take fewer layers'] * (len(self.layers) > 1)
      remedies += ['take fewer views'] * (self.views > 0)
      remedies += ['halve it with --config.explore.cache_dtype=bfloat16'] * (
        self.dtype != DTYPES[1] and self.section_key == 'config.explore'
      )
      remedies += ['take fewer training examples'] * (len(remedies) == 1)
      raise ValueError(
        f'the cache would take {self.size / 1e9:.2g} GB, more than --{self.section_key}.cache_gb='
        f'{self.limit / 1e9:g}: {", or ".join(remedies)}'
      )

  @functools.cached_property
  def key(self) -> str:
    """Names the cache: a hash of `identity`."""
    content = json.dumps(self.identity, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """All that the cached values depend on."""
    seen: dict[str, Any] = {
      'format': 2,
      'weights': store.hash_of_params(self.params),
      'model': self.section,
      'computed_in': getattr(self.model, 'dtype', 'float32'),
      'preprocess': dataclasses.asdict(self.data.preprocess),
      'data': {split: store.hash_of_split(self.data, split) for split in self.splits},
      'layers': list(self.layers),
      'tokens': {layer: describe(module) for layer, module in self.readouts.items()} or 'all',
      'dtype': self.dtype,
    }
    seen |= {'norm': 'none'} if self.raw else {}
    seen |= {'earlier_class_tokens': self.earlier} if self.earlier else {}
    if self.views:
      augment = dataclasses.asdict(self.data.augment)
      seen |= {'views': self.views, 'seed': self.seed, 'augment': augment, 'plain': self.plain}
    return seen

  def tell(self, folder: pathlib.Path) -> None:
    """Says when the caches that are there belong to something else."""
    others = [path for path in self.folder.glob('*/identity.json') if path.parent != folder]
    if others and not folder.exists():
      logging.info(
        '%d cache(s) in %s are of other weights, data or settings and stay unused',
        len(others),
        self.folder,
      )

  def fill(self, folder: pathlib.Path, split: str, done: dict[str, int]) -> None:
    """Computes the rows of a split that are missing, and counts them in `done`."""
    count = self.count(split)
    start = done.get(split, 0)
    if start:
      logging.info('%s: %d of %d pictures are in the cache already', split, start, count)
    files = {layer: store.path_of(folder, split, layer) for layer in self.layers}
    with contextlib.ExitStack() as stack:
      opened = {
        layer: stack.enter_context(store.reopen(path, start * self.row(layer)))
        for layer, path in files.items()
      }
      labels = stack.enter_context(store.reopen(folder / f'{split}.labels', start * 4))
      last = time.monotonic()
      stack.callback(lambda: store.settle([*opened.values(), labels], folder, done))
      sizes = self.write(self.batches(split, start), opened, labels, folder)
      for size in track(sizes, count - start, f'tokens of {split}', 'pictures'):
        done[split] = done.get(split, 0) + size
        if time.monotonic() - last > SAVE_EVERY:
          store.settle([*opened.values(), labels], folder, done)
          last = time.monotonic()

  def write(self, rows, opened, labels, folder: pathlib.Path) -> Iterator[int]:
    """Appends each batch to the files; yields its size."""
    try:
      for outputs, label in rows:
        for layer, file in opened.items():
          store.append(file, outputs[layer])
        store.append(labels, label.astype(np.int32))
        yield len(label)
    except OSError as error:
      if error.errno != errno.ENOSPC:
        raise
      raise OSError(
        f'no space is left for the tokens in {folder}; what is done stays. Free some, or choose '
        f'another place with --{self.section_key}.cache, and start the same command again'
      ) from None

  def batches(self, split: str, start: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Values by layer and labels of the real rows of each batch, from row `start` on."""
    size, batch_size = len(self.data.splits[split]), self.batch_size
    for number in range(start // size, self.views_of(split)):
      skipped = max(0, start - number * size)
      # The plain view comes last.
      view = (self.seed, number) if split == 'train' and number < self.views else None
      # Whole batches, so that every row is computed in the same company however often we stop.
      first = skipped // batch_size
      for i, batch in enumerate(self.data.epoch(split, batch_size, first=first, view=view), first):
        placed = sharding.place_batch(batch, self.mesh)
        outputs = jax.device_get(self.forward(self.params, placed['image']))
        keep = batch['mask'] & (i * batch_size + np.arange(batch_size) >= skipped)
        yield {layer: x[keep] for layer, x in outputs.items()}, batch['label'][keep]

  @functools.cached_property
  def forward(self):
    """`forward(params, uint8 pictures) -> {layer: values}`, compiled."""
    everywhere = sharding.replicated(self.mesh)
    return sharding.jit_on(self.mesh, self._forward, out_shardings=everywhere)

  def _forward(self, params, images) -> dict[str, Array]:
    _, named = weights.make_forward(self.model, self.data.preprocess)(params, images)
    for layer in self.layers:
      if not re.fullmatch(tokens.MEAN, layer):  # Of blocks, which `read_layer` counts.
        check_choice('output of the model', layer, named)
    found = {layer: tokens.read_layer(named, layer, self.raw) for layer in self.layers}
    if self.earlier:
      first = tokens.earlier_class_tokens(self.model, params, named, self.earlier, self.raw)
      found['tokens'] = jnp.concatenate([first, found['tokens']], axis=1)
    for layer, module in self.readouts.items():
      found[layer] = module.apply({}, found[layer])
    return {layer: x.astype(self.dtype) for layer, x in found.items()}

  def open(self, folder: pathlib.Path, split: str) -> dict[str, Tokens]:
    """The files of a split as arrays."""
    shape = (self.views_of(split), len(self.data.splits[split]))
    dtype = jnp.dtype(self.dtype)
    return {
      layer: store.open_tokens(folder, split, layer, dtype, (*shape, *self.shapes[layer]))
      for layer in self.layers
    }


def describe(module: Any) -> str:
  """The class and settings of a linen module without parameters, as an identity."""
  fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
  own = {name: x for name, x in fields.items() if name not in ('parent', 'name')}
  return f'{type(module).__name__} {json.dumps(own, sort_keys=True, default=str)}'
