"""The readout lab: every readout of a frozen model, from one pass, with honest statistics.

W/cache/     tokens (evaluation/features.py), unless config.explore.cache names another place
W/probes/    what training left, a file for each layer, below the key of the tokens
W/reports/   readouts.json, .csv, .md, .html and pictures
"""

import dataclasses
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from vit_jax import checkpoint, experiment
from vit_jax.data import sources
from vit_jax.defaults import Config
from vit_jax.evaluation import features, fitting, least_squares
from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.fitting import Fitted
from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens
from vit_jax.explore import audit, compare, report
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import Lab, Layer, as_evaluated, build, probes_of
from vit_jax.explore.lab_data import check_labels
from vit_jax.explore.selection import SELECTION_SEEDS, SELECTIONS, Rule, choose, hold_out, points
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
  if report.is_finished(workdir, tokens.key, config.explore.audit):
    logging.info('%s is finished: see %s', workdir, workdir / 'reports' / 'readouts.html')
    return
  start, train, test = time.monotonic(), lab.data.splits['train'], lab.data.splits['test']
  logging.info(
    '%d readouts of %d layer(s) of %s; train %d, test %d, %d classes',
    len(lab.candidates), len(lab.layers), config.init_from, len(train), len(test), lab.num_classes,
  )  # fmt: skip
  known = sources.classes_of(train)
  if known is not None:  # Else the pass reads them.
    check_splits(lab, known)
  store = tokens.run()
  for split, layers in store.items():
    check_labels(split, layers[lab.layers[0]].labels, lab.data.class_names)
  check_splits(lab, store['train'][lab.layers[0]].labels)
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
  audited = audit_of(lab, tokens, store, found[last], workdir / 'probes' / tokens.key)
  about = {
    'key': tokens.key,
    'weights': str(config.init_from),
    'data': name_of(lab),
    'n_train': len(train),
    'n_test': len(test),
    'seconds': time.monotonic() - start,
  }
  report.write(workdir, lab, found, about, audited)


def check_splits(lab: Lab, labels: np.ndarray) -> None:
  """Raises a ValueError where train cannot be split as the selection and the audit need it."""
  options, seed = lab.config.explore, lab.config.seed
  is_held_out = options.audit or not SELECTIONS[options.selection].on_test
  if is_held_out and len(points(options)) > 1:
    hold_out(labels, options.validation_fraction, seed)
  if options.audit:
    audit.split(labels, seed)


def audit_of(
  lab: Lab,
  tokens: features.Pass,
  store: dict[str, dict[str, Tokens]],
  found: Layer,
  folder: pathlib.Path,
) -> audit.Audit | None:
  """The selection audit of the last layer, from `folder` if it is there; None: not asked for.

  Args:
    tokens: the pass that filled `store`; one without views fills what it lacks. Its key, and so
      the folder, is then the same with the audit and without.
  """
  if not lab.config.explore.audit:
    return None
  last, path, options = lab.layers[-1], folder / 'selection.npz', lab.config.explore
  if not path.exists():
    some = {split: layers[last] for split, layers in store.items()}
    if options.views and not tokens.plain:
      plain = dataclasses.replace(tokens, views=0).run()
      some['train_plain'] = plain['train'][last]
    chunks, ours = chunk(lab), np.stack([found.rates, found.decays], 1)
    if options.selection != 'held_out':  # Then what was found was chosen by another rule.
      chosen, _, _ = try_rule(lab, some, chunks, SELECTIONS['held_out'], last)
      ours = points(options)[chosen]
    audit.save(path, audit.run(lab, chunks, some, ours, last))
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
    plain=options.views > 0
    and len(options.learning_rates) * len(options.weight_decays) > 1
    and not SELECTIONS[options.selection].on_test,
    seed=lab.config.seed,
    batch_size=sharding.round_up(lab.config.evaluation.batch_size, mesh),
    limit=options.cache_gb * 1e9,
    raw=options.token_norm == 'none',
    earlier=lab.earlier,
  )


def study(lab: Lab, store: dict[str, Tokens], layer: str) -> Layer:
  """Chooses learning rates and decays as `selection` says, then trains and tests with them.

  Args:
    store: tokens by split; with views also `train_plain`, of which a part chooses: pictures as
      evaluation sees them, where the probes train on changed ones.
  """
  train, test, options = store['train'], store['test'], lab.config.explore
  rule, grid, chunks = SELECTIONS[options.selection], points(options), chunk(lab)
  chosen, validation, rows = try_rule(lab, store, chunks, rule, layer)
  fitted, start, tested = [], 0, np.arange(len(test.labels))
  for part in chunks:
    some = grid[chosen[start : start + len(part.candidates)]]
    start += len(some)
    fitted.append(fitting.fit(part, train, rows, test, tested, some[:, :1], lab.seeds, True,
                  f'{layer}: training probes', some[:, 1:], rule.best_epoch))  # fmt: skip
  closed = np.concatenate([closed_form(lab, part, train, test) for part in chunks])
  used = grid[chosen]
  return Layer(used[:, 0], validation, Fitted.join(fitted), closed, test.labels, used[:, 1])


def try_rule(
  lab: Lab, store: dict[str, Tokens], chunks: list[Probes], rule: Rule, layer: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What a rule chooses: places in the grid `R`, accuracy by rate, and the rows to train on."""
  train, test, options = store['train'], store['test'], lab.config.explore
  grid, rows = points(options), np.arange(len(train.labels))
  if len(grid) == 1:
    return np.zeros(len(lab.candidates), int), np.zeros((len(lab.candidates), 0)), rows
  rest, other, held = rows, test, np.arange(len(test.labels))
  if not rule.on_test:
    other = as_evaluated(lab, store)
    rest, held = hold_out(train.labels, options.validation_fraction, lab.config.seed)
  what = f'{layer}: choosing learning rates'
  tried = [try_all(lab, part, train, rest, other, held, rule, what) for part in chunks]
  accuracy, loss = (x.mean(1) for x in summary(Fitted.join(tried), rule.best_epoch))
  chosen, decays = choose(rule, accuracy, loss, len(held)), len(options.weight_decays)
  by_decay = accuracy.reshape(len(chosen), -1, decays)
  validation = by_decay[np.arange(len(chosen)), :, chosen % decays]
  return chosen, validation, rows if rule.refit else rest


def try_all(
  lab: Lab, part: Probes, train: Tokens, rest: np.ndarray, other: Tokens, held: np.ndarray,
  rule: Rule, what: str,
) -> Fitted:  # fmt: skip
  """Every readout of a part at every (rate, decay) of the grid, as memory allows."""
  grid = points(lab.config.explore)
  seeds, count = lab.seeds[:SELECTION_SEEDS], len(part.candidates)
  size = 16.0 * len(seeds) * sum(map(part.parameters, part.candidates))
  at_once = max(1, int(MEMORY / size))
  found = []
  for start in range(0, len(grid), at_once):
    rates, decays = (np.tile(x, (count, 1)) for x in grid[start : start + at_once].T)
    found.append(
      fitting.fit(part, train, rest, other, held, rates, seeds, rule.best_epoch, what, decays)
    )
  return Fitted.join(found, axis=2)


def summary(fitted: Fitted, best_epoch: bool) -> tuple[np.ndarray, np.ndarray]:
  """Accuracy and loss that choose, of the last epoch or the best one: `R S G` each."""
  accuracy, loss = fitted.test_accuracy, fitted.test_loss
  pair = (accuracy.max(0), loss.min(0)) if best_epoch else (accuracy[-1], loss[-1])
  return pair[0].swapaxes(0, 1), pair[1].swapaxes(0, 1)


def chunk(lab: Lab) -> list[Probes]:
  """The readouts, as many at once as memory allows."""
  options = lab.config.explore
  copies = max(
    options.seeds, SELECTION_SEEDS * len(options.learning_rates) * len(options.weight_decays)
  )
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
  """The accuracy of least squares for each readout of a part, `R`.

  Not a number for what is learned, or reads tokens that are normalised over batches.
  """
  accuracy = np.full(len(part.candidates), np.nan)
  for stack in part.fixed.values():
    if 'batch_before' in stack[0].batch:
      continue
    size = max(1, int(MEMORY / 4 / (8 * stack[0].width ** 2)))  # Gram matrices in float64
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
