"""Several labels a picture, or none: data, losses, average precision, a short run, refusals."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import types

from conftest import small_config
from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from vit_jax import data, defaults, experiment, predict, step, train
from vit_jax.data import sources, tfds
from vit_jax.evaluation import multi_label
from vit_jax.evaluation.subject import Subject
from vit_jax.explore import lab, plan
from vit_jax.interpret import batch as shown
from vit_jax.objectives import classification, distillation
from vit_jax.runtime import sharding

SEVERAL = {
  'objective__multi_label': True, 'objective__loss': 'sigmoid', 'evaluators': ('multi_label',),
  'data__image_size': (8, 16), 'data__validation_fraction': 0.1,
}  # fmt: skip
SINGLE = SEVERAL | {'objective__multi_label': False}


def pairs(*, test_fraction, validation_fraction, split_seed, count=600):
  """Two digits side by side, whose labels are both; every twentieth picture is empty."""
  rng = np.random.default_rng(0)
  pixels, digits = load_digits(return_X_y=True)
  pixels = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  chosen = rng.integers(0, len(digits), (count, 2))
  images = np.concatenate([pixels[chosen[:, 0]], pixels[chosen[:, 1]]], axis=2)
  labels = sources.multi_hot(digits[chosen].tolist(), 10)
  images[::20], labels[::20] = 0, 0
  whole = sources.Listed(images, labels)
  rest, test = sources.split(whole, test_fraction, split_seed, 'test_fraction')
  splits = sources.with_validation(rest, validation_fraction, split_seed)
  return splits | {'test': test}, tuple('0123456789')


@pytest.fixture
def _pairs(monkeypatch):
  monkeypatch.setitem(data.DATASETS, 'digits', pairs)


def config_of(**overrides):
  """A config of six steps for several labels."""
  known = SEVERAL | overrides
  config = defaults.complete(small_config(), {'evaluators': known.pop('evaluators')})
  config.update_from_flattened_dict({key.replace('__', '.'): x for key, x in known.items()})
  return config


# Data.


@pytest.mark.usefixtures('_pairs')
def test_batches_and_epochs_of_several_labels():
  whole = data.build(**config_of().data)
  assert whole.multi_label
  assert [len(whole.splits[name]) for name in ('train', 'validation', 'test')] == [432, 48, 120]
  batch = whole.batch_at(3, batch_size=16, seed=0)
  assert batch['label'].shape == (16, 10) and batch['label'].dtype == np.float32
  rows = [*whole.epoch('test', 50)]
  labels = np.concatenate([row['label'][row['mask']] for row in rows])
  np.testing.assert_array_equal(labels, whole.splits['test'].labels)
  assert set(labels.sum(1)) == {0, 1, 2}
  parts = [data.build(**config_of(data__train_examples=n).data).splits['train'] for n in (50, 200)]
  small, large = ({image.tobytes() for image in part.images} for part in parts)
  assert [len(part) for part in parts] == [50, 200] and small < large


def test_what_labels_cannot_be():
  pictures = np.zeros((3, 8, 8, 1), np.uint8)
  with pytest.raises(ValueError, match=r'labels of shape \(2, 4\) for 3 pictures'):
    sources.Listed(pictures, np.zeros((2, 4)))
  with pytest.raises(ValueError, match='must be 1 for each class'):
    sources.Listed(pictures, np.full((3, 4), 0.5))
  with pytest.raises(ValueError, match=r'labels \[0, -1\] are not all in 0..3'):
    sources.multi_hot([[0, -1]], 4)
  base = data.describe(num_classes=4, multi_label=True, **small_config().data)
  assert base.multi_label
  several, single = (sources.Listed(pictures, np.zeros(shape, int)) for shape in ((3, 5), 3))
  with pytest.raises(ValueError, match='test: labels of 5 classes, but 4 class names'):
    replace(base, base.splits | {'test': several})
  with pytest.raises(ValueError, match='test and train: one has several'):
    replace(base, base.splits | {'test': single})


def replace(dataset, splits):
  return dataclasses.replace(dataset, splits=splits)


class Rows(list):
  """Examples by index, as a TFDS data source has them."""

  def __getitems__(self, indices):
    return [self[i] for i in indices]


def test_labels_of_a_sequence():
  import tensorflow_datasets

  features, names = tensorflow_datasets.features, ('a', 'b', 'c')
  label = features.ClassLabel(names=names)
  known = {
    'image': features.Image(), 'labels': features.Sequence(label), 'label': label,
    'nested': features.Sequence(features.Sequence(label)),
    'boxes': features.Sequence({'label': label}),
  }  # fmt: skip
  builder = types.SimpleNamespace(info=types.SimpleNamespace(features=known))
  assert tfds.class_names(builder, 'x', 'image', 'labels') == names
  for key in ('nested', 'boxes', 'image'):
    with pytest.raises(ValueError, match=f'label_key={key}: x has no class names there'):
      tfds.class_names(builder, 'x', 'image', key)
  assert tfds.is_sequence(known['labels']) and not tfds.is_sequence(known['label'])
  assert tfds.known_classes('voc', 'labels') == 20
  rows = Rows({'image': b'', 'labels': found} for found in ([2, 0, 2], [], [1]))
  source = tfds.Prepared(rows, np.arange(3), 'x train', 'image', 'labels', 3, several=True)
  _, labels = source.read(np.array([0, 1, 2]))
  assert labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and labels.dtype == np.float32
  assert source.read(np.arange(0))[1].shape == (0, 3)
  rows[1]['labels'] = [-1]
  with pytest.raises(ValueError, match=r'label_key=labels: x train: the labels \[-1\]'):
    source.read(np.array([1]))


WRITE = """
import sys, numpy as np, tensorflow_datasets as tfds

class Bits(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    labels = tfds.features.Sequence(tfds.features.ClassLabel(names=['a', 'b', 'c']))
    image = tfds.features.Image(shape=(None, None, 3))
    features = tfds.features.FeaturesDict({'image': image, 'labels': labels})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, _):
    return {'train': self._generate_examples(24), 'test': self._generate_examples(8)}

  def _generate_examples(self, count):
    for i in range(count):
      bits = [j for j in range(3) if i >> j & 1]
      yield i, {'image': np.full((8, 8, 3), i, np.uint8), 'labels': bits}

Bits(data_dir=sys.argv[1], file_format='array_record').download_and_prepare()
"""


@pytest.mark.skipif(not importlib.util.find_spec('tensorflow'), reason='writing needs TensorFlow')
def test_a_prepared_set_with_lists_of_labels(tmp_path):
  done = subprocess.run([sys.executable, '-c', WRITE, tmp_path], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  config = small_config(
    data__name='tfds', data__dataset='bits', data__data_dir=str(tmp_path), data__label_key='labels',
    data__image_size=(8, 8), data__crop='none', data__flip=False,
  )  # fmt: skip
  found = data.build(**config.data)
  assert found.multi_label and found.class_names == ('a', 'b', 'c')
  for row in found.epoch('train', 10):
    for image, label in zip(row['image'], row['label'], strict=True):
      assert label.tolist() == [image[0, 0, 0] >> j & 1 for j in range(3)]


# The objective.


class Linear(nn.Module):
  """Logits that are linear in the picture."""

  heads: tuple[str, ...] = ()
  log_probabilities: bool = False
  num_classes: int = 3

  @nn.compact
  def __call__(self, images, *, train):
    return images.mean((1, 2)), {}


def batch_of(rng, size=6):
  images = jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 2, (size, 3)), jnp.float32).at[0].set(0)
  return {'image': images, 'label': labels, 'weight': jnp.asarray([2.0, 0, 1, 1, 1, 1])}


def objective_of(**section):
  section = dict(loss='sigmoid', multi_label=True) | section
  return classification.Classification(Linear(), lambda x: x / 255, **section)


def test_loss_and_accuracy_against_numpy():
  batch = batch_of(np.random.default_rng(0))
  logits, labels, weight = (
    np.asarray(x) for x in ((batch['image'] / 255).mean((1, 2)), batch['label'], batch['weight'])
  )
  p = 1 / (1 + np.exp(-logits))
  losses = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
  loss, values = objective_of().apply({}, batch, {}, train=False)
  np.testing.assert_allclose(loss, (losses * weight).mean(), rtol=1e-5)
  right = labels[np.arange(6), logits.argmax(1)]
  np.testing.assert_allclose(values['accuracy'], (right * weight).mean(), rtol=1e-6)
  assert not right[0] and objective_of().predictions == 'sigmoid'


def test_labels_are_mixed_as_pictures_are():
  batch = batch_of(np.random.default_rng(1))
  images, labels = np.asarray(batch['image']), np.asarray(batch['label'])
  before, partner = np.roll(images, 1, axis=0), np.roll(labels, 1, axis=0)
  for seed in range(2):
    keys = {name: jax.random.key(seed) for name in ('mixup', 'erasing')}
    mixed, targets = objective_of(mixup=0.8).apply({}, batch, keys, method='examples')
    share = np.vdot(mixed - before, images - before) / ((images - before) ** 2).sum()
    np.testing.assert_allclose(targets, share * labels + (1 - share) * partner, atol=1e-4)
  erased, same = objective_of(erasing=1.0).apply({}, batch, keys, method='examples')
  assert not np.array_equal(erased, images)
  np.testing.assert_array_equal(same, labels)


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (dict(loss='softmax'), r'loss=softmax.*set config\.objective\.loss=sigmoid'),
    (dict(label_smoothing=0.1), r'label_smoothing=0\.1 .*set it to 0'),
  ],
)
def test_what_has_no_meaning_is_refused(section, message):
  with pytest.raises(ValueError, match=message):
    objective_of(**section)
  with pytest.raises(ValueError, match=r'multi_label=True: distillation learns one label'):
    distillation.Distillation(Linear(), lambda x: x, teacher='T', multi_label=True, loss='sigmoid')


@pytest.mark.usefixtures('_pairs')
@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (SINGLE, r'several labels a picture.*set .*config\.objective\.multi_label=True'),
    ({'evaluators': ('classification',)}, r"classification needs one.*\('multi_label',\)"),
  ],
)
def test_data_with_several_labels_need_what_reads_them(overrides, message):
  with pytest.raises(ValueError, match=message):
    experiment.build(config_of(**overrides))


def test_data_with_one_label_are_refused():
  with pytest.raises(ValueError, match=r'multi_label=True, and the data have one label.*leave it'):
    experiment.build(config_of())
  with pytest.raises(ValueError, match=r"multi_label needs data with.*\('classification',\)"):
    experiment.build(config_of(objective__multi_label=False))


@pytest.mark.usefixtures('_pairs')
def test_a_softmax_head_has_no_average_precision():
  whole = data.build(**config_of().data)
  with pytest.raises(ValueError, match=r'reads sigmoids, and this head is softmax'):
    multi_label.check(whole, 'softmax')


@pytest.mark.usefixtures('_pairs')
def test_labels_of_single_pictures_are_refused():
  config = defaults.complete(config_of(), {'evaluators': ('real',)})
  config.evaluation.real.labels = 'r.json'
  with pytest.raises(ValueError, match='real needs one label a picture'):
    experiment.build(config)


def test_a_plan_needs_no_data():
  section = {**small_config().data, 'name': 'tfds'} | dict(dataset='voc', label_key='labels')
  found = plan.open_data(section, 20, True)
  assert found.multi_label
  config = config_of(data__validation_fraction=0.0)
  built = experiment.build(
    config, dataset=data.describe(num_classes=20, multi_label=True, **config.data)
  )
  shapes = built.objective.batch_shapes(built.data.image_shape, 16)
  assert shapes['label'].shape == (16, 20) and shapes['label'].dtype == np.float32
  state, _ = jax.eval_shape(step.make_train_step(built), step.state_shapes(built), shapes, {})
  assert state.step.shape == ()


# The evaluator.


def random_split(count=37, classes=5):
  """Logits that are a picture's pixels; a class that never occurs, pictures without labels."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, 1, classes, 1)).astype(np.uint8)
  labels = (rng.random((count, classes)) < 0.3).astype(np.float32)
  labels[:, 2], labels[3] = 0, 0
  source = sources.Listed(images, labels)
  section = {**small_config(data__image_size=(1, classes)).data}
  base = data.describe(num_classes=classes, multi_label=True, **section)
  names = tuple('abcde')
  whole = dataclasses.replace(base, splits={'train': source, 'test': source}, class_names=names)
  return whole, images[:, 0, :, 0].astype(np.float32) / 64 - 2, labels


def evaluator_of(whole, devices=1):
  built = experiment.build(small_config())
  passport = dataclasses.replace(
    built.passport, predictions='sigmoid', class_names=list(whole.class_names)
  )
  mesh = sharding.make_mesh(1, jax.devices()[:devices])
  forward = lambda params, x: (x[:, 0, :, 0] / 64.0 - 2 + params, {})  # noqa: E731
  # Of the model nobody asks anything: `forward` answers.
  return multi_label.MultiLabel(Subject(built.model, forward, passport, whole, mesh, 8))


@pytest.mark.parametrize('devices', [1, 4])
def test_numbers_against_scikit_learn(devices, tmp_path):
  whole, logits, labels = random_split()
  evaluator = evaluator_of(whole, devices)
  found = evaluator.run(jnp.zeros(()), ('test',))
  assert {*found} == {*evaluator.metrics} and not evaluator.run(jnp.zeros(()), ('train',))
  occur = [0, 1, 3, 4]
  expected = {k: average_precision_score(labels[:, k], logits[:, k]) for k in occur}
  mean = np.mean([*expected.values()])
  np.testing.assert_allclose(found['test/mean_average_precision'], mean, rtol=1e-9)
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  losses = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
  np.testing.assert_allclose(found['test/loss'], losses.mean(), rtol=1e-5)
  some = labels.any(1)
  right = labels[np.arange(37), logits.argmax(1)][some]
  np.testing.assert_allclose(found['test/accuracy'], right.mean(), rtol=1e-6)
  report = evaluator.report(jnp.zeros(()), tmp_path / 'r', {'step': 1})
  assert json.loads((tmp_path / 'r/multi_label.json').read_text()) == report
  assert report['n_examples'] == 37 and report['n_without_label'] == (~some).sum() > 0
  for k, row in enumerate(report['per_class']):
    assert row['n_examples'] == labels[:, k].sum()
    assert row['average_precision'] == pytest.approx(expected.get(k))


def test_a_split_without_labels_has_no_average_precision():
  whole, _, labels = random_split()
  nothing = sources.Listed(whole.splits['test'].images, np.zeros_like(labels))
  whole = replace(whole, whole.splits | {'test': nothing})
  with pytest.raises(ValueError, match='test: no picture has a label'):
    evaluator_of(whole).run(jnp.zeros(()), ('test',))


# A run.


@pytest.fixture(scope='module')
def learnt(tmp_path_factory):
  """A finished run on pairs of digits, and its config."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.DATASETS, 'digits', pairs)
    workdir = tmp_path_factory.mktemp('pairs')
    config = config_of(
      total_steps=150, batch_size=32, eval_every=100, checkpoint_every=0, log_every=50,
      optimizer__learning_rate=0.005, model__dropout=0.0, model__drop_path=0.0, data__rotate=0.0,
      objective__mixup=0.1, objective__erasing=0.1, objective__mix_probability=0.2,
    )  # fmt: skip
    train.train(config, workdir)
    yield workdir, config


def test_it_learns(learnt):
  workdir, config = learnt
  report = train.evaluate(config, workdir)
  chance = np.mean([row['n_examples'] for row in report['per_class']]) / report['n_examples']
  assert chance < 0.22 and report['mean_average_precision'] > 2 * chance
  assert report['n_without_label'] > 0


def test_it_predicts_each_class_by_itself(learnt):
  workdir, config = learnt
  predictor = predict.load(workdir)
  whole = data.build(**config.data)
  images = np.stack([whole.picture('test', i) for i in range(20)])
  found = predictor(images)
  np.testing.assert_allclose(found['probabilities'], 1 / (1 + np.exp(-found['logits'])), rtol=1e-5)


def test_the_lab_reads_one_label_a_picture(learnt):
  workdir, _ = learnt
  asked = defaults.get_config()
  asked.run, asked.init_from, asked.data.image_size = 'explore', str(workdir), (8, 16)
  with pytest.raises(ValueError, match='explore reads one label a picture, and these'):
    lab.build(asked)


def test_what_training_sees_is_drawn(learnt):
  _, config = learnt
  _, numbers = shown.batch(config, 40)
  assert len(numbers['labels']) == 40
  assert shown.labels(np.ones(3), tuple('abc')) == dict.fromkeys('abc', 1.0)
  assert shown.labels(np.full(4, 0.25), tuple('abcd')) == {}


@pytest.mark.usefixtures('_pairs')
def test_a_resumed_run_equals_one_that_was_not(tmp_path):
  settings = dict(optimizer__schedule='constant', objective__cutmix=1.0, accumulation_steps=2)
  train.train(config_of(**settings), tmp_path / 'whole')
  train.train(config_of(**settings, total_steps=3), tmp_path / 'parts')
  train.train(config_of(**settings), tmp_path / 'parts')
  whole, parts = (np.load(tmp_path / name / 'model/weights.npz') for name in ('whole', 'parts'))
  assert {*whole} == {*parts}
  for key in whole:
    np.testing.assert_array_equal(whole[key], parts[key], err_msg=key)
