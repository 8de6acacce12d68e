"""FLOPs in closed form, traced, by XLA and as published; memory, speed and trainings by command."""

import importlib.util
import json
import math

from conftest import ROOT, command
import jax
from jax import numpy as jnp
import peers
import pytest

from vit_jax import defaults, models
from vit_jax.explore import alternatives, compute, compute_page, counted, estimate, stopwatch
from vit_jax.explore.estimate import Estimate
from vit_jax.models import arithmetic, readout
from vit_jax.runtime import compiled, flops, hlo, memory, targets


def build(name, variant, side, classes=1000, **section):
  given = defaults.part('model', name).to_dict() | {'variant': variant} | section
  if 'attention' in given:
    given['attention'] = 'plain'
  return models.build(**given, image_size=(side, side), channels=3, num_classes=classes)


def forward(model):
  """The forward pass, and the shapes of what it takes for one image."""
  params = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
  return lambda params, x: model.apply({'params': params}, x)[0], params, image


# The closed form.

SMALL = {
  'vit': [('mu/16', 48), ('Ti/16', 64)],
  'deit': [('Ti/16', 32), ('Ti/16-distilled', 48)],
  'hybrid': [
    ('R5+digits/4', 20),
    ('R20+cifar/4', 16),
    ('R+Ti/16', 64),
    ('R26+S/32', 64),
    ('R50+B/16', 96),
  ],
  'axial': [('digits/4', 32), ('cifar/4', 48)],
  'bit': [('R50x1', 64), ('R50x1', 97), ('R8x1', 41)],
  'axial_resnet': [('R26x1', 64)],
  'swin': [('digits/2', 28), ('digits/1', 16)],
  'sasa': [('digits', 48), ('R26', 160)],
  'cordonnier': [('digits/2', 12), ('cifar/2', 8)],
  'igpt': [('mu', 8), ('digits', 6)],
}
ROWS = [(name, *row) for name in models.MODELS for row in SMALL[name]]


@pytest.mark.parametrize(('name', 'variant', 'side'), ROWS)
def test_the_closed_form_is_what_is_traced(name, variant, side):
  """Exactly, for every family of the table."""
  model = build(name, variant, side, classes=7)
  parts = model.multiply_adds()
  assert all(value >= 0 for value in parts.values())
  assert flops.flops_of(*forward(model)) == 2 * arithmetic.total(model)


@pytest.mark.parametrize('name', ['bit', 'axial_resnet'])
def test_a_small_root_counts_every_pixel(name):
  model = build(name, 'R8x1', 13, classes=5, root_kernel=3)
  assert model.grid == (7, 7)
  assert flops.flops_of(*forward(model)) == 2 * arithmetic.total(model)


@pytest.mark.parametrize('name', ['vit', 'axial'])
def test_relative_positions_count_their_products(name):
  model = build(name, 'mu/8', 32, classes=5, positions='relative', readout='mean')
  assert flops.flops_of(*forward(model)) == 2 * arithmetic.total(model)


@pytest.mark.parametrize('name', readout.READOUTS)
def test_every_readout_counts_its_own_products(name):
  kind = 'deit' if 'distillation' in name else 'vit'
  variant = 'mu/8-distilled' if kind == 'deit' else 'mu/8'
  own = {'depth': 4} if readout.earlier_of(name) else {}
  model = build(kind, variant, 32, classes=5, readout=name, **own)
  assert flops.flops_of(*forward(model)) == 2 * arithmetic.total(model)


def test_a_head_with_a_layer_before_it():
  model = build('vit', 'mu/8', 32, classes=5, pre_logits=48)
  assert flops.flops_of(*forward(model)) == 2 * arithmetic.total(model)
  assert model.multiply_adds()['head'] == 32 * 48 + 48 * 5
  assert build('vit', 'mu/8', 32, classes=0).multiply_adds()['head'] == 0


def test_a_family_that_does_not_say():
  class Other(models.Model):
    pass

  assert arithmetic.total(Other((8, 8), 3, 2)) is None


# GMACs of timm's tables (results/benchmark-infer-*.csv, model cards), counted by fvcore: products,
# and five operations for each number that a layer norm normalises.
PUBLISHED = {
  ('Ti/16', 224): 1.26, ('S/16', 224): 4.61, ('B/16', 224): 17.58, ('L/16', 224): 61.60,
  ('H/14', 224): 167.40, ('S/16', 384): 15.52, ('B/16', 384): 55.54, ('L/16', 384): 191.21,
}  # fmt: skip
# The same from when timm's attention ran in one kernel, whose products fvcore does not see.
WITHOUT_ATTENTION = {('Ti/16', 224): 1.08}


def norms(model):
  """fvcore's operations of layer norms, five a number: two in each block, one after the last."""
  sizes = model.sizes()
  return 5 * (2 * sizes['depth'] + 1) * sizes['num_tokens'] * sizes['width']


@pytest.mark.parametrize(('variant', 'side'), PUBLISHED)
def test_the_published_figures_of_timm(variant, side):
  """To their last digit with fvcore's norms, and within 0.6 % without them."""
  model = build('vit', variant, side)
  ours, published = arithmetic.total(model), PUBLISHED[variant, side]
  assert round((ours + norms(model)) / 1e9, 2) == published
  assert ours / 1e9 == pytest.approx(published, rel=0.006)


@pytest.mark.parametrize(('variant', 'side'), WITHOUT_ATTENTION)
def test_published_figures_without_the_products_of_attention(variant, side):
  model = build('vit', variant, side)
  rest = arithmetic.total(model) - model.multiply_adds()['attention']
  assert round((rest + norms(model)) / 1e9, 2) == WITHOUT_ATTENTION[variant, side]


# (variant, epochs): exaFLOPs of pre-training on JFT, table 6 of the paper.
TABLE_6 = {
  ('B/32', 7): 55, ('B/16', 7): 224, ('L/32', 7): 196, ('L/16', 7): 783, ('L/16', 14): 1567,
  ('H/14', 14): 4262,
}  # fmt: skip
JFT = 303e6


@pytest.mark.parametrize(('variant', 'epochs'), TABLE_6)
def test_exaflops_of_the_paper(variant, epochs):
  once = 2 * arithmetic.total(build('vit', variant, 224))
  found = counted.exaflops(math.nan, once, epochs * JFT)['three_forward']
  assert found == pytest.approx(TABLE_6[variant, epochs], rel=0.03)


# XLA counts what is not a product too, and leaves out what convolutions multiply with a border.
XLA = [('vit', 'Ti/16', 224)]
XLA_SLOW = [
  ('vit', 'S/16', 224), ('vit', 'B/16', 224), ('vit', 'Ti/16', 384),
  ('deit', 'S/16-distilled', 224), ('hybrid', 'R26+S/32', 224), ('bit', 'R50x1', 224),
]  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'variant', 'side'),
  [*XLA, *(pytest.param(*row, marks=pytest.mark.slow) for row in XLA_SLOW)],
)
def test_what_xla_counts(name, variant, side):
  """Within 3 %."""
  model = build(name, variant, side)
  function, *arguments = forward(model)
  program = jax.jit(function).lower(*arguments).compile()
  found = compiled.flops_of(program, hlo.parse(program.as_text()))
  assert found == pytest.approx(2 * arithmetic.total(model), rel=0.03)


def test_xla_says_nothing_of_loops():
  def loop(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

  program = jax.jit(loop).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
  assert compiled.flops_of(program, hlo.parse(program.as_text())) is None


# timm's models, counted by torch: (ours, timm's name, side).
TIMM = [
  (('vit', 'Ti/16'), 'vit_tiny_patch16_224', 224),
  (('vit', 'B/16'), 'vit_base_patch16_384', 384),
  (('vit', 'L/16'), 'vit_large_patch16_224', 224),
  (('vit', 'H/14'), 'vit_huge_patch14_224', 224),
  (('deit', 'S/16-distilled'), 'deit_small_distilled_patch16_224', 224),
  (('hybrid', 'R50+B/16'), 'vit_base_r50_s16_224', 224),
  (('hybrid', 'R26+S/32'), 'vit_small_r26_s32_224', 224),
  (('bit', 'R50x1'), 'resnetv2_50x1_bit', 224),
  (('bit', 'R101x3'), 'resnetv2_101x3_bit', 448),
]


@pytest.mark.slow
@pytest.mark.parametrize(('ours', 'theirs', 'side'), TIMM)
def test_what_torch_counts_of_timm(ours, theirs, side):
  """The same, to the last multiplication."""
  torch, timm = peers.need('torch'), peers.need('timm')
  from torch.utils.flop_counter import FlopCounterMode

  with torch.device('meta'):
    model = timm.create_model(theirs, num_classes=1000).eval()
    for block in getattr(model, 'blocks', []):
      block.attn.fused_attn = False  # A kernel hides its products.
    with FlopCounterMode(display=False) as counter:
      model(torch.zeros(1, 3, side, side))
  assert counter.get_total_flops() == 2 * arithmetic.total(build(*ours, side))


# The command.


def rows_of(capsys, *words):
  compute.main([*map(str, words)])
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command(capsys, tmp_path):
  words = ('--models=vit:mu/16', '--image_size=32', '--batch_size=2', '--num_classes=10')
  rows = rows_of(capsys, *words, '--time', '--json', f'--out={tmp_path}')
  assert [row['image_size'] for row in rows] == [[32, 32]]
  saved = json.loads((tmp_path / 'compute.json').read_text())
  assert saved['rows'] == rows and 'two for each multiply-add' in saved['flops']
  assert (tmp_path / 'compute.png').stat().st_size > 10_000
  for row in rows:
    model = build('vit', 'mu/16', row['image_size'][0], classes=10)
    assert row['flops']['analytic'] == row['flops']['traced'] == 2 * arithmetic.total(model)
    assert row['multiply_adds'] == model.multiply_adds()
    assert 2 < row['train_flops']['traced'] / row['flops']['traced'] < 3
    assert row['memory_gb']['train_step'] > row['memory_gb']['forward'] > 0
    assert row['images_per_second']['forward'] > row['images_per_second']['train_step'] > 0
    assert row['exaflops'] is None and row['largest_batch_size'] is None
  assert rows[0]['parameters'] == 37_898  # By the closed form of the reference.


def test_the_table_and_a_training_of_published_size(capsys, tmp_path):
  words = ('--models=vit:B/16,vit:mu/14', '--image_size=224,250', '--epochs=7', '--examples=303e6')
  compute.main([*words, '--quick', f'--out={tmp_path}'])
  header, *lines = capsys.readouterr().out.splitlines()
  assert header.split() == [
    'model', 'px', 'parameters', 'GMACs', 'GFLOPs', 'train', 'exaFLOPs', '3', 'forward'
  ]  # fmt: skip
  assert [line.split()[:2] for line in lines] == [['vit:B/16', '224'], ['vit:mu/14', '224']]
  assert lines[0].split()[2:5] == ['86,567,656', '17.56', '35.13']
  assert lines[0].split()[-1] == '224'
  # 250 is no multiple of either patch: left out, and said.


def test_a_training_of_a_recipe(capsys, tmp_path):
  (row,) = rows_of(
    capsys, f'--config={ROOT}/configs/vit_digits.py', '--config.total_steps=100', '--quick',
    '--config.model.variant=mu/4',
    '--config.batch_size=32', f'--out={tmp_path}', '--json',
  )  # fmt: skip
  per_image = row['train_flops']['traced']
  assert row['exaflops']['traced'] == pytest.approx(3200 * per_image / 1e18, rel=1e-5)
  assert row['exaflops']['three_forward'] == pytest.approx(
    3 * 3200 * row['flops']['traced'] / 1e18, rel=1e-5
  )
  assert row['batch_size'] == 32 and row['memory_gb'] is None and row['num_classes'] == 10


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ([], 'either --models'),
    (['--models=vit:S/16', '--config=x'], 'either --models'),
    (['--models=vitt:S/16'], "did you mean 'vit'"),
    (['--models=vit'], 'name a variant, vit:'),
    (['--models=vit:Q/16'], "unknown variant 'Q/16'"),
    (['--models=vit:S/16', '--image_size=100'], 'do not divide images of 100'),
    (['--models=vit:S/16', '--epochs=7'], '--epochs and --examples belong together'),
    (['--models=vit:S/16', '--epochs=7', '--examples=0'], 'must be above 0'),
    (['--models=vit:S/16', '--batch_size=0'], '--batch_size=0 must be at least 1'),
    (['--models=vit:S/16', '--config.x=1'], r"unexpected \['--config.x=1'\]"),
    (['--models=vit:S/16', '--target=h100', '--time'], 'leave --target out'),
    (['--models=vit:S/16', '--quick', '--time'], '--quick compiles nothing'),
    (['--models=vit:S/16', '--quick', '--target=h1000'], '--quick compiles nothing'),
    (['--models=vit:S/16', '--target=h1000'], "did you mean 'h100'"),
    (['--models=vit:S/16', '--quick', '--dtype=float31'], 'config.model.dtype'),
    ([f'--config={ROOT}/configs/vit_digits.py', '--dtype=bfloat16'], '--dtype belongs to --models'),
  ],
)
def test_what_cannot_be_counted_is_named(words, message, tmp_path):
  with pytest.raises(SystemExit, match=f'(?s)error: .*{message}'):
    compute.main([*words, f'--out={tmp_path}'])
  assert not any(tmp_path.iterdir())


def test_a_side_that_is_no_number(tmp_path, capsys):
  with pytest.raises(SystemExit):
    compute.main(['--models=vit:S/16', '--image_size=big', f'--out={tmp_path}'])
  assert 'sides in pixels with commas between' in capsys.readouterr().err


def test_what_fits_is_asked_of_plans(monkeypatch, tmp_path, capsys):
  small = Estimate(2, 1, {'state': 1, 'activations': 2, 'total': 3})
  monkeypatch.setattr(estimate, 'of_step', lambda *_: small)
  monkeypatch.setattr(estimate, 'of_forward', lambda *_: small)
  answers = iter([small, None])  # Not even one fits of the second.
  monkeypatch.setattr(counted, 'find_largest', lambda run, known, room: next(answers))
  words = ('--models=vit:mu/16', '--image_size=32,64', f'--out={tmp_path}', '--fit', '--json')
  assert [row['largest_batch_size'] for row in rows_of(capsys, *words)] == [2, 0]


@pytest.mark.slow
def test_the_largest_batch(monkeypatch, tmp_path, capsys):
  """Found as a plan finds it: at 64 images a step takes 12 of 20 MB, of which 0.9 are the state."""
  here = targets.here()
  monkeypatch.setattr(memory, 'resident', lambda: 0)
  monkeypatch.setattr(alternatives, 'TRIES', 1)
  small = targets.Target('here', here.devices, 20_000_000, 'nothing', None, 1)
  monkeypatch.setattr(targets, 'open_target', lambda name: small)
  words = ('--models=vit:mu/16', '--image_size=64', '--batch_size=64', f'--out={tmp_path}')
  (row,) = rows_of(capsys, *words, '--fit', '--json')
  per_image = (1e9 * row['memory_gb']['total'] - 0.85e6) / 64
  assert row['largest_batch_size'] == pytest.approx(19.1e6 / per_image, rel=0.1)


def test_what_is_too_large_is_not_timed(monkeypatch, tmp_path, capsys, caplog):
  large = Estimate(2, 1, {'state': 1, 'total': 10**18}, flops=8.0)
  monkeypatch.setattr(estimate, 'of_step', lambda *_: large)
  monkeypatch.setattr(estimate, 'of_forward', lambda *_: large)
  monkeypatch.setattr(stopwatch, 'images_per_second', None)
  words = ('--models=vit:mu/16', '--image_size=32', '--batch_size=2', f'--out={tmp_path}')
  (row,) = rows_of(capsys, *words, '--time', '--json')
  assert row['images_per_second'] == {'forward': None, 'train_step': None}
  assert row['flops']['xla'] == 4 and 'not timed' in caplog.text


def test_a_stopwatch_takes_the_median():
  times = iter([0.0, 5.0, 0.1, 0.2, 0.3, 0.4])  # The first call is not counted.
  taken = []

  def call():
    taken.append(next(times))
    stop = stopwatch.time.perf_counter() + taken[-1] / 100
    while stopwatch.time.perf_counter() < stop:
      pass

  found = stopwatch.seconds(call, least=0.0, calls=5)
  assert len(taken) == 6 and 0.003 <= found < 0.05  # 0.3 / 100, whatever one call of 5 took.


def test_numbers_of_the_table():
  assert [compute_page.three_digits(x) for x in (None, 0.0123456, 12.34, 1234.5)] == [
    '-', '0.0123', '12.3', '1,234'
  ]  # fmt: skip


@pytest.mark.slow
def test_a_card_that_is_not_here(tmp_path):
  if not importlib.util.find_spec('jax_cuda12_plugin'):
    pytest.skip("no compiler for h100: pip install -e '.[cuda12]'")
  done = command(
    '--models=vit:Ti/16', '--image_size=224', '--target=h100', '--dtype=bfloat16', '--json',
    '--batch_size=64', f'--out={tmp_path}', module='vit_jax.explore.compute', timeout=600,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  row = json.loads(done.stdout)
  assert row['device'] == 'NVIDIA H100 80GB HBM3' and row['largest_batch_size'] > 1000
  assert row['memory_gb']['total'] > 0


def test_a_larger_batch_that_takes_less_is_no_limit():
  """Where a small step is held by two threads and one twice as large once, look further up."""
  known = [Estimate(size, 1, {'total': total}) for size, total in ((8, 120), (16, 100))]
  assert alternatives.where_full(known, 1000, 8) == 32
  known.append(Estimate(32, 1, {'total': 200}))
  assert alternatives.where_full(known, 1000, 8) > 100
