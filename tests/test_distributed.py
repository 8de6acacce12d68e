"""Many devices and several real processes give one device's arithmetic, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from conftest import ROOT, SMALL, command, small_config
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vit_jax import experiment, metrics, step
from vit_jax.runtime import distributed

RECIPE = f'--config={ROOT}/configs/vit_digits.py'
# SGD with momentum and nothing else: after one step its trace is the gradient itself. torch's
# initialisers have a head that is not 0, so that every parameter has a gradient.
PLAIN = (
  '--config.optimizer.name=sgd', '--config.optimizer.clip_norm=0.0', '--config.data.rotate=10.0',
  '--config.optimizer.warmup_steps=0', '--config.model.drop_path=0.0', '--config.ema_decay=0.0',
  '--config.total_steps=5', '--config.batch_size=16', '--config.log_every=1',
  '--config.eval_every=5', '--config.checkpoint_every=1', '--config.keep_checkpoints=9',
  '--config.data.test_fraction=0.1997', '--config.model.initialisers=torch',
)  # fmt: skip


def environment(devices):
  flags = f'--xla_force_host_platform_device_count={devices}' if devices > 1 else ''
  return os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def start(workdir, *arguments, count=2, devices=1, missing=()):
  """Real processes on loopback; their output goes to files beside the workdir."""
  port, running = free_port(), []
  for i in range(count):
    words = [
      sys.executable, '-m', 'vit_jax.main', RECIPE, f'--workdir={workdir}', *arguments,
      f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}', f'--process_id={i}',
    ]  # fmt: skip
    if i not in missing:
      log = workdir.with_name(f'{workdir.name}.log{i}').open('w')
      running.append(subprocess.Popen(words, stderr=log, cwd=ROOT, env=environment(devices)))
  return running


def said(workdir, i):
  return workdir.with_name(f'{workdir.name}.log{i}').read_text()


def finish(running, timeout=240):
  try:
    return [process.wait(timeout) for process in running]
  finally:
    for process in running:
      process.kill()


def run(workdir, kind):
  """Five steps in one of the ways."""
  if kind == 'two processes':
    codes = finish(start(workdir, *PLAIN, '--config.fsdp=2', devices=2))
    assert codes == [0, 0], said(workdir, 0) + said(workdir, 1)
    return
  devices, fsdp = {'one': (1, 1), 'replicated': (8, 1), 'fsdp': (8, 8)}[kind]
  done = command(
    RECIPE, f'--workdir={workdir}', *PLAIN, f'--config.fsdp={fsdp}', env=environment(devices)
  )
  assert done.returncode == 0, done.stderr


def losses(workdir):
  return [row['train/loss'] for row in metrics.read(workdir / 'metrics.jsonl')]


def first_gradients(workdir):
  """By name, from the momentum after step 1."""
  reader, path = ocp.PyTreeCheckpointer(), workdir / 'checkpoints/1/state'
  tree = reader.metadata(path).item_metadata.tree
  kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  state = reader.restore(path, args=ocp.args.PyTreeRestore(tree, restore_args=kinds))
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, as_dict(state['opt_state'])))
  return {path[path.index('model') :]: x for path, x in flat.items() if 'trace' in path}


def as_dict(tree):
  return {str(i): as_dict(x) for i, x in enumerate(tree)} if isinstance(tree, list) else tree


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('one') / 'w'
  run(workdir, 'one')
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['replicated', 'fsdp', 'two processes'])
def test_gradients_losses_and_evaluation_equal_one_device(one, tmp_path, kind):
  """359 test images, a prime: every one counts once, however they are dealt out."""
  workdir = tmp_path / 'w'
  run(workdir, kind)
  np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)
  expected, given = first_gradients(one), first_gradients(workdir)
  assert len(expected) == len(given) > 50
  for path, gradient in expected.items():
    if path[-2:] == ('key', 'bias'):
      continue  # Its true gradient is 0: softmax does not see a shift of all scores.
    largest = np.abs(gradient).max()
    assert largest > 0 or path[1] != 'head'
    np.testing.assert_allclose(
      given[path], gradient, atol=1e-5 * largest, rtol=0, err_msg=str(path)
    )
  last = [metrics.read(folder / 'metrics.jsonl')[-1] for folder in (workdir, one)]
  assert last[0]['test/accuracy'] == last[1]['test/accuracy']
  assert round(last[0]['test/accuracy'] * 359, 6) % 1 == 0


@pytest.mark.slow
def test_two_processes_evaluate_every_example(one, tmp_path):
  running = start(one, *PLAIN, '--mode=evaluate', '--config.evaluation.batch_size=64')
  assert finish(running) == [0, 0], said(one, 0) + said(one, 1)
  report = json.loads((one / 'reports/evaluation.json').read_text())
  assert report['n_examples'] == 359
  assert np.sum(report['confusion']) == 359


def test_fsdp_takes_an_eighth_of_the_memory():
  config = small_config(
    fsdp=8, model__variant='S/16', data__image_size=(224, 224), data__channels=3
  )
  shapes = step.state_shapes(experiment.build(config))
  sizes = [
    (x.size, np.prod(x.sharding.shard_shape(x.shape), initial=1)) for x in jax.tree.leaves(shapes)
  ]
  held, whole = sum(part for _, part in sizes), sum(size for size, _ in sizes)
  assert whole > 3 * 21_000_000  # Parameters and two moments.
  assert held / whole < 1.02 / 8


def wait_for(condition, running, timeout=120):
  limit = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < limit
    assert all(process.poll() is None for process in running)
    time.sleep(0.1)


LONG = (*SMALL, '--config.total_steps=100000', '--config.checkpoint_every=20',
        '--config.eval_every=0', '--config.log_every=10')  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_process_dies_all_stop_and_fewer_go_on(tmp_path, victim):
  workdir = tmp_path / 'w'
  running = start(workdir, *LONG)
  wait_for((workdir / 'checkpoints/40').is_dir, running)
  running[victim].kill()
  before = time.monotonic()
  codes = finish(running, timeout=30)
  assert time.monotonic() - before < 30
  assert codes[1 - victim] not in (0, None)
  text = said(workdir, 1 - victim)
  assert 'Traceback' not in text
  if victim == 1:  # Where process 0 dies JAX itself may be first to say so.
    assert text.count('error: another process of this run stopped') == 1
    assert 'they go on from the last checkpoint' in text
  steps = max(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())
  longer = [word for word in LONG if 'total_steps' not in word]
  done = command(RECIPE, f'--workdir={workdir}', *longer, f'--config.total_steps={steps + 20}')
  assert done.returncode == 0, done.stderr
  rows = [row['step'] for row in metrics.read(workdir / 'metrics.jsonl')]
  assert rows == list(range(10, steps + 21, 10))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
  workdir = tmp_path / 'w'
  running = start(workdir, *LONG)
  wait_for((workdir / 'checkpoints/20').is_dir, running)
  running[1].send_signal(signal.SIGTERM)
  assert finish(running) == [0, 0], said(workdir, 0) + said(workdir, 1)
  assert 'the same command goes on from here' in said(workdir, 0)


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer(tmp_path):
  workdir = tmp_path / 'w'
  for missing in (0, 1):
    running = start(workdir, *SMALL, '--connect_timeout=4', missing=(missing,))
    assert finish(running, timeout=60) == [1]
    text = said(workdir, 1 - missing)
    assert '2 processes did not meet at 127.0.0.1:' in text
    assert 'within 4 s' in text
    assert not workdir.exists()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--coordinator=localhost:1'], '--num_processes, --process_id missing'),
    (['--coordinator=localhost', '--num_processes=2', '--process_id=0'], 'must be HOST:PORT'),
    (['--coordinator=localhost:1', '--num_processes=2', '--process_id=2'], 'must lie in 0..1'),
  ],
)
def test_impossible_launches_are_refused(quick, tmp_path, words, message):
  done = quick(RECIPE, f'--workdir={tmp_path / "w"}', *words)
  assert done.returncode == 1
  assert message in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_processes(tmp_path):
  workdir = tmp_path / 'w'
  assert finish(start(workdir, *SMALL, '--config.batch_size=15')) == [1, 1]
  assert 'config.batch_size=15 must be a multiple of 2 devices' in said(workdir, 0)
  assert 'nearest: 14 or 16' in said(workdir, 0)


def test_launchers_are_recognised(monkeypatch):
  for key in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(key, raising=False)
  assert not distributed.launched()
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  assert not distributed.launched()  # An interactive shell inside a job is one process.
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '4')
  assert distributed.launched()
