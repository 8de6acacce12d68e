"""Which devices compute: one a core of a CPU where the work is large, else what was asked for."""

import json
import os
import subprocess
import sys
import types

from conftest import ROOT, command, small_config
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from vit_jax import experiment, step, train
from vit_jax.runtime import compilation, devices, memory, sharding, targets

RECIPE = f'--config={ROOT}/configs/vit_digits.py'
# 16 x 32 x 32 pixels are few; with LARGE lowered below them they are many.
SHORT = ('--config.total_steps=2', '--config.log_every=1', '--config.model.variant=mu/4')


@pytest.fixture
def prepared(monkeypatch):
  """A CPU of four cores whose devices nobody asked for."""
  found = [types.SimpleNamespace(platform='cpu', device_kind='cpu', id=i) for i in range(4)]
  monkeypatch.setattr(devices, '_prepared', True)
  monkeypatch.setattr(jax, 'devices', lambda: found)


@pytest.mark.parametrize(
  ('count', 'rows', 'pixels', 'fsdp', 'expected'),
  [
    (None, 8, memory.LARGE, 1, 4),
    (None, 8, memory.LARGE - 1, 1, 1),
    (None, 6, memory.LARGE, 1, 3),  # Four do not divide it; nobody asked for four.
    (None, 7, memory.LARGE, 1, 1),
    (None, 0, memory.LARGE, 1, 4),  # The last batch is filled up.
    (None, 8, 1, 2, 4),
    (1, 8, memory.LARGE, 1, 1),
    (2, 8, 1, 1, 2),
  ],
)
def test_the_rule(prepared, count, rows, pixels, fsdp, expected):
  assert len(devices.choose(count, rows, pixels, fsdp)) == expected


@pytest.mark.parametrize(
  ('kind', 'told', 'room'),
  [
    ('NVIDIA H100', {'bytes_limit': 60_000_000_000}, 60e9),
    ('NVIDIA H100 80GB HBM3', None, targets.TARGETS['h100'].memory * 0.75),
    ('Tomorrow 1', None, sys.maxsize),  # Nothing is known, so nothing is refused.
  ],
)
def test_memory_is_told_by_a_device_of_this_process(monkeypatch, kind, told, room):
  """The first of all devices is another process's everywhere but in the first."""

  def elsewhere():
    raise RuntimeError('MemoryStats is only supported for addressable PjRt devices')

  common = dict(platform='gpu', device_kind=kind)
  first = types.SimpleNamespace(**common, memory_stats=elsewhere)
  own = types.SimpleNamespace(**common, memory_stats=lambda: told)
  monkeypatch.delenv('XLA_CLIENT_MEM_FRACTION', raising=False)
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  monkeypatch.setattr(jax, 'devices', lambda: [first, own])
  monkeypatch.setattr(jax, 'local_devices', lambda: [own])
  assert targets.room_here([first, own]) == pytest.approx(room, abs=1)


@pytest.mark.parametrize(
  ('room', 'batch_size', 'expected'), [(1e9, 16, 8), (1e9, 12, 6), (1e3, 16, 1)]
)
def test_copies_of_the_state_must_fit(monkeypatch, tmp_path, room, batch_size, expected):
  """And a batch that all devices do not divide is no error where nobody asked for them."""
  monkeypatch.setattr(devices, '_prepared', True)
  monkeypatch.setattr(memory, 'LARGE', 1)
  monkeypatch.setattr(targets, 'room_here', lambda _: room)
  exp, shapes = train.open_run(small_config(batch_size=batch_size), tmp_path)
  assert exp.mesh.size == expected
  assert {len(x.sharding.device_set) for x in jax.tree.leaves(shapes)} == {expected}


@pytest.mark.parametrize('count', [0, 5])
def test_more_devices_than_there_are(prepared, count):
  with pytest.raises(ValueError, match=f'config.devices={count}: there are 4'):
    devices.choose(count, 8, 1)


def test_devices_that_were_asked_for_are_all_used():
  assert devices.asked_for()  # The tests' own eight.
  devices.prepare('cpu')
  assert len(devices.choose(None, 3, 1)) == jax.device_count() == 8


def test_the_optimizer_is_cut_over_all_devices(tmp_path):
  """ZeRO-1: the same numbers from moments of which each device holds an eighth."""
  found = {}
  for cut in (False, True):
    config = small_config(shard_optimizer=cut, model__width=64, total_steps=3)
    shapes = step.state_shapes(experiment.build(config))
    specs = {x.sharding.spec for x in jax.tree.leaves(shapes.opt_state) if x.size >= 2**12}
    assert specs and all((sharding.AXES in spec) == cut for spec in specs)
    assert {x.sharding.spec for x in jax.tree.leaves(shapes.params)} == {PartitionSpec()}
    train.train(config, tmp_path / str(cut))
    found[cut] = dict(np.load(tmp_path / str(cut) / 'model/weights.npz'))
  for name in found[True]:
    np.testing.assert_allclose(found[True][name], found[False][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_large_step_uses_every_core_and_resumes_exactly(quick, tmp_path):
  large = (
    '--config.data.image_size=(32,32)', '--config.batch_size=64', '--config.model.variant=mu/8',
    '--config.log_every=1',
  )  # fmt: skip
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  count = min(2, devices.cores())
  for workdir, steps in ((whole, 4), (cut, 2), (cut, 4)):
    done = quick(RECIPE, f'--workdir={workdir}', *large, f'--config.total_steps={steps}',
                 '--config.optimizer.schedule=constant', '--config.checkpoint_every=2')  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'cpu, {count} x cpu (one a core' in done.stderr or devices.cores() == 1, done.stderr
  a, b = (dict(np.load(w / 'model/weights.npz')) for w in (whole, cut))
  assert all(np.array_equal(a[name], b[name]) for name in a)
  one = quick(RECIPE, f'--workdir={tmp_path}/one', *large, '--config.devices=1')
  assert one.returncode == 0 and 'cpu, 1 x cpu' in one.stderr
  first = [
    json.loads((w / 'metrics.jsonl').read_text().splitlines()[0]) for w in (whole, tmp_path / 'one')
  ]
  np.testing.assert_allclose(first[0]['train/loss'], first[1]['train/loss'], rtol=1e-5)


@pytest.mark.parametrize(
  ('rows', 'side', 'cached', 'expected'),
  [(4, 224, 2**19, 1), (16, 224, 2**19, 2), (64, 224, 2**19, 8), (32, 32, 2**19, 1),
   (1024, 32, 2**19, 2), (31, 224, 2**19, 1), (6, 896, 2**19, 6), (1, 2000, 2**19, 1),
   (4, 224, 2**18, 1), (16, 224, 2**18, 4)],
)  # fmt: skip
def test_parts_of_a_batch_that_a_cache_holds(monkeypatch, rows, side, cached, expected):
  """Of at most so many pixels, and of no less than a quarter of that, or the whole."""
  chosen = jax.devices('cpu')[:1]
  assert devices.parts(chosen, rows, side**2, cached) == 1  # A person said how many there are.
  monkeypatch.setattr(devices, '_prepared', True)
  assert devices.parts(chosen, rows, side**2, cached) == expected
  other = [types.SimpleNamespace(platform='gpu')]
  assert devices.parts(other, rows, side**2, cached) == 1


@pytest.mark.parametrize(('family', 'expected'), [('vit', 2**19), ('swin', 2**18)])
def test_a_family_says_what_a_cache_holds_of_it(monkeypatch, family, expected):
  """A Swin has 16 times the tokens of a ViT in its first stage."""
  small = small_config(model__name=family, model__variant='digits/2', model__dropout=0.0)
  built = experiment.build(small)
  monkeypatch.setattr(devices, 'parts', lambda chosen, rows, pixels, cached: cached)
  assert built.parts == expected


@pytest.mark.slow
def test_a_batch_in_parts_trains_as_the_whole(quick, tmp_path, monkeypatch):
  large = (
    '--config.data.image_size=(256,256)', '--config.batch_size=32', '--config.log_every=1',
    '--config.model.variant=mu/32', '--config.total_steps=3', '--config.devices=1',
    '--config.objective.label_smoothing=0.1',
  )  # fmt: skip
  losses = {}
  for name, more in (('parts', ()), ('mixed', ('--config.objective.mixup=0.2',)), ('whole', ())):
    if name == 'whole':  # Who says how many devices there are gets what was asked for.
      monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
    run = command if name == 'whole' else quick
    done = run(RECIPE, f'--workdir={tmp_path}/{name}', *large, *more)
    assert done.returncode == 0, done.stderr
    assert ('each batch in 4 parts' in done.stderr) == (name == 'parts'), done.stderr
    rows = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    losses[name] = [x['train/loss'] for x in map(json.loads, rows) if 'train/loss' in x]
  assert len(losses['parts']) == 3
  np.testing.assert_allclose(losses['parts'], losses['whole'], rtol=1e-5)


def test_the_digits_stay_on_one_device(quick, tmp_path):
  done = quick(RECIPE, f'--workdir={tmp_path}', *SHORT)
  assert done.returncode == 0, done.stderr
  assert 'cpu, 1 x cpu (as steps of fewer than' in done.stderr


def test_compiled_programs_are_kept(tmp_path):
  """Used again by a second process; a damaged one is compiled anew; another folder is respected."""
  code = (
    'from vit_jax.runtime import compilation; compilation.SHORTEST = 0; compilation.keep(); import '
    'jax; print(jax.jit(lambda x: x * 3 + 1)(2)); print(jax.config.jax_compilation_cache_dir)'
  )
  env = os.environ | {'VIT_JAX_CACHE': str(tmp_path), 'XLA_FLAGS': ''}
  env.pop('JAX_COMPILATION_CACHE_DIR', None)

  def run(**more):
    words = [sys.executable, '-W', 'ignore', '-c', code]
    done = subprocess.run(words, capture_output=True, text=True, env=env | more)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

  assert run() == ['7', str(tmp_path / 'compiled' / f'{jax.__version__}-{compilation.processor()}')]
  kept = sorted(tmp_path.rglob('*-cache'))
  times = [path.stat().st_mtime_ns for path in kept]
  assert kept and run()[0] == '7'
  assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob('*-cache'))] == times
  for path in kept:
    path.write_bytes(path.read_bytes()[:20])
  assert run()[0] == '7'
  assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'mine'))[1] == str(tmp_path / 'mine')


def test_what_was_not_used_for_longest_goes_first(tmp_path):
  for i in range(4):
    path = tmp_path / f'{i}-cache'
    path.write_bytes(bytes(10))
    os.utime(path, (100 - i, 100 - i))
  compilation.trim(tmp_path, 25)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['0-cache', '1-cache']


def test_devices_that_are_no_box_stay_in_their_order(monkeypatch):
  """As some of a TPU's, which its topology cannot place."""

  def refuse(*_, **__):
    raise NotImplementedError('Failed to find assignment')

  monkeypatch.setattr(sharding.mesh_utils, 'create_device_mesh', refuse)
  mesh = sharding.make_mesh(2)
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 2}
  assert [*mesh.devices.flat] == jax.devices()


def test_a_process_reads_the_rows_that_lie_on_its_devices():
  """Whatever order a mesh has: on a TPU it goes along the wires."""
  order = np.random.default_rng(0).permutation(8)
  mesh = jax.sharding.Mesh(np.array(jax.devices())[order].reshape(4, 2), sharding.AXES)
  np.testing.assert_array_equal(sharding.rows_here(16, mesh), np.arange(16))
  here, whole = {jax.devices()[i] for i in (1, 4)}, sharding.batch_sharding(mesh)
  told = types.SimpleNamespace(
    addressable_devices_indices_map=lambda shape: {
      device: index for device, index in whole.devices_indices_map(shape).items() if device in here
    }
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'batch_sharding', lambda _: told)
    rows = sharding.rows_here(16, mesh)
  places = sorted([*order].index(i) for i in (1, 4))
  np.testing.assert_array_equal(rows, [row for i in places for row in (2 * i, 2 * i + 1)])


@pytest.mark.parametrize(
  ('target', 'fsdp', 'count'),
  [('v6e:4x4', 8, 16), ('v6e:4x4', 2, 16), ('v4:4x4x4', 8, 64), ('v5e:2x4', 1, 3)],
)
def test_every_share_of_a_tpu_has_a_mesh(target, fsdp, count):
  pytest.importorskip('libtpu', reason='the TPU compiler comes with the extra `tpu`')
  chips = targets.open_target(target).devices[:count]
  mesh = sharding.make_mesh(fsdp, chips)
  assert dict(mesh.shape) == {'data': count // fsdp, 'fsdp': fsdp}
  assert {*mesh.devices.flat} == {*chips}


def test_an_evaluation_batch_is_filled_up():
  mesh = sharding.make_mesh(1)
  assert [sharding.round_up(n, mesh) for n in (1, 8, 9)] == [8, 8, 16]
  with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
    sharding.round_up(0, mesh)
