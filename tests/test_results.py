"""Results as files and the README's table of them; budgets of sweeps; what a sweep can tell."""

import csv
import json
import shlex
import time

from conftest import ROOT, small_config
import numpy as np
import pytest
from scipy.stats import tukey_hsd

from vit_jax import defaults
from vit_jax.explore import budget, results, runs, series, sweep, told
from vit_jax.runtime import memory, provenance

COMMAND = 'python -m vit_jax.main --config=configs/a.py:b --config.seed=1'


def finished(folder, accuracy=0.875, total=6):
  """The files of a finished run, as far as its result needs them."""
  folder.mkdir(parents=True)
  config = {'total_steps': total, 'data': {'name': 'folder', 'path': '/home/someone/pictures'}}
  (folder / 'config.json').write_text(json.dumps(config))
  rows = [
    {'step': 3, 'test/accuracy': 0.5},
    {'step': 6, 'test/accuracy': accuracy, 'train/loss': 1},
  ]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  words = ['main.py', *shlex.split(COMMAND)[3:], '--workdir', '/home/someone/w',
           '--config.data.path=/home/someone/pictures']  # fmt: skip
  for seconds in (30, 12):
    provenance.note(folder, words, time.time() - seconds)
  kept = (folder / 'commands.json').read_text()
  provenance.note(folder, words, time.time() + 60)  # Since when nothing was written.
  assert (folder / 'commands.json').read_text() == kept
  return folder


def test_a_run_becomes_a_file_and_a_line_of_the_readme(tmp_path, capsys):
  finished(tmp_path / 'w')
  folder = str(tmp_path / 'results')
  results.main([str(tmp_path / 'w'), '--name=b', '--data=cats', f'--folder={folder}'])
  found = json.loads((tmp_path / 'results/b.json').read_text())
  assert found['command'] == COMMAND and 42 <= found['seconds'] < 44
  assert found['metrics'] == {'test/accuracy': 0.875}
  assert 'someone' not in (tmp_path / 'results/b.json').read_text()
  page = tmp_path / 'README.md'
  page.write_text(f'above\n{results.BEGIN}\nold\n{results.END}\nbelow\n')
  for _ in range(2):  # The second time nothing changes.
    results.main([f'--folder={folder}', f'--readme={page}'])
    text = page.read_text()
    assert '| `--config=configs/a.py:b --config.seed=1` | cats | 87.5 % | 4' in text
    assert text.startswith('above\n') and text.endswith('\nbelow\n') and 'old' not in text


def test_other_runs_are_named_without_their_folder():
  given = '--config.init_from=/home/someone/a --config.objective.teacher=../b/c'
  command = results.portable(f'python -m vit_jax.main {given} --config.init_from=hf://x/y')
  kept = '--config.init_from=a --config.objective.teacher=c --config.init_from=hf://x/y'
  assert command == f'python -m vit_jax.main {kept}'
  given = '--config.init_from /a/b --config.model.palette=/c/p.npy --config.data.exclude ../x.json'
  command = results.portable(f'python -m vit_jax.main {given}')
  kept = '--config.init_from b --config.model.palette=p.npy --config.data.exclude x.json'
  assert command == f'python -m vit_jax.main {kept}'


def test_values_behind_a_space_stay_in_the_table():
  kept = "--config configs/a.py --config.optimizer.name sgd '--config.model.readout=a b'"
  left = '--workdir /home/someone/w -config.data.path=/home/someone/pictures'
  command = results.portable(f'python -m vit_jax.main {left} {kept}')
  assert command == f'python -m vit_jax.main {kept}'
  about = {'seconds': 1.0, 'device': '1 x cpu', 'cores': 2, 'data': 'cats', 'version': '1'}
  row = results.line(about | {'command': command, 'metrics': {'test/accuracy': 0.5}})
  assert row[0] == f'`{kept}`'


@pytest.mark.parametrize(
  ('found', 'expected'),
  [
    ({'test/loss': 0.51234, 'test/masked_loss': 2.0}, 'loss 0.5123; masked_loss 2'),
    ({'test/pixel_bits': 1.25}, 'pixel_bits 1.25'),
    ({'test/bits': 1.25} | {f'test/similarity_{i}': 0.5 for i in range(30)}, 'bits 1.25'),
    ({'test/accuracy': 0.5, 'test/loss': 1.0}, '50.0 %'),
  ],
)
def test_a_run_without_accuracy_says_what_it_has(found, expected):
  assert results.accuracy({'metrics': found}) == expected


def test_a_sweep_tells_what_was_chosen(tmp_path):
  finished(tmp_path / 'w')
  (tmp_path / 'w/reports').mkdir()
  (tmp_path / 'w/runs/one').mkdir(parents=True)
  rows = [
    {'setting': 'x', 'chosen': True, 'accuracy': 0.9, 'low': 0.88, 'high': 0.92, 'runs': 3},
    {'setting': 'y', 'chosen': False, 'accuracy': 0.95, 'low': 0.9, 'high': 1.0, 'runs': 3},
  ]
  with (tmp_path / 'w/reports/sweep.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
  seeds = [{'setting': 'x', 'chosen': True, 'test/accuracy': 0.9, 'test/fewshot_5': 0.5 + i / 10}
           for i in range(2)]  # fmt: skip
  seeds += [{'setting': 'y', 'chosen': False, 'test/fewshot_5': 0.0}]
  (tmp_path / 'w/reports/sweep.json').write_text(json.dumps(seeds))
  model = {
    'model': 'vit:mu/4', 'image_size': [8, 8], 'parameters': 5, 'batch_size': 4, 'memory_gb': None,
    'train_flops': {'three_forward': 2.5e6}, 'images_per_second': {'forward': 9.6, 'train': None},
  }  # fmt: skip
  (tmp_path / 'w/reports/models.json').write_text(json.dumps({'key': model}))
  found = results.gather(tmp_path / 'w')
  assert found['data'] == 'folder'
  assert [row['setting'] for row in found['settings']] == ['x'] and found['runs'] == 1
  assert found['settings'][0]['test/fewshot_5'] == 0.55
  (row,) = found['models']
  assert row['training_mflops'] == 2.5 and row['images_per_second'] == {'forward': 10}
  assert results.accuracy(found) == '90.0 % (88.0 to 92.0), 3 runs'
  many = [{'setting': f'setting {i:03}', 'accuracy': 1 - i / 100} for i in range(20)]
  assert results.accuracy({'settings': many[:2]}) == 'setting 000 100.0 %; setting 001 99.0 %'
  told = 'setting 000 100.0 %, to setting 019 81.0 %: 20 settings'
  assert results.accuracy({'settings': many}) == told


def test_what_cannot_be_a_result_is_refused(tmp_path, capsys):
  finished(tmp_path / 'short', total=7)
  (tmp_path / 'empty').mkdir()
  lab = finished(tmp_path / 'lab') / 'config.json'
  lab.write_text(json.dumps(json.loads(lab.read_text()) | {'run': 'explore'}))
  untold = finished(tmp_path / 'untold')
  (untold / 'metrics.jsonl').write_text('{"step": 6, "train/loss": 1, "validation/loss": 1}\n')
  cases = [
    ([f'{tmp_path}/short', '--name=a'], 'is not finished'),
    ([f'{tmp_path}/lab', '--name=a'], 'is an exploration, whose reports tell'),
    ([f'{tmp_path}/empty', '--name=a'], 'has no commands.json'),
    ([f'{untold}', '--name=a'], 'ends without a number of the test split'),
    ([f'{tmp_path}/short'], 'belong together'),
    ([f'--folder={tmp_path}/none'], 'no result in'),
  ]
  for words, expected in cases:
    with pytest.raises(SystemExit, match=expected):
      results.main(words)
  with pytest.raises(ValueError, match='no lines <!-- results'):
    results.fill('a page', '')


def test_the_readme_and_the_recipes_say_what_the_files_say():
  page = (ROOT / 'README.md').read_text()
  assert results.fill(page, results.table(ROOT / results.FOLDER)) == page
  for path in (ROOT / results.FOLDER).glob('*.json'):
    found = json.loads(path.read_text())
    word = next(w for w in shlex.split(found['command']) if w.startswith('--config='))
    recipe = ROOT / word.removeprefix('--config=').partition(':')[0]
    text = recipe.read_text().partition('\nfrom ')[0]
    numbers = [row['accuracy'] for row in found.get('settings', [])]
    numbers += [found['metrics']['test/accuracy']] if 'metrics' in found else []
    left = [x for x in numbers if not any(y in text for y in (f'{100 * x:.1f}', f'{x:.3f}'))]
    assert numbers and not left, (path.name, left)


def test_a_budget_becomes_steps(tmp_path):
  config = defaults.complete(small_config(run='sweep'), {})
  choices = [{'model.depth': depth, 'total_steps': 'flops:1e10'} for depth in (1, 2)]
  planned = runs.plan(config, choices, tmp_path)
  # Multiply-adds of the blocks, the embedding and the head of mu/4 on 8 x 8 pixels, by hand.
  for run in planned:
    depth = run.overrides['model.depth']
    products = depth * (4 * 32 * 32 * 5 + 2 * 5 * 5 * 32 + 2 * 32 * 128 * 5) + 4 * 16 * 32 + 320
    assert run.config.total_steps == round(1e10 / (3 * 2 * products * 16))
    assert run.config.total_steps == run.overrides['total_steps']
  assert [run.name for run in planned] == ['depth=1,total_steps=flops_1e10',
                                           'depth=2,total_steps=flops_1e10']  # fmt: skip


def test_a_budget_of_what_starts_from_an_earlier_run(tmp_path):
  """Which is not there when steps are counted; of what it holds they do not depend."""
  config = defaults.complete(small_config(run='sweep'), {})
  taught = {'objective.name': 'distillation', 'objective.teacher': 'run:a'}
  rows = [{'label': 'a'}, {'label': 'b', 'init_from': 'run:a'}, {'label': 'c'} | taught]
  planned = runs.plan(config, [row | {'total_steps': 'flops:1e10'} for row in rows], tmp_path)
  assert len({run.config.total_steps for run in planned}) == 1
  folder = str(planned[0].workdir)
  assert planned[1].config.init_from == planned[2].config.objective.teacher == folder
  with pytest.raises(ValueError, match=r'time of its teacher too, .*/runs/a, which is not trained'):
    runs.plan(config, [{'label': 'a'}, rows[2] | {'total_steps': 'seconds:1'}], tmp_path)


def test_a_budget_of_seconds_is_measured_once(tmp_path, monkeypatch):
  config = defaults.complete(small_config(run='sweep'), {})
  monkeypatch.setattr(memory, 'resident', lambda: 10**15)
  with pytest.raises(ValueError, match=r'vit:mu/4 could not be timed .* GB, which are not free'):
    runs.plan(config, [{'total_steps': 'seconds:1000'}], tmp_path)
  monkeypatch.setattr(memory, 'resident', lambda: 0)
  (first,) = runs.plan(config, [{'total_steps': 'seconds:1000'}], tmp_path)
  models = json.loads((tmp_path / 'reports/models.json').read_text())
  (record,) = models.values()
  assert first.config.total_steps == round(1000 * record['images_per_second']['train_step'] / 16)
  monkeypatch.setattr(budget.counted, 'record', None)  # It is not asked again.
  (again,) = runs.plan(config, [{'total_steps': 'seconds:1000'}], tmp_path)
  assert again.config.total_steps == first.config.total_steps


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    ('joules:3', 'kind of budget'),
    ('flops:much', 'no finite number'),
    ('flops:inf', 'no finite'),
    ('seconds:nan', 'no finite'),
    ('flops:3', 'no step'),
  ],
)
def test_an_impossible_budget_says_so(tmp_path, words, expected):
  config = defaults.complete(small_config(run='sweep'), {})
  with pytest.raises(ValueError, match=expected):
    runs.plan(config, [{'total_steps': words}], tmp_path)


def test_what_is_tuned_stands_beside_a_label(tmp_path):
  config = defaults.complete(small_config(run='sweep'), {})
  choices = [
    {'label': 'a', 'model.depth': 2, 'optimizer.learning_rate': rate, 'seed': 0}
    for rate in (0.1, 0.2)
  ]
  for tuned in (('optimizer.learning_rate',), None):  # None: the recipe does not say.
    planned = runs.plan(config, choices, tmp_path, tuned)
    assert [run.name for run in planned] == [f'a,learning_rate={x},seed=0' for x in (0.1, 0.2)]
    assert planned[0].shown == {'label': 'a', 'optimizer.learning_rate': 0.1, 'seed': 0}
  (one,) = runs.plan(config, choices[:1], tmp_path)  # Its label stands for its rate too.
  assert one.name == 'a,seed=0' and one.shown == {'label': 'a', 'seed': 0}
  with pytest.raises(ValueError, match='names some runs twice: a,seed=0'):
    runs.plan(config, choices, tmp_path, ())


def test_none_is_not_what_is_not_said(tmp_path):
  config, key = defaults.complete(small_config(run='sweep'), {}), 'data.train_examples'
  none, also = {key: None, 'seed': 0}, {key: 40, 'seed': 0}
  with pytest.raises(ValueError, match=f'{key} is None in some runs and missing in others'):
    runs.plan(config, [none, also, {'seed': 0}], tmp_path)
  assert len(runs.plan(config, [none, also], tmp_path)) == 2
  labelled = [none | {'label': 'all'}, {'seed': 0, 'label': 'some'}]
  assert len(runs.plan(config, labelled, tmp_path)) == 2


def test_pairs_are_told_apart_beyond_their_seeds():
  """Without a difference any pair is told in about one sweep of twenty; SciPy tells the same."""
  rng = np.random.default_rng(0)
  draws = [[*rng.normal(0.9, 0.01, (5, 3))] for _ in range(2000)]
  false = [told.told_apart(scores).any() for scores in draws]
  assert 0.035 < np.mean(false) < 0.065
  for unequal in [[own[: 2 + i % 2] for i, own in enumerate(draw)] for draw in draws[:3]]:
    unequal[0] = unequal[0] + 0.03
    expected = tukey_hsd(*unequal).pvalue < told.LEVEL
    np.testing.assert_array_equal(told.told_apart(unequal), expected)
  scores = [np.array([0.90, 0.91, 0.92]), np.array([0.91, 0.92, 0.93]), np.array([0.5, 0.51, 0.52])]
  assert told.told_apart(scores).tolist() == [[False, False, True]] * 2 + [[True, True, False]]
  _, text, table, rest = told.blocks(['a', 'b', 'c'], scores, 400)
  assert 'Of 3 pairs 2 are told apart' in text.text
  assert table.rows[0] == ['b', '92.0%', 'c', 'a'] and table.rows[2] == ['c', '51.0%', '', '']
  # q(0.05; 3, 6) = 4.339 (tables of the studentised range), spread 0.01 of three seeds.
  assert told.smallest(scores) == pytest.approx(4.339 * 0.01 / 3**0.5, rel=1e-3)
  more = [*scores[:2], np.array([0.5, 0.52])]  # Fewer seeds tell less, but not of the others.
  assert told.smallest(more) == told.thresholds(more)[0, 1] < told.thresholds(more)[0, 2]
  assert 'from 88.9% to 94.3%' in rest.text  # Wilson (1927), 368 of 400.
  assert 'from 99.0% to 100.0%' in told.cannot(1.0, 400)  # Of none wrong too.
  assert not told.blocks(['a'], scores[:1]) and not told.blocks(['a', 'b'], [scores[0][:1]] * 2)


def test_a_choice_at_the_edge_of_what_was_tried_is_said():
  """Of what was tried for that setting: b's largest is in the middle of a's."""
  tried = {'a': (1, 2, 3, 4, 5), 'b': (1, 2, 3)}
  rows = [
    {'name': name, 'setting': name, 'rate': rate, 'chosen': rate == 3, 'validation': 0.5,
     'failed': 0}
    for name, rates in tried.items() for rate in rates
  ]  # fmt: skip
  keys = ['name', 'rate']
  assert sweep.explain(rows, keys, ('rate',)).endswith('At the edge of what was tried: b (3).')
  assert 'edge' not in sweep.explain(rows[:5], keys, ('rate',))
  assert 'diverged' not in sweep.explain(rows, keys, ('rate',))
  rows[0]['failed'] = 1
  assert 'with which fewest runs diverged' in sweep.explain(rows, keys, ('rate',))


@pytest.mark.parametrize(
  ('held', 'tuned', 'expected'),
  [(0.5, ('rate',), 'chosen for each setting'), (0.5, (), 'nothing for validation to choose'),
   (0.5, ('other',), 'nothing for validation'), (None, ('rate',), 'No validation accuracy')],
)  # fmt: skip
def test_a_sweep_says_who_chose(held, tuned, expected):
  row = {'setting': 'a', 'rate': 1, 'chosen': True, 'validation': held, 'failed': 0}
  assert expected in sweep.explain([row], ['rate'], tuned)


def test_settings_have_names_that_tell_them_apart():
  keys = ['model.readout', 'model.depth', 'model.width']
  rows = [
    {'model.readout': 'mean', 'model.depth': 2}, {'model.readout': 'mean', 'model.width': 2},
    {'model.readout': 'max'},
  ]  # fmt: skip
  found = [series.name_of(row, keys, rows) for row in rows]
  assert found == ['mean, depth=2', 'mean, width=2', 'max']
  assert series.name_of({}, keys, [{}, *rows]) == 'base'
  same = [row | {'optimizer.warmup_steps': 10} for row in rows]
  keys = ['optimizer.warmup_steps', *keys]
  assert [series.name_of(row, keys, same) for row in same] == found
  assert series.name_of(same[0], keys, same[:1]) == '10, mean, 2'
