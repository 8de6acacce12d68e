"""VTAB-1k: slices and label rules of all 19 tasks, splits, the whole protocol on a tiny model."""

import dataclasses
import json
import re

from conftest import small_config
import jax
import numpy as np
import prepared
import pytest

from vit_jax import data, defaults, experiment, metrics, models, recipe, weights
from vit_jax.data import tfds, vtab, vtab_tasks
from vit_jax.data.vtab_tasks import TASKS
from vit_jax.explore import plan, vtab_page, vtab_runs

# The table.

GROUPS = {'natural': 7, 'specialized': 4, 'structured': 8}
# Examples of each split of each set as TFDS documents them, and of each task's test split as the
# paper's table 2 gives them.
SIZES = {
  'caltech101': ({'train': 3060, 'test': 6084}, 6084),
  'cifar100': ({'train': 50_000, 'test': 10_000}, 10_000),
  'dtd': ({'train': 1880, 'validation': 1880, 'test': 1880}, 1880),
  'oxford_flowers102': ({'train': 1020, 'validation': 1020, 'test': 6149}, 6149),
  'oxford_iiit_pet': ({'train': 3680, 'test': 3669}, 3669),
  'sun397/tfds': ({'train': 76_128, 'validation': 10_875, 'test': 21_750}, 21_750),
  'svhn_cropped': ({'train': 73_257, 'test': 26_032}, 26_032),
  'patch_camelyon': ({'train': 262_144, 'validation': 32_768, 'test': 32_768}, 32_768),
  'eurosat/rgb': ({'train': 27_000}, 5400),
  'resisc45': ({'train': 31_500}, 6300),
  'diabetic_retinopathy_detection/btgraham-300': (
    {'train': 35_126, 'validation': 10_906, 'test': 42_670}, 42_670
  ),
  'clevr': ({'train': 70_000, 'validation': 15_000}, 15_000),
  'dmlab': ({'train': 65_550, 'validation': 22_628, 'test': 22_735}, 22_735),
  'dsprites': ({'train': 737_280}, 73_728),
  'kitti': ({'train': 6347, 'validation': 423, 'test': 711}, 711),
  'smallnorb': ({'train': 24_300, 'test': 24_300}, 12_150),
}  # fmt: skip


def places(split, sizes):
  """(split, place) of every example of 'train[:800]+test[50%:]'."""
  found = []
  for part in split.split('+'):
    name, first, last = re.fullmatch(r'(\w+)(?:\[(\d*%?):(\d*%?)\])?', part).groups()
    size = sizes[name]
    bounds = [int(x[:-1]) * size // 100 if x and x.endswith('%') else int(x) if x else None
              for x in (first or '', last or '')]  # fmt: skip
    found += [(name, place) for place in range(size)[slice(*bounds)]]
  return found


def test_nineteen_tasks_in_three_groups():
  assert len(TASKS) == 19
  groups = [task.group for task in TASKS.values()]
  assert {group: groups.count(group) for group in groups} == GROUPS
  assert {task.dataset for task in TASKS.values()} == SIZES.keys()


@pytest.mark.parametrize('name', TASKS)
def test_slices_are_800_and_200_and_the_published_test(name):
  task = TASKS[name]
  sizes, tested = SIZES[task.dataset]
  train_part, held, test = (places(x, sizes) for x in (task.train, task.validation, task.test))
  assert (len(train_part), len(held), len(test)) == (800, 200, tested)
  assert len({*train_part, *held, *test}) == 1000 + tested  # None of them twice.


# One or more (example, class) of each task, made by hand; K classes.
def objects(*depths):
  coords = np.array([[10.0, 20.0, depth] for depth in depths], np.float32).reshape(-1, 3)
  return {'objects': {'pixel_coords': coords}}


def traffic(*pairs):
  kinds = np.array([kind for kind, _ in pairs], np.int64)
  where = np.array([[1.0, 2.0, z] for _, z in pairs], np.float32).reshape(-1, 3)
  return {'objects': {'type': kinds, 'location': where}}


def plain(key, *labels):
  return [({key: label, 'other': 9}, label) for label in labels]


CASES = {
  'caltech101': (102, plain('label', 0, 101)),
  'cifar100': (100, plain('label', 0, 99)),
  'dtd': (47, plain('label', 0, 46)),
  'flowers102': (102, plain('label', 0, 101)),
  'pets': (37, plain('label', 0, 36)),
  'sun397': (397, plain('label', 0, 396)),
  'svhn': (10, plain('label', 0, 9)),
  'camelyon': (2, plain('label', 0, 1)),
  'eurosat': (10, plain('label', 0, 9)),
  'resisc45': (45, plain('label', 0, 44)),
  'retinopathy': (5, plain('label', 0, 4)),
  'clevr_count': (8, [(objects(*range(1, n + 1)), n - 3) for n in range(3, 11)]),
  'clevr_distance': (6, [
    (objects(9.9, 3.0, 12.0), 0), (objects(8.0), 0), (objects(8.01, 9.0), 1), (objects(8.5), 1),
    (objects(8.75), 2), (objects(9.25), 3), (objects(9.5), 3), (objects(10.0, 11.0), 4),
    (objects(10.1), 5), (objects(99.0), 5),
  ]),
  'dmlab': (6, plain('label', 0, 5)),
  'dsprites_location': (16, [
    ({'label_x_position': x, 'label_orientation': 39}, x // 2) for x in (0, 1, 2, 15, 30, 31)
  ]),
  # 40 / 16 = 2.5 orientations a bin.
  'dsprites_orientation': (16, [
    ({'label_orientation': x, 'label_x_position': 31}, y)
    for x, y in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 2), (8, 3), (37, 14), (39, 15))
  ]),
  # Types 0 to 2 are car, van and truck; 3 a pedestrian, 7 anything else.
  'kitti_distance': (4, [
    (traffic((0, 5.0), (1, 30.0)), 0), (traffic((2, 8.0)), 0), (traffic((1, 8.5), (3, 2.0)), 1),
    (traffic((0, 20.0)), 1), (traffic((2, 21.0), (7, 1.0)), 2), (traffic((3, 4.0)), 3),
    (traffic(), 3), (traffic((0, -1.0)), 0),
  ]),
  'smallnorb_azimuth': (18, plain('label_azimuth', 0, 17)),
  'smallnorb_elevation': (9, plain('label_elevation', 0, 8)),
}  # fmt: skip


class Rows(list):
  """Examples by index, as a TFDS data source has them."""

  def __getitems__(self, indices):
    return [self[i] for i in indices]


@pytest.mark.parametrize('name', TASKS)
def test_labels_of_hand_made_examples(name):
  count, cases = CASES[name]
  assert TASKS[name].num_classes == count
  task = dataclasses.replace(TASKS[name], scale=1)
  rows = Rows({'image': b'', **example} for example, _ in cases)
  source = vtab.Labelled(rows, np.arange(len(rows)), 'x train', task)
  _, labels = source.read(np.arange(len(rows)))
  assert labels.tolist() == [label for _, label in cases] and labels.dtype == np.int32
  assert source.read(np.arange(0))[1].shape == (0,)
  assert not task.names or len(task.names) == count


@pytest.mark.parametrize(
  ('name', 'example'),
  [('clevr_count', objects(1.0, 2.0)), ('clevr_distance', objects(-1.0)),
   ('cifar100', {'label': 100})],
)  # fmt: skip
def test_a_label_that_the_task_has_not(name, example):
  rows = Rows([{'image': b'', **example}])
  source = vtab.Labelled(rows, np.array([0]), 'x train', TASKS[name])
  with pytest.raises(ValueError, match=r'example 0 of x train: class -?\d+ is not one of the'):
    source.read(np.array([0]))


# Splits of prepared sets.


def small_sets(folder):
  """The four sets whose labels or pictures need work, a few examples each, as TFDS writes them."""
  import tensorflow_datasets

  kinds = tensorflow_datasets.features
  number = kinds.ClassLabel
  grey = prepared.encoded(np.eye(64, dtype=np.uint8)[..., None])  # Values 0 and 1.
  seen = prepared.encoded(np.full((8, 8, 3), 90, np.uint8))
  single = kinds.Tensor(shape=(3,), dtype=np.float32)
  prepared.write(
    folder,
    'dsprites',
    '2.0.0',
    {
      'image': kinds.Image(shape=(64, 64, 1)),
      'label_x_position': number(num_classes=32),
      'label_orientation': number(num_classes=40),
    },
    {'train': [{'image': grey, 'label_x_position': i, 'label_orientation': i} for i in range(9)]},
  )
  prepared.write(
    folder,
    'clevr',
    '3.1.0',
    {
      'image': kinds.Image(),
      'objects': kinds.Sequence({'pixel_coords': single, 'size': number(names=['small', 'large'])}),
    },
    {
      split: [
        {
          'image': seen,
          'objects': [{'pixel_coords': [0.0, 0.0, 8.2 + k], 'size': 0} for k in range(3 + i)],
        }
        for i in range(6)
      ]
      for split in ('train', 'validation')
    },
  )
  prepared.write(
    folder,
    'kitti',
    '3.3.0',
    {
      'image': kinds.Image(),
      'objects': kinds.Sequence({'type': number(num_classes=8), 'location': single}),
    },
    {
      split: [
        {'image': seen, 'objects': [{'type': i, 'location': [0.0, 0.0, 10.0 * i]}]}
        for i in range(5)
      ]
      + [{'image': seen, 'objects': []}]
      for split in ('train', 'validation', 'test')
    },
  )
  prepared.write(folder, 'smallnorb', '2.1.0', {
    'image': kinds.Image(shape=(96, 96, 1)), 'image2': kinds.Image(shape=(96, 96, 1)),
    'label_azimuth': number(num_classes=18), 'label_elevation': number(num_classes=9),
  }, {split: [
    {'image': grey, 'image2': b'never decoded', 'label_azimuth': 2 * i, 'label_elevation': i}
    for i in range(8)
  ] for split in ('train', 'test')})  # fmt: skip


EXPECTED = {
  'dsprites_location': [0, 0, 1, 1], 'dsprites_orientation': [0, 0, 0, 1],
  'clevr_count': [0, 1, 2, 3], 'clevr_distance': [1, 1, 1, 1], 'kitti_distance': [0, 1, 1, 3],
  'smallnorb_azimuth': [0, 2, 4, 6], 'smallnorb_elevation': [0, 1, 2, 3],
}  # fmt: skip


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sets')
  small_sets(folder)
  return folder


@pytest.mark.parametrize('name', EXPECTED)
def test_prepared_sets_are_read_with_the_labels_of_the_task(name, sets, monkeypatch):
  """Through array_record and TFDS's own features; slices as short as these sets."""
  row = TASKS[name]
  other = row.validation.partition('[')[0]
  short = dataclasses.replace(
    row, train='train[:3]', validation=f'{other}[3:5]',
    test='test[50%:]' if row.test.startswith('test') else row.test.partition('[')[0],
  )  # fmt: skip
  monkeypatch.setitem(vtab_tasks.TASKS, name, short)
  found = build(name, sets, examples='1000')
  labels = np.concatenate([b['label'][b['mask']] for b in found.epoch('train', 4)])
  assert labels[:4].tolist() == EXPECTED[name] and len(labels) == 5
  assert len(found.class_names) == row.num_classes
  batch = next(found.epoch('test', 2))
  assert batch['image'].shape == (2, 24, 24, 3)
  if row.scale == 255:  # Of values 0 and 1, white on black.
    assert found.picture('train', 0).max() > 60
  parts = build(name, sets, examples='800')
  assert {key: len(x) for key, x in parts.splits.items()} == {
    'train': 3, 'validation': 2, 'test': len(found.splits['test'])
  }  # fmt: skip


def build(task, data_dir, **overrides):
  settings = {f'data__{key}': value for key, value in overrides.items()}
  given = {'data__name': 'vtab', 'data__task': task, 'data__data_dir': str(data_dir),
           'data__image_size': (24, 24)}  # fmt: skip
  return data.build(**small_config(**given | settings).data)


@pytest.fixture(scope='module')
def one_set(tmp_path_factory):
  """A folder of prepared sets with CIFAR-100 alone, long enough for the slices."""
  folder = tmp_path_factory.mktemp('one')
  prepared.write_cifar100(folder)
  return folder


def test_the_splits_of_a_task(one_set):
  whole, parts = (build('cifar100', one_set, examples=n) for n in ('1000', '800'))
  assert {key: len(x) for key, x in whole.splits.items()} == {'train': 1000, 'test': 60}
  assert {key: len(x) for key, x in parts.splits.items()} == {
    'train': 800, 'validation': 200, 'test': 60
  }  # fmt: skip
  assert len(whole.class_names) == 100
  _, labels = parts.splits['validation'].read(np.arange(3))
  assert labels.tolist() == [0, 1, 2]  # 45,000 and on, of a hundred in turn.
  assert whole.augment.crop == 'squashed' and whole.augment.crop_from == (28, 28)
  assert whole.augment.flip
  source = whole.splits['train'].take(np.array([801]))
  assert source.name(0) == 'example 801 of cifar100 train[:800]+train[45000:45200]'


def test_crop_and_flip_are_the_tasks_where_nobody_says(one_set):
  section = defaults.part('data', 'vtab').to_dict() | {'task': 'dsprites_location'}
  found = vtab.decide(section)
  assert (found['crop'], found['flip']) == ('none', False)
  orientation = vtab.decide(section | {'task': 'dsprites_orientation'})
  assert (orientation['crop'], orientation['flip']) == ('squashed', False)
  given = build('cifar100', one_set, crop='none', flip=False, crop_from=())
  assert (given.augment.crop, given.augment.flip) == ('none', False)


def test_a_plan_knows_the_classes_without_data(tmp_path):
  config = defaults.complete(small_config(), {'data': 'vtab'})
  config.data.update(task='clevr_distance', data_dir=str(tmp_path), image_size=(16, 16))
  found = plan.open_data(config.data.to_dict(), None, False)
  assert len(found.class_names) == 6 and not found.augment.crop.startswith('squashed')


@pytest.mark.parametrize(
  ('task', 'overrides', 'message'),
  [
    (None, {}, 'config.data.task is not set: one of caltech101, cifar100'),
    ('cifar10', {}, "unknown config.data.task 'cifar10'.*did you mean 'cifar100'"),
    ('cifar100', {'examples': '900'}, "unknown config.data.examples '900'"),
    ('cifar100', {'validation_fraction': 0.1}, 'has a validation split of its own.*examples=800'),
    ('dtd', {}, r'dtd in .*is not prepared there.*tfds build dtd --data_dir.*array_record'),
    ('sun397', {}, r'tfds build sun397/tfds --data_dir'),
    ('resisc45', {}, r'first put NWPU-RESISC45.rar.* into its downloads/manual'),
    ('retinopathy', {}, r'kaggle.*tfds build diabetic_retinopathy_detection/btgraham-300'),
  ],
)
def test_what_cannot_be_read_is_named(task, overrides, message, one_set):
  with pytest.raises(ValueError, match=f'(?s){message}'):
    build(task, one_set, **overrides)
  with pytest.raises(FileNotFoundError, match='data_dir=/nowhere is not a folder'):
    build('dtd', '/nowhere')


def test_a_set_that_is_too_short(tmp_path):
  prepared.write_cifar100(tmp_path, train=900)
  with pytest.raises(ValueError, match=r'train of task cifar100=train\[:800\].*45000'):
    build('cifar100', tmp_path)


def test_versions(tmp_path, caplog):
  """The newest of the row's first number counts, else the newest, and then the run says so."""
  row = TASKS['cifar100']
  assert vtab.find_version(row, str(tmp_path)) is None
  for version in ('4.0.0', '3.0.2', '3.0.10', 'incomplete'):
    (tmp_path / 'cifar100' / version).mkdir(parents=True)
    (tmp_path / 'cifar100' / version / 'dataset_info.json').touch()
  assert vtab.find_version(row, str(tmp_path)) == '3.0.10'
  other = dataclasses.replace(row, version=2)
  assert vtab.find_version(other, str(tmp_path)) == '4.0.0'
  prepared.write_cifar100(tmp_path / 'real', train=10)
  vtab.open_set(other, str(tmp_path / 'real'))
  assert 'prepared as version 3.0.2, and the slices of VTAB are of version 2' in caplog.text


def test_a_set_with_other_classes(one_set, monkeypatch):
  monkeypatch.setitem(
    vtab_tasks.TASKS, 'cifar100', dataclasses.replace(TASKS['cifar100'], num_classes=99)
  )
  with pytest.raises(ValueError, match='cifar100 has 100 classes there, VTAB 99'):
    build('cifar100', one_set)


def test_slices_of_several_splits_of_any_set(one_set):
  config = small_config(
    data__name='tfds', data__dataset='cifar100:3.0.2', data__data_dir=str(one_set),
    data__train_split='train[:10]+test[:5]', data__image_size=(8, 8),
  )  # fmt: skip
  assert len(data.build(**config.data).splits['train']) == 15
  config.data.train_split = 'train[:10]+tset'
  with pytest.raises(ValueError, match="did you mean 'test'"):
    data.build(**config.data)
  builder = tfds.open_builder('cifar100:3.0.2', str(one_set))
  with pytest.raises(ValueError, match=r'x=test\[:99\] of cifar100: .*99'):
    tfds.open_split(builder, 'test[:99]', 'x', 'cifar100', str(one_set))


# The protocol.


def test_what_is_tried():
  found = vtab_runs.Protocol()
  assert found.settings == [(0.01, 2500), (0.003, 2500), (0.01, 500), (0.003, 500)]
  assert (found.runs, vtab_runs.PAPER.settings, vtab_runs.PAPER.runs) == (7, [(0.01, 2500)], 3)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """Weights of a tiny model for 32 x 32 pictures in colour, which nobody trained."""
  folder = tmp_path_factory.mktemp('start')
  config = small_config(model__variant='mu/16', data__image_size=(32, 32), data__channels=3)
  built = experiment.build(config)
  params = jax.jit(lambda key: models.init(built.model, key))(jax.random.key(0))
  weights.write_model(folder, jax.device_get(params), built.passport)
  return folder


def test_the_config_of_a_fine_tuning(checkpoint, tmp_path):
  """As the paper's table 4, but for what a person or the protocol says."""
  config, given = vtab_runs.base_config(
    str(checkpoint), 'D', ['--config.data.image_size=(32,32)', '--config.optimizer.warmup_steps=7']
  )
  made = vtab_runs.Plan(config, given, vtab_runs.PAPER, ('dtd',), {}, tmp_path)
  run = made.run('dtd', 'final', 0.01, 2500, 2)
  chosen = run.config.optimizer
  assert (chosen.name, chosen.momentum, chosen.momentum_dtype) == ('sgd', 0.9, 'bfloat16')
  assert (chosen.schedule, chosen.clip_norm, chosen.weight_decay) == ('cosine', 1.0, 0.0)
  assert (chosen.learning_rate, chosen.warmup_steps) == (0.01, 7)
  assert (run.config.batch_size, run.config.total_steps, run.config.seed) == (512, 2500, 2)
  assert run.config.data.image_size == (32, 32) and run.config.data.examples == '1000'
  assert run.config.init_from == str(checkpoint) and run.config.eval_every == 2500
  assert run.workdir == tmp_path / 'dtd/final/learning_rate=0.01,steps=2500,seed=2'
  tuned = made.run('dtd', 'tune', 0.003, 500, 0)
  assert tuned.config.data.examples == '800' and tuned.config.eval_every == 0
  assert tuned.workdir.name == 'learning_rate=0.003,steps=500'
  config, _ = vtab_runs.base_config(str(checkpoint), None, [])
  assert config.data.image_size == (384, 384) and config.accumulation_steps == 8
  free = vtab_runs.Plan(config, (), vtab_runs.PAPER, (), {}, tmp_path)
  assert free.run('dtd', 'final', 0.01, 2500, 0).config.optimizer.warmup_steps == 200
  assert free.run('dtd', 'final', 0.01, 500, 0).config.optimizer.warmup_steps == 100


TINY = (
  '--config.data.image_size=(32,32)', '--config.batch_size=16', '--config.accumulation_steps=1',
  '--config.checkpoint_every=1', '--steps=2', '--learning_rates=0.1,0.01', '--seeds=2',
)  # fmt: skip


def runs_of(workdir):
  """When each run's numbers were written."""
  return {path: path.stat().st_mtime_ns for path in workdir.rglob('metrics.jsonl')}


def test_the_whole_protocol(checkpoint, one_set, quick, tmp_path):
  """One task is prepared and eighteen are not; stopped in the middle, and gone on with."""
  words = (checkpoint, f'--data_dir={one_set}', f'--workdir={tmp_path}', *TINY)
  killed = quick(*words, module='vit_jax.explore.vtab', kill=True)
  assert killed.returncode == -9, killed.stderr  # At the first checkpoint.
  done = quick(*words, module='vit_jax.explore.vtab')
  assert done.returncode == 0, done.stderr
  assert '1 of 19 tasks can be run: cifar100' in done.stderr
  assert '18 are left out' in done.stderr and 'tfds build sun397/tfds' in done.stderr
  before = runs_of(tmp_path)
  assert len(before) == 2 + 2
  assert not [*tmp_path.glob('cifar100/tune/*/checkpoints')]  # Only numbers stay.
  assert len([*tmp_path.glob('cifar100/final/*/model/weights.npz')]) == 2
  report = json.loads((tmp_path / 'vtab.json').read_text())
  check_report(report, tmp_path)
  assert report['tasks'].keys() == {'cifar100'} and len(report['missing']) == 18
  assert 'kaggle.com' in report['missing']['retinopathy']
  assert re.search(r'natural .*mean of 1 of 7 tasks', done.stdout)
  assert re.search(r'all tasks .*mean of 1 of 19 tasks', done.stdout)
  page = (tmp_path / 'vtab.md').read_text()
  assert '| cifar100 | natural |' in page and '## Not run' in page
  assert (tmp_path / 'vtab.png').stat().st_size > 10_000
  again = quick(*words, module='vit_jax.explore.vtab')  # A no-op.
  assert again.returncode == 0, again.stderr
  assert runs_of(tmp_path) == before and again.stdout == done.stdout
  other = quick(*words, '--config.optimizer.momentum=0.5', module='vit_jax.explore.vtab')
  assert other.returncode == 1 and 'was started with another config' in other.stderr


def check_report(report, workdir):
  """What was chosen is best on the 200; numbers are those of the runs."""
  task = report['tasks']['cifar100']
  tuned = task['tuned']
  assert [(row['learning_rate'], row['total_steps']) for row in tuned] == [(0.1, 2), (0.01, 2)]
  for row in tuned:
    name = f'learning_rate={row["learning_rate"]:g},steps={row["total_steps"]}'
    lines = metrics.read(workdir / 'cifar100/tune' / name / 'metrics.jsonl')
    assert lines[-1]['validation/accuracy'] == row['validation_accuracy']
    assert not any(key.startswith('test/') for line in lines for key in line)  # Never tested.
  best = max(tuned, key=lambda row: row['validation_accuracy'])
  assert (task['learning_rate'], task['total_steps']) == (
    best['learning_rate'], best['total_steps']
  )  # fmt: skip
  setting = f'learning_rate={best["learning_rate"]:g},steps={best["total_steps"]}'
  runs = [workdir / f'cifar100/final/{setting},seed={i}' for i in range(2)]
  final = [metrics.read(run / 'metrics.jsonl')[-1] for run in runs]
  scores = [row['test/accuracy'] for row in final]
  assert task['accuracy_by_seed'] == scores
  assert task['accuracy'] == pytest.approx(np.mean(scores))
  assert task['deviation'] == pytest.approx(np.std(scores, ddof=1))
  config = json.loads((runs[1] / 'config.json').read_text())
  assert config['data']['examples'] == '1000' and config['seed'] == 1


def test_the_papers_setting_alone(checkpoint, one_set, tmp_path, monkeypatch):
  """Nothing is chosen: three fine-tunings of one setting."""
  from vit_jax.explore import vtab as command

  started = []

  def attempt(run):
    started.append(run)
    run.workdir.mkdir(parents=True)
    row = {'step': 2500, 'test/accuracy': 0.5 + 0.1 * len(started)}
    (run.workdir / 'metrics.jsonl').write_text(json.dumps(row) + '\n')

  monkeypatch.setattr(command, 'attempt', attempt)
  command.main([
    str(checkpoint), f'--data_dir={one_set}', f'--workdir={tmp_path}', '--protocol=paper',
    '--tasks=cifar100,dtd', '--config.data.image_size=(32,32)',
  ])  # fmt: skip
  settings = {(r.config.optimizer.learning_rate, r.config.total_steps) for r in started}
  assert settings == {(0.01, 2500)} and [r.config.seed for r in started] == [0, 1, 2]
  report = json.loads((tmp_path / 'vtab.json').read_text())
  found = report['tasks']['cifar100']
  assert found['accuracy'] == pytest.approx(0.7) and found['deviation'] == pytest.approx(0.1)
  assert found['tuned'] == [] and report['missing'].keys() == {'dtd'}


def test_what_diverges_is_not_chosen(checkpoint, one_set, tmp_path, monkeypatch):
  from vit_jax.explore import vtab as command

  def attempt(run):
    run.workdir.mkdir(parents=True)
    if run.config.optimizer.learning_rate >= 0.1 or run.config.seed == 1:
      run.failure.write_text('the loss is not finite')
      return
    row = {'step': run.config.total_steps, 'test/accuracy': 0.5, 'validation/accuracy': 0.4}
    (run.workdir / 'metrics.jsonl').write_text(json.dumps(row) + '\n')

  monkeypatch.setattr(command, 'attempt', attempt)
  words = [str(checkpoint), f'--data_dir={one_set}', '--config.data.image_size=(32,32)',
           '--steps=5', '--tasks=cifar100']  # fmt: skip
  command.main([*words, f'--workdir={tmp_path / "a"}', '--learning_rates=0.1,0.01'])
  found = json.loads((tmp_path / 'a/vtab.json').read_text())['tasks']['cifar100']
  assert found['learning_rate'] == 0.01 and found['accuracy_by_seed'] == [0.5, 0.5]
  with pytest.raises(SystemExit, match='every setting diverged'):
    command.main([*words, f'--workdir={tmp_path / "b"}', '--learning_rates=0.1,0.2'])


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--tasks=cifar10'], "did you mean 'cifar100'"),
    (['--config.total_steps=5'], '--config.total_steps is decided by the protocol.*use --steps'),
    (['--config.evaluators=()'], 'config.evaluators is decided by the protocol of VTAB$'),
    (['--config.data.examples=800'], 'config.data.examples is decided by the protocol of VTAB$'),
    (['--config.data.crop=squashd'], "did you mean 'squashed'"),
    (['--config.data.corp=none'], "did you mean 'data.crop'"),
    (['--config=configs/finetune.py'], 'this command takes no recipe'),
    (['--protocol=paper', '--steps=5'], 'has one setting: leave --steps out'),
    (['--seeds=0'], '--seeds=0 must be at least 1'),
    (['--data_dir=/nowhere'], 'data_dir=/nowhere is not a folder'),
    (['--tasks=dtd,pets'], r'none of the 2 tasks can be run:\n  dtd: .*tfds build dtd'),
  ],
)
def test_what_cannot_be_run_is_named(words, message, checkpoint, one_set, tmp_path):
  from vit_jax.explore import vtab as command

  given = [str(checkpoint), f'--data_dir={one_set}', f'--workdir={tmp_path}']
  with pytest.raises(SystemExit, match=f'(?s)error: .*{message}'):
    command.main([*given, *words])
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['0.1,0.1', '0', 'x', '', '-1'])
def test_numbers_that_cannot_be(text, tmp_path, capsys):
  from vit_jax.explore import vtab as command

  with pytest.raises(SystemExit):
    command.main(['C', f'--workdir={tmp_path}', f'--learning_rates={text}'])
  assert 'different numbers above 0' in capsys.readouterr().err


# The results.


def records(**accuracies):
  return {
    name: vtab_page.record(TASKS[name].group, found, 0.01, 2500, [])
    for name, found in accuracies.items()
  }


def test_means_of_groups_and_of_all():
  found = records(dtd=[0.5, 0.7], pets=[0.9, 0.9], eurosat=[1.0, 0.8], dmlab=[0.2, 0.4])
  natural = vtab_page.mean_of(found, [n for n, t in TASKS.items() if t.group == 'natural'])
  assert natural['accuracy'] == pytest.approx(0.75) and (natural['tasks'], natural['of']) == (2, 7)
  assert natural['deviation'] == pytest.approx(np.std([0.7, 0.8], ddof=1))
  whole = vtab_page.mean_of(found, list(TASKS))
  assert whole['accuracy'] == pytest.approx(np.mean([0.6, 0.9, 0.9, 0.3]))
  assert vtab_page.mean_of(found, ['camelyon']) == {
    'accuracy': None, 'deviation': None, 'tasks': 0, 'of': 1
  }  # fmt: skip
  uneven = records(dtd=[0.5, 0.7], pets=[0.9])  # One seed diverged: no deviation over seeds.
  mean = vtab_page.mean_of(uneven, ['dtd', 'pets'])
  assert mean['accuracy'] == pytest.approx(0.75) and mean['deviation'] is None
  assert vtab_page.percent(mean) == '75.00' and vtab_page.percent({'accuracy': None}) == '-'


def test_a_picture_of_all_tasks(tmp_path):
  rng = np.random.default_rng(0)
  spread = {name: rng.uniform(0.3, 0.98, 1) + rng.normal(0, 0.01, 3) for name in TASKS}
  found = records(**{name: values.tolist() for name, values in spread.items()})
  about = {'checkpoint': 'C', 'protocol': dataclasses.asdict(vtab_runs.PAPER)}
  report = vtab_page.write(tmp_path, found, {}, about)
  assert report['mean']['tasks'] == 19 and (tmp_path / 'vtab.png').stat().st_size > 20_000
  assert 'One setting for all tasks' in (tmp_path / 'vtab.md').read_text()


def test_a_command_with_a_config_of_its_own_takes_no_recipe():
  base = defaults.get_config()
  assert recipe.read(['--config.seed=3', '--config.optimizer.name', 'sgd'], base).seed == 3
  with pytest.raises(ValueError, match='takes no recipe'):
    recipe.read(['--config=x.py'], base)
