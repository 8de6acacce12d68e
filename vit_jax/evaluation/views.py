"""Ways to read a frozen model: few-shot, nearest neighbours and linear probes see its features.

While a run trains, features are computed as they are asked for and kept in memory. A report of
finished weights fills the token cache (`features.py`), which the readout lab reads too.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import Any, Protocol, runtime_checkable

import jax
from jax import numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.data import sources
from vit_jax.evaluation import candidates, features
from vit_jax.evaluation.store import Tokens
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.whole_split import Collector
from vit_jax.models import tokens
from vit_jax.runtime import sharding

NATIVE = 'native'
ROWS = 4096  # examples whose features or labels are read at once


@dataclasses.dataclass(frozen=True)
class View:
  """One way to read a frozen model.

  Attributes:
    suffix: of the names of its numbers; '' where it is the only one.
    output: the name of an output of the model.
    readout: a module without parameters that makes a vector of tokens; None: it is one.
  """

  suffix: str
  output: str
  readout: Any = None

  def read(self, x: Any) -> Any:
    """Tokens `B T D`, or features `B F` as they are -> features `B F`, in float32."""
    x = x.astype(jnp.float32)
    return x if self.readout is None else self.readout.apply({}, x)


def views_of(subject: Subject, layers: str, readout: str) -> tuple[View, ...]:
  """The ways to read a model that a person asks for.

  Args:
    layers: 'last', 'all', or blocks from 1, '4,8', or '4+8'.
    readout: native: what the head reads, of inner blocks by the model's own readout; or a row of
      READOUTS without parameters, such as mean or patch_3.

  Raises:
    ValueError: no such block or readout, or one that has to be trained.
  """
  names = [*subject.outputs]
  if readout == NATIVE and layers == 'last':
    return (View('', native_output(subject)),)
  if 'tokens' not in names or not subject.model.grid:
    raise ValueError(
      f'config.evaluation: {layers=} and {readout=} read tokens on a grid, and the model names '
      f"none; take layers='last' with readout='{NATIVE}'"
    )
  chosen = tokens.layer_names(names, layers.replace('+', ','), 'config.evaluation: layers')
  name = readout if readout != NATIVE else own_readout(subject)
  blocks = tokens.block_names(names)
  views = []
  for output in chosen:
    number = blocks.index(output) + 1 if output in blocks else len(blocks)
    suffix = f'_block_{number}' if len(chosen) > 1 else ''
    # After the last block those that the model itself reads, normalised.
    seen = 'tokens' if number == len(blocks) else output
    views.append(View(suffix, seen, readout_of(subject, name, seen)))
  return tuple(views)


def native_output(subject: Subject) -> str:
  """What the head reads: after the tanh layer where there is one."""
  found = 'pre_logits' if subject.passport.model.get('pre_logits') else 'features'
  if found not in subject.outputs or len(subject.outputs[found].shape) != 2:
    raise ValueError(
      f"config.evaluation: readout='{NATIVE}': the model's own readout makes no vector of an "
      "image; choose another, such as 'mean'"
    )
  return found


def own_readout(subject: Subject) -> str:
  """The name of the readout that the model itself has, 'patch_3' for patch 3; else 'mean'."""
  name, behind, words = (subject.passport.readout or 'mean').partition('+')
  number = subject.passport.model.get('patch_index')
  return (f'patch_{number}' if name == 'patch' else name) + behind + words


def readout_of(subject: Subject, name: str, output: str) -> Any:
  """The module of a readout without parameters, for the tokens or the map of an output."""
  seen = subject.outputs[output].shape
  shape = jax.eval_shape(tokens.rows, subject.outputs[output]).shape[1:]
  key, section = 'config.evaluation: readout', subject.passport.model
  grid = seen[1:3] if len(seen) == 4 else None  # Earlier maps of a pyramid are larger.
  found = candidates.choose_candidates((name,), subject.model, section, shape, key, grid)
  if len(found) != 1 or found[0].learned or found[0].module is None or found[0].batch:
    raise ValueError(
      f'{key}={name} is not one readout without parameters, such as class_token, mean or patch_3; '
      'what has to be trained is compared by config.run=explore'
    )
  return found[0].module


@runtime_checkable
class Features(Protocol):
  """The features of a split, and `labels`: the class of each example, `N`."""

  @property
  def labels(self) -> np.ndarray: ...

  def read(self, rows: np.ndarray) -> tuple[Float[np.ndarray, 'n F'], ...]:
    """The features of some examples, one array a view."""
    ...


@dataclasses.dataclass(frozen=True)
class Computed:
  """Features that are computed when they are asked for, on all devices and in all processes."""

  subject: Subject
  views: tuple[View, ...]
  collect: Collector
  params: Any
  split: str
  labels: np.ndarray

  def read(self, rows: np.ndarray) -> tuple[Float[np.ndarray, 'n F'], ...]:
    """The features of some examples, one array a view."""
    data = self.subject.data
    some = data.splits[self.split].take(rows)
    part = dataclasses.replace(data, splits=data.splits | {self.split: some})
    found = self.collect(self.params, part, self.split)
    return tuple(found[view.output] for view in self.views)


@dataclasses.dataclass(frozen=True)
class Stored:
  """Features that lie on disk, or tokens that become features when they are read."""

  views: tuple[View, ...]
  kept: dict[str, Tokens]
  whole: bool  # Whether all tokens are there.

  @property
  def labels(self) -> np.ndarray:
    return self.kept[self.views[0].output].labels

  def read(self, rows: np.ndarray) -> tuple[Float[np.ndarray, 'n F'], ...]:
    """The features of some examples, one array a view."""
    return tuple(self._read(view, rows) for view in self.views)

  def _read(self, view: View, rows: np.ndarray) -> np.ndarray:
    values = self.kept[view.output].values[0]
    if not self.whole:
      return np.asarray(values[rows], np.float32)
    parts = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    return np.concatenate([np.asarray(view.read(jnp.asarray(values[part]))) for part in parts])


@dataclasses.dataclass(frozen=True)
class Joined:
  """The features of all views side by side, as one view (iGPT-XL's probe, of five layers)."""

  parts: Features

  @property
  def labels(self) -> np.ndarray:
    return self.parts.labels

  def read(self, rows: np.ndarray) -> tuple[Float[np.ndarray, 'n F']]:
    """The features of some examples."""
    return (np.concatenate(self.parts.read(rows), axis=1),)


def labels_of(source: sources.Source) -> np.ndarray:
  """The label of every example, `N`; pictures are not decoded for it."""
  return np.concatenate([*parts_of_labels(source)])


def parts_of_labels(source: sources.Source) -> Iterator[np.ndarray]:
  """The labels of some examples after others, for who need not know all."""
  known = sources.classes_of(source)
  if known is not None:
    yield known
    return
  for start in range(0, len(source), ROWS):
    yield source.read(np.arange(start, min(start + ROWS, len(source))))[1]


def make_collector(subject: Subject, views: Sequence[View]) -> Collector:
  """What computes the features of each view, by the name of its output, and the labels."""

  def rows(params, batch):
    named = subject.forward(params, batch['image'])[1]
    read = {x.output: x.read(tokens.read_layer(named, x.output)) for x in views}
    return read | {'mask': batch['mask'], 'index': batch['index']}

  return Collector(rows, subject)


def store(
  subject: Subject, views: tuple[View, ...], params: Any, folder: pathlib.Path
) -> dict[str, Stored]:
  """The features of train and test from the token cache, which is filled where it is not.

  All tokens are kept where they fit, so that every readout and the lab read the same files; else
  what the readouts make of them.

  Raises:
    ValueError: even these would not fit, or another process is writing them.
  """
  place = pathlib.Path(subject.cache).expanduser() if subject.cache else folder
  whole = features.Pass(
    model=subject.model,
    params=params,
    section=subject.passport.model,
    data=subject.data,
    mesh=subject.mesh,
    layers=tuple(view.output for view in views),
    folder=place,
    batch_size=sharding.round_up(subject.batch_size, subject.mesh),
    limit=subject.cache_gb * 1e9,
    section_key='config.evaluation',
  )
  readouts = {view.output: view.readout for view in views if view.readout is not None}
  small = dataclasses.replace(whole, readouts=readouts)
  chosen = whole if whole.size <= whole.limit else small
  kept = chosen.run()
  return {split: Stored(views, found, chosen is whole) for split, found in kept.items()}
