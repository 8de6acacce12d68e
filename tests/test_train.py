"""The loop's promises: exact resume, one compilation, free freezing, any devices, no bad step."""

import json
import shutil
import time
from unittest import mock

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import checkpoint, experiment, metrics, optim, predict, step, train
from vit_jax.explore import estimate
from vit_jax.runtime import fingerprint, sharding


def final_state(config, workdir):
  """The newest state on disk, as numpy."""
  shapes = step.state_shapes(experiment.build(config))
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    return jax.device_get(checkpoints.restore_latest(shapes))


def lines(workdir):
  """metrics.jsonl without what the clock decides."""
  rows = metrics.read(workdir / 'metrics.jsonl')
  return [{key: x for key, x in row.items() if 'images_per_second' not in key} for row in rows]


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def interrupt_at(number):
  """A recorder that asks to stop, or raises, when step `number` has been dispatched."""

  class Stop(metrics.Recorder):
    def push(self, at, values):
      super().push(at, values)
      if at == number:
        signal_self()

  def signal_self():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGTERM)

  return Stop


VARIED = dict(ema_decay=0.9, accumulation_steps=2, data__validation_fraction=0.2)


@pytest.mark.parametrize('overrides', [{}, VARIED], ids=['plain', 'ema, parts, validation'])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, overrides):
  """Stop after step 5, between two checkpoints, and go on: every array and every line is equal."""
  config = small_config(**overrides)
  train.train(config, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    patch.setattr(train, 'Recorder', interrupt_at(5))
    train.train(config, tmp_path / 'cut')
  assert final_state(config, tmp_path / 'cut').step == 5
  assert [row['step'] for row in lines(tmp_path / 'cut')] == [1, 2, 3, 4, 5]
  train.train(config, tmp_path / 'cut')
  assert_equal(final_state(config, tmp_path / 'whole'), final_state(config, tmp_path / 'cut'))
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')
  whole, cut = (np.load(tmp_path / name / 'model/weights.npz') for name in ('whole', 'cut'))
  assert_equal(dict(whole), dict(cut))


def test_a_crash_between_checkpoints_leaves_no_double_line(tmp_path, monkeypatch):
  config = small_config()
  train.train(config, tmp_path / 'whole')

  class Crash(metrics.Recorder):
    def push(self, at, values):
      super().push(at, values)
      if at == 4:
        raise RuntimeError('power cut')

  with monkeypatch.context() as patch:
    patch.setattr(train, 'Recorder', Crash)
    with pytest.raises(RuntimeError, match='power cut'):
      train.train(config, tmp_path / 'cut')
  with (tmp_path / 'cut/metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "train/lo')  # A half-written line.
  train.train(config, tmp_path / 'cut')
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')


def damage(folder, how):
  # Every file of data, as Orbax also keeps what each process wrote and need not read it again.
  files = [p for p in (folder / 'state').rglob('d/*') if p.is_file()]
  assert files
  for file in files if how in ('short', 'bit') else []:
    content = bytearray(file.read_bytes())
    for place in range(256, len(content), 512):  # Any one place may be padding.
      content[place] ^= 1
    file.write_bytes(content[:100] if how == 'short' else content)
  if how == 'missing':
    shutil.rmtree(folder / 'state')
  elif how == 'passport':
    (folder / 'passport/metadata').write_text('')


@pytest.mark.parametrize('how', ['short', 'bit', 'missing', 'passport'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(trained, tmp_path, caplog, how):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  damage(workdir / 'checkpoints/6', how)
  config = small_config(data__validation_fraction=0.2)
  train.train(config, workdir)
  assert 'checkpoints/6 is damaged' in caplog.text
  assert [path.name.split('-')[0] for path in (workdir / 'checkpoints-damaged').iterdir()] == ['6']
  assert_equal(final_state(config, workdir), final_state(config, trained))
  assert lines(workdir) == lines(trained)


def test_a_cpu_reckons_the_fingerprint_that_a_device_does():
  """By NumPy and by XLA: of any type, however it is cut; one bit, or a change of places, tells."""
  rng = np.random.default_rng(0)
  mesh = sharding.make_mesh(8)
  tree = {
    'cut': jax.device_put(np.float32(rng.normal(size=(16, 3))), sharding.batch_sharding(mesh)),
    'half': jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16),
    'step': jnp.int32(7), 'none': jnp.zeros((0, 2)),
  }  # fmt: skip
  expected = np.asarray(fingerprint.checksum(tree))
  np.testing.assert_array_equal(fingerprint.checksum_on_host(jax.tree.leaves(tree)), expected)
  known = fingerprint.fingerprint(tree)
  half = np.asarray(tree['half']).copy()
  half[[0, 1]] = half[[1, 0]]
  assert fingerprint.fingerprint(tree | {'half': jnp.asarray(half)}) != known
  half = np.asarray(tree['half']).copy()
  half.view(np.uint16)[4, 6] ^= 1
  assert fingerprint.fingerprint(tree | {'half': jnp.asarray(half)}) != known


def test_no_readable_checkpoint_is_an_error(trained, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  for folder in (workdir / 'checkpoints').iterdir():
    damage(folder, 'short')
  with pytest.raises(ValueError, match=r'no checkpoint in .* can be read'):
    train.train(small_config(data__validation_fraction=0.2), workdir)
  assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['2', '4', '6']


def test_a_finished_run_is_a_no_op(trained, caplog):
  before = {p: p.stat().st_mtime_ns for p in trained.rglob('*') if p.name != 'config.json'}
  caplog.clear()
  train.train(small_config(data__validation_fraction=0.2), trained)
  assert 'is finished: step 6 of 6' in caplog.text
  after = {p: p.stat().st_mtime_ns for p in trained.rglob('*') if p.name != 'config.json'}
  assert {p for p in before if before[p] != after.get(p) and p.is_file()} == set()


def test_a_run_killed_before_its_model_was_written_gets_one(trained, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / 'model')
  train.train(small_config(data__validation_fraction=0.2), workdir)
  whole, again = (np.load(folder / 'model/weights.npz') for folder in (trained, workdir))
  assert_equal(dict(whole), dict(again))


def test_a_changed_config_is_refused(trained):
  with pytest.raises(ValueError, match=r'(?s)model.dropout: 0.1 there, 0.3 now.*seed: 0 there, 1'):
    train.train(small_config(seed=1, model__dropout=0.3, data__validation_fraction=0.2), trained)


def test_a_longer_run_goes_on(trained, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  train.train(small_config(total_steps=8, data__validation_fraction=0.2), workdir)
  assert [row['step'] for row in lines(workdir)] == list(range(1, 9))


def test_the_best_checkpoint_is_kept_and_used(trained):
  rows = {row['step']: row for row in metrics.read(trained / 'metrics.jsonl')}
  scores = {at: rows[at]['validation/accuracy'] for at in (2, 4, 6)}
  best = max(scores, key=lambda at: scores[at])
  passport = json.loads((trained / 'model/model.json').read_text())
  assert scores[passport['step']] == scores[best]


@pytest.mark.parametrize('content', ['', '{"acc'])
def test_damaged_metrics_of_a_checkpoint_do_not_hide_the_others(trained, tmp_path, caplog, content):
  """What reads a run chooses among those that can be read, and names the one that cannot."""
  run = tmp_path / 'run'
  shutil.copytree(trained, run)
  with checkpoint.Checkpoints(run, read_only=True) as kept:
    best, steps = kept.wanted_step(), checkpoint.steps_in(kept.folder)
  (run / f'checkpoints/{best}/metrics/metrics').write_text(content)
  rows = {row['step']: row['validation/accuracy'] for row in metrics.read(run / 'metrics.jsonl')
          if 'validation/accuracy' in row}  # fmt: skip
  rest = [step for step in steps if step != best]
  with checkpoint.Checkpoints(run, read_only=True) as kept:
    assert kept.wanted_step() == max(rest, key=lambda step: (rows[step], step))
    kept.restore_params()
  assert f'checkpoints/{best}/metrics/metrics cannot be read' in caplog.text
  predict.load(run)


def test_what_interruptions_saved_goes_as_other_checkpoints_do(tmp_path):
  """They have no metrics, and the best is chosen by one: neither keeps them."""
  with checkpoint.Checkpoints(tmp_path, 2, 'max:validation/accuracy') as kept:
    for at in range(1, 7):
      scores = {'validation/accuracy': 1 / at} if at in (1, 2) else None
      kept.save(at, {'step': jnp.array(at)}, {}, scores)
    kept.wait()
  assert {int(path.name) for path in (tmp_path / 'checkpoints').iterdir()} == {1, 5, 6}


def test_the_step_compiles_once(tmp_path, caplog):
  jax.config.update('jax_log_compiles', True)
  try:
    train.train(small_config(total_steps=4), tmp_path)
  finally:
    jax.config.update('jax_log_compiles', False)
  compiled = [r for r in caplog.records if 'Compiling' in r.message and 'train_step' in r.message]
  finished = [
    r for r in caplog.records if 'Finished XLA compilation of jit(train_step)' in r.message
  ]
  assert len(finished) == 1, [r.message for r in compiled]


def build_step(config):
  built = experiment.build(config)
  shapes = step.state_shapes(built)
  return built, shapes, step.compile_step(built, shapes)


def test_a_frozen_backbone_costs_one_forward_pass():
  """Compiled FLOPs of a head-only step with clipping, against the forward pass and a full step."""
  head_only = (('head/.*', 1.0), ('.*', 0.0))
  small = dict(model__variant='digits/2', batch_size=64)
  built, shapes, full = build_step(small_config(**small))
  _, _, frozen = build_step(small_config(**small, optimizer__multipliers=head_only))
  images = jnp.zeros((64 // 8, 8, 8, 1))

  def forward(params, images):
    return built.model.apply({'params': params}, images, train=True, rngs={'dropout': key})[0]

  key = jax.random.key(0)
  plain = jax.jit(forward).lower(shapes.params['model'], images).compile()
  flops = {
    name: f.cost_analysis()['flops']
    for name, f in dict(full=full, frozen=frozen, forward=plain).items()
  }
  assert flops['full'] > 2.5 * flops['forward']
  assert flops['frozen'] < 1.1 * flops['forward']


def run_steps(config, count=3):
  built = experiment.build(config)
  shapes = step.state_shapes(built)
  state = step.initial_state(built, shapes)
  train_step = step.compile_step(built, shapes)
  losses = []
  for _, batch in zip(range(count), train.training_batches(built, 0), strict=False):
    state, values = train_step(state, batch[1], built.constants)
    losses.append(float(values['loss']))
  return state, losses


@pytest.mark.parametrize('ahead', [0, 7])
def test_few_batches_wait_on_the_devices(monkeypatch, ahead):
  """As many as a plan counts, however many processes make ahead; those wait on the host."""
  built = experiment.build(small_config(total_steps=12))
  workers = mock.Mock(side_effect=built.data.changed, ahead=lambda rows: ahead)
  placed = mock.Mock(side_effect=lambda batch, mesh: batch)
  monkeypatch.setattr(sharding, 'place_batch', placed)
  expected = [batch['label'] for _, batch in train.training_batches(built, 0)]
  placed.reset_mock()
  steps = []
  for step_, batch in train.training_batches(built, 0, workers):
    steps.append(step_)
    time.sleep(0.02)  # Whatever is not held back is there by now.
    assert placed.call_count <= len(steps) + estimate.BATCHES - 2
    assert workers.call_count <= len(steps) + estimate.BATCHES - 2 + ahead
    np.testing.assert_array_equal(batch['label'], expected[len(steps) - 1])
  assert steps == [*range(1, 13)]


def test_frozen_parameters_stay_and_have_no_optimizer_state():
  config = small_config(optimizer__multipliers=(('head/.*', 1.0), ('.*', 0.0)))
  built = experiment.build(config)
  before = jax.device_get(step.initial_state(built, step.state_shapes(built)))
  state, _ = run_steps(config)
  after = jax.device_get(state)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
  assert moved['model']['head'] == {'bias': True, 'kernel': True}
  assert not any(jax.tree.leaves({k: v for k, v in moved['model'].items() if k != 'head'}))
  sizes = sum(x.size for x in jax.tree.leaves(after.opt_state))
  assert sizes < 3 * (32 * 10 + 10)


@pytest.mark.slow
def test_accumulation_and_sharding_change_nothing():
  """One device's arithmetic, whichever way batch and state are cut; and something is cut."""
  base = dict(model__dropout=0.0, model__drop_path=0.0, model__variant='digits/2')
  _, expected = run_steps(small_config(**base))
  for change in (dict(accumulation_steps=2), dict(fsdp=8), dict(fsdp=2)):
    state, losses = run_steps(small_config(**base, **change))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    if change == dict(fsdp=8):
      kernel = state.params['model']['Transformer']['encoderblock_0']['MlpBlock_3']['Dense_0']
      assert kernel['kernel'].addressable_shards[0].data.size * 8 == kernel['kernel'].size
      held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.params))
      assert held < 0.25 * sum(x.size for x in jax.tree.leaves(state.params))


def test_golden_step():
  """Loss and norms after one step. Changed on purpose? Say why in the commit and store anew."""
  config = small_config(model__dropout=0.0, model__drop_path=0.0, data__rotate=0.0)
  _, losses = run_steps(config, 2)
  assert losses[0] == pytest.approx(np.log(10), abs=1e-5)  # A zero head: ln of the classes.
  assert losses[1] == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = 2.29024


def test_overfits_one_batch():
  config = small_config(
    model__dropout=0.0, model__drop_path=0.0, optimizer__learning_rate=1e-2, total_steps=100
  )
  built = experiment.build(config)
  shapes = step.state_shapes(built)
  state, train_step = (
    step.initial_state(built, shapes),
    step.compile_step(built, shapes),
  )
  batch = sharding.place_batch(built.data.batch_at(1, batch_size=16, seed=0), built.mesh)
  for _ in range(100):
    state, values = train_step(state, batch, built.constants)
    # A hundred steps in flight on eight fake devices can block each other's collectives.
    jax.block_until_ready(values)
  assert float(values['loss']) < 0.02


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = small_config(
    optimizer__name='sgd', optimizer__learning_rate=1e15, optimizer__clip_norm=0.0,
    optimizer__warmup_steps=0, checkpoint_every=1, total_steps=20,
  )  # fmt: skip
  with pytest.raises(FloatingPointError, match=r'step \d+: .* not finite'):
    train.train(config, tmp_path)
  last = (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1]
  told = json.loads(last, parse_constant=pytest.fail)  # JSON has no NaN.
  lost = [key for key in told if told[key] is None]
  assert lost and all(np.isnan(metrics.read(tmp_path / 'metrics.jsonl')[-1][key]) for key in lost)
  state = final_state(config, tmp_path)
  assert 1 <= state.step < 20
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_init_from_a_run_lists_what_is_new(trained, caplog):
  config = small_config(init_from=str(trained), model__readout='weighted_concat')
  built = experiment.build(config)
  shapes = step.state_shapes(built)
  params = step.initial_state(built, shapes).params['model']
  assert 'dropped: head/kernel; new: head/kernel, readout/weights' in caplog.text
  saved = np.load(trained / 'model/weights.npz')
  np.testing.assert_array_equal(params['embedding']['kernel'], saved['embedding/kernel'])
  wrong = small_config(init_from=str(trained), model__variant='mu/2')
  built = experiment.build(wrong)
  with pytest.raises(ValueError, match=r'(?s)does not fit.*embedding/kernel: \(4, 4, 1, 32\)'):
    step.initial_state(built, step.state_shapes(built))


def make_optimizer(name, **kwargs):
  from vit_jax import defaults

  section = defaults.part('optimizer', name).to_dict() | dict(clip_norm=0.0) | kwargs
  return optim.build(total_steps=10, **section)[:2]


@pytest.mark.parametrize(
  ('name', 'peer'),
  [
    ('sgd', optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e-2, 0.9))),
    ('adam', optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2))),
    ('adamw', optax.adamw(1e-2, weight_decay=0.1)),
  ],
)
def test_optimizers_equal_optax(name, peer):
  """Coupled and decoupled decay, three steps, against optax's own composition."""
  ours, _ = make_optimizer(
    name, learning_rate=1e-2, schedule='constant', weight_decay=0.1, decay_pattern='.*'
  )
  params = expected = {'a': {'kernel': jnp.arange(1.0, 4.0)}}
  states = [ours.init(params), peer.init(expected)]
  for i in range(3):
    gradients = jax.tree.map(lambda x, i=i: jnp.sin(x + i), params)
    updates, states[0] = ours.update(gradients, states[0], params)
    params = optax.apply_updates(params, updates)
    updates, states[1] = peer.update(gradients, states[1], expected)
    expected = optax.apply_updates(expected, updates)
  np.testing.assert_allclose(params['a']['kernel'], expected['a']['kernel'], rtol=1e-6)


def test_decay_multipliers_and_clipping_by_name():
  ours, _ = make_optimizer(
    'sgd', learning_rate=1.0, schedule='constant', weight_decay=0.5, momentum=0.0,
    multipliers=(('b/.*', 0.1),),
  )  # fmt: skip
  params = {'a': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = ours.update(zeros, ours.init(params), params)
  np.testing.assert_allclose(updates['a']['kernel'], -0.5)  # decays
  np.testing.assert_allclose(updates['a']['bias'], 0)  # does not
  np.testing.assert_allclose(updates['b']['kernel'], -0.05, rtol=1e-6)  # a tenth of the rate
  clipped, _ = make_optimizer('sgd', learning_rate=1.0, schedule='constant', clip_norm=1.0)
  updates, _ = clipped.update(jax.tree.map(lambda x: 3 * x, params), clipped.init(params), params)
  assert float(optax.global_norm(updates)) == pytest.approx(1, rel=1e-5)
  with pytest.raises(ValueError, match='matches no parameter'):
    optim.partition(params, (('c/.*', 0.0),))
  with pytest.raises(ValueError, match='freezes every parameter'):
    optim.partition(params, (('.*', 0.0),))


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'constant'])
def test_schedules(schedule):
  _, rate = make_optimizer('sgd', learning_rate=2.0, warmup_steps=4, schedule=schedule)
  np.testing.assert_allclose([rate(i) for i in range(4)], [0.5, 1, 1.5, 2], rtol=1e-6)
  middle, end = {'cosine': (1.0, 0), 'linear': (1.0, 0), 'constant': (2.0, 2.0)}[schedule]
  assert float(rate(4 + 3)) == pytest.approx(middle, abs=1e-5)
  assert float(rate(10)) == pytest.approx(end, abs=1e-6)


def test_momentum_dtype_is_read():
  ours, _ = make_optimizer('sgd', momentum_dtype='bfloat16')
  state = ours.init({'kernel': jnp.ones(3)})
  assert jnp.bfloat16 in [x.dtype for x in jax.tree.leaves(state)]
