"""The sections of the readout lab's page: tables and pictures of what was found."""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from vit_jax.evaluation import statistics
from vit_jax.explore import (
  audit_page,
  compare,
  differences,
  native,
  pictures,
  selection,
  token_section,
)
from vit_jax.explore.audit import Audit, Rule
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import Lab
from vit_jax.explore.page import Block, Heading, Picture, Table, Text
from vit_jax.models import tokens

SHOWN_PATCHES = 3  # of the best and of the worst in the ranking; all are in readouts.csv


def make_page(
  folder: pathlib.Path,
  lab: Lab,
  layers: list[Results],
  about: dict[str, Any],
  audited: Audit | None = None,
  rules: Sequence[Rule] = (),
) -> list[Block]:
  """The blocks of the page; draws its pictures into `folder`."""
  last = layers[-1]
  blocks: list[Block] = [Heading('Which token should the classifier read?', 1)]
  blocks += introduction(lab, last, about)
  blocks += ranking(folder, last)
  blocks += differences.comparisons(last)
  blocks += differences.conclusions(lab, last)
  if audited is not None:
    blocks += audit_page.section(folder, lab, last, audited, rules)
  blocks += patch_maps(folder, lab, last)
  blocks += learned_weights(folder, lab, last)
  blocks += curves(folder, lab, last)
  if len(layers) > 1:
    blocks += depths(folder, lab, layers)
  return blocks + token_section.health(folder, lab.predictor, lab.data) + method(lab)


def introduction(lab: Lab, last: Results, about: dict[str, Any]) -> list[Block]:
  best, grid, inner = last.records[0], lab.grid, compare.words_of(last.layer, lab.depth)
  return [
    Text(
      f'Weights: {about["weights"]}. Data: {about["data"]}; {about["n_train"]} training and '
      f'{best["n_examples"]} test examples of {lab.num_classes} classes. Grid: {grid[0]} x '
      f'{grid[1]} patches, numbered from 1, row by row. {len(last.names)} readouts, '
      f'{best["n_seeds"]} seeds. It took {about["seconds"]:.0f} s since the last start.'
    ),
    Text(
      f'Best: {best["readout"]}, {best["accuracy"]:.2%} (95 % interval '
      f'{best["bootstrap_interval"][0]:.2%} to {best["bootstrap_interval"][1]:.2%}).'
    ),
    *[Text(lab.doubt)] * bool(lab.doubt),
    *[Text(f'The tokens are those of {inner}, not of the last block.')] * bool(inner),
    *native.lines(lab, last),
  ]


def shown(results: Results) -> list[dict[str, Any]]:
  """The records of the ranking: all but the patches between the best and the worst."""
  patches = [record for record in results.records if record['patch']]
  hidden = [record['readout'] for record in patches[SHOWN_PATCHES:-SHOWN_PATCHES]]
  return [record for record in results.records if record['readout'] not in hidden]


def ranking(folder: pathlib.Path, results: Results) -> list[Block]:
  rows = shown(results)
  drawn = [row for row in rows if row['readout'] != 'shuffled_labels']  # Chance is far away.
  figure = pictures.ranking(
    [row['readout'] for row in drawn],
    np.array([row['accuracy'] for row in drawn]),
    np.array([row['bootstrap_interval'] for row in drawn]),
    0,
  )
  edge = [row['readout'] for row in rows if row['learning_rate_at_edge'] and not row['control']]
  blocks: list[Block] = [
    Heading('Ranking'),
    Table(
      ['readout', 'accuracy', '95 % (Wilson)', '95 % (bootstrap)', 'mean of batches',
       'least squares', 'parameters', 'learning rate', 'train - test', 'epochs to 95 %',
       'oscillation'],
      [cells(row) for row in rows],
    ),
    draw(folder, 'ranking', figure, 'Accuracy of the readouts; of single patches the best and the '
         'worst three.'),
  ]  # fmt: skip
  if edge:
    blocks.append(
      Text(f'The chosen learning rate lies at the edge of the grid for {", ".join(edge)}: a wider '
           '--config.explore.learning_rates may do better.')
    )  # fmt: skip
  return blocks + divergence(results)


def divergence(results: Results) -> list[Block]:
  """A line that names the readouts whose training diverged; nothing where none did."""
  lost = {row['readout']: row['diverged_seeds'] for row in results.records if row['diverged_seeds']}
  named = ', '.join(f'{name} ({count} of the seeds)' for name, count in lost.items())
  words = (
    f'Training diverged, so that the loss is no number and the accuracy says nothing: {named}. '
    'Smaller --config.explore.learning_rates may do better.'
  )
  return [Text(words)] * bool(lost)


def cells(row: dict[str, Any]) -> list[str]:
  closed = row['least_squares_accuracy']
  return [
    row['readout'],
    f'{row["accuracy"]:.2%}',
    '{:.1%} to {:.1%}'.format(*row['accuracy_interval']),
    '{:.1%} to {:.1%}'.format(*row['bootstrap_interval']),
    f'{row["accuracy_of_batches"]:.2%}',
    '' if closed is None else f'{closed:.2%}',
    f'{row["parameters"]:,}',
    f'{row["learning_rate"]:g}',
    f'{100 * row["gap"]:+.1f}',
    f'{row["epochs_to_95"]:.1f}',
    f'{100 * row["oscillation"]:.2f}',
  ]


def patch_accuracies(lab: Lab, results: Results) -> tuple[np.ndarray, np.ndarray] | None:
  """Accuracy `N` and interval `N 2` of all patches; None when some were not read."""
  count = lab.grid[0] * lab.grid[1]
  rows = [results.record(f'patch_{k}') for k in range(1, count + 1)]
  if any(row is None for row in rows):
    return None
  accuracy = np.array([row['accuracy'] for row in rows if row])
  return accuracy, np.array([row['bootstrap_interval'] for row in rows if row])


def patch_maps(folder: pathlib.Path, lab: Lab, results: Results) -> list[Block]:
  found, grid = patch_accuracies(lab, results), lab.grid
  if found is None or min(grid) < 2:
    return []
  accuracy, intervals = found
  token = results.record('class_token')
  far = tokens.distance_from_centre(grid)
  rank = statistics.rank_correlation(far, accuracy)
  figure = pictures.patch_map(
    accuracy.reshape(grid), token['accuracy'] if token else None, 'single patches'
  )
  title = 'rank correlation (Spearman) ' + (
    'undefined' if rank is None else '{:+.2f}, p {:.2g}'.format(*rank)
  )
  return [
    Heading('Where in the picture'),
    draw(folder, 'patch_map', figure, 'Test accuracy of a classifier that reads one patch token.'),
    draw(folder, 'distance', pictures.distance(far, accuracy, intervals, title),
         f'Accuracy of single patches against their distance from the centre: {title}.'),
  ]  # fmt: skip


def learned_weights(folder: pathlib.Path, lab: Lab, results: Results) -> list[Block]:
  grid = lab.grid
  maps = {name: x[:, 0].mean(0).reshape(grid) for name, x in results.found.fitted.weights.items()}
  maps = {name: x for name, x in maps.items() if np.isfinite(x).all()}  # A diverged one has none.
  if not maps:
    return []
  figure = pictures.weight_maps(maps)
  return [
    Heading('What the learned mixes weigh'),
    draw(folder, 'weights', figure, 'Weight of each patch, a mean over the seeds.'),
  ]


def curves(folder: pathlib.Path, lab: Lab, results: Results) -> list[Block]:
  """Loss and accuracy per epoch of the whole readouts, the corners and the centre; all patches."""
  some = {*tokens.corners(lab.grid), *tokens.centre(lab.grid)}
  names = [name for name in results.names if results.patches.get(name) in (None, *some)]
  names = [name for name in names if name != 'shuffled_labels']  # Chance is far away.
  index = [results.index(name) for name in names]
  fitted = results.found.fitted
  blocks: list[Block] = [Heading('Curves')]
  for key, what in (('accuracy', 'accuracy'), ('loss', 'loss')):
    train, test = (getattr(fitted, k)[..., 0][:, :, index] for k in (key, f'test_{key}'))
    figure = pictures.curves(names, train, test, what)
    caption = f'{what.capitalize()} per epoch: thin lines are seeds; corner and centre patches.'
    blocks.append(draw(folder, f'curves_{key}', figure, caption))
  patches = [i for i, name in enumerate(results.names) if name in results.patches]
  if len(patches) > 1:
    numbers = [results.patches[results.names[i]] - 1 for i in patches]
    test = fitted.test_accuracy[..., 0][:, :, patches].mean(1)
    figure = pictures.all_patches(test, tokens.distance_from_centre(lab.grid)[numbers])
    blocks.append(draw(folder, 'curves_patches', figure, 'Every single patch, a mean over seeds.'))
  return blocks


def depths(folder: pathlib.Path, lab: Lab, layers: list[Results]) -> list[Block]:
  """Accuracy against the block that is read."""
  blocks = [compare.depth_of(results.layer, lab.depth) for results in layers]
  hidden = {*layers[-1].patches, 'shuffled_labels'}
  names = [name for name in layers[-1].names if name not in hidden]
  lines = {
    name: np.array([(results.record(name) or {})['accuracy'] for results in layers])
    for name in names
  }
  out: list[Block] = [
    Heading('How deep'),
    draw(folder, 'depth', pictures.depth(blocks, lines),
         'Accuracy after each block; tokens of inner blocks are normalised without learned scale.'),
  ]  # fmt: skip
  maps = [patch_accuracies(lab, results) for results in layers]
  if all(found is not None for found in maps):
    shaped = [found[0].reshape(lab.grid) for found in maps if found]
    figure = pictures.depth_maps(blocks, shaped)
    out.append(draw(folder, 'depth_maps', figure, 'Single patches after each block.'))
  return out


def method(lab: Lab) -> list[Block]:
  options = lab.config.explore
  return [
    Heading('How it was measured'),
    Text(
      f'The model is frozen; its tokens were computed once ({options.cache_dtype}). Heads: '
      f'{selection.training(options)}, {selection.choosing(options)}; '
      f'{selection.SELECTIONS[options.selection].words}. Seeds differ in the order of examples and '
      f'the start of heads ({options.head}).'
    ),
    Text(
      'Mean of batches: of test accuracies, the last batch smaller, as the study counts; it is no '
      'accuracy. Least squares: closed form on standardised features, targets -1 and 1, ridge '
      f'{options.ridge:g}. Intervals: Wilson for one run of so many examples; bootstrap over '
      f'examples and seeds ({statistics.RESAMPLES:,} draws), Wilson too where all or none are '
      'right. Permutation: exact, over examples, '
      'the seeds of one together; with one seed it is the test of McNemar. Epochs to 95 %: the '
      'first with 95 % of the final test accuracy. Oscillation: mean absolute change of test '
      'accuracy between epochs in the second half, in points. Controls: random_patch reads another '
      'patch of each picture; shuffled_labels trains on labels in another order, so that it shows '
      'chance. One backbone was read: how another training run of it would rank is what sweeps '
      'measure.'
    ),
    *[Text(selection.BATCH_NORM)] * any(candidate.batch for candidate in lab.candidates),
  ]


def draw(folder: pathlib.Path, name: str, figure: Any, caption: str) -> Picture:
  path = folder / f'{name}.png'
  figure.savefig(path)
  return Picture(path, caption)
