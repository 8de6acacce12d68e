"""Data: splits, order, padding, pictures of every mode, refusals."""

import dataclasses
from importlib.machinery import ModuleSpec
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import types
from unittest import mock

from conftest import small_config
import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import augment, pipeline, preprocess, processes, sources, stratified, vtab_tasks
from vit_jax.runtime import devices


def digits(**overrides):
  return data.build(**small_config(**{f'data__{key}': x for key, x in overrides.items()}).data)


def test_digits_are_the_real_ones_in_a_stratified_split():
  splits = digits(validation_fraction=0.1).splits
  assert {name: len(source) for name, source in splits.items()} == {
    'train': 1293,
    'validation': 144,
    'test': 360,
  }
  counts = np.bincount(splits['test'].labels)
  assert counts.min() >= 34
  assert counts.max() <= 37
  seen = np.concatenate(
    [np.stack(source.read(np.arange(len(source)))[0]) for source in splits.values()]
  )
  from sklearn.datasets import load_digits

  whole = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
  assert sorted(map(bytes, seen)) == sorted(map(bytes, whole))
  known = sources.all_digits()
  np.testing.assert_array_equal(known.images[..., 0], whole)
  np.testing.assert_array_equal(known.labels, load_digits().target)


def test_parts_are_those_that_scikit_learn_draws():
  from sklearn.model_selection import train_test_split

  rng = np.random.default_rng(0)
  drawn = refused = 0
  for seed in range(400):
    count = int(rng.integers(2, 200))
    labels = rng.integers(0, rng.integers(1, 9), count) * 3 if seed % 4 else None
    fraction = float(rng.choice([0.1, 0.2, 0.25, 1 / 3, 0.5, rng.uniform(0.01, 0.99)]))
    try:
      wanted = train_test_split(
        np.arange(count), test_size=fraction, random_state=seed, stratify=labels
      )
    except ValueError:
      refused += 1
      with pytest.raises(ValueError, match=r'none for the first|one example alone|cannot both'):
        stratified.split(count, fraction, seed, labels)
      continue
    drawn += 1
    for got, part in zip(stratified.split(count, fraction, seed, labels), wanted, strict=True):
      np.testing.assert_array_equal(got, part)
  assert drawn > 200
  assert refused > 10


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.2, 1.5, float('nan')])
def test_a_share_that_is_none_is_refused(fraction):
  with pytest.raises(ValueError, match='between 0 and 1'):
    stratified.split(10, fraction, 0)


def test_batches_are_a_function_of_seed_and_step():
  dataset = digits()
  again = digits()
  first = dataset.batch_at(7, batch_size=16, seed=3)
  for key, value in again.batch_at(7, batch_size=16, seed=3).items():
    np.testing.assert_array_equal(value, first[key])
  for other in (dict(step=8, seed=3), dict(step=7, seed=4)):
    changed = dataset.batch_at(other['step'], batch_size=16, seed=other['seed'])
    assert not np.array_equal(changed['image'], first['image'])


def same_batches(threads, processes, workers, sizes):
  """Whether processes make what threads do."""
  for step, rows in enumerate(sizes, 1):
    batch = processes.batch_at(step, batch_size=rows, seed=3, make=workers)
    for key, value in threads.batch_at(step, batch_size=rows, seed=3).items():
      np.testing.assert_array_equal(batch[key], value)
      assert batch[key].dtype == value.dtype


def test_processes_make_the_batches_of_threads():
  changes = dict(randaugment=2, channels=3, crop='padded', flip=True)
  threads, processes = digits(**changes), digits(**changes, processes=2)
  with processes.workers() as workers:
    workers.begin()
    alive = dict(workers.workers._processes)
    assert len(alive) == 2
    for sizes in ((7, 7), (7,)):  # Before they are ready, and at work.
      for worker in alive:  # As `timeout` and SLURM tell a whole group.
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
      same_batches(threads, processes, workers, sizes)
      assert all(process.is_alive() for process in alive.values())
    os.kill(next(iter(alive)), signal.SIGKILL)
    with pytest.raises(OSError, match=r'config.data.processes=2 may be fewer'):
      # The other one may finish some before it is noticed.
      same_batches(threads, processes, workers, [7] * 1000)
    end = threading.Thread(target=workers.end, daemon=True)
    end.start()
    end.join(30)
    assert not end.is_alive()  # As the command waits for it at its end.


def test_processes_end_with_their_run():
  """A sweep trains many times in one process, each time with its own."""
  with digits(processes=2).workers() as workers:
    workers.begin()
    alive = [*workers.workers._processes.values()]
  assert len(alive) == 2 and not any(process.is_alive() for process in alive)
  with digits().workers() as workers:
    assert not isinstance(workers, data.Pool)


def test_what_processes_cannot_take_is_refused():
  """Where somebody asked for them; by rule threads do it, and the log says so."""
  with pytest.raises(ValueError, match=r'cannot .*<lambda>.*config.data.processes=0 makes'):
    data.Pool(lambda *_: None, 2, 64)

  class Here(sources.Listed):
    """A class that no module has."""

  splits: sources.Splits = {'train': Here(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32))}
  there = dataclasses.replace(digits(processes=2), splits=splits)
  with pytest.raises(ValueError, match='handed to processes'), there.workers():
    pass
  with mock.patch.object(data.logging, 'warning') as warn, there.workers(asked=False) as workers:
    assert isinstance(workers, data.Threads)
  assert 'threads make training pictures' in warn.call_args.args[0]


def test_what_stands_in_a_session_alone_is_refused(monkeypatch):
  """A notebook's class would be looked for in a main module that is another one there."""

  def reads(main):
    monkeypatch.setitem(sys.modules, '__main__', main)
    main.Mine = type('Mine', (), {'__module__': '__main__', '__call__': lambda *_: None})
    data.Pool(main.Mine(), 1, 64).end()

  with pytest.raises(ValueError, match='Mine is defined in this session'):
    reads(types.ModuleType('__main__'))
  script = types.ModuleType('__main__')
  script.__file__ = 'script.py'
  reads(script)  # Which each process runs, up to `if __name__ == '__main__'`.


class Unreadable:
  """What can be written and not be read."""

  def __reduce__(self):
    return (int, ('no number',))

  def __call__(self, *_):
    raise AssertionError('it was read')


def test_a_process_that_cannot_read_its_work_says_why():
  pool = data.Pool(Unreadable(), 1, 64)
  try:
    with pytest.raises(ValueError, match=r'ValueError: invalid literal.*data.processes=0 makes'):
      pool(np.arange(1), np.arange(1), (0, 1))
  finally:
    pool.end()


@pytest.mark.parametrize('task', [*vtab_tasks.TASKS])
def test_labels_of_every_task_cross(task):
  """Each by a rule of its own."""
  rule = vtab_tasks.TASKS[task]
  assert pickle.loads(pickle.dumps(rule)).label.__class__ is rule.label.__class__


MADE_BY_PROCESSES = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
from vit_jax import data
from vit_jax.data import augment, preprocess, sources
source = sources.Listed(np.zeros((9, 8, 8, 1), np.uint8), np.zeros(9, np.int32))
plain = preprocess.Preprocess((8, 8), 1)
dataset = data.Dataset({'train': source}, ('a', 'b'), plain, augment.Augment(), processes=2)
"""
KILLED = """
with dataset.workers() as workers:
  workers.begin()
  dataset.batch_at(1, batch_size=4, seed=0, make=workers)
  print(*workers.workers._processes, flush=True)
  time.sleep(60)
"""
INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # What a shell starts behind ignores it.
try:
  with dataset.workers() as workers:
    submit, main, asked = workers.workers.submit, threading.main_thread().ident, []
    def started(*words):
      asked or signal.pthread_kill(main, signal.SIGINT)
      asked.append(words)
      return submit(*words)
    workers.workers.submit = started
    workers.begin()
except KeyboardInterrupt:
  print(len(asked), multiprocessing.active_children())
"""


def test_nothing_stays_of_a_group_that_is_killed(tmp_path):
  """As SLURM and the kernel do it, which nobody can answer."""
  place = pathlib.Path('/dev/shm')
  before = {*place.glob('psm_*')}
  run = subprocess.Popen(
    [sys.executable, '-c', MADE_BY_PROCESSES + KILLED], stdout=subprocess.PIPE, text=True,
    start_new_session=True, env=os.environ | {'TMPDIR': str(tmp_path)},
  )  # fmt: skip
  assert run.stdout
  assert len(run.stdout.readline().split()) == 2
  os.killpg(run.pid, signal.SIGKILL)
  assert run.wait() == -signal.SIGKILL
  run.stdout.close()
  assert [*tmp_path.iterdir()] == []
  assert {*place.glob('psm_*')} <= before


def test_ctrl_c_while_processes_start_leaves_none():
  """It reaches the main thread, which waits until both are there."""
  words = [sys.executable, '-c', MADE_BY_PROCESSES + INTERRUPTED]
  done = subprocess.run(words, capture_output=True, text=True, timeout=120)
  assert done.stdout == '2 []\n', done.stderr


def test_large_batches_are_made_in_parts(monkeypatch):
  """What one process makes at a time is bounded, and so is what waits; the pictures stay."""
  monkeypatch.setattr(processes, 'PART', 3 * 64)  # 64 bytes are a picture.
  dataset = digits(flip=True, processes=2)
  with dataset.workers() as workers:
    assert [workers.parts(rows) for rows in (1, 3, 6, 60)] == [1, 1, 2, 2]
    assert [workers.ahead(rows) for rows in (3, 60)] == [2, 1]
    same_batches(digits(flip=True), dataset, workers, (9,))
    monkeypatch.setattr(processes, 'PART', 1)  # Of one picture, each process makes one.
    same_batches(digits(flip=True), dataset, workers, (1,))


@pytest.mark.parametrize('there', [True, False])
def test_pictures_cross_by_shared_memory_where_it_is(monkeypatch, there):
  """The same ones by a pipe."""
  if not there:
    monkeypatch.delattr(os, 'memfd_create', raising=False)
  dataset = digits(flip=True, processes=1)
  with dataset.workers() as workers:
    # A block serves again, until it is too small; one more may be where it was.
    same_batches(digits(flip=True), dataset, workers, (4, 2, 8, 4, 64))
    blocks = [*workers.blocks.made]
  assert len(blocks) == (1 if there and hasattr(os, 'memfd_create') else 0)
  assert all(block.file.closed and block.memory.closed for block in blocks)


@pytest.mark.parametrize(
  ('count', 'threads', 'platform', 'cores', 'script', 'expected'),
  [
    (3, None, 'cpu', 64, True, 3),  # Whoever asks gets them.
    (0, None, 'gpu', 64, False, 0),
    (None, None, 'cpu', 64, False, 0),
    (None, None, 'gpu', 4, False, 0),
    (None, None, 'tpu', 12, False, 12),
    (None, None, 'gpu', 96, False, 16),
    (None, 4, 'gpu', 96, False, 0),  # That is what was asked for.
    # `python script.py` would be run again in each of them, and so would `python -m module`.
    (None, None, 'gpu', 96, True, 0),
    (None, None, 'gpu', 96, 'others.module', 0),
    (None, None, 'gpu', 96, 'vit_jax.main', 16),
  ],
)
def test_processes_by_rule(monkeypatch, count, threads, platform, cores, script, expected):
  """Beside an accelerator alone, where threads would wait for Python."""
  main = types.ModuleType('__main__')
  if script:
    main.__file__ = 'script.py'
  if isinstance(script, str):
    main.__spec__ = ModuleSpec(script, None)
  monkeypatch.setitem(sys.modules, '__main__', main)
  monkeypatch.setattr(devices, 'cores', lambda: cores)
  assert processes.choose(count, threads, platform) == expected


def numbered(size):
  """Pictures of one pixel whose value is their number."""
  pixels = np.arange(size, dtype=np.uint8).reshape(size, 1, 1, 1)
  plain = preprocess.Preprocess((1, 1), 1, 'bilinear', (0.0,), (1.0,))
  source = sources.Listed(pixels, np.arange(size, dtype=np.int32))
  return data.Dataset({'train': source, 'test': source}, ('a', 'b'), plain, augment.Augment())


def test_every_epoch_is_a_new_permutation():
  batches = [numbered(10).batch_at(i, batch_size=5, seed=0) for i in range(1, 7)]
  labels = np.concatenate([batch['label'] for batch in batches]).reshape(3, 10)
  assert all(sorted(epoch) == list(range(10)) for epoch in labels)
  assert len({tuple(epoch) for epoch in labels}) == 3
  assert all(batch['mask'].all() for batch in batches)
  np.testing.assert_array_equal(batches[0]['image'].ravel(), batches[0]['label'])


def test_whole_epochs_end_with_a_smaller_batch():
  """The study's 225 pictures in batches of 32: eight batches an epoch, the last of one."""
  dataset = dataclasses.replace(numbered(225), whole_epochs=True)
  epochs = [
    [dataset.batch_at(8 * epoch + i, batch_size=32, seed=0) for i in range(1, 9)]
    for epoch in range(2)
  ]
  for epoch in epochs:
    assert [batch['mask'].sum() for batch in epoch] == [32] * 7 + [1]
    seen = np.concatenate([batch['label'][batch['mask']] for batch in epoch])
    np.testing.assert_array_equal(np.sort(seen), np.arange(225))
  assert not np.array_equal(epochs[0][0]['label'], epochs[1][0]['label'])


@pytest.mark.parametrize('batch_size', [3, 4, 10, 16])
def test_an_epoch_shows_every_example_once(batch_size):
  batches = list(numbered(10).epoch('test', batch_size))
  assert {len(batch['mask']) for batch in batches} == {batch_size}
  for key in ('image', 'label', 'index'):
    seen = np.concatenate([batch[key][batch['mask']].ravel() for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(10))


def test_processes_read_disjoint_shares_of_the_same_batch(monkeypatch):
  dataset = digits()
  whole = dataset.batch_at(2, batch_size=16, seed=0)
  monkeypatch.setattr(pipeline.jax, 'process_count', lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(pipeline.jax, 'process_index', lambda index=index: index)
    shares.append(dataset.batch_at(2, batch_size=16, seed=0))
  for key in whole:
    np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), whole[key])


def test_prefetch_keeps_order_and_passes_errors_on():
  assert list(pipeline.prefetch(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16]

  def fail(i):
    if i == 3:
      raise ValueError('bad picture')
    return i

  got = []
  with pytest.raises(ValueError, match='bad picture'):
    got.extend(pipeline.prefetch(fail, range(5)))


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (dict(test_fraction=1.5), 'test_fraction=1.5'),
    (dict(validation_fraction=0.0001), 'validation_fraction=0.0001 cannot split'),
    (dict(channels=0), 'channels=0'),
    (dict(mean=(0.1, 0.2)), 'mean needs 1'),
    (dict(std=(0.0,)), 'std above 0: pixel values are divided'),
    (dict(mean=(float('nan'),)), 'must be numbers'),
    (dict(split_seed=-1), 'split_seed=-1 must be in'),
    (dict(scale=3.0), r'scale=3.0 must be in \[0, 1\)'),
    (dict(rotate=float('nan')), 'rotate=nan must be 0 or more'),
    (dict(resize='bilinaer'), "did you mean 'bilinear'"),
  ],
)
def test_impossible_data_are_refused(overrides, message):
  with pytest.raises(ValueError, match=message):
    digits(**overrides)
