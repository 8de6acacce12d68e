"""The readout lab: every readout of a frozen model, from one pass, with honest statistics.

W/cache/     tokens (evaluation/features.py), unless config.explore.cache names another place
W/probes/    what training left, a file for each layer, below the key of the tokens
W/reports/   readouts.json, .csv, .md, .html and pictures
"""

import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from vit_jax import checkpoint, experiment
from vit_jax.defaults import Config
from vit_jax.evaluation import features, fitting, least_squares
from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.fitting import Fitted
from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens
from vit_jax.explore import audit, compare, report
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import (
  SELECTION_SEEDS,
  Lab,
  Layer,
  build,
  check_labels,
  hold_out,
  probes_of,
)
from vit_jax.runtime import atomic, sharding

MEMORY = 1e9  # bytes of probes and their moments that are trained at once


def explore(config: Config, workdir: pathlib.Path) -> None:
  """Runs the exploration that `config` describes, and writes its report.

  The folder belongs to the config from its first probes on: what fails before leaves it free.

  Raises:
    ValueError: a value that cannot work; nothing has been computed yet.
  """
  checkpoint.check_owner(workdir, config.to_dict())
  lab = build(config)
  tokens = token_pass(lab, workdir)
  if report.is_finished(workdir, tokens.key):
    logging.info('%s is finished: see %s', workdir, workdir / 'reports' / 'readouts.html')
    return
  start, train, test = time.monotonic(), lab.data.splits['train'], lab.data.splits['test']
  logging.info(
    '%d readouts of %d layer(s) of %s; train %d, test %d, %d classes',
    len(lab.candidates), len(lab.layers), config.init_from, len(train), len(test), lab.num_classes,
  )  # fmt: skip
  store = tokens.run()
  for split, layers in store.items():
    check_labels(split, layers[lab.layers[0]].labels, lab.data.class_names)
  found = {}
  for layer in lab.layers:
    # Below the key of the tokens: what other weights left is not taken for ours.
    path = workdir / 'probes' / tokens.key / f'{layer.replace("/", "-")}.npz'
    if not path.exists():
      done = study(lab, {split: layers[layer] for split, layers in store.items()}, layer)
      checkpoint.claim(workdir, config.to_dict())
      save(path, done)
    found[layer] = restore(path)
  last = lab.layers[-1]
  audited = audit_of(lab, store, found[last], workdir / 'probes' / tokens.key)
  about = {
    'key': tokens.key,
    'weights': str(config.init_from),
    'data': name_of(lab),
    'n_train': len(train),
    'n_test': len(test),
    'seconds': time.monotonic() - start,
  }
  report.write(workdir, lab, found, about, audited)


def audit_of(
  lab: Lab, store: dict[str, dict[str, Tokens]], found: Layer, folder: pathlib.Path
) -> audit.Audit | None:
  """The selection audit of the last layer, from `folder` if it is there; None: not asked for."""
  if not lab.config.explore.audit:
    return None
  last, path = lab.layers[-1], folder / 'selection.npz'
  if not path.exists():
    some = {split: layers[last] for split, layers in store.items()}
    audit.save(path, audit.run(lab, chunk(lab), some, found.rates, last))
  return audit.restore(path)


def results(config: Config, workdir: pathlib.Path) -> list[Results]:
  """What a finished exploration found, layer by layer, to look at further.

  Raises:
    FileNotFoundError: it is not finished.
  """
  lab = build(config)
  folder = workdir / 'probes' / token_pass(lab, workdir).key
  paths = {layer: folder / f'{layer.replace("/", "-")}.npz' for layer in lab.layers}
  return [compare.compare(lab, layer, restore(path)) for layer, path in paths.items()]


def name_of(lab: Lab) -> str:
  """What to call the data."""
  section = experiment.data_section(lab.config, lab.predictor.passport)
  return str(section.get('path') or section.get('dataset') or section['name'])


def token_pass(lab: Lab, workdir: pathlib.Path) -> features.Pass:
  """The pass that fills the token cache of an exploration."""
  options = lab.config.explore
  mesh = lab.mesh
  return features.Pass(
    model=lab.predictor.model,
    params=jax.device_put(lab.predictor.params, sharding.replicated(mesh)),
    section=lab.predictor.passport.model,
    data=lab.data,
    mesh=mesh,
    layers=lab.layers,
    folder=pathlib.Path(options.cache).expanduser() if options.cache else workdir / 'cache',
    dtype=options.cache_dtype,
    views=options.views,
    plain=options.views > 0 and len(options.learning_rates) > 1,
    seed=lab.config.seed,
    batch_size=sharding.round_up(lab.config.evaluation.batch_size, mesh),
    limit=options.cache_gb * 1e9,
  )


def study(lab: Lab, store: dict[str, Tokens], layer: str) -> Layer:
  """Chooses learning rates on a part of train, then trains on all of it and tests.

  Args:
    store: tokens by split; with `train_plain`, learning rates are chosen on those: pictures as
      evaluation sees them, where the probes train on changed ones.
  """
  train, test = store['train'], store['test']
  untouched = store.get('train_plain', train)
  grid = np.array(sorted(lab.config.explore.learning_rates))
  everything, tested = np.arange(len(train.labels)), np.arange(len(test.labels))
  chunks = chunk(lab)
  rates, validation = np.full(len(lab.candidates), grid[0]), np.zeros((len(lab.candidates), 0))
  if len(grid) > 1:
    rest, held = hold_out(train.labels, lab.config.explore.validation_fraction, lab.config.seed)
    seeds = lab.seeds[:SELECTION_SEEDS]
    what = f'{layer}: choosing learning rates'
    tried = [
      fitting.fit(part, train, rest, untouched, held, np.tile(grid, (len(part.candidates), 1)),
                  seeds, False, what) for part in chunks
    ]  # fmt: skip
    joined = Fitted.join(tried)
    validation, loss = joined.test_accuracy[-1].mean(0), joined.test_loss[-1].mean(0)
    rates = grid[prefer(validation, loss, len(held))]
  fitted, start = [], 0
  for part in chunks:
    some = rates[start : start + len(part.candidates)]
    start += len(some)
    fitted.append(fitting.fit(part, train, everything, test, tested, some[:, None], lab.seeds, True,
                           f'{layer}: training probes'))  # fmt: skip
  closed = np.concatenate([closed_form(lab, part, train, test) for part in chunks])
  return Layer(rates, validation, Fitted.join(fitted), closed, test.labels)


def prefer(accuracy: np.ndarray, loss: np.ndarray, count: int) -> np.ndarray:
  """The rate of each readout: `R G` -> `R`.

  Of those within one standard error of the best accuracy, the one of the lowest loss: on a few
  hundred examples the very best may be luck (a rate of 0.1 for the sum of digits' tokens, say, with
  a loss of 8).
  """
  best, loss = accuracy.max(1, keepdims=True), np.nan_to_num(loss, nan=np.inf)
  eligible = accuracy >= best - np.sqrt(best * (1 - best) / count)
  return np.where(eligible, loss, np.inf).argmin(1)


def chunk(lab: Lab) -> list[Probes]:
  """The readouts, as many at once as memory allows."""
  options = lab.config.explore
  copies = max(options.seeds, SELECTION_SEEDS * len(options.learning_rates))
  groups: list[list[Candidate]] = [[]]
  used = 0.0
  for candidate in lab.candidates:
    # Parameters, two moments and a gradient, in float32.
    size = 16.0 * copies * probes_of(lab, [candidate]).parameters(candidate)
    if groups[-1] and used + size > MEMORY:
      groups.append([])
      used = 0.0
    groups[-1].append(candidate)
    used += size
  return [probes_of(lab, group) for group in groups]


def closed_form(lab: Lab, part: Probes, train: Tokens, test: Tokens) -> np.ndarray:
  """The accuracy of least squares for each readout of a part, `R`; not a number for learned."""
  accuracy = np.full(len(part.candidates), np.nan)
  for width, stack in part.fixed.items():
    size = max(1, int(MEMORY / 4 / (8 * int(width) ** 2)))  # Gram matrices in float64
    rows = [part.candidates.index(candidate) for candidate in stack]
    for start in range(0, len(rows), size):
      some = rows[start : start + size]
      few = probes_of(lab, [part.candidates[i] for i in some])
      accuracy[some] = least_squares.accuracy(few, train, test, lab.config.explore.ridge)
  return accuracy


def save(path: pathlib.Path, layer: Layer) -> None:
  """Writes what was found of a layer into one file."""
  fitted = {f'fitted/{key}': x for key, x in vars(layer.fitted).items() if key != 'weights'}
  weights = {f'weights/{name}': x for name, x in layer.fitted.weights.items()}
  own: dict[str, Any] = {key: x for key, x in vars(layer).items() if key != 'fitted'}
  arrays: dict[str, Any] = own | fitted | weights
  with atomic.replacing(path) as partial, partial.open('wb') as file:
    np.savez(file, **arrays)


def restore(path: pathlib.Path) -> Layer:
  """Reads what `save` wrote."""
  with np.load(path) as file:
    arrays = dict(file)
  inner = {k.removeprefix('fitted/'): x for k, x in arrays.items() if k.startswith('fitted/')}
  mixes = {k.removeprefix('weights/'): x for k, x in arrays.items() if k.startswith('weights/')}
  own = {key: x for key, x in arrays.items() if '/' not in key}
  return Layer(**own, fitted=Fitted(**inner, weights=mixes))
