"""One exploration of several backbones: do they agree on which readout is best?

`config.init_from` and each of `config.explore.checkpoints` are explored alike, on the same
examples. Differences between training runs are then seen, not guessed: intervals are over
backbones, and hold for others that are trained alike.

W/backbones/<number>-<name>/   an exploration each, with its own report
W/reports/backbones.json, .md, .html, backbones/*.png
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np

from vit_jax import checkpoint
from vit_jax.defaults import Config
from vit_jax.evaluation import statistics, store
from vit_jax.explore import claims, compare, lab, readouts
from vit_jax.explore.compare import Results


@dataclasses.dataclass(frozen=True)
class Backbone:
  """One of several: its address, and what was found of its last layer."""

  name: str
  config: Config
  results: Results

  def accuracy(self, readout: str) -> float:
    """The mean test accuracy of a readout over its seeds."""
    return float(self.results.found.correct[:, self.results.index(readout)].mean())


def explore(config: Config, workdir: pathlib.Path) -> None:
  """Explores every backbone that `config` names, then compares them.

  Raises:
    ValueError: a value that cannot work, or backbones that do not see the same test examples.
  """
  from vit_jax.explore import backbones_page

  checkpoint.check_owner(workdir, config.to_dict())
  children = plan(config, workdir)
  labs = [(name, lab.build(child)) for name, child, _ in children]
  check_alike(labs)
  hashes = [store.hash_of_params(one.predictor.params) for _, one in labs]
  check_distinct([name for name, _ in labs], hashes)
  found = []
  for name, child, folder in children:
    logging.info('backbone %d of %d: %s', len(found) + 1, len(children), name)
    readouts.explore(child, folder)
    checkpoint.claim(workdir, config.to_dict())
    found.append(Backbone(name, child, readouts.results(child, folder)[-1]))
  check_same_labels(found)
  backbones_page.write(workdir / 'reports', found)


def plan(config: Config, workdir: pathlib.Path) -> list[tuple[str, Config, pathlib.Path]]:
  """Each backbone's address, config and folder.

  Raises:
    ValueError: one is named twice.
  """
  names = [str(name) for name in (config.init_from, *config.explore.checkpoints) if name]
  check_distinct(names, [place_of(name) for name in names])
  children = []
  for number, name in enumerate(names, 1):
    child = config.copy_and_resolve_references()
    child.init_from, child.explore.checkpoints = name, ()
    last = re.sub(r'[^\w.-]', '_', pathlib.PurePath(name).name)
    children.append((name, child, workdir / 'backbones' / f'{number}-{last}'))
  return children


def place_of(name: str) -> str:
  """The path that an address means, however it is written; an address of another kind as it is."""
  path = pathlib.Path(name).expanduser()
  return str(path.resolve()) if path.exists() else name


def check_distinct(names: Sequence[str], marks: Sequence[str]) -> None:
  """Raises a ValueError where two backbones have one mark, such as a path or a hash."""
  twice = [name for name, mark in zip(names, marks, strict=True) if marks.count(mark) > 1]
  if twice:
    raise ValueError(
      f'config.init_from and config.explore.checkpoints name the same backbone twice: '
      f'{", ".join(twice)}; a second training run is another backbone, the same one is not'
    )


def check_alike(labs: Sequence[tuple[str, lab.Lab]]) -> None:
  """Raises a ValueError unless all see the same classes and as many test examples."""
  (first, one), *others = labs
  for name, other in others:
    sizes = [len(x.data.splits['test']) for x in (one, other)]
    if one.data.class_names != other.data.class_names or sizes[0] != sizes[1]:
      raise ValueError(
        f'{name} sees {sizes[1]} test examples of {other.num_classes} classes, {first} {sizes[0]} '
        f'of {one.num_classes}: backbones are compared on the same data; name them with '
        '--config.data.name and its keys'
      )


def check_same_labels(found: Sequence[Backbone]) -> None:
  """Raises a ValueError where test examples come in another order, or are others."""
  for other in found[1:]:
    if (other.results.found.labels != found[0].results.found.labels).any():
      raise ValueError(
        f'{other.name} was tested on other examples than {found[0].name}: they were trained on '
        'other splits of the data, and test examples of one are training examples of the other; '
        'compare backbones that were trained on the same split'
      )


def common_readouts(found: Sequence[Backbone]) -> list[str]:
  """Readouts that all have, of which none is a single patch or a control; the best mean first."""
  names = [
    record['readout']
    for record in found[0].results.records
    if record['patch'] is None and not record['control']
  ]
  names = [name for name in names if all(name in one.results.names for one in found)]
  return sorted(names, key=lambda name: -np.mean([one.accuracy(name) for one in found]))


def accuracies(found: Sequence[Backbone], names: Sequence[str]) -> np.ndarray:
  """Accuracy of each readout by backbone, `R M`."""
  return np.array([[one.accuracy(name) for one in found] for name in names])


def agreement(table: np.ndarray) -> dict[str, Any] | None:
  """How far backbones rank the readouts alike: Kendall's tau of all pairs, and their mean.

  None where there are fewer than three readouts, or a backbone that does not tell them apart.
  """
  if len(table) < 3 or (np.ptp(table, 0) == 0).any():
    return None
  pairs = statistics.kendall(table)
  mean, low, high = statistics.mean_of_pairs(pairs)
  return {'pairs': pairs.tolist(), 'tau': mean, 'interval': finite(low, high)}


def finite(low: float, high: float) -> list[float] | None:
  """An interval, or None where it has no end: too few backbones."""
  return [low, high] if np.isfinite([low, high]).all() else None


def differences(found: Sequence[Backbone], names: Sequence[str]) -> list[dict[str, Any]]:
  """The best readout less every other, by backbone; intervals and p over backbones."""
  table = accuracies(found, names)
  gaps = table[:1] - table[1:]
  adjusted = statistics.holm(np.array([chance_of(gap) for gap in gaps]))
  return [
    {
      'a': names[0], 'b': name, 'differences': gap.tolist(), 'difference': float(gap.mean()),
      'interval': finite(*statistics.spread(gap)), 'p_holm': float(raised),
      'verdict': f'{names[0]} is better' if raised < compare.ALPHA else 'cannot tell',
    }
    for name, gap, raised in zip(names[1:], gaps, adjusted, strict=True)
  ]  # fmt: skip


def chance_of(gap: np.ndarray) -> float:
  """Two-sided p of a paired t test over backbones; 1 where there is one, or no difference.

  Differences that are all the same leave nothing to measure chance by: then that of one sign.
  """
  from scipy.stats import ttest_1samp

  if len(gap) < 2 or not gap.any():
    return 1.0
  found: Any = ttest_1samp(gap, 0)
  varies = np.ptp(gap) > statistics.SAME
  return float(found.pvalue) if varies else statistics.of_one_sign(len(gap))


def conclusions(found: Sequence[Backbone]) -> list[dict[str, Any]]:
  """The study's claims: what each backbone says, and whether they hold over backbones."""
  rows = [claims.claims(lab.build(one.config), one.results) for one in found]
  by_name = [{row['claim']: row for row in own} for own in rows]
  shared = [name for name in by_name[0] if all(name in own for own in by_name)]
  level = claims.level_of(len(shared))
  made = []
  for name in shared:
    values = np.array([own[name]['difference'] for own in by_name])
    low, high = statistics.spread(values, level)
    made.append({
      'claim': name, 'differences': values.tolist(), 'interval': finite(low, high),
      'each': [own[name]['verdict'] for own in by_name],
      'verdict': claims.judge(low, high, by_name[0][name]['two_sided']),
    })  # fmt: skip
  return made
