"""Plans: what a run takes on devices that need not be here; what helps where it does not fit."""

import importlib.util
import json
import re
import types

from conftest import command, small_config
import jax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from vit_jax import defaults, experiment, main, step, train
from vit_jax.explore import alternatives, estimate, plan, plan_page, planned
from vit_jax.explore.estimate import Estimate
from vit_jax.runtime import catalogue, compiled, flops, hlo, memory, sharding, targets
from vit_jax.runtime.catalogue import TARGETS
from vit_jax.runtime.compiled import Collective

KEYS = {
  'target', 'devices', 'batch_size', 'fits', 'device_memory_gb', 'memory_gb', 'flops', 'traffic_gb',
  'collectives', 'attention', 'seconds_arithmetic', 'seconds_memory', 'seconds_collectives',
  'images_per_second_at_most', 'forward', 'peaks', 'compile_seconds', 'process_gb',
}  # fmt: skip


def fake_target(memory_size=10**9, per_host=8, peaks=TARGETS['h100'].peaks):
  """The eight CPU devices as if they were elsewhere."""
  return targets.Target('fake:8', jax.devices(), 8 * memory_size, 'nothing', peaks, per_host)


@pytest.fixture
def elsewhere(monkeypatch):
  """Planning for `--target=fake:8`."""
  monkeypatch.setattr(targets, 'open_target', lambda name: fake_target())
  monkeypatch.setattr(plan, 'process_size', lambda: 0)


# Targets.


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [('', (1, 1)), ('1', (1, 1)), ('8', (1, 8)), ('16', (2, 8)), ('64', (8, 8)), ('2x4', (2, 4))],
)
def test_hosts_of_gpus(shape, expected):
  assert targets.gpu_topology('h100', shape) == expected


@pytest.mark.parametrize('shape', ['0', '12', 'x', '1x9', '4x4x4', '-8', '8 '])
def test_hosts_of_gpus_that_there_are_not(shape):
  with pytest.raises(ValueError, match=r'h100:.*no such topology; h100:1 to h100:8'):
    targets.gpu_topology('h100', shape)


@pytest.mark.parametrize(
  ('name', 'shape', 'expected'),
  [
    ('v5e', '', '1x1'), ('v5e', '1', '1x1'), ('v5e', '4x4', '4x4'), ('v5e', '16', '4x4'),
    ('v5e', '256', '16x16'), ('v4', '', '2x2x1'), ('v4', '8', '2x2x2'), ('v3', '4', '2x2'),
  ],
)  # fmt: skip
def test_slices_of_tpus(name, shape, expected):
  assert targets.tpu_topology(name, TARGETS[name], shape) == expected


@pytest.mark.parametrize(('name', 'shape'), [('v5e', '3x3'), ('v5e', '5'), ('v4', '2x2')])
def test_slices_that_there_are_not(name, shape):
  with pytest.raises(ValueError, match=r'no such topology; choose one.*2x2'):
    targets.tpu_topology(name, TARGETS[name], shape)


def test_an_unknown_target_shows_the_list():
  with pytest.raises(ValueError, match=r"unknown --target 'h10'; choose from h100.*'h100'"):
    targets.open_target('h10:8')


@pytest.mark.parametrize(('name', 'extra'), [('h100', 'cuda12'), ('v5e:2x2', 'tpu')])
def test_a_compiler_that_is_not_installed(monkeypatch, name, extra):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=rf"pip install -e '\.\[{extra}\]'"):
    targets.open_target(name)


@pytest.mark.parametrize('name', TARGETS)
def test_every_row_is_whole(name):
  kind = TARGETS[name]
  assert kind.platform in ('gpu', 'tpu') and kind.memory > 7e9 and kind.peaks.source
  assert {*kind.peaks.flops} == {'float32', 'bfloat16', 'float16'}
  if kind.platform == 'gpu':
    assert kind.kind in catalogue.CARD.format(
      kind=kind.kind, memory=kind.memory, bandwidth=1, **kind.card
    )
  else:
    sizes = [targets.chips(shape) for shape in kind.topologies]
    assert sizes == sorted({*sizes})  # A number of chips names one shape.


def test_what_jax_takes_of_a_gpu(monkeypatch):
  assert targets.usable('gpu', 1000)[0] == 750
  monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '0.9')
  assert targets.usable('gpu', 1000)[0] == 900
  assert targets.usable('tpu', 1000)[0] == 1000


# What is read from compiled programs.


def mesh_of(count):
  return sharding.make_mesh(1, jax.devices()[:count])


def compile_on(mesh, function, *shapes, specs, out=PartitionSpec()):
  arguments = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    for shape, spec in zip(shapes, specs, strict=True)
  ]
  return jax.jit(function, out_shardings=NamedSharding(mesh, out)).lower(*arguments).compile()


def test_messages_of_a_program():
  mesh, rows = mesh_of(8), PartitionSpec('data')
  columns = PartitionSpec(None, 'data')
  program = compile_on(mesh, jnp.matmul, (32, 64), (64, 16), specs=(columns, rows))
  found = compiled.collectives_of(hlo.parse(program.as_text()), 8)
  assert found == [Collective('all-reduce', 32 * 16 * 4, tuple(range(8)), 1)]
  program = compile_on(mesh, lambda x: x * 2, (64, 16), specs=(rows,))
  (found,) = compiled.collectives_of(hlo.parse(program.as_text()), 8)
  assert (found.kind, found.size) == ('all-gather', 64 * 16 * 4)


def test_messages_in_loops_count_for_each_turn():
  def loop(x, y):
    def body(total, _):
      return jnp.tanh(total @ y), None

    return jax.lax.scan(body, x, length=5)[0]

  program = compile_on(
    mesh_of(8), loop, (16, 64), (64, 64), specs=(PartitionSpec(None, 'data'), PartitionSpec('data'))
  )
  text = hlo.parse(program.as_text())
  assert compiled.has_loops(text)
  assert sum(one.times for one in compiled.collectives_of(text, 8)) >= 5


def test_traffic_of_loops_counts_for_each_turn():
  """The stacked weights are read once each, not as a whole in each turn."""

  def loop(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.sin(x) * w, None), x, weights)[0]

  shape, turns = (256, 256), 10
  one = compile_on(
    mesh_of(1), loop, shape, (turns, *shape), specs=(PartitionSpec(), PartitionSpec())
  )
  size = 4 * 256 * 256
  traffic, counted_by = compiled.traffic_of(one, hlo.parse(one.as_text()))
  assert counted_by == 'sum'
  assert 3 * turns * size <= traffic < 6 * turns * size  # Reads x and w, writes x; some copy.


def test_traffic_is_what_xla_counts_where_there_is_no_loop():
  def function(x, y):
    return jnp.sin(x @ y) @ y

  both = (PartitionSpec(), PartitionSpec())
  one = compile_on(mesh_of(1), function, (256, 256), (256, 256), specs=both)
  program = hlo.parse(one.as_text())
  traffic, counted_by = compiled.traffic_of(one, program)
  assert counted_by == 'xla'
  assert compiled.own_traffic(program) == pytest.approx(traffic, rel=0.2)


def test_a_message_that_is_started_counts_once():
  """XLA names both what an asynchronous gather reads and what it writes."""
  text = """ENTRY %main (x: f32[8]) -> f32[32] {
  %x = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %done = f32[32]{0} all-gather-done(%start)
}
"""
  found = compiled.collectives_of(hlo.parse(text), 4)
  assert found == [Collective('all-gather', 4 * 32, (0, 1, 2, 3), 1)]


GROUPS = {
  '{{0,1},{2,3}}, rest': (0, 1),
  '[2,4]<=[8], rest': (0, 1, 2, 3),
  '[4,2]<=[2,4]T(1,0), rest': (0, 4),
  "mesh['x'=2,'y'=4] {'x'}, rest={'y'}": (0, 4),
  "mesh['x'=2,'y'=4] {'x','y'}": tuple(range(8)),
  '{}': tuple(range(8)),
  '': tuple(range(8)),
}


@pytest.mark.parametrize('text', GROUPS)
def test_groups_in_each_way_that_xla_writes_them(text):
  assert compiled.group_of(text, 8) == GROUPS[text]


TEXT = """HloModule test, is_scheduled=true

%fused (p0: f32[10,4], p1: s32[]) -> f32[1,4] {
  %p0 = f32[10,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,4]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,4}
}

%updated (a: f32[10,4], b: f32[1,4], c: s32[]) -> f32[10,4] {
  %a = f32[10,4]{1,0} parameter(0)
  %b = f32[1,4]{1,0} parameter(1)
  %c = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %in_place = f32[10,4]{1,0} dynamic-update-slice(%a, %b, %c, %none)
}

ENTRY %main (x: f32[10,4], i: s32[]) -> f32[10,4] {
  %x = f32[10,4]{1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,4]{1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused
  %start = ((f32[10,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2]}
  %done = f32[2,4]{1,0:S(1)} slice-done(%start)
  %kernel.1 = (bf16[2,4], u8[0]) custom-call(%done), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %out = f32[10,4]{1,0} fusion(%x, /*index=1*/%row, %i), kind=kLoop, calls=%updated
}
"""


def test_traffic_of_slices_is_that_of_the_slices():
  program = hlo.parse(TEXT)
  entry = program.computations[program.entry]
  touched = {
    name: compiled.touched(program, entry, one) for name, one in entry.instructions.items()
  }
  row = 1 * 4 * 4
  assert touched['row'] == row + 4 + row  # Slice, index, result.
  assert touched['start'] == 2 * 2 * row and touched['done'] == touched['x'] == 0
  assert touched['kernel.1'] == 2 * row + 2 * 4 * 2
  assert touched['out'] == row + 4 + row  # The row, the index; written in place.
  assert compiled.own_traffic(program) == sum(touched.values())


TPU = """HloModule tpu, is_scheduled=true

%body (arg: (s32[], bf16[197,192])) -> (s32[], bf16[197,192]) {
  %arg = (s32[]{:T(128)}, bf16[197,192]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[197,192]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %n = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %next = bf16[197,192]{1,0:T(8,128)(2,1)} negate(%x)
  ROOT %pair = (s32[]{:T(128)}, bf16[197,192]{1,0:T(8,128)(2,1)}) tuple(%n, %next)
}

%condition (arg.1: (s32[], bf16[197,192])) -> pred[] {
  %bound = s32[]{:T(128)} constant(6)
  %arg.1 = (s32[]{:T(128)}, bf16[197,192]{1,0:T(8,128)(2,1)}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n.1, %bound), direction=LT
}

%sends (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %all = f32[32]{0} all-gather(%p), channel_id=7, replica_groups={}, dimensions={0}
}

%waits (q: f32[8]) -> f32[32] {
  %q = f32[8]{0} parameter(0)
  ROOT %all.1 = f32[32]{0} all-gather(%q), channel_id=7, replica_groups={}, dimensions={0}
}

ENTRY %main (given: (s32[], bf16[197,192]), y: f32[8]) -> f32[32] {
  %given = (s32[]{:T(128)}, bf16[197,192]{1,0:T(8,128)(2,1)}) parameter(0)
  %y = f32[8]{0} parameter(1)
  %loop = (s32[]{:T(128)}, bf16[197,192]{1,0:T(8,128)(2,1)}) while(%given), condition=%condition, body=%body
  %first = f32[32]{0} fusion(%y), kind=kCustom, calls=%sends
  ROOT %second = f32[32]{0} fusion(%y), kind=kCustom, calls=%waits
}
"""  # noqa: E501


def test_what_a_compiler_for_tpus_writes_otherwise():
  """Tiles that are filled up, loops without a count, one message in several fusions."""
  program = hlo.parse(TPU)
  entry = program.computations[program.entry]
  assert program.trips(entry.instructions['loop']) == 6 and compiled.has_loops(program)
  turn = 2 * (200 * 256 * 2)  # The array's reading and writing, in whole tiles of 8 x 128.
  compare = 4 + 4 + 1  # Numbers alone have no tiles.
  fusions = 2 * (8 * 4 + 32 * 4)
  assert compiled.own_traffic(program) == 6 * (turn + compare) + fusions
  assert compiled.collectives_of(program, 4) == [Collective('all-gather', 128, (0, 1, 2, 3), 1)]


@pytest.mark.parametrize(
  ('written', 'kernel'),
  [
    ('__cudnn$fmhaSoftmax', 'cudnn'),
    ('tpu_custom_call", metadata={op_name="vit_attention_forward"}, x="', 'pallas'),
    ('other', 'plain'),
  ],
)
def test_the_attention_kernel_of_a_program(written, kernel):
  program = hlo.parse(TEXT.replace('__cudnn$fmhaSoftmax', written))
  assert compiled.attention_of(program) == kernel


# Arithmetic.


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_flops_of_products():
  matmul = 2 * 8 * 16 * 4
  x, y = shape(8, 16), shape(16, 4)
  assert flops.flops_of(jnp.matmul, x, y) == matmul
  assert flops.flops_of(jax.jit(jax.checkpoint(jnp.matmul)), x, y) == matmul
  square = shape(16, 16)

  def loop(x, y):
    return jax.lax.fori_loop(0, 3, lambda _, x: x @ y, x)

  assert flops.flops_of(loop, square, square) == 3 * 2 * 16**3
  branches = [lambda x, y: x, lambda x, y: x @ y, lambda x, y: x @ y @ y]
  assert flops.flops_of(lambda x, y: jax.lax.switch(1, branches, x, y), square, square) == (
    2 * 2 * 16**3
  )
  loss = jax.grad(lambda x, y: (x @ y).sum(), (0, 1))
  assert flops.flops_of(loss, x, y) == 3 * matmul


def test_flops_on_several_devices_are_of_all():
  mesh = mesh_of(8)
  rows = PartitionSpec('data')
  cut = jax.shard_map(
    lambda x, y: x @ y, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
  )
  assert flops.flops_of(cut, shape(64, 16), shape(16, 4)) == 2 * 64 * 16 * 4


def test_flops_of_a_convolution_and_its_gradients():
  images, kernel = shape(2, 32, 32, 3), shape(8, 8, 3, 5)

  def convolve(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (8, 8), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  once = 2 * (2 * 4 * 4 * 5) * (8 * 8 * 3)
  assert flops.flops_of(convolve, images, kernel) == once
  both = jax.grad(lambda x, w: convolve(x, w).sum(), (0, 1))
  assert flops.flops_of(both, images, kernel) == pytest.approx(3 * once, rel=0.1)


# Multiply-adds of an image at 224 px, as timm's tables give them.
PUBLISHED = {'Ti/16': 1.26e9, 'S/16': 4.61e9, 'B/16': 17.58e9}


@pytest.mark.parametrize('variant', PUBLISHED)
def test_flops_are_the_published_ones(variant, tmp_path):
  config = small_config(model__variant=variant, data__image_size=(224, 224), data__channels=3)
  config.model.update(dropout=0.0, drop_path=0.0)
  run = plan.open_run(config, tmp_path, fake_target(), 1000)
  train_flops, forward = planned.flops_per_image(run)
  assert forward / 2 == pytest.approx(PUBLISHED[variant], rel=0.01)
  assert train_flops / forward == pytest.approx(3, rel=0.02)


def test_flops_do_not_depend_on_the_kernel_of_attention(run_of):
  """A kernel, which no CPU could run, shows none of its products."""
  kernel = run_of(model__attention='pallas')
  assert planned.flops_per_image(kernel) == planned.flops_per_image(run_of())


# Bounds, batches, remedies.


def found(batch_size, total, fsdp=1, seconds=1.0, messages=()):
  sizes = {'state': 0, 'activations': total, 'batch': 0, 'total': total}
  return Estimate(batch_size, fsdp, sizes, 10**9, 'xla', messages, 'plain', seconds)


def test_messages_within_a_host_and_between_hosts():
  peaks = catalogue.Peaks({'float32': 1e12}, 1e12, 100e9, 10e9, 'none')
  target = fake_target(per_host=4, peaks=peaks)
  within = Collective('all-reduce', 4 * 10**9, (0, 1, 2, 3), 2)
  assert planned.message_seconds(within, target) == pytest.approx(2 * 2 * 4 * 3 / 4 / 100)
  across = Collective('all-gather', 8 * 10**9, tuple(range(8)), 1)
  assert planned.message_seconds(across, target) == pytest.approx(max(8 * 3 / 4 / 100, 8 / 8 / 10))


@pytest.fixture
def run_of(tmp_path):
  def make(**overrides):
    return plan.open_run(small_config(**overrides), tmp_path, fake_target(), 10)

  return make


@pytest.mark.parametrize('curve', [lambda n: 100 + 7 * n, lambda n: 100 + 7 * n + n * n // 500])
def test_the_largest_batch_is_compiled(monkeypatch, run_of, curve):
  tried = []

  def compile_step(run, batch_size):
    tried.append(batch_size)
    return found(batch_size, curve(batch_size))

  monkeypatch.setattr(alternatives, 'compile_step', compile_step)
  largest = alternatives.find_largest(run_of(), [found(16, curve(16))], room=9000)
  assert 0.9 * 9000 < largest.total <= 9000
  assert largest.batch_size % 8 == 0 and largest.batch_size in tried and len(tried) <= 4


def test_no_batch_fits(monkeypatch, run_of):
  monkeypatch.setattr(alternatives, 'compile_step', lambda run, batch_size: found(batch_size, 999))
  assert alternatives.find_largest(run_of(), [found(16, 1000)], room=10) is None


def test_the_table_interpolates_what_it_does_not_compile(monkeypatch, run_of):
  tried = []

  def compile_step(run, fsdp, batch_size):
    tried.append((fsdp, batch_size))
    return found(batch_size, 1000 // fsdp + 10 * batch_size, fsdp)

  monkeypatch.setattr(alternatives, 'compile_step', compile_step)
  asked = found(64, 1000 + 640)
  rows = alternatives.make_table(run_of(batch_size=64), asked)
  assert tried == [(1, 32), (8, 64), (8, 32)]
  assert [row.batch_size for row in rows] == [16, 32, 64, 128, 256] * 2
  assert all(row.total == 1000 // row.fsdp + 10 * row.batch_size for row in rows)
  assert {row.batch_size for row in rows if row.seconds} == {32, 64}


def test_remedies_come_in_order_and_only_what_is_not_done(run_of):
  def options(**overrides):
    return [option for option, _ in alternatives.remedies_of(run_of(batch_size=64, **overrides))]

  first = options()
  words = ('model.dtype=bfloat16', 'accumulation_steps=4', 'model.remat=blocks', 'fsdp=8')
  for word, option in zip(words, first, strict=False):
    assert option.startswith(f'--config.{word}')
  assert first[2].endswith('--config.model.scan=True')  # As XLA for the CPU wants it.
  assert first[4] == ' '.join(first[:4])
  positions = [main.OUT_OF_MEMORY.index(option.partition('=')[0]) for option in first[:4]]
  assert positions == sorted(positions)
  assert not any('remat' in option for option in options(model__name='cordonnier'))
  done = options(model__dtype='bfloat16', model__remat='blocks', fsdp=8)
  assert done == ['--config.accumulation_steps=4']


@pytest.mark.parametrize(
  ('message', 'size'),
  [
    ('RESOURCE_EXHAUSTED: ... Used 18.50G of 15.75G hbm. Exceeded', 18.5 * 2**30),
    ('RESOURCE_EXHAUSTED: required for HLO temporaries (512.00M) exceeds', 512 * 2**20),
    ('RESOURCE_EXHAUSTED: allocating 12 bytes', None),
    ('INTERNAL: Used 18.50G of 15.75G hbm', None),
  ],
)
def test_what_a_compiler_says_that_refuses(message, size):
  assert estimate.memory_in(message) == size


# The whole.


def test_plan_of_the_digits_through_the_command(quick, tmp_path):
  words = ('--config=configs/vit_digits.py', f'--workdir={tmp_path}', '--mode=plan')
  done = quick(*words, '--config.model.variant=mu/4', '--notable')
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report == json.loads((tmp_path / 'reports/plan.json').read_text())
  assert report.keys() >= KEYS and 'largest_batch_size' not in report
  assert {path.name for path in tmp_path.iterdir()} == {'reports'}  # The folder is not claimed.
  assert report['fits'] and report['attention'] == 'plain' and report['peaks'] is None
  sizes = report['memory_gb']
  assert sizes['total'] == pytest.approx(sum(sizes.values()) - sizes['total'], rel=1e-4)
  assert report['batch_size'] == 128 and report['forward']['batch_size'] == 256
  assert 0.3 < report['process_gb'] < 4
  page = (tmp_path / 'reports/plan.md').read_text()
  assert 'A batch of 128 with fsdp=1 fits' in page


def test_a_plan_says_what_the_program_takes(elsewhere, tmp_path):
  """Against the program that the run itself compiles."""
  config = small_config(batch_size=32)
  report = plan.plan(config, tmp_path, 'fake:8', table=False)
  built = experiment.build(config)
  shapes = step.state_shapes(built)
  taken = step.compile_step(built, shapes).memory_analysis()
  state = compiled.size_on_device(shapes)
  copies = estimate.devices.cores()
  sizes = {key: 1e9 * value for key, value in report['memory_gb'].items()}
  assert sizes['state'] == pytest.approx(state, rel=0.01)
  assert sizes['activations'] == pytest.approx(
    copies * taken.temp_size_in_bytes + taken.output_size_in_bytes - taken.alias_size_in_bytes,
    rel=0.01,
  )
  assert report['devices'] == 8 and report['collectives']['all-reduce']['count'] > 0
  assert report['flops'] == pytest.approx(
    4 * planned.flops_per_image(open_small(tmp_path))[0], rel=1e-4
  )
  bounds = [report[f'seconds_{key}'] for key in ('arithmetic', 'memory', 'collectives')]
  assert report['images_per_second_at_most'] == pytest.approx(32 / max(bounds), rel=1e-4)


def open_small(workdir):
  return plan.open_run(small_config(), workdir, fake_target(), None)


def test_a_plan_with_table_and_fit(elsewhere, tmp_path, monkeypatch):
  """The page of a run that fits only with a remedy."""
  whole = plan.plan(small_config(batch_size=64), tmp_path, 'fake:8', table=False)
  enough = int(1e9 * whole['memory_gb']['total']) - 1
  monkeypatch.setattr(targets, 'open_target', lambda name: fake_target(enough))
  monkeypatch.setattr(alternatives, 'TRIES', 1)
  report = plan.plan(small_config(batch_size=64), tmp_path, 'fake:8', fit=True)
  assert not report['fits'] and report['remedy'] == '--config.accumulation_steps=4'
  assert report['largest_batch_size'] < 64
  page = (tmp_path / 'reports/plan.md').read_text()
  assert '| 64 | 1 |' in page and '| 64 | 8 |' in page and '| 128 | 8 |' in page
  assert 'does not fit' in page and 'It would fit with --config.accumulation_steps=4' in page


def test_a_plan_needs_no_data_where_their_classes_are_known(elsewhere, tmp_path):
  settings = dict(
    data__name='folder', data__path=str(tmp_path / 'none'), data__image_size=(16, 16),
    data__channels=3, data__validation_fraction=0.1, best='max:validation/accuracy',
  )  # fmt: skip
  config = defaults.complete(small_config(), {'data': 'folder'})
  for key, value in settings.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  with pytest.raises(ValueError, match=r'(?s)none does not exist.*--num_classes=1000'):
    plan.plan(config, tmp_path, 'fake:8', table=False)
  report = plan.plan(config, tmp_path, 'fake:8', num_classes=7, table=False)
  assert report['fits']
  with pytest.raises(ValueError, match='num_classes=1 must be at least 2'):
    plan.plan(config, tmp_path, 'fake:8', num_classes=1, table=False)


def test_public_sets_need_not_be_here(tmp_path):
  config = defaults.complete(small_config(), {'data': 'tfds'})
  config.data.update(dataset='cifar100', data_dir=str(tmp_path), image_size=(16, 16))
  run = plan.open_run(config, tmp_path, fake_target(), None)
  assert len(run.dataset.class_names) == 100


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (dict(batch_size=12), 'nearest: 8 or 16'),
    (dict(fsdp=3), 'must divide the 8 devices'),
    (dict(accumulation_steps=0), 'must be at least 1'),
    (dict(devices=9), 'fake:8 has 8'),
  ],
)
def test_a_plan_that_cannot_be(elsewhere, tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    plan.plan(small_config(**overrides), tmp_path, 'fake:8')
  assert not (tmp_path / 'reports').exists()
  with pytest.raises(ValueError, match='accumulation_steps=0 must be at least 1'):
    plan.open_run(small_config(accumulation_steps=0), tmp_path, targets.here(), None)


def test_a_plan_of_a_run_that_is_there(elsewhere, trained):
  """The folder belongs to this config: nothing in it changes but the report; another is refused."""
  before = {path for path in trained.rglob('*') if path.is_file()}
  plan.plan(small_config(data__validation_fraction=0.2), trained, 'fake:8', table=False)
  after = {path for path in trained.rglob('*') if path.is_file()}
  assert {path.name for path in after - before} <= {'plan.json', 'plan.md'}
  with pytest.raises(ValueError, match='started with another config'):
    plan.plan(small_config(batch_size=32), trained, 'fake:8', table=False)


def test_options_of_plans_belong_to_plans(quick, tmp_path):
  words = ('--config=configs/vit_digits.py', f'--workdir={tmp_path / "w"}')
  for option in ('--target=h100', '--fit', '--num_classes=3'):
    done = quick(*words, option)
    assert done.returncode and 'belongs to --mode=plan' in done.stderr, done.stderr
  done = quick(*words, '--mode=plan', '--target=h1000')
  assert done.returncode and "did you mean 'h100'" in done.stderr
  done = quick('--config=configs/sweep_readouts.py', *words[1:], '--mode=plan')
  assert done.returncode and 'choose train or list' in done.stderr


# Out of memory.


def test_what_cannot_fit_stops_before_it_starts(monkeypatch, tmp_path):
  monkeypatch.setattr(memory, 'installed', lambda: 80_000)
  monkeypatch.setattr(memory, 'resident', lambda: 0)
  with pytest.raises(MemoryError, match=r'its state takes .* GB a device, and 1e-05 GB are there'):
    train.train(small_config(), tmp_path / 'w')
  assert not (tmp_path / 'w').exists()
  state = compiled.size_on_device(step.state_shapes(experiment.build(small_config())))
  monkeypatch.setattr(memory, 'installed', lambda: 8 * (state + 1000))
  with pytest.raises(MemoryError, match='a train step takes'):
    train.train(small_config(), tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


@pytest.fixture
def command_of(monkeypatch, tmp_path):
  """Runs the command in this process with a `run` of our own."""

  def start(config, run):
    flags = types.SimpleNamespace(config=config, workdir=str(tmp_path / 'w'))
    monkeypatch.setattr(main, 'FLAGS', flags)
    monkeypatch.setattr(main, 'parse', lambda argv: argv)
    monkeypatch.setattr(main, 'run', lambda *_: run())
    with pytest.raises(SystemExit) as ended:
      main.main(['main'])
    return str(ended.value)

  return start


def test_out_of_memory_ends_with_the_table_of_remedies(monkeypatch, command_of):
  config = small_config(batch_size=64)
  monkeypatch.setattr(plan, 'process_size', lambda: 0)

  def refuse(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED: 40 GB asked')

  monkeypatch.setattr(train, 'prepare', refuse)
  said = command_of(config, lambda: train.train(config, main.pathlib.Path(main.FLAGS.workdir)))
  assert said.startswith('error: the device has too little memory') and '40 GB asked' in said
  rows = [line for line in said.splitlines() if re.search(r' (yes|no)$', line)]
  assert len(rows) == 6 and 'as it is' in rows[0] and '--config.fsdp=8' in rows[4]
  sizes = [float(row.split()[-2]) for row in rows]
  assert sizes[2] < sizes[0]  # Accumulation saves.


def test_a_smaller_batch_that_would_fit(run_of):
  asked = found(64, 0)
  asked.memory.update(state=10**8, total=9 * 10**8)
  result = planned.Plan(run_of(batch_size=64), 'float32', asked, found(8, 0), (1.0, 1.0), 0)
  assert plan_page.smaller_batch(result) == 0  # The asked one fits.
  asked.memory.update(total=17 * 10**8)
  assert plan_page.smaller_batch(result) == 32  # 9 of 16 would; a multiple of 8 devices.
  assert '--config.batch_size=32 would fit' in plan_page.remedies(result)


def test_out_of_memory_without_a_plan_shows_the_list(monkeypatch, command_of):
  def refuse(*_):
    raise MemoryError('40 GB asked')

  monkeypatch.setattr(plan, 'too_large', lambda *_: 'TABLE')
  assert 'TABLE\n(40 GB asked)' in command_of(small_config(), refuse)
  monkeypatch.setattr(plan, 'too_large', refuse)
  assert main.OUT_OF_MEMORY in command_of(small_config(), refuse)


# The compilers of devices that are not here.


@pytest.mark.slow
@pytest.mark.parametrize(
  ('target', 'devices', 'kernel', 'compiler', 'extra'),
  [
    ('v5e:2x2', 4, 'pallas', 'libtpu', 'tpu'),
    ('h100:8', 8, 'cudnn', 'jax_cuda12_plugin', 'cuda12'),
  ],
)
def test_a_small_vit_compiles_for(tmp_path, target, devices, kernel, compiler, extra):
  if not importlib.util.find_spec(compiler):
    pytest.skip(f"no compiler for {target}: pip install -e '.[{extra}]'")
  done = command(
    '--config=configs/vit_digits.py', f'--workdir={tmp_path}', '--mode=plan', f'--target={target}',
    '--notable', '--config.model.dtype=bfloat16', '--config.data.image_size=(32, 32)',
    '--config.model.variant=mu/4', '--config.batch_size=16', timeout=600,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert (report['devices'], report['attention'], report['fits']) == (devices, kernel, True)
  assert report['forward']['attention'] == kernel
  assert report['collectives']['all-reduce']['gb'] > 0 and report['traffic_gb'] > 0
  assert report['memory_gb']['activations'] > 0 and report['images_per_second_at_most'] > 0
