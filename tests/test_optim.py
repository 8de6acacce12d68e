"""Optimizers, schedules, averages and bands against formulas, torch, and tables of numbers."""

import logging

from conftest import small_config
import jax
from jax import numpy as jnp
import numpy as np
import optax
from peers import need
import pytest

from vit_jax import defaults, experiment, metrics, optim, step, train
from vit_jax.optim import checks
from vit_jax.runtime import stacked
from vit_jax.runtime.sharding import AXES

SCHEDULED = dict(schedule='cosine', warmup_steps=5)


def make_optimizer(name, **more):
  """The optimizer and its rate over 20 steps, of one that clips nothing and decays everything."""
  section = defaults.part('optimizer', name).to_dict() | dict(clip_norm=0.0, decay_pattern='.*')
  return optim.build(total_steps=20, **section | more)[:2]


def weights_of(shape=(4, 3), seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradients_of(shape=(4, 3), count=20):
  """Gradients that do not depend on the weights: a wrong step is not mended by the next."""
  draw = np.random.default_rng(1)
  return [draw.normal(size=shape).astype(np.float32) for _ in range(count)]


def ours(name, gradients, weights, **more):
  """The weights after each gradient."""
  optimizer, _ = make_optimizer(name, **more)
  params = {'a': {'kernel': jnp.array(weights)}}
  state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
  for gradient in gradients:
    updates, state = update({'a': {'kernel': gradient}}, state, params)
    params = optax.apply_updates(params, updates)
    found.append(np.array(params['a']['kernel']))
  return found


PEERS = [
  ('sgd', dict(momentum=0.9, weight_decay=0.1), 'SGD', dict(momentum=0.9, weight_decay=0.1)),
  ('sgd', dict(momentum=0.8, nesterov=True), 'SGD', dict(momentum=0.8, nesterov=True)),
  ('adam', dict(weight_decay=0.1), 'Adam', dict(weight_decay=0.1)),
  ('adamw', dict(weight_decay=0.1, b2=0.95), 'AdamW', dict(weight_decay=0.1, betas=(0.9, 0.95))),
  ('adamw', dict(weight_decay=0.1, decay='coupled'), 'Adam', dict(weight_decay=0.1)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'keys', 'peer', 'theirs'), PEERS)
def test_steps_equal_torch(name, keys, peer, theirs):
  """Twenty of them, with a warm-up and a cosine; the scale of the weights is 1."""
  torch = need('torch')
  _, rate = make_optimizer(name, learning_rate=0.01, **SCHEDULED)
  weights = torch.nn.Parameter(torch.tensor(weights_of()))
  optimizer = getattr(torch.optim, peer)([weights], lr=0.01, **theirs)
  found = ours(name, gradients_of(), weights_of(), learning_rate=0.01, **SCHEDULED, **keys)
  for i, gradient in enumerate(gradients_of()):
    optimizer.param_groups[0]['lr'] = float(rate(i))
    weights.grad = torch.tensor(gradient)
    optimizer.step()
    np.testing.assert_allclose(found[i], weights.detach().numpy(), rtol=2e-6, atol=2e-6)


def adam_directions(gradients, b1=0.9, b2=0.999, epsilon=1e-8):
  m = v = 0.0
  for t, gradient in enumerate(gradients, 1):
    gradient = gradient.astype(np.float64)
    m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
    yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon)


def adafactor_directions(gradients, momentum=0.9, cap=0.999, threshold=0.0):
  """Of matrices: the second moment is the product of its rows' and columns' means."""
  rows = columns = average = 0.0
  for t, gradient in enumerate(gradients, 1):
    weight = min(cap, 1 - t**-0.8)
    square = gradient.astype(np.float64) ** 2 + 1e-30
    rows = weight * rows + (1 - weight) * square.mean(1, keepdims=True)
    columns = weight * columns + (1 - weight) * square.mean(0, keepdims=True)
    update = gradient / np.sqrt(rows * columns / rows.mean())
    if threshold:
      update = update / max(1, np.sqrt(np.mean(update**2)) / threshold)
    average = momentum * average + (1 - momentum) * update if momentum else update
    yield average


def independent(directions, weights, rate, peak, weight_decay):
  """big_vision's order: the step, and of the weights `weight_decay` times the schedule in 0..1."""
  found = [weights.astype(np.float64)]
  for i, direction in enumerate(directions):
    share = float(rate(i)) / peak
    found.append(found[-1] - share * (peak * direction + weight_decay * found[-1]))
  return found[1:]


@pytest.mark.parametrize('peak', [0.01, 0.1])
def test_independent_decay_is_a_formula(peak):
  keys = dict(learning_rate=peak, **SCHEDULED)
  _, rate = make_optimizer('adamw', **keys)
  found = ours(
    'adamw', gradients_of(), weights_of(), decay='independent', weight_decay=0.02, **keys
  )
  expected = independent(adam_directions(gradients_of()), weights_of(), rate, peak, 0.02)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('keys', [{}, dict(momentum=0.0), dict(clipping_threshold=0.5)])
def test_adafactor_is_a_formula(keys):
  shape, scheduled = (32, 40), dict(learning_rate=0.01, **SCHEDULED)
  _, rate = make_optimizer('adafactor', **scheduled)
  gradients, weights = gradients_of(shape), weights_of(shape)
  given = keys | dict(momentum_dtype='float32', weight_decay=0.02)
  found = ours('adafactor', gradients, weights, **given, **scheduled)
  named = {'momentum': keys.get('momentum', 0.9), 'threshold': keys.get('clipping_threshold', 0.0)}
  directions = adafactor_directions(gradients, **named)
  expected = independent(directions, weights, rate, 0.01, 0.02)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


def test_the_second_moment_is_capped():
  """A cap of 0.5 is reached at step 3: from then on each step counts a half."""
  gradients = gradients_of((32, 32))
  keys = dict(momentum=0.0, weight_decay=0.0, learning_rate=1.0, schedule='constant')
  found = ours('adafactor', gradients, weights_of((32, 32)), beta2_cap=0.5, **keys)
  directions = adafactor_directions(gradients, momentum=0.0, cap=0.5)
  expected = weights_of((32, 32)) - np.cumsum([*directions], 0)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_three_decays_of_weights_without_a_gradient():
  """What multiplies each: 0.5 is the decay, 0.1 the peak, 0.2 the factor of the name."""
  zeros, ones = [np.zeros((2, 2), np.float32)], np.ones((2, 2), np.float32)
  keys = dict(learning_rate=0.1, schedule='constant', weight_decay=0.5, warmup_steps=2)
  keys['multipliers'] = (('a/.*', 0.2),)
  for decay, taken in (('decoupled', 0.5 * 0.05 * 0.2), ('independent', 0.5 * 0.5)):
    (found,) = ours('adamw', zeros, ones, decay=decay, **keys)
    np.testing.assert_allclose(1 - found, taken, rtol=1e-5)
  (found,) = ours('adamw', zeros, ones, decay='coupled', **keys)
  np.testing.assert_allclose(1 - found, 0.05 * 0.2, rtol=1e-5)  # Adam makes 1 of any gradient.
  (found,) = ours('sgd', zeros, ones, decay='decoupled', momentum=0.9, **keys)
  np.testing.assert_allclose(1 - found, 0.5 * 0.05 * 0.2, rtol=1e-5)
  with pytest.raises(ValueError, match=r"optimizer\.decay 'decopled'.*you mean 'decoupled'"):
    make_optimizer('adamw', decay='decopled')


@pytest.mark.parametrize(
  ('name', 'large'), [('sgd', 0), ('adam', 1), ('adamw', 1), ('adafactor', 0)]
)
def test_a_first_moment_in_bfloat16(name, large):
  """And how many float32 arrays of the parameter's size are kept beside it."""
  optimizer, _ = make_optimizer(name, momentum_dtype='bfloat16')
  params = {'kernel': jnp.ones((32, 32))}
  state = optimizer.update(params, optimizer.init(params), params)[1]
  kept = [x.dtype for x in jax.tree.leaves(state) if x.size == 32 * 32]
  assert kept.count(jnp.bfloat16) == 1 and kept.count(jnp.float32) == large


def test_adafactor_refuses_what_is_no_share():
  with pytest.raises(ValueError, match=r'config\.optimizer\.beta2_cap=1\.0 must be in \[0, 1\)'):
    make_optimizer('adafactor', beta2_cap=1.0)
  with pytest.raises(ValueError, match=r'config\.optimizer\.decay_rate=-0\.8 must be above 0'):
    make_optimizer('adafactor', decay_rate=-0.8)


@pytest.mark.parametrize(
  ('name', 'keys', 'words'),
  [
    ('sgd', dict(clip_norm=-1.0), 'clip_norm=-1.0 must be a number of at least 0'),  # Ascends.
    ('sgd', dict(learning_rate=float('nan')), 'learning_rate=nan must be a number'),
    ('sgd', dict(weight_decay=-0.1), 'weight_decay=-0.1'),
    ('sgd', dict(final_fraction=-5.0), 'final_fraction=-5.0'),
    ('sgd', dict(momentum=1.5), r'momentum=1.5 must be in \[0, 1\)'),
    ('adam', dict(b2=1.0), r'b2=1.0 must be in \[0, 1\)'),
    ('adamw', dict(epsilon=0.0), 'epsilon=0.0 must be above 0'),
    ('adamw', dict(decay_pattern='*kernel'), r"decay_pattern: '\*kernel' is no regular expression"),
    ('adamw', dict(multipliers=(('*head', 1.0),)), r"multipliers: '\*head' is no regular"),
    ('adamw', dict(multipliers=(('head/.*', -1.0),)), "multipliers: 'head/.*'=-1.0 must be"),
  ],
)
def test_what_no_optimizer_can_work_with_is_refused(name, keys, words):
  with pytest.raises(ValueError, match=f'config.optimizer.{words}'):
    make_optimizer(name, **keys)


def test_multipliers_that_are_no_pairs_show_how_they_are_written():
  with pytest.raises(ValueError, match=r'multipliers=.* must be pairs.* with a comma behind it'):
    checks.check_multipliers(('head/.*', 1.0))


def test_blocks_in_a_stack_are_treated_each_by_itself():
  """Without it, Adafactor would factor and clip over the axis of the blocks."""
  optimizer, _ = make_optimizer('adafactor', clipping_threshold=0.5)
  kernels = weights_of((50, 40, 32)) * np.linspace(1, 9, 50, dtype=np.float32).reshape(-1, 1, 1)
  together = {'T': {'block_*': {'kernel': jnp.array(kernels)}}, 'head': {'kernel': kernels[0]}}
  results = []
  for params in (together, stacked.unstack(together)):
    state = optimizer.init(params)
    for _ in range(3):
      updates, state = optimizer.update(jax.tree.map(jnp.sin, params), state, params)
    results.append(stacked.unstack((updates, state)))
  assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *results)


# Steps from 0, of 100: a peak of 2 after ten of warm-up, and what the rate is then.
CORNERS = [
  ('cosine', {}, {10: 2, 55: 1, 100: 0}),
  ('cosine', dict(final_fraction=0.1), {10: 2, 55: 1.1, 100: 0.2}),
  ('linear', {}, {10: 2, 55: 1, 82: 0.4, 100: 0}),
  ('linear', dict(final_fraction=0.5), {10: 2, 55: 1.5, 100: 1}),
  ('rsqrt', dict(timescale=10), {10: 2, 20: 2 / np.sqrt(2), 40: 1, 90: 2 / 3, 100: 2 / 10**0.5}),
  ('rsqrt', dict(timescale=10, cooldown_steps=20), {40: 1, 80: 0.7071068, 90: 1 / 3, 100: 0}),
  ('steps', dict(drops=(30, 60)), {10: 2, 29: 2, 30: 0.2, 59: 0.2, 60: 0.02, 99: 0.02}),
  ('steps', dict(drops=(30,), cooldown_steps=10), {29: 2, 30: 0.2, 90: 0.2, 95: 0.1, 99: 0.02}),
  ('constant', {}, {10: 2, 99: 2}),
  ('constant', dict(cooldown_steps=40), {10: 2, 60: 2, 61: 1.95, 80: 1, 99: 0.05, 100: 0}),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'keys', 'corners'), CORNERS)
def test_schedules_at_their_corners(name, keys, corners):
  rate = optim.make_schedule(name, 2.0, 100, warmup_steps=10, **keys)
  for at, value in ({0: 0.2, 4: 1.0, 9: 2.0} | corners).items():
    assert float(rate(at)) == pytest.approx(value, rel=1e-5, abs=1e-6), at


@pytest.mark.parametrize(
  ('keys', 'reason'),
  [
    (dict(warmup_steps=15, cooldown_steps=6), 'cooldown_steps=6 and warmup_steps=15 are more'),
    (dict(cooldown_steps=-1), 'cooldown_steps=-1 must be at least 0'),
    (dict(schedule='rsqrt', timescale=0), 'timescale=0 must be above 0'),
    (dict(schedule='rsqtr'), "did you mean 'rsqrt'"),
  ],
)
def test_schedules_that_cannot_be(keys, reason):
  with pytest.raises(ValueError, match=r'config\.optimizer\..*' + reason):
    make_optimizer('sgd', **keys)
  make_optimizer('sgd', warmup_steps=15, cooldown_steps=5)


def averages(count=30, **keys):
  """The averages of weights that are 1 at first and 0 after each step, or 1, 2, 3 ... beside it."""
  config = small_config(**keys)
  ema = {'first': jnp.array(1.0), 'count': jnp.array(0.0)}
  found = []
  for t in range(1, count + 1):
    params = {'first': jnp.array(0.0), 'count': jnp.array(float(t))}
    ema = step.average(config, ema, params, jnp.array(t))
    found.append(ema)
  return [np.array([one[key] for one in found]) for key in ('first', 'count')]


def test_the_average_is_a_closed_form():
  t = np.arange(1, 31)
  first, _ = averages(ema_decay=0.9)
  np.testing.assert_allclose(first, 0.9**t, rtol=1e-5)
  first, _ = averages(ema_decay=0.9999, ema_warmup=True)
  np.testing.assert_allclose(first, np.cumprod((1 + t) / (10 + t)), rtol=1e-4)
  first, _ = averages(ema_decay=0.5, ema_warmup=True)  # (1 + 8) / (10 + 8): the cap from step 8 on.
  np.testing.assert_allclose(first[8:] / first[7:-1], 0.5, rtol=1e-5)


@pytest.mark.parametrize('warmup', [False, True])
def test_the_average_starts_late(warmup):
  """Up to step 10 it is the weights; then a new average starts from those of step 10."""
  _, late = averages(ema_decay=0.99, ema_start=10, ema_warmup=warmup)
  _, early = averages(ema_decay=0.99, ema_warmup=warmup)
  np.testing.assert_array_equal(late[:10], np.arange(1.0, 11))
  np.testing.assert_allclose(late[10:], 10 + early[:20], rtol=1e-6)


@pytest.mark.parametrize(
  ('keys', 'reason'),
  [
    (dict(ema_start=3), r'config\.ema_start=3 does nothing without an average; set config\.ema_de'),
    (dict(ema_warmup=True), r'config\.ema_warmup=True does nothing without an average'),
    (dict(ema_decay=0.9, ema_start=-1), r'config\.ema_start=-1 must be at least 0'),
  ],
)
def test_averages_that_cannot_be(keys, reason):
  with pytest.raises(ValueError, match=reason):
    experiment.build(small_config(**keys))


LATE = dict(
  ema_decay=0.99, ema_start=2, ema_warmup=True, optimizer__name='adafactor', model__depth=3,
  optimizer__schedule='rsqrt', optimizer__weight_decay=1e-3,
)  # fmt: skip


def run(workdir, *stops, scan=False, **changed):
  """The weights of a run with a late average that is stopped and goes on; `scan` until then."""
  for steps in stops:
    loop = scan and steps < stops[-1]
    train.train(small_config(**LATE | changed, total_steps=steps, model__scan=loop), workdir)
  return dict(np.load(workdir / 'model/weights.npz'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole'), 6)


def test_a_resumed_run_equals_one_at_once(whole, tmp_path):
  cut = run(tmp_path, 4, 6)
  assert whole.keys() == cut.keys()
  for name, value in whole.items():
    np.testing.assert_array_equal(value, cut[name], err_msg=name)


def test_adafactor_in_a_loop_over_blocks_is_the_same(tmp_path):
  """And leaves a checkpoint with which a run without the loop goes on."""
  # Adafactor makes whole steps of gradients however small: those below 1e-6, which rounding turns
  # either way, shall not count. A softmax does not see the bias of keys: its are nothing else.
  damped = {'optimizer__epsilon': 1e-12}
  whole = run(tmp_path / 'whole', 6, **damped)
  cut = run(tmp_path / 'cut', 4, 6, scan=True, **damped)
  for name, value in ((n, x) for n, x in whole.items() if not n.endswith('key/bias')):
    np.testing.assert_allclose(value, cut[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_adafactor_learns_the_digits_cut_over_devices(tmp_path):
  """Cut by `fsdp`, its state too, whose arrays are not those of the parameters."""
  config = small_config(
    optimizer__name='adafactor', optimizer__learning_rate=0.01, model__width=64, total_steps=40,
    fsdp=2, shard_optimizer=True, batch_size=64, eval_every=0, model__dropout=0.0,
    optimizer__min_size_to_factor=8, checkpoint_every=0, devices=4,
  )  # fmt: skip
  built = experiment.build(config)
  state = step.state_shapes(built).opt_state
  assert any(AXES in x.sharding.spec for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16)
  train.train(config, tmp_path)
  losses = [row['train/loss'] for row in metrics.read(tmp_path / 'metrics.jsonl')]
  assert losses[0] == pytest.approx(np.log(10), abs=0.01) and np.mean(losses[-5:]) < 1.5


def said(caplog, word):
  return [r for r in caplog.records if word in r.getMessage() and 'expect' in r.getMessage()]


def test_a_band_is_judged_once_at_its_first_evaluation(tmp_path, caplog):
  config = small_config(bands=((5, 'test/accuracy', 0.5, 1.0), (5, 'test/loss', 0.1, 2.5)))
  bands = metrics.Bands(config, tmp_path, 0)
  bands.judge(4, {'test/accuracy': 0.1})  # Too early.
  bands.judge(6, {'validation/accuracy': 0.1})  # Another number.
  assert not said(caplog, 'test/')
  bands.judge(8, {'test/accuracy': 0.25, 'test/loss': 2.5})
  bands.judge(12, {'test/accuracy': 0.25, 'test/loss': 3.0})
  (outside,), (inside,) = said(caplog, 'outside'), said(caplog, 'within')
  assert outside.levelno == logging.WARNING and inside.levelno == logging.INFO
  assert 'step 8: test/accuracy 0.25 is outside 0.5 to 1' in outside.getMessage()
  assert 'learning rate' in outside.getMessage()
  assert 'step 8: test/loss 2.5 is within 0.1 to 2.5' in inside.getMessage()


@pytest.mark.parametrize(
  ('bands', 'reason'),
  [
    (((5, 'test/acuracy', 0.5, 1.0),), "did you mean 'test/accuracy'"),
    ((5, 'test/accuracy', 0.5, 1.0), r'5 is not \(step, name, low, high\)'),
    (((5, 'test/accuracy', 0.5),), 'is not'),
    (((5, 'test/accuracy', 0.5, 0.4),), 'low <= high'),
    (((0, 'test/accuracy', 0.5, 1.0),), 'with a step from 1'),
    (((5, 'test/accuracy', '0.5', 1.0),), 'is not'),
  ],
)
def test_bands_that_cannot_be(bands, reason):
  with pytest.raises(ValueError, match=r'config\.bands.*' + reason):
    experiment.build(small_config(bands=bands))


def test_a_run_says_whether_its_numbers_are_in_their_bands(quick, tmp_path):
  """And does not judge again, when it goes on, what its lines show as judged."""
  bands = ((1, 'test/loss', 0.0, 9.0), (2, 'test/accuracy', 0.99, 1.0), (9, 'test/loss', 0.0, 9.0))
  done = quick(
    '--config=configs/vit_digits.py', f'--workdir={tmp_path}', '--config.model.variant=mu/4',
    '--config.total_steps=2', '--config.batch_size=16', f'--config.bands={bands}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'is outside 0.99 to 1, which config.bands expects from step 2 on' in done.stderr
  assert 'is within 0 to 9, as expected from step 1 on' in done.stderr
  assert 'test/loss from step 9 on will not be evaluated' in done.stderr


def test_a_resumed_run_does_not_judge_again(tmp_path, caplog):
  lines = '{"step": 3, "test/loss": 1.0}\n{"step": 6, "test/accuracy": 1.0}\n'
  (tmp_path / 'metrics.jsonl').write_text(lines)
  config = small_config(
    bands=((3, 'test/loss', 0.0, 1.0), (4, 'test/loss', 0.0, 2.0), (4, 'test/accuracy', 0.0, 1.0))
  )
  bands = metrics.Bands(config, tmp_path, 5)  # Step 6 will be computed again.
  bands.judge(6, {'test/loss': 1.5, 'test/accuracy': 1.0})
  assert [record.getMessage()[:17] for record in said(caplog, 'step 6')] == [
    'step 6: test/loss', 'step 6: test/accu'
  ]  # fmt: skip
  assert not said(caplog, 'outside')
