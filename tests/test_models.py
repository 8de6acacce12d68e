"""Models: published counts, names, readouts by hand-made numbers, reach, fused equals plain."""

import functools
import json
import types

from flax import linen as nn
from flax.core.scope import LazyRng
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from vit_jax import defaults, models
from vit_jax.models import attention, dropout, encoder, fused_attention, layers, readout

# Parameters at 224 px and 1000 classes, counted in timm and torchvision.
PUBLISHED = {
  'Ti/16': 5_717_416,
  'S/32': 22_878_952,
  'S/16': 22_050_664,
  'B/32': 88_224_232,
  'B/16': 86_567_656,
  'B/8': 86_576_872,
  'L/32': 306_535_400,
  'L/16': 304_326_632,
  'H/14': 632_045_800,
  'g/14': 1_012_611_432,
  'G/14': 1_844_440_680,
}
# reference counts of timm and big_transfer, 1,000 classes
PUBLISHED_RESNETS = {
  'R50+B/16': 98_659_112,
  'R50+L/32': 328_994_856,
  'R26+S/32': 36_431_912,
  'R+Ti/16': 6_337_704,
  'R50x1': 25_549_352,
  'R50x3': 217_319_080,
  'R101x1': 44_541_480,
  'R101x3': 387_934_888,
  'R152x2': 236_335_208,
  'R152x4': 936_533_224,
}
LISTED = ('vit', 'hybrid', 'bit')  # Families of these.


def build(size=(12, 8), channels=3, classes=5, family='vit', **section):
  section = {'variant': 'mu/4', **section}
  known = defaults.part('model', family).to_dict()
  return models.build(**(known | section), image_size=size, channels=channels, num_classes=classes)


def shapes(model):
  return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


def count(model):
  return sum(x.size for x in jax.tree.leaves(shapes(model)))


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def randomised(model, seed=0):
  """Parameters without zeros, so that nothing hides behind a zero head."""
  tree = shapes(model)
  leaves, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    structure, [jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32) for x in leaves]
  )


@pytest.mark.parametrize(('variant', 'expected'), PUBLISHED.items())
def test_published_counts(variant, expected):
  assert count(build((224, 224), classes=1000, variant=variant)) == expected


@pytest.mark.parametrize(
  ('section', 'size', 'classes', 'expected'),
  [
    ({}, 224, 0, 85_798_656),
    ({}, 224, 21843, 102_595_923),
    ({'pre_logits': 768}, 224, 21843, 103_186_515),
    ({'pre_logits': 768}, 224, 1000, 87_158_248),
    ({}, 384, 1000, 86_859_496),
    ({'readout': 'weighted_add'}, 224, 3, 85_798_656 + 2_503),
    ({'readout': 'weighted_concat'}, 224, 3, 85_798_656 + 4_611 + 196),
    ({'readout': 'mean', 'class_token': False}, 224, 1000, 86_567_656 - 2 * 768),
  ],
)
def test_counts_of_settings(section, size, classes, expected):
  model = build((size, size), classes=classes, variant='B/16', **section)
  assert count(model) == expected


def test_the_tree_is_the_published_layout():
  tree = shapes(build((224, 224), classes=21843, variant='B/16', pre_logits=768))
  block = tree['Transformer']['encoderblock_11']
  attention = block['MultiHeadDotProductAttention_1']
  assert set(tree) == {'cls', 'embedding', 'Transformer', 'pre_logits', 'head'}
  assert set(block) == {
    'LayerNorm_0',
    'MultiHeadDotProductAttention_1',
    'LayerNorm_2',
    'MlpBlock_3',
  }
  assert len(jax.tree.leaves(tree)) == 202
  assert tree['embedding']['kernel'].shape == (16, 16, 3, 768)
  assert tree['Transformer']['posembed_input']['pos_embedding'].shape == (1, 197, 768)
  assert {name: attention[name]['kernel'].shape for name in attention} == {
    'query': (768, 12, 64),
    'key': (768, 12, 64),
    'value': (768, 12, 64),
    'out': (12, 64, 768),
  }
  assert block['MlpBlock_3']['Dense_0']['kernel'].shape == (768, 3072)


def test_initialisers():
  """Standard deviations of the official code: lecun, 0.02, xavier, 1e-6, 0."""
  tree = models.init(build((32, 32), variant='S/16'), jax.random.key(0))
  attention = tree['Transformer']['encoderblock_0']['MultiHeadDotProductAttention_1']
  mlp = tree['Transformer']['encoderblock_0']['MlpBlock_3']['Dense_0']
  assert np.std(tree['embedding']['kernel']) == pytest.approx((16 * 16 * 3) ** -0.5, rel=0.02)
  positions = tree['Transformer']['posembed_input']['pos_embedding']
  assert np.std(positions) == pytest.approx(0.02, rel=0.05)
  for name in ('query', 'out'):
    limit = (6 / (384 + 384)) ** 0.5
    assert np.abs(attention[name]['kernel']).max() == pytest.approx(limit, rel=1e-3)
  assert np.abs(mlp['kernel']).max() == pytest.approx((6 / (384 + 1536)) ** 0.5, rel=1e-3)
  assert np.std(mlp['bias']) == pytest.approx(1e-6, rel=0.1)
  assert not np.any(tree['cls'])
  assert not np.any(tree['head']['kernel'])


@pytest.mark.parametrize(
  'make',
  [lambda deep: build(variant='mu/4', depth=6 if deep else 2),
   lambda deep: build((64, 64), family='swin', variant='S/4' if deep else 'T/4')],
  ids=['vit', 'swin'],
)  # fmt: skip
def test_while_parameters_are_drawn_one_block_stands_for_all(make):
  """A deep model is drawn by as many operations; its outputs have the shapes of a forward pass."""

  def draw(model):
    images = jnp.zeros((1, *model.image_size, model.channels))
    return lambda key: model.init_with_output(key, images)

  products = [
    str(jax.make_jaxpr(draw(make(deep)))(jax.random.key(0))).count('dot_general')
    for deep in (False, True)
  ]
  assert products[0] == products[1] > 0
  model = make(True)
  said, variables = jax.eval_shape(draw(model), jax.random.key(0))
  images = jnp.zeros((1, *model.image_size, model.channels))
  computed = jax.eval_shape(model.apply, variables, images)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), said) == jax.tree.map(
    lambda x: (x.shape, x.dtype), computed
  )


TOKENS = jnp.arange(2 * 7 * 4.0).reshape(2, 7, 4) ** 1.5  # 1 + 2 x 3 patches
PATCHES = TOKENS[:, 1:]
EXPECTED = {
  'class_token': TOKENS[:, 0],
  'patch': PATCHES[:, 4],
  'sum': PATCHES.sum(1),
  'mean': PATCHES.mean(1),
  'max': PATCHES.max(1),
  'sum_all': TOKENS.sum(1),
  'mean_all': TOKENS.mean(1),
  'weighted_add': TOKENS[:, 0] + PATCHES.mean(1),
  'weighted_concat': jnp.concatenate([TOKENS[:, 0], PATCHES.mean(1)], 1),
  'weighted_add_softmax': TOKENS[:, 0] + PATCHES.mean(1),
  'weighted_concat_softmax': jnp.concatenate([TOKENS[:, 0], PATCHES.mean(1)], 1),
  'none': TOKENS,
}


def make_readout(name, **kwargs):
  section = dict(patch_index=5, readout_weights='free', num_heads=2, mlp_dim=8) | kwargs
  return readout.build(name, section, prefix=('class_token',), grid=(2, 3))


@pytest.mark.parametrize('weights', ['free', 'softmax'])
@pytest.mark.parametrize('name', EXPECTED)
def test_readout_definitions(name, weights):
  part = make_readout(name, readout_weights=weights)
  features, _ = part.init_with_output(jax.random.key(0), TOKENS)
  np.testing.assert_allclose(features, EXPECTED[name], rtol=1e-5)


def test_attention_pool_reads_patches_only():
  part = make_readout('attention_pool')
  features, params = part.init_with_output(jax.random.key(0), TOKENS)
  changed = TOKENS.at[:, 0].add(1e3)
  np.testing.assert_array_equal(part.apply(params, changed), features)
  assert features.shape == (2, 4)


# Of the published ones test_probes.py knows the formulas, in float32; their other dtype is slow.
PUBLISHED_READOUTS = [name for name in readout.READOUTS if readout.class_of(name).published]
TRAINED = [
  *((name, dtype) for name in readout.READOUTS if name not in PUBLISHED_READOUTS
    for dtype in ('float32', 'bfloat16')),
  ('ep+all+after', 'float32'), ('weighted_add+before', 'float32'), ('class_of_4', 'float32'),
  *(pytest.param(name, 'bfloat16', marks=pytest.mark.slow) for name in PUBLISHED_READOUTS),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'dtype'), TRAINED)
def test_every_readout_trains(name, dtype):
  """Finite outputs of the right shape; gradients reach all but the biases of keys and scores."""
  distilled = 'distillation' in name
  of_deit = dict(family='deit', variant='mu/4-distilled')
  own = of_deit if distilled else dict(pre_logits=6)
  own |= {'depth': 4} if readout.earlier_of(name) else {}
  model = build(readout=name, dtype=dtype, embedding_norm=True, **own)
  params, images = randomised(model), normal(3, 12, 8, 3)

  def loss(params):
    logits, outputs = model.apply({'params': params}, images)
    assert logits.dtype == jnp.float32
    assert logits.shape == ((3, 7, 5) if name == 'none' else (3, 5))
    return (logits**2).mean(), outputs

  gradients, outputs = jax.grad(loss, has_aux=True)(params)
  assert outputs['tokens'].dtype == dtype
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(gradient).all()
    if any(word in str(path) for word in ('key', 'score')) and 'bias' in str(path):
      continue  # Adding one number to all scores of a query changes nothing.
    assert np.abs(gradient).max() > 0, path


def test_patch_order_is_row_major_and_reach_is_local():
  """The embedding of patch k sees the pixels of patch k alone."""
  model = build(size=(12, 8))  # 3 x 2 patches of 4
  params, images = randomised(model), jnp.ones((1, 12, 8, 3))

  def embed(images, k):
    return model.apply({'params': params}, images, method='embed')[0, k].sum()

  for k in range(6):
    seen = np.abs(jax.grad(embed)(images, k)[0]).sum(-1) > 0
    row, column = divmod(k, 2)
    expected = np.zeros((12, 8), bool)
    expected[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    np.testing.assert_array_equal(seen, expected)


def test_patch_embedding_is_a_strided_convolution():
  part = layers.PatchEmbedding(width=6, patch_size=4)
  images = normal(2, 12, 8, 3)
  tokens, variables = part.init_with_output(jax.random.key(0), images)
  expected = jax.lax.conv_general_dilated(
    images,
    variables['params']['kernel'],
    (4, 4),
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  np.testing.assert_allclose(tokens, expected.reshape(2, 6, 6), atol=1e-5)


def test_attention_by_hand_and_weights_on_request():
  """Attention as ten lines of numpy; asking for the weights leaves the output as it is."""
  part = attention.Attention(num_heads=2, qk_scale=0.3)
  x = normal(2, 5, 8)
  params = jax.tree.map(
    lambda p: normal(*p.shape, seed=p.size),
    part.init(jax.random.key(0), x, False)['params'],
  )
  q, k, v = (
    np.einsum('btd,dhe->bhte', x, params[n]['kernel']) + params[n]['bias'][:, None]
    for n in ('query', 'key', 'value')
  )
  scores = np.exp(0.3 * np.einsum('bhte,bhse->bhts', q, k))
  weights = scores / scores.sum(-1, keepdims=True)
  expected = np.einsum('bhts,bhse,hed->btd', weights, v, params['out']['kernel'])
  alone = jax.jit(lambda x: part.apply({'params': params}, x, False)[0])(x)
  output, given = jax.jit(lambda x: part.apply({'params': params}, x, False))(x)
  np.testing.assert_allclose(alone, expected + params['out']['bias'], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(given, weights, atol=1e-5)
  np.testing.assert_array_equal(alone, output)


@pytest.mark.parametrize('length', [4, 5])
def test_the_fused_form_and_its_gradient_are_the_plain_one(length):
  """Through the token and the mask that an odd number needs."""
  qkv = normal(2, length, 3, 2, 8)

  def plain(qkv):
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    weights = jax.nn.softmax(0.3 * jnp.einsum('bhtd,bhsd->bhts', q, k))
    return jnp.einsum('bhts,bhsd->bthd', weights, v)

  def fused(qkv):
    return fused_attention.on_gpu(qkv, 0.3, 'xla')

  np.testing.assert_allclose(fused(qkv), plain(qkv), atol=1e-5)
  given, expected = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(qkv) for f in (fused, plain))
  np.testing.assert_allclose(given, expected, atol=1e-4)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 3))
  y = dropout.DropPath(0.25).apply({}, x, True, rngs={'dropout': jax.random.key(0)})
  assert {tuple(np.unique(row)) for row in np.asarray(y)} == {(0.0,), (np.float32(1 / 0.75),)}
  assert np.mean(y) == pytest.approx(1, abs=0.03)
  np.testing.assert_array_equal(dropout.DropPath(0.25).apply({}, x, False), x)


def test_drop_path_is_linear_in_depth():
  model = build(variant='digits/4', drop_path=0.3)
  rates = [block.drop_path for block in model.Transformer.blocks]
  assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


DROPS = dict(
  variant='mu/4', depth=3, dropout=0.1, attention_dropout=0.2, projection_dropout=0.3,
  drop_path=0.4, attention='plain',
)  # fmt: skip


@functools.cache
def loss_and_gradient(**how):
  """Of a step of training with dropout of every kind."""
  images, key = normal(2, 12, 8, 3), jax.random.key(7)
  model = build(**DROPS | how)

  def loss(params):
    return (
      model.apply({'params': params}, images, train=True, rngs={'dropout': key})[0] ** 2
    ).sum()

  return jax.jit(jax.value_and_grad(loss))(randomised(build(**DROPS)))


@pytest.mark.parametrize(
  ('remat', 'scan'),
  [
    ('none', True),
    ('attention', False),
    ('dots', False),
    ('blocks', False),
    *(pytest.param(remat, True, marks=pytest.mark.slow) for remat in encoder.REMAT[1:]),
  ],
)
def test_how_to_compute_changes_no_number(remat, scan):
  """Whatever the backward pass keeps, and in a loop or not, dropout included."""
  given, expected = loss_and_gradient(remat=remat, scan=scan), loss_and_gradient()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), given, expected)


@pytest.mark.parametrize('key', ['dropout', 'attention_dropout', 'projection_dropout', 'drop_path'])
def test_every_kind_of_dropout_is_in_that_comparison(key):
  assert abs(float(loss_and_gradient(**{key: 0.0})[0]) - float(loss_and_gradient()[0])) > 1e-4


def test_dropout_draws_as_linen_does():
  """The keys of 0.1.0: linen's own modules, called by their names, drop the same numbers."""

  class Old(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dropout(0.5, deterministic=False)(x)
      return nn.Dropout(0.5, broadcast_dims=(1, 2), deterministic=False)(x)

  class New(nn.Module):
    @nn.compact
    def __call__(self, x):
      return dropout.Dropout(0.5, whole=True, name='Dropout_1')(
        dropout.Dropout(0.5, name='Dropout_0')(x, True), True
      )

  x, rngs = normal(8, 3, 2), {'dropout': jax.random.key(3)}
  np.testing.assert_array_equal(Old().apply({}, x, rngs=rngs), New().apply({}, x, rngs=rngs))
  names = ('model', 'Transformer', 'encoderblock_11', 'MlpBlock_3', 'Dropout_0', 1)
  expected = LazyRng(jax.random.key(3), names).as_jax_rng()
  found = jax.random.fold_in(jax.random.key(3), np.uint32(dropout.fold_of(names)))
  assert (jax.random.key_data(found) == jax.random.key_data(expected)).all()


def test_a_loop_over_blocks_names_every_output():
  """In evaluation all that the blocks compute, in training their tokens."""
  images, params = normal(2, 12, 8, 3), randomised(build(depth=3))
  outputs = [
    build(depth=3, scan=scan).apply({'params': params}, images)[1] for scan in (False, True)
  ]
  assert {*outputs[0]} == {*outputs[1]} and 'block_2/attention_weights' in outputs[1]
  for name, value in outputs[0].items():
    np.testing.assert_allclose(value, outputs[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
  trained = build(depth=3, scan=True).apply({'params': params}, images, train=True)[1]
  assert 'block_2/tokens' in trained and 'block_2/attention_weights' not in trained


def device(platform, capability=None, kind=''):
  return types.SimpleNamespace(platform=platform, compute_capability=capability, device_kind=kind)


@pytest.mark.parametrize(
  ('where', 'section', 'expected'),
  [
    (device('cpu'), {}, 'plain'),
    (device('gpu', '9.0'), {}, 'cudnn'),
    (device('gpu', '7.5'), {}, 'plain'),  # A T4: cuDNN's kernel wants 8.0 and later.
    (device('gpu', '9.0'), {'dtype': 'float32'}, 'plain'),
    (device('gpu', '9.0'), {'attention_dropout': 0.1}, 'plain'),
    (device('gpu', '9.0'), {'attention': 'plain'}, 'plain'),
    (device('tpu'), {}, 'pallas'),
    (device('tpu'), {'dtype': 'float32'}, 'pallas'),
    (device('tpu'), {'dtype': 'float16'}, 'plain'),
    (device('tpu'), {'width': 36, 'num_heads': 3}, 'plain'),  # Heads 12 wide.
    (device('tpu', kind='TPU v3'), {}, 'plain'),
  ],
)
def test_the_kernel_of_attention_suits_the_device(where, section, expected):
  model = build(**{'dtype': 'bfloat16'} | section, device=where)
  assert {block.attention.attention for block in model.Transformer.blocks} == {expected}


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({'variant': 'X/16'}, "unknown variant 'X/16'"),
    ({'variant': 'B16'}, "did you mean 'B/16'"),
    ({'variant': 'mu/5'}, 'do not divide images of 12 x 8'),
    ({'num_heads': 3}, 'must divide width=32'),
    ({'readout': 'patch', 'patch_index': 7}, 'grid of 3 x 2 patches'),
    ({'readout': 'patch', 'patch_index': 0}, 'choose 1'),
    ({'class_token': False}, 'reads the class token'),
    ({'readout': 'men'}, "did you mean 'mean'"),
    ({'gelu': 'erf'}, 'unknown config.model.gelu'),
    ({'attention': 'cudnn'}, 'the device is no NVIDIA GPU'),
    ({'readout_weights': 'hard'}, 'unknown config.model.readout_weights'),
    ({'dtype': 'float8'}, 'unknown config.model.dtype'),
    ({'dropout': 1.5}, 'config.model.dropout=1.5'),
    ({'pre_logits': -5}, 'config.model.pre_logits=-5'),
    ({'epsilon': -1.0}, 'config.model.epsilon=-1.0'),
    ({'family': 'swin', 'variant': 'T/4', 'epsilon': 0.0}, 'config.model.epsilon=0.0'),
    ({'family': 'bit', 'variant': 'R8x0'}, "unknown config.model.variant 'R8x0'"),
    ({'family': 'bit', 'group_norm_epsilon': -1.0}, 'config.model.group_norm_epsilon=-1.0'),
  ],
)
def test_impossible_models_are_refused(section, message):
  with pytest.raises(ValueError, match=message):
    build(**section)


def test_a_wrong_image_is_refused():
  model = build()
  with pytest.raises(ValueError, match=r'\(12, 8, 3\)'):
    model.apply({'params': randomised(model)}, jnp.zeros((1, 8, 12, 3)))


@pytest.mark.slow
def test_the_list_of_models(quick):
  done = quick('--json', module='vit_jax.models')
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  first = {(row['name'], row['variant']): row['parameters'] for row in rows}
  found = {variant: count for (name, variant), count in first.items() if name in LISTED}
  assert done.returncode == 0
  assert [row['variant'] for row in rows] == [
    variant for family in models.MODELS.values() for variant in family.VARIANTS
  ]
  assert found.items() >= (PUBLISHED | PUBLISHED_RESNETS).items()
  assert first['igpt', 'S'] == 76_571_648 + 512 * 1000
