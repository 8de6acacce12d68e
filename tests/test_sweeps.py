"""The paper's experiments as sweeps: their runs, their pictures, early stopping, small settings."""

import dataclasses
import json
import shutil
import types

from conftest import ROOT, small_config
import pytest

from vit_jax import defaults, recipe
from vit_jax.explore import against, page, runs, series, sweep

RECIPES = {
  'ablate_positions.py': 10 * 3,
  'scale_shape.py': (1 + 3 * 4 + 2) * 3,
  'ablate_heads.py': 2 * 2 * 4 * 3,
  'pretraining_size.py': 2 * 4 * 2 * 3,
  'compare_axial.py': 6 * 3,
  'ablate_cordonnier.py': 6 * 3,
  'compare_hybrids.py': 4 * 3,
  'compare_hybrids.py:optimizers': 4 * 3,
}


@pytest.mark.parametrize(('name', 'count'), RECIPES.items())
def test_every_run_of_a_recipe_can_be(name, count, tmp_path):
  module, words = recipe.open_recipe(f'{ROOT}/configs/{name}')
  config = defaults.complete(module.get_config(*words), {})
  planned = runs.plan(config, module.sweep(*words), tmp_path)
  assert len(planned) == count
  lines = {getattr(module, 'line', lambda _: '')(run.overrides) for run in planned}
  assert 1 <= len(lines) <= 6 and all(isinstance(line, str) for line in lines)


@pytest.mark.parametrize(
  ('name', 'count'),
  [('ablate_sasa.py:kernel,cifar10', 9), ('compare_families.py:parameters,cifar10', 81)],
)
def test_words_behind_a_colon_name_a_comparison_and_its_data(name, count, tmp_path):
  module, words = recipe.open_recipe(f'{ROOT}/configs/{name}')
  config = defaults.complete(module.get_config(*words), {})
  assert config.data.dataset == 'cifar10'
  planned = runs.plan(config, module.sweep(*words), tmp_path, getattr(module, 'TUNED', ()))
  assert len(planned) == count
  kinds = {run.config.model.name for run in planned}
  assert len(kinds) == {9: 1, 81: 9}[count]
  with pytest.raises(ValueError, match=r'nothing,cifar10: choose'):
    module.get_config('nothing,cifar10')


@pytest.mark.parametrize('name', [name.removesuffix('.py') for name in RECIPES if ':' not in name])
def test_a_recipe_without_its_data_says_so(name):
  module, _ = recipe.open_recipe(f'{ROOT}/configs/{name}.py')
  with pytest.raises(ValueError, match=f'{name}.py:nothing: choose'):
    module.get_config('nothing')


def small(folder, **overrides):
  config = defaults.complete(
    small_config(run='sweep', data__validation_fraction=0.2, **overrides),
    {'evaluators': ('classification', 'fewshot')},
  )
  config.update_from_flattened_dict({'evaluation.fewshot.shots': (1, 5), 'eval_every': 2})
  return config, folder


def test_pictures_stand_against_compute_and_settings(tmp_path):
  config, _ = small(tmp_path, total_steps=2)
  module = types.SimpleNamespace(
    TUNED=(), COUNTED=True,
    PICTURES=(('compute', 'test/fewshot_5'), ('model.depth', 'test/accuracy'),
              ('speed', 'test/accuracy'), ('model.width', 'test/accuracy')),
  )  # fmt: skip
  choices = [{'model.depth': depth, 'seed': 0} for depth in (1, 2)]
  planned = runs.plan(config, choices, tmp_path)
  sweep.sweep(planned, tmp_path, module)
  records = json.loads((tmp_path / 'reports/sweep.json').read_text())
  assert [record['overrides']['model.depth'] for record in records] == [1, 2]
  by_depth = {record['model.depth']: record['compute'] for record in records}
  # One more block of width 32, MLP 128 on 5 tokens: 3 times its forward pass, 2 steps of 16.
  products = 4 * 32 * 32 * 5 + 2 * 5 * 5 * 32 + 2 * 32 * 128 * 5
  assert by_depth[2] - by_depth[1] == 3 * 2 * products * 2 * 16
  names = {path.name for path in (tmp_path / 'reports').glob('*.png')}
  assert names == {'sweep.png', 'fewshot_5_against_compute.png', 'accuracy_against_depth.png',
                   'accuracy_against_speed.png'}  # fmt: skip
  page = (tmp_path / 'reports/sweep.md').read_text()
  assert 'fewshot_1' in page and 'fewshot_5_against_compute.png' in page
  lines = [line.split(' | ') for line in page.splitlines() if line.startswith('| vit:mu/4')]
  assert [line[1] for line in lines] == ['8 x 8', '8 x 8']
  one, two = (int(line[2].replace(',', '')) for line in lines)
  assert two - one == 4 * (32 * 32 + 32) + 2 * 32 * 128 + 128 + 32 + 4 * 32  # A block.


def test_early_stopping_counts_the_best_checkpoint(tmp_path):
  config, _ = small(tmp_path, best='max:validation/accuracy')
  (run,) = runs.plan(config, [{'seed': 3}], tmp_path)
  sweep.attempt(run)
  rows = [json.loads(line) for line in (run.workdir / 'metrics.jsonl').read_text().splitlines()]
  judged = {row['step']: row for row in rows if 'validation/accuracy' in row}
  assert {*judged} == {2, 4, 6}
  best = max(judged.values(), key=lambda row: row['validation/accuracy'])
  assert run.scores() == best
  last = runs.plan(small(tmp_path, best=None)[0], [{'seed': 3}], tmp_path)[0]
  assert last.scores() == judged[6]


def test_who_was_killed_before_its_model_was_written_runs_again(trained, tmp_path, monkeypatch):
  config = small_config(run='sweep', data__validation_fraction=0.2)
  (run,) = runs.plan(config, [{'seed': 0}], tmp_path)
  shutil.copytree(trained, run.workdir)
  started = []
  monkeypatch.setattr(sweep, 'attempt', started.append)
  monkeypatch.setattr(sweep, 'write', lambda *_: None)
  sweep.sweep([run], tmp_path, None)
  assert not started
  # As it stood when it was stopped at step 4, and then killed after the last line of its numbers.
  shutil.rmtree(run.workdir / 'checkpoints/6')
  path = run.workdir / 'model/model.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'step': 4}))
  for folder in ('model', 'checkpoints'):  # First with both, then without a model.
    sweep.sweep([run], tmp_path, None)
    assert started.pop() == run and run.scores()
    shutil.rmtree(run.workdir / folder)
  assert dataclasses.replace(run, kept=False).is_finished  # Of which numbers are all that stays.


def record(rate, validation, test=0.8):
  scores = {'failed': True} if validation is None else {
    'failed': False, 'test/accuracy': test, 'validation/accuracy': validation
  }  # fmt: skip
  return {'optimizer.learning_rate': rate} | scores


@pytest.mark.parametrize(
  ('records', 'expected'),
  [
    ([record(0.03, 0.9, 0.95), record(0.01, 0.9), record(0.1, 0.8)], 0.01),
    ([record(1.0, 0.91), record(1.0, None), *2 * [record(0.1, 0.9)]], 0.1),
    ([record(1.0, 0.91), record(1.0, None), record(0.1, None)], 1.0),
    ([record('b', 0.9), record('a', 0.9)], 'b'),
  ],
)
def test_one_setting_wins_by_runs_that_ended_then_validation_then_size(records, expected):
  rate = 'optimizer.learning_rate'
  records = [one | {'depth': depth} for depth in (1, 2) for one in records]
  rows = sweep.choose(sweep.settings(records, ['depth', rate]), ['depth', rate], (rate,))
  assert [(row['depth'], row[rate]) for row in rows if row['chosen']] == [
    (1, expected), (2, expected)
  ]  # fmt: skip


def test_points_are_means_over_seeds_by_line():
  records = [
    {'overrides': {'a': a, 'kind': kind, 'seed': seed}, 'test/accuracy': a + seed / 10}
    for kind in ('x', 'y') for a in (1, 2) for seed in (0, 1)
  ]  # fmt: skip
  pair = ('a', 'test/accuracy')
  found = against.gather(records, pair, against.line_of([pair]))
  assert {*found} == {'x', 'y'} and len(found['x']) == 2
  assert next(iter(found['x'].values())) == [(1.0, 1.0), (1.0, 1.1)]
  axis = against.draw(found, pair).axes[0]
  assert axis.lines[0].get_ydata().tolist() == pytest.approx([1.05, 2.05])
  assert not against.gather([{'overrides': {}, 'test/accuracy': 1.0}], pair, lambda _: '')
  words = ('test/accuracy', 'validation/accuracy', 'model.depth', 'compute')
  names = ['accuracy', 'validation_accuracy', 'depth', 'compute']  # Of a file each.
  assert [against.short(word) for word in words] == names


@pytest.mark.parametrize(
  'others',
  [('fewshot_1',), ('knn_10_0', 'knn_10_0.07'), ('knn_10_0', 'knn_10_2'), ('knn_10_0', 'knn_10_1')],
)
def test_shots_and_temperatures_are_no_series_of_blocks(tmp_path, others):
  record = {'kind': 'a', 'test/similarity_0': 0.1, 'test/similarity_1': 0.9}
  made = series.blocks([record | {f'test/{x}': 0.5 for x in others}], ['kind'], tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['similarity.png']
  (table,) = [block for block in made if isinstance(block, page.Table)]
  assert table.header == ['setting', *others]
