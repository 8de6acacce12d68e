"""DeiT: counts, tokens, heads, a teacher of another size; everything on at once resumes exactly."""

import dataclasses
import json
import pathlib
import types

from conftest import small_config
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest

import vit_jax
from vit_jax import defaults, experiment, models, predict, recipe, train, weights
from vit_jax.data import known
from vit_jax.evaluation import similarity
from vit_jax.explore import series, sweep
from vit_jax.interpret import __main__ as interpret_command

# arXiv:2012.12877 and timm: parameters at 1,000 classes.
PUBLISHED = {
  ('Ti/16', 224): 5_717_416,
  ('S/16', 224): 22_050_664,
  ('B/16', 224): 86_567_656,
  ('B/16', 384): 86_859_496,
  ('Ti/16-distilled', 224): 5_910_800,
  ('S/16-distilled', 224): 22_436_432,
  ('B/16-distilled', 224): 87_338_192,
  ('B/16-distilled', 384): 87_630_032,
}


def build(variant='mu/4-distilled', size=8, channels=1, classes=10, **section):
  known = defaults.part('model', 'deit').to_dict() | {'variant': variant} | section
  return models.build(
    **known, image_size=(size, size), channels=channels, num_classes=classes
  )  # fmt: skip


@pytest.mark.parametrize(('variant', 'side'), PUBLISHED, ids=str)
def test_published_counts(variant, side):
  model = build(variant, side, 3, 1000)
  shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[variant, side]


def random_params(model, seed=0):
  """Every parameter random, so that nothing hides behind a zero."""
  shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)


def test_each_head_reads_its_token():
  model = build()
  params = random_params(model)
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
  logits, outputs = model.apply({'params': params}, images)
  tokens = np.asarray(outputs['tokens'])
  for i, (token, head) in enumerate(zip(model.prefix, ('head', 'head_dist'), strict=True)):
    own = tokens[:, i] @ params[head]['kernel'] + params[head]['bias']
    np.testing.assert_allclose(outputs[f'logits_{token}'], own, rtol=1e-4, atol=1e-5)
  apart = [np.asarray(outputs[f'logits_{token}']) for token in model.prefix]
  np.testing.assert_allclose(logits, (apart[0] + apart[1]) / 2, rtol=1e-5, atol=1e-6)
  soft, _ = build(average='probabilities').apply({'params': params}, images)
  p = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in apart]
  np.testing.assert_allclose(np.exp(soft), (p[0] + p[1]) / 2, rtol=1e-4)


@pytest.mark.parametrize('name', ['class_token', 'distillation_token', 'mean', 'mean_all'])
def test_other_readouts_have_one_head(name):
  model = build(readout=name)
  assert not model.heads
  shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  assert 'head_dist' not in shapes and 'dist' in shapes


@pytest.mark.parametrize('words', ['+after', '+before', '+before+after'])
def test_two_heads_of_normalised_tokens(words):
  model = build(readout=f'class_and_distillation{words}')
  assert model.heads == ('class_token', 'distillation_token')
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
  logits, outputs = model.apply({'params': random_params(model)}, images)
  apart = [outputs[f'logits_{name}'] for name in model.heads]
  np.testing.assert_allclose(logits, (apart[0] + apart[1]) / 2, rtol=1e-5, atol=1e-6)


def test_no_sigmoid_of_a_mean_of_softmaxes():
  section = dict(model__name='deit', model__variant='mu/4-distilled')
  config = small_config(**section, model__average='probabilities', objective__loss='sigmoid')
  with pytest.raises(ValueError, match='is a mean of softmaxes'):
    experiment.build(config)
  config.model.average = 'logits'
  experiment.build(config)


def test_refusals():
  with pytest.raises(ValueError, match=r"'distillation_token' reads the distillation token.*deit"):
    build('mu/4', readout='distillation_token')
  with pytest.raises(ValueError, match='class_token=False: a distilled DeiT'):
    build(class_token=False)
  with pytest.raises(ValueError, match='average'):
    build(average='logit')
  with pytest.raises(ValueError, match='unknown variant'):
    build('S/16-destilled')


def test_how_it_starts():
  model = build('S/16-distilled', 32, 3, depth=1)
  params = jax.jit(lambda key: models.init(model, key))(jax.random.key(0))
  flat = traverse_util.flatten_dict(params, sep='/')
  for name, x in flat.items():
    if name.endswith('bias') and not name.startswith('embedding'):
      assert not np.any(x), name
    elif not name.endswith('scale') and not name.startswith('embedding'):
      assert 0.015 < np.std(x) < 0.025, name


def test_both_heads_start_at_the_bias_that_is_asked_for():
  model = build(head_bias=-10.0)
  heads = ('head', 'head_dist')
  make = jax.jit(lambda key: [models.init(model, key)[name]['bias'] for name in heads])
  np.testing.assert_array_equal(make(jax.random.key(0)), np.full((2, 10), -10.0))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """A teacher that sees the digits at 16 x 16 pixels, in normalisation of its own."""
  folder = tmp_path_factory.mktemp('teacher')
  config = small_config(data__image_size=(16, 16), data__mean=(0.2,), data__std=(0.3,))
  train.train(config, folder / 'run')
  return folder / 'run'


EVERYTHING = {
  'objective__name': 'distillation', 'model__name': 'deit', 'model__variant': 'mu/4-distilled',
  'model__layer_scale': 0.1, 'model__attention_dropout': 0.1, 'data__crop': 'padded',
  'data__crop_padding': 1, 'data__crop_border': 'reflect', 'data__colour_jitter': 0.3,
  'data__randaugment': 2, 'data__repeats': 3, 'data__flip': True, 'data__train_examples': 300,
  'data__validation_fraction': 0.2, 'objective__mixup': 0.8, 'objective__cutmix': 1.0,
  'objective__mix_probability': 0.9, 'objective__erasing': 0.5, 'objective__label_smoothing': 0.1,
  'objective__distillation': 'soft', 'optimizer__decay': 'independent', 'ema_decay': 0.9,
  'optimizer__schedule': 'rsqrt', 'optimizer__timescale': 4, 'optimizer__cooldown_steps': 2,
  'ema_start': 1, 'ema_warmup': True, 'accumulation_steps': 2,
  'evaluators': ('classification', 'similarity'),
}  # fmt: skip


def everything(teacher, **more):
  sections = {key.split('__')[0]: x for key, x in EVERYTHING.items() if key.endswith('__name')}
  sections['evaluators'] = EVERYTHING['evaluators']
  config = defaults.complete(small_config(), sections)
  given = {key.replace('__', '.'): value for key, value in (EVERYTHING | more).items()}
  config.update_from_flattened_dict({**given, 'objective.teacher': str(teacher)})
  return config


def test_everything_at_once_resumes_exactly(teacher, tmp_path, monkeypatch):
  train.train(everything(teacher), tmp_path / 'whole')
  last = json.loads((tmp_path / 'whole/metrics.jsonl').read_text().splitlines()[-1])
  assert {'test/accuracy_class_token', 'test/accuracy_distillation_token'} <= last.keys()
  assert {'validation/similarity_0', 'validation/similarity_1'} <= last.keys()

  from vit_jax.runtime import interruption

  class Stops(interruption.Interruption):
    """An interruption that is asked for after four steps."""

    steps = 0

    def requested(self):
      self.steps += 1
      return self.steps == 4

  with monkeypatch.context() as patch:
    patch.setattr(train, 'Interruption', Stops)
    train.train(everything(teacher), tmp_path / 'stopped')
  train.train(everything(teacher), tmp_path / 'stopped')
  whole, stopped = (np.load(tmp_path / f'{x}/model/weights.npz') for x in ('whole', 'stopped'))
  assert len(whole.files) > 20
  for name in whole.files:
    np.testing.assert_array_equal(stopped[name], whole[name], err_msg=name)


def test_a_teacher_sees_the_same_pixels_its_own_way(teacher):
  """Pixels of another size, given to the step's forward, are what its own predictor sees."""
  exp = experiment.build(everything(teacher))
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
  seen = exp.objective.forwards['teacher']
  given, _ = seen(exp.constants['teacher'], jnp.asarray(images, jnp.float32))
  known = predict.load(teacher)
  expected = known(np.asarray(known.preprocess.normalise(jnp.asarray(images))), ('logits',))[
    'logits'
  ]
  np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
  flat = jnp.full((1, 8, 8, 1), 99.0)  # Enlarged, it stays what it is.
  enlarged = jnp.full((1, 16, 16, 1), 99, jnp.uint8)
  given, _ = seen(exp.constants['teacher'], flat)
  expected, _ = weights.make_forward(known.model, known.preprocess)(
    jax.tree.map(jnp.asarray, known.params), enlarged
  )
  np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_does_not_fit_is_named(teacher, tmp_path):
  config = everything(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='none'):
    experiment.build(config)
  passport, dataset = weights.load(teacher)[1], experiment.build(everything(teacher)).data
  known.check_classes('it', passport, dataset)
  unnamed = [f'class {i}' for i in range(10)]  # As files of others are.
  known.check_classes('it', dataclasses.replace(passport, class_names=unnamed), dataset)
  for names in (list('abcd'), list('abcdefghij')):
    with pytest.raises(ValueError, match=f'it tells {len(names)} classes.*the data have 10'):
      known.check_classes('it', dataclasses.replace(passport, class_names=names), dataset)


def test_fine_tuning_at_a_higher_resolution(teacher, tmp_path):
  config = everything(teacher)
  config.total_steps = 2
  train.train(config, tmp_path / 'small')
  larger = everything(teacher, init_from=str(tmp_path / 'small'), data__image_size=(12, 12))
  larger.model.variant = None
  exp = experiment.build(larger)
  assert exp.model.prefix == ('class_token', 'distillation_token') and exp.model.grid == (3, 3)
  from vit_jax import step

  old, new = np.load(tmp_path / 'small/model/weights.npz'), step.initial_state(
    exp, step.state_shapes(exp)
  ).params['model']  # fmt: skip
  np.testing.assert_array_equal(new['dist'], old['dist'])
  positions = 'Transformer/posembed_input/pos_embedding'
  kept = np.asarray(new['Transformer']['posembed_input']['pos_embedding'])
  assert kept.shape == (1, 11, 32)
  np.testing.assert_array_equal(kept[:, :2], old[positions][:, :2])
  loaded = vit_jax.load(tmp_path / 'small')
  assert loaded.passport.readout == 'class_and_distillation'


def test_similarity_against_numpy():
  a, b = np.random.default_rng(0).normal(size=(2, 5, 7))
  expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
  np.testing.assert_allclose(similarity.cosine(a, b), expected, rtol=1e-5)
  config = defaults.complete(small_config(), {'evaluators': ('similarity',)})
  with pytest.raises(ValueError, match=r'similarity compares two tokens.*has 1'):
    experiment.build(config)


def test_the_first_batch_is_drawn(tmp_path):
  folder = pathlib.Path(__file__).parent.parent / 'configs'
  words = ['batch', f'--config={folder}/vit_digits.py', f'--out={tmp_path / "out"}', '--count=6']
  words += ['--config.objective.cutmix=1.0', '--config.objective.label_smoothing=0.1']
  interpret_command.main(words)
  assert Image.open(tmp_path / 'out/batch.png').width > 800
  shown = json.loads((tmp_path / 'out/batch.json').read_text())['labels']
  assert len(shown) == 6
  # Smoothing gives a hundredth of each class; what is left is the labels' own.
  assert all(0.89 < sum(row.values()) < 0.93 for row in shown)
  for wrong, message in (('--config.objective.cutmux=1', 'cutmix'), ('--what=1', "flag 'what'")):
    with pytest.raises(SystemExit, match=message):
      interpret_command.main([*words, wrong])
  with pytest.raises(SystemExit, match='--config is missing'):
    interpret_command.main(['batch', f'--out={tmp_path}'])


def test_a_sweep_may_name_its_runs_and_follow_them(tmp_path):
  config = small_config()
  choices = [
    {'label': 'teacher: small', 'seed': 0},
    {'label': 'taught', 'seed': 0, 'objective.name': 'distillation',
     'objective.teacher': 'run:teacher: small', 'model.name': 'deit',
     'model.variant': 'mu/4-distilled', 'evaluators': ('classification', 'similarity')},
  ]  # fmt: skip
  runs = sweep.plan(config, choices, tmp_path)
  assert [run.name for run in runs] == ['teacher__small,seed=0', 'taught,seed=0']
  assert runs[1].config.objective.teacher == str(runs[0].workdir)
  sweep.sweep(runs, tmp_path, types.SimpleNamespace(TUNED=()))
  records = json.loads((tmp_path / 'reports/sweep.json').read_text())
  assert [record['label'] for record in records] == ['teacher: small', 'taught']
  page = (tmp_path / 'reports/sweep.md').read_text()
  assert 'accuracy_distillation_token' in page and 'similarity.png' in page
  assert Image.open(tmp_path / 'reports/similarity.png').width > 500
  with pytest.raises(ValueError, match='run:nobody names no run before it'):
    sweep.plan(config, [{'label': 'a', 'objective.teacher': 'run:nobody'}], tmp_path)
  assert not series.blocks([{'label': 'a', 'test/accuracy': 1.0}], ['label'], tmp_path)


def test_recipes_refuse_words_that_they_do_not_know():
  folder = pathlib.Path(__file__).parent.parent / 'configs'
  for words in ('deit.py:H', 'vit_augreg.py:B/16,light3', 'vit_paper.py:imagenet,H/14'):
    with pytest.raises(ValueError, match='configs/'):
      recipe.load_recipe(f'{folder}/{words}')
  for words in ('vit_s16.py:91', 'vit_tfds.py:cifar'):
    with pytest.raises(ValueError, match='choose'):
      recipe.load_recipe(f'{folder}/{words}')
