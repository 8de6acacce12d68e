"""The report of the readout lab: Markdown, HTML, CSV, JSON and pictures, in W/reports/.

readouts.json     one record for each readout (and layer): accuracy, interval, seeds, ...
readouts.csv      the same; curves.csv: loss and accuracy of every readout, seed and epoch
exploration.json  what was explored, comparisons, claims
readouts.md, readouts.html, readouts/*.png
"""

import csv
import dataclasses
import json
import pathlib
from typing import Any

from absl import logging

from vit_jax.explore import audit, compare, page, sections
from vit_jax.explore.claims import claims
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import Lab, Layer
from vit_jax.runtime import atomic


def is_finished(workdir: pathlib.Path, key: str, audited: bool) -> bool:
  """Whether the report is there, with the audit or without as `audited` asks.

  Raises:
    ValueError: it is of other weights or data.
  """
  path = workdir / 'reports' / 'exploration.json'
  if not path.exists():
    return False
  about = json.loads(path.read_text())
  if about['key'] != key:
    raise ValueError(
      f'{workdir} holds a report of other weights or data, under the same names; choose another '
      '--workdir'
    )
  return bool(about.get('selection', audited)) == audited


def write(
  workdir: pathlib.Path,
  lab: Lab,
  found: dict[str, Layer],
  about: dict[str, Any],
  audited: audit.Audit | None = None,
) -> None:
  """Writes everything; `exploration.json` comes last and says that it is whole."""
  folder = workdir / 'reports'
  (folder / 'readouts').mkdir(parents=True, exist_ok=True)
  layers = [compare.compare(lab, layer, layer_found) for layer, layer_found in found.items()]
  records = [record for results in layers for record in results.records]
  atomic.write_text(folder / 'readouts.json', json.dumps(records, indent=2) + '\n')
  write_csv(folder / 'readouts.csv', records)
  write_curves(folder / 'curves.csv', lab, layers)
  rules = audit.judge(lab, audited) if audited else []
  blocks = sections.make_page(folder / 'readouts', lab, layers, about, audited, rules)
  atomic.write_text(folder / 'readouts.md', page.markdown(blocks, folder))
  atomic.write_text(folder / 'readouts.html', page.self_contained(blocks, 'Which token to read'))
  whole = about | {
    'comparisons': [dataclasses.asdict(c) | {'verdict': c.verdict} for c in layers[-1].comparisons],
    'claims': claims(lab, layers[-1]),
    'selection': {rule.name: rule.mean for rule in rules},
  }
  atomic.write_text(folder / 'exploration.json', json.dumps(whole, indent=2) + '\n')
  best = layers[-1].records[0]
  logging.info(
    'best: %s, %.2f %% of %d (%d seeds); report in %s', best['readout'], 100 * best['accuracy'],
    best['n_examples'], best['n_seeds'], folder / 'readouts.html',
  )  # fmt: skip


def write_csv(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
  """A row for each record; what is a list stands in columns of its own."""
  rows = []
  for record in records:
    row: dict[str, Any] = {}
    for key, value in record.items():
      many = value if isinstance(value, list) else None
      row |= {key: value} if many is None else {f'{key}_{i}': x for i, x in enumerate(many)}
    rows.append(row)
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def write_curves(path: pathlib.Path, lab: Lab, layers: list[Results]) -> None:
  """A row for each layer, readout, seed and epoch."""
  keys = ('loss', 'accuracy', 'test_loss', 'test_accuracy')
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(
      ['layer', 'readout', 'seed', 'epoch', 'train_loss', 'train_accuracy', *keys[2:]]
    )
    for results in layers:
      arrays = [getattr(results.found.fitted, key)[..., 0] for key in keys]
      for r, name in enumerate(results.names):
        for s, seed in enumerate(lab.seeds):
          for e in range(len(arrays[0])):
            numbers = [f'{float(array[e, s, r]):.6g}' for array in arrays]
            writer.writerow(
              [compare.depth_of(results.layer, lab.depth), name, seed, e + 1, *numbers]
            )
