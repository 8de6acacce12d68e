"""The tokens of a frozen model: computed once, kept on disk, memory-mapped, keyed, resumable.

FOLDER/<key>/identity.json      what the tokens depend on; the key is its hash
FOLDER/<key>/progress.json      examples that are done, by split
FOLDER/<key>/<split>.<layer>    rows of `T D`, example after example, view after view
FOLDER/<key>/<split>.labels     int32
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import pathlib
import time
from typing import Any

from absl import logging
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vit_jax import sharding
from vit_jax.checkpoint import write_whole
from vit_jax.choices import choose
from vit_jax.data import Dataset
from vit_jax.evaluation import store
from vit_jax.progress import track

DTYPES = ('float32', 'bfloat16')
SAVE_EVERY = 5.0  # seconds of work that a kill -9 may cost


@dataclasses.dataclass(frozen=True)
class Tokens:
  """All tokens of one layer of one split.

  Attributes:
    values: `V N T D`, memory-mapped: views, examples, tokens, width.
    labels: `N`.
  """

  values: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pass:
  """A pass of a frozen model over a data set, and where its tokens go.

  Attributes:
    model, params: the linen module and its parameters.
    data: with the preprocessing that belongs to the weights.
    mesh: the devices.
    layers: names of outputs, 'tokens' or 'block_3/tokens'.
    folder: below which caches lie.
    dtype: in which tokens are kept.
    views: of each training picture, changed as in training; 0: one, as evaluation sees it.
    seed: of those changes.
    batch_size: of all devices together.
    limit: bytes that the cache may take.
  """

  model: Any
  params: Any
  data: Dataset
  mesh: Any
  layers: tuple[str, ...]
  folder: pathlib.Path
  dtype: str = 'float32'
  views: int = 0
  seed: int = 0
  batch_size: int = 256
  limit: float = 20e9

  def run(self) -> dict[str, dict[str, Tokens]]:
    """Computes what is not on disk yet; tokens by split and layer.

    Raises:
      ValueError: the cache would be larger than `limit`, or another process is writing it.
      OSError: no space is left; what is done stays.
    """
    choose('config.explore.cache_dtype', self.dtype, DTYPES)
    self.check_size()
    folder = self.folder / self.key
    self.tell(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / 'identity.json', json.dumps(self.identity, indent=2))
    with store.locked(folder):
      done = store.read_progress(folder)
      for split in self.splits:
        if done.get(split, 0) < self.count(split):
          self.fill(folder, split, done)
    return {split: self.open(folder, split) for split in self.splits}

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(split for split in ('train', 'test') if split in self.data.splits)

  def views_of(self, split: str) -> int:
    return max(1, self.views) if split == 'train' else 1

  def count(self, split: str) -> int:
    """Rows of a file: views times examples."""
    return self.views_of(split) * len(self.data.splits[split])

  @property
  def row(self) -> int:
    """Bytes of the tokens of one example in one layer."""
    return self.model.num_tokens * self.model.width * jnp.dtype(self.dtype).itemsize

  def check_size(self) -> None:
    """Raises a ValueError when the cache would be too large."""
    total = sum(self.count(split) for split in self.splits) * self.row * len(self.layers)
    if total > self.limit:
      raise ValueError(
        f'the tokens would take {total / 1e9:.1f} GB, more than --config.explore.cache_gb='
        f'{self.limit / 1e9:g}: raise it, take fewer layers or views, or halve them with '
        '--config.explore.cache_dtype=bfloat16'
      )

  @functools.cached_property
  def key(self) -> str:
    """Names the cache: a hash of `identity`."""
    content = json.dumps(self.identity, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """All that the tokens depend on."""
    seen: dict[str, Any] = {
      'format': 1,
      'weights': store.hash_of_params(self.params),
      'model': repr(self.model),
      'preprocess': dataclasses.asdict(self.data.preprocess),
      'data': {split: store.hash_of_split(self.data, split) for split in self.splits},
      'layers': list(self.layers),
      'dtype': self.dtype,
    }
    if self.views:
      augment = dataclasses.asdict(self.data.augment)
      seen |= {'views': self.views, 'seed': self.seed, 'augment': augment}
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
      opened = {layer: stack.enter_context(store.reopen(path, start * self.row)) for layer, path
                in files.items()}  # fmt: skip
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
        'another place with --config.explore.cache, and start the same command again'
      ) from None

  def batches(self, split: str, start: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Tokens by layer and labels of the real rows of each batch, from row `start` on."""
    size, batch_size = len(self.data.splits[split]), self.batch_size
    for number in range(start // size, self.views_of(split)):
      skipped = max(0, start - number * size)
      view = (self.seed, number) if self.views and split == 'train' else None
      # Whole batches, so that every row is computed in the same company however often we stop.
      first = skipped // batch_size
      for i, batch in enumerate(self.data.epoch(split, batch_size, first=first, view=view), first):
        placed = sharding.place_batch(batch, self.mesh)
        outputs = jax.device_get(self.forward(self.params, placed['image']))
        keep = batch['mask'] & (i * batch_size + np.arange(batch_size) >= skipped)
        yield {layer: x[keep] for layer, x in outputs.items()}, batch['label'][keep]

  @functools.cached_property
  def forward(self):
    """(params, uint8 pictures) -> tokens by layer."""
    return jax.jit(self._forward, out_shardings=sharding.replicated(self.mesh))

  def _forward(self, params, images) -> dict[str, Array]:
    _, named = self.model.apply({'params': params}, self.data.preprocess.normalise(images))
    return {layer: read_layer(named, layer).astype(self.dtype) for layer in self.layers}

  def open(self, folder: pathlib.Path, split: str) -> dict[str, Tokens]:
    """The files of a split as arrays."""
    shape = (self.views_of(split), len(self.data.splits[split]))
    tokens = (self.model.num_tokens, self.model.width)
    labels = np.fromfile(folder / f'{split}.labels', np.int32).reshape(shape)[0]
    return {
      layer: Tokens(
        np.memmap(
          store.path_of(folder, split, layer), jnp.dtype(self.dtype), 'r', shape=shape + tokens
        ),
        labels,
      )
      for layer in self.layers
    }


def read_layer(named: dict[str, Array], layer: str) -> Float[Array, 'B T D']:
  """The tokens of a layer; those of inner blocks normalised, without learned scale and shift.

  The last layer passes the encoder's norm; without one, the growing residual stream of the blocks
  would be compared at other scales.
  """
  x = named[layer].astype(jnp.float32)
  if layer == 'tokens':
    return x
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
