"""DINOv2 and registers: counts, to other libraries and back, other grids, readouts, refusals."""

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
from peers import need
import pytest

from vit_jax import convert, defaults, experiment, interpret, models, predict, weights
from vit_jax.convert import peers as peer_models
from vit_jax.formats import adapt, files
from vit_jax.formats.files import Entry
from vit_jax.models import layers, tokens
from vit_jax.models.readout import READOUTS

POSITION = 'Transformer/posembed_input/pos_embedding'
SMALL = dict(variant='digits/14', depth=2, image_size=(56, 56), channels=3, num_classes=5)
GIANT = dict(width=96, depth=2, num_heads=6, mlp_dim=256, mlp='swiglu')  # shrunken
LIMIT = 1e-5  # Largest difference from a peer, in standard deviations of the logits.


def build(**section):
  return models.build(**(defaults.part('model', 'vit').to_dict() | SMALL | section))


def count(model):
  return sum(int(np.prod(x.shape)) for x in models.shapes_of(model).values())


def random_folder(path, **section):
  """Random weights of ours with their passport, every part random; the folder and the arrays."""
  model = build(**section)
  rng = np.random.default_rng(0)
  flat = {name: (rng.standard_normal(x.shape) * 0.2).astype(np.float32)
          for name, x in models.shapes_of(model).items()}  # fmt: skip
  for name in flat:
    if name.endswith('readout/weights'):
      flat[name] = np.full(flat[name].shape, 1 / flat[name].size, np.float32)
  section = defaults.part('model', 'vit').to_dict() | SMALL | section
  seen = {'image_size': (56, 56), 'channels': 3, 'fit': 'squash', 'resize_small': None,
          'resize': 'bilinear', 'mean': (0.5,), 'std': (0.5,)}  # fmt: skip
  names = [f'class {i}' for i in range(section['num_classes'])]
  content = {'model': section, 'preprocess': seen, 'class_names': names}
  passport = weights.Passport.from_json(content)
  weights.write_model(path, traverse_util.unflatten_dict(flat, sep='/'), passport)
  return path, flat


def logits(path):
  predictor = predict.load(path)
  return predictor(convert.pictures((56, 56), 3), ('logits',))['logits']


@pytest.mark.parametrize(
  ('variant', 'registers', 'millions'),
  [('S/14', 4, 22.06), ('B/14', 0, 86.58), ('L/14', 4, 304.37)],
)  # fmt: skip
def test_sizes_of_the_papers(variant, registers, millions):
  """At 518 pixels, as timm counts them; a register's position is ours alone."""
  model = build(variant=variant, image_size=(518, 518), num_classes=0, registers=registers,
                layer_scale=1e-5, depth=None)  # fmt: skip
  own = registers * model.width
  assert round((count(model) - own) / 1e6, 2) == millions
  assert model.sizes()['num_tokens'] == 37 * 37 + 1 + registers


def test_the_list_of_models_has_dinov2():
  from vit_jax.models import vit
  from vit_jax.models.__main__ import describe

  assert {'S/14', 'B/14', 'L/14', 'giant2/14'} <= {*vit.VARIANTS}
  giant = describe('vit', 'giant2/14', (518, 518), 1000)
  assert (giant['width'], giant['depth'], giant['mlp_dim']) == (1536, 40, 4096)
  scales = 2 * 40 * 1536  # Of LayerScale, which the variant alone does not have.
  assert giant['parameters'] == 1_136_479_232 + 1000 * 1537 - scales


def test_swiglu_is_its_formula():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
  module = layers.SwiGLU(6)
  shapes = {'Dense_0': (4, 12), 'Dense_1': (6, 4)}
  params = {
    name: {'kernel': jnp.asarray(rng.standard_normal(shape), jnp.float32),
           'bias': jnp.asarray(rng.standard_normal(shape[1]), jnp.float32)}
    for name, shape in shapes.items()
  }  # fmt: skip
  first, second = params['Dense_0'], params['Dense_1']
  both = x @ np.asarray(first['kernel']) + first['bias']
  gate, value = both[..., :6], both[..., 6:]
  expected = (gate / (1 + np.exp(-gate)) * value) @ np.asarray(second['kernel']) + second['bias']
  given = module.apply({'params': params}, x, False)
  np.testing.assert_allclose(given, expected, rtol=2e-5, atol=1e-5)
  again = layers.SwiGLU(6, elementwise_again=True).apply({'params': params}, x, False)
  np.testing.assert_array_equal(given, again)


def test_registers_stand_behind_the_class_token():
  model = build(registers=2)
  assert model.prefix == ('class_token', 'register_1', 'register_2')
  params = jax.jit(lambda key: models.init(model, key))(jax.random.key(0))
  rows = np.asarray(params['reg'][0])
  assert rows.shape == (2, 64) and not np.allclose(rows[0], rows[1])  # Alike, they would stay so.
  _, outputs = jax.jit(model.apply)({'params': params}, jnp.zeros((1, 56, 56, 3)))
  position = params['Transformer']['posembed_input']['pos_embedding'][0]
  np.testing.assert_allclose(outputs['embedded'][0, 1:3], rows + position[1:3], rtol=1e-6)
  x = np.arange(19)[None, :, None]
  assert tokens.choose(model, x, 'register_2').ravel() == [2]
  assert tokens.choose(model, x, 'patches').ravel().tolist() == [*range(3, 19)]


ALONE = [name for name in READOUTS if 'distillation' not in name and 'class_of' not in name]


@pytest.mark.parametrize('name', ALONE)
def test_every_readout_reads_beside_registers(name):
  """Readouts of patches see no register; those of all tokens do."""
  model = build(readout=name, registers=2)
  x = jax.random.normal(jax.random.key(1), (1, 19, 64))
  module = model.readout
  read, variables = module.init_with_output(jax.random.key(0), x)
  other = module.apply(variables, x.at[:, 1:3].add(1.0))
  everything = name.endswith('_all') or name in ('none', 'prr')  # prr attends among all tokens.
  assert everything != np.array_equal(read, other)


SCALED = dict(registers=3, layer_scale=1e-5, gelu='exact')
HOLDINGS = [
  ('timm', dict(SCALED)),
  ('timm', dict(GIANT, layer_scale=1e-5, registers=2)),
  ('timm', dict(registers=2, class_token=False, readout='mean', gelu='exact')),
  ('huggingface', dict(SCALED, num_classes=0)),
  ('huggingface', dict(SCALED, readout='weighted_concat')),
  ('huggingface', dict(GIANT, layer_scale=1e-5, registers=2, readout='weighted_concat')),
]


@pytest.mark.parametrize(('target', 'section'), HOLDINGS)
def test_what_is_written_computes_the_same(tmp_path, target, section):
  """Positions of registers go into them; read again and written again, it is equal bit for bit."""
  if target == 'huggingface':
    section = {'mlp_dim': 256} | section  # A whole multiple of the width.
  path, _ = random_folder(tmp_path / 'ours', **section)
  convert.convert(path, tmp_path / 'a', target)
  np.testing.assert_allclose(logits(tmp_path / 'a'), logits(path), atol=2e-5)
  known = weights.open_source(path).passport.model
  found = weights.open_source(tmp_path / 'a').passport.model
  for key in ('registers', 'mlp', 'readout', 'class_token', 'num_classes'):
    assert found[key] == known[key], key
  convert.convert(tmp_path / 'a', tmp_path / 'b', target)
  first, second = (files.open_file(tmp_path / x / 'model.safetensors') for x in 'ab')
  assert first.keys() == second.keys()
  for name, entry in first.items():
    np.testing.assert_array_equal(entry.load(), second[name].load(), err_msg=name)


def own_names(arrays):
  """timm's names as DINOv2's own code has them; its table has a position for the class token."""
  made = {'mask_token': np.zeros((1, 64), np.float32)}
  for name, x in arrays.items():
    name = name.replace('reg_token', 'register_tokens')
    made[name.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3')] = x
  first = np.full((1, 1, 64), 0.5, np.float32)
  made['pos_embed'] = np.concatenate([first, made['pos_embed']], 1)
  made['cls_token'] = made['cls_token'] - 0.5
  return made


def test_the_files_of_its_own_code(tmp_path):
  section = dict(registers=3, layer_scale=1e-5, mlp='swiglu', mlp_dim=256, num_classes=0)
  path, _ = random_folder(tmp_path / 'ours', **section)
  convert.convert(path, tmp_path / 'timm.safetensors', 'timm')
  arrays = {name: e.load() for name, e in files.open_file(tmp_path / 'timm.safetensors').items()}
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own/config.json').write_text('{"num_attention_heads": 4}')
  entries = {name: Entry.of(x) for name, x in own_names(arrays).items()}
  files.write_safetensors(tmp_path / 'own/w.safetensors', entries, {})
  np.testing.assert_allclose(logits(tmp_path / 'own/w.safetensors'), logits(path), atol=2e-5)
  found = weights.open_source(tmp_path / 'own/w.safetensors').passport
  assert (found.model['registers'], found.model['mlp']) == (3, 'swiglu')
  assert found.preprocess.mean == (0.485, 0.456, 0.406)
  assert (found.preprocess.fit, found.preprocess.resize) == ('crop', 'bicubic')


@pytest.mark.parametrize(
  ('target', 'section', 'words'),
  [
    ('official', dict(registers=2), 'registers=2: official has none'),
    ('torchvision', dict(GIANT, gelu='exact'), "mlp='swiglu': torchvision has none"),
    ('huggingface', dict(SCALED, mlp_dim=256), "readout='class_token': huggingface's DINOv2 has"),
    ('huggingface', dict(registers=1, num_classes=0), 'layer_scale=0'),
    ('huggingface', dict(SCALED, mlp_dim=100, num_classes=0), 'mlp_dim=100'),
  ],
)
def test_what_a_target_lacks_is_named(tmp_path, target, section, words):
  path, _ = random_folder(tmp_path / 'ours', **section)
  with pytest.raises(ValueError, match='would lose') as caught:
    convert.convert(path, tmp_path / 'out', target)
  assert words in str(caught.value)
  assert not (tmp_path / 'out').exists()


def test_a_mix_that_is_no_mean_is_refused(tmp_path):
  path, flat = random_folder(
    tmp_path / 'ours', **SCALED, mlp_dim=256, readout='weighted_concat'
  )  # fmt: skip
  flat['readout/weights'][0] = 0.9
  passport = weights.open_source(path).passport
  weights.write_model(path, traverse_util.unflatten_dict(flat, sep='/'), passport)
  with pytest.raises(ValueError, match=r'readout/weights are not 1/16.*multipliers'):
    convert.convert(path, tmp_path / 'out', 'huggingface')


@pytest.mark.parametrize(
  ('name', 'section', 'words'),
  [
    ('axial', dict(variant='digits/14', registers=2), 'registers=2: a register stands in no row'),
    ('vit', dict(registers=-1), 'registers=-1 must be at least 0'),
    ('vit', dict(mlp='swigul'), "did you mean 'swiglu'"),
  ],
)
def test_what_cannot_be_is_refused(name, section, words):
  known = defaults.part('model', name).to_dict()
  with pytest.raises(ValueError, match=words):
    models.build(**(known | {**SMALL, **section}))


def test_a_family_without_registers_says_so():
  config = defaults.complete(defaults.get_config(), {'model': 'bit'})
  with pytest.raises(ValueError, match=r"unknown config key 'model.registers'"):
    defaults.check_key(config, 'model.registers')


def test_another_grid_and_other_registers():
  """Only the grid is resampled; registers stay, are left out, or are new."""
  old, grown = build(registers=2), build(registers=2, image_size=(84, 84))
  rng = np.random.default_rng(0)
  have = {k: rng.standard_normal(x.shape).astype(np.float32)
          for k, x in models.shapes_of(old).items()}  # fmt: skip
  found, done = adapt.adapt(have, models.shapes_of(grown), old, grown, 'x', 'bicubic')
  np.testing.assert_array_equal(found['reg'], have['reg'])
  np.testing.assert_array_equal(found[POSITION][:, :3], have[POSITION][:, :3])
  assert found[POSITION].shape == (1, 3 + 36, 64) and 'positions: 4 x 4 to 6 x 6' in done[0]
  none = build()
  found, done = adapt.adapt(have, models.shapes_of(none), old, none, 'x', 'bicubic')
  assert 'reg' not in found and 'dropped: reg' in done
  np.testing.assert_array_equal(found[POSITION][:, 1:], have[POSITION][:, 3:])
  more = build(registers=4)
  found, done = adapt.adapt(have, models.shapes_of(more), old, more, 'x', 'bicubic')
  assert 'reg' not in found and 'new: reg' in done[-1]


def test_fine_tuning_keeps_registers(tmp_path):
  """The recipe's model is that of the weights; at another size positions alone change."""
  path, flat = random_folder(tmp_path / 'ours', **SCALED, num_classes=0, readout='class_token')
  config = defaults.get_config()
  config.init_from, config.data.image_size, config.data.channels = str(path), (42, 42), 3
  exp = experiment.build(config)
  assert exp.model.registers == 3 and exp.passport.model['layer_scale'] == 1e-5
  assert exp.model.prefix[1:] == ('register_1', 'register_2', 'register_3')
  params = exp.source.tree()
  np.testing.assert_array_equal(params['reg'], flat['reg'])


def test_pictures_know_registers(tmp_path):
  path, _ = random_folder(tmp_path / 'ours', registers=2)
  predictor = predict.load(path)
  image = np.zeros((56, 56, 3), np.uint8)
  found = interpret.measure('attention', predictor, [image], query='register_2')
  assert [*found[0].numbers['on_prefix']['layer_1']] == ['class', 'register_1', 'register_2']
  assert interpret.measure('positions', predictor)[0].numbers['prefix'] == [*predictor.model.prefix]


# Parity with others, on random weights: slow.


def randomised(model):
  from test_peers import randomise

  return randomise(model)


def their_logits(model, images):
  import torch

  with torch.no_grad():
    answer = model(torch.from_numpy(images).permute(0, 3, 1, 2))
  pooled = getattr(answer, 'pooler_output', answer)
  return np.asarray(getattr(answer, 'logits', pooled))


SHRUNKEN = dict(embed_dim=96, depth=2, num_heads=6, mlp_ratio=2 * 256 / 96)
TIMM = [
  ('vit_small_patch14_dinov2', {}),
  ('vit_small_patch14_reg4_dinov2', {}),
  ('vit_base_patch14_dinov2', {}),
  ('vit_base_patch14_reg4_dinov2', {}),
  ('vit_giant_patch14_dinov2', SHRUNKEN),
  ('vit_giant_patch14_reg4_dinov2', SHRUNKEN),
]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'options'), TIMM)
def test_timm_both_ways(tmp_path, name, options):
  timm = need('timm')
  from test_peers import distance

  model = randomised(timm.create_model(name, img_size=56, num_classes=7, **options))
  import torch

  (tmp_path / 'config.json').write_text('{"num_attention_heads": 6}' if options else '{}')
  torch.save(model.state_dict(), tmp_path / 'w.pth')
  ours = predict.load(tmp_path / 'w.pth')
  images = convert.pictures((56, 56), 3)
  expected = their_logits(model, images)
  assert distance(ours(images, ('logits',))['logits'], expected) < LIMIT
  for to in ('folder', 'x.safetensors'):
    convert.convert(tmp_path / 'w.pth', tmp_path / to, 'timm')
    again = peer_models.load(tmp_path / to, 'timm', ours).eval()
    assert distance(their_logits(again, images), expected) < LIMIT


HUGGINGFACE = [
  (384, 6, 12, 0, False, True), (384, 6, 12, 4, False, False), (768, 12, 12, 0, False, False),
  (768, 12, 12, 4, False, True), (96, 6, 2, 0, True, True), (96, 6, 2, 4, True, False),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(('width', 'heads', 'depth', 'registers', 'gated', 'head'), HUGGINGFACE)
def test_transformers_both_ways(tmp_path, width, heads, depth, registers, gated, head):
  transformers = need('transformers')
  from test_peers import distance

  kind = 'Dinov2WithRegisters' if registers else 'Dinov2'
  config = getattr(transformers, f'{kind}Config')(
    hidden_size=width, num_attention_heads=heads, num_hidden_layers=depth, image_size=56,
    patch_size=14, num_labels=7, use_swiglu_ffn=gated,
    **({'num_register_tokens': registers} if registers else {}),
  )  # fmt: skip
  model = getattr(transformers, kind + ('ForImageClassification' if head else 'Model'))(config)
  model = randomised(model)
  model.save_pretrained(tmp_path / 'theirs')
  ours = predict.load(tmp_path / 'theirs')
  images = convert.pictures((56, 56), 3)
  expected = their_logits(model, images)
  assert distance(ours(images, ('logits',))['logits'], expected) < LIMIT
  convert.convert(tmp_path / 'theirs', tmp_path / 'ours', 'huggingface')
  again = peer_models.load(tmp_path / 'ours', 'huggingface', ours).eval()
  assert distance(their_logits(again, images), expected) < LIMIT


@pytest.mark.slow
def test_counts_are_those_of_timm():
  timm, torch = need('timm'), need('torch')
  for name, variant, registers in [
    ('vit_small_patch14_reg4_dinov2', 'S/14', 4), ('vit_giant_patch14_dinov2', 'giant2/14', 0)
  ]:  # fmt: skip
    with torch.device('meta'):
      theirs = sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
    ours = build(variant=variant, image_size=(518, 518), num_classes=0, registers=registers,
                 layer_scale=1e-5, depth=None)  # fmt: skip
    # Class token and registers have positions of their own here.
    assert count(ours) - (1 + registers) * ours.width * bool(registers) == theirs
