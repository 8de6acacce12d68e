"""Recipes and defaults: each recipe builds, each key can be overridden, each key is read."""

import ast
import functools
import importlib
import pathlib

from conftest import ROOT, make_folder
import jax
from ml_collections import config_dict
import pytest

from vit_jax import data, defaults, experiment, main, recipe, step
from vit_jax.data import randaugment

RECIPES = sorted((ROOT / 'configs').glob('*.py'))
PARTS = [(section, name) for section, names in defaults.PARTS.items() for name in names]


# What stands behind the colon, beside nothing.
ARGUMENTS = {'vit_folder': ['small'], 'vit_study': ['small'], 'vit_tfds': ['cifar10_long']}
ARGUMENTS |= {'vit_augreg': ['L/16,strong2'], 'vit_paper': ['imagenet21k,L/16', 'jft,R50x1']}
ARGUMENTS |= {'deit': ['B_384'], 'masked_patches': ['cifar10', 'folder', 'paper']}
ARGUMENTS |= {'igpt': ['digits,bert', 'cifar10', 's', 'xl']}
ARGUMENTS |= {'finetune': ['cifar10_512'], 'bit_hyperrule': ['cifar10', '20000']}
VARIETIES = [
  (path, a)
  for path in RECIPES
  for a in ['', *ARGUMENTS.get(path.stem, [])]
  if path.stem not in ('explore_readouts', 'explore_planted', 'evaluate')
]  # They read a checkpoint, or none: test_explore.py, test_planted.py, test_evaluators.py.


@pytest.mark.parametrize(('path', 'argument'), VARIETIES, ids=lambda x: getattr(x, 'name', x))
def test_recipes_build_and_trace_from_anywhere(path, argument, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = defaults.complete(
    recipe.load_recipe(f'{path}:{argument}' if argument else str(path)), {}
  )
  if config.data.name == 'folder':
    config.data.path = str(
      make_folder(tmp_path / 'data', {'train/a': 6, 'train/b': 6, 'test/a': 1})
    )
  dataset = None
  if config.data.name == 'tfds':  # Which need not be here.
    dataset = data.describe(num_classes=10, **config.data)
  built = experiment.build(config, dataset=dataset)
  shapes = step.state_shapes(built)
  batch = built.objective.batch_shapes(built.data.image_shape, config.batch_size)
  state, values = jax.eval_shape(step.make_train_step(built), shapes, batch, built.constants)
  assert values['loss'].shape == ()
  assert jax.tree.structure(state) == jax.tree.structure(shapes)
  assert 'python -m vit_jax.main' in ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize('address', ['vit_tfds.py:cifar10_hybrid', 'swin.py:S', 'swin.py:B'])
def test_words_that_are_trained_in_no_test_can_be_built(address):
  config = defaults.complete(recipe.load_recipe(str(ROOT / 'configs' / address)), {})
  data_set = data.describe(num_classes=10, **config.data)
  assert experiment.build(config, dataset=data_set).objective.model.num_classes == 10


def sample(value):
  """Text for the command line, another value of the same type."""
  if isinstance(value, bool):
    return 'false' if value else 'true'
  if isinstance(value, int):
    return str(value + 1)
  if isinstance(value, float):
    return '0.25'
  return repr(value + value[:1]) if isinstance(value, tuple) else 'other'


OPTIONAL = {int: '3', float: '0.25', str: 'other', bool: 'false'}


@pytest.mark.parametrize(('section', 'name'), PARTS)
def test_every_key_of_every_part_can_be_overridden(section, name):
  part = defaults.part(section, name)
  if section == 'evaluators':
    words, path = [f"--config.evaluators=('{name}',)"], f'evaluation.{name}'
  else:
    words, path = [f'--config.{section}.name={name}'], section
  for key, value in part.items():
    if key != 'name':
      text = OPTIONAL[part.get_type(key)] if value is None else sample(value)
      words.append(f'--config.{path}.{key}={text}')
  found = functools.reduce(getattr, path.split('.'), parse(words))
  changed = {key for key in part if found[key] != part[key]}
  expected = {key for key, value in part.items() if key != 'name' and value != ()}
  assert expected <= changed


def test_every_top_level_key_can_be_overridden():
  config = defaults.get_config()
  for key, value in config.items():
    if not isinstance(value, config_dict.ConfigDict):
      text = OPTIONAL[config.get_type(key)] if value is None else sample(value)
      text = "((1, 'test/loss', 0.0, 1.0),)" if key == 'bands' else text  # Its default is empty.
      assert parse([f'--config.{key}={text}'])[key] != value


def parse(words):
  from absl import flags

  holder = flags.FlagValues()
  flags.DEFINE_string('workdir', 'w', '', flag_values=holder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(main, 'FLAGS', holder)
    main.parse(['main', f'--config={ROOT}/configs/vit_digits.py', *words])
  return holder.config


def test_a_new_part_starts_from_its_own_defaults():
  config = parse(['--config.optimizer.name=sgd', '--config.optimizer.momentum=0.5'])
  assert config.optimizer.momentum == 0.5
  assert config.optimizer.learning_rate == defaults.PARTS['optimizer']['sgd']['learning_rate']
  assert 'b1' not in config.optimizer


def test_every_top_level_key_is_read():
  """Each is `config.KEY` somewhere outside of defaults.py."""
  read = set()
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())) if path.name != 'defaults.py' else ():
      if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith('config'):
        read.add(node.attr)
  assert set(defaults.get_config()) <= read


def files_of(folder):
  """The modules in a folder of the package."""
  return [f'vit_jax.{folder}.{x.stem}' for x in (ROOT / 'vit_jax' / folder).glob('[a-z]*.py')]


BUILDERS = {
  'data': [
    'vit_jax.data',
    'vit_jax.data.sources',
    'vit_jax.data.preprocess',
    'vit_jax.data.augment',
    'vit_jax.data.folder',
    'vit_jax.data.tfds',
    'vit_jax.data.vtab',
  ],
  'model': files_of('models'),
  'objective': files_of('objectives'),
  'optimizer': ['vit_jax.optim', 'vit_jax.optim.rules', 'vit_jax.optim.schedules'],
  'evaluators': files_of('evaluation'),
  'explore': files_of('explore'),
}


@pytest.mark.parametrize(('section', 'name'), PARTS)
def test_every_key_of_every_part_is_used(section, name):
  """Each key is a value somewhere in the code of its part, not only a parameter."""
  used = set()
  for module in BUILDERS[section]:
    source = pathlib.Path(importlib.import_module(module).__file__).read_text()
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        used.add(node.id)
      elif isinstance(node, ast.Attribute):
        used.add(node.attr)
  assert set(defaults.PARTS[section][name]) <= used


@pytest.mark.parametrize('word', ['pets_foo', 'digits_512', 'pats'])
def test_fine_tuning_names_what_it_was_asked_for(word):
  module, _ = recipe.open_recipe(f'{ROOT}/configs/finetune.py')
  with pytest.raises(ValueError, match=rf'finetune\.py:{word}: choose digits, folder, .*_518'):
    module.get_config(word)


@pytest.mark.parametrize(
  ('key', 'section', 'message'),
  [
    ('evaluation', dict(fewshto=dict(shots=(5,))), "did you mean 'fewshot'"),
    ('optimizer', dict(name='sgd', momentun={'a': 1}), "did you mean 'momentum'"),
  ],
)
def test_sections_that_nobody_reads_are_refused(key, section, message):
  config = defaults.get_config()
  config.evaluators = ('fewshot',)
  config[key] = section
  with pytest.raises(ValueError, match=message):
    defaults.complete(config, {})


def test_the_section_of_an_evaluator_may_stand_unused():
  config = defaults.get_config()
  config.evaluation = dict(fewshot=dict(shots=(5,)))
  assert 'fewshot' not in defaults.complete(config, {}).evaluation
  assert defaults.complete(config, {'evaluators': ('fewshot',)}).evaluation.fewshot.shots == (5,)
  config.evaluators = ()
  assert defaults.complete(config, {}).evaluators == ()


def test_recipes_refuse_what_nobody_takes():
  config = defaults.get_config()
  config.optimizer = dict(name='sgd', momentun=0.5)
  with pytest.raises(ValueError, match="did you mean 'momentum'"):
    defaults.complete(config, {})


@pytest.mark.parametrize(
  ('address', 'bits'), [('vit_s16.py', 4), ('vit_augreg.py:B/16', 4), ('vit_augreg.py:L/16', 6)]
)
def test_recipes_after_big_vision_have_its_operations(address, bits):
  """At 10 its posterising keeps four bits and its solarising inverts nothing; timm's newer forms
  keep none and invert all."""
  config = recipe.load_recipe(str(ROOT / 'configs' / address)).data
  names = randaugment.choices(config.randaugment_increasing)
  argument = lambda name: randaugment.OPERATIONS[name].argument(config.randaugment_magnitude, 1)  # noqa: E731
  assert {'Posterize', 'Solarize'} <= {*names} and config.randaugment_resize == 'nearest'
  assert argument('Posterize') == bits and argument('Solarize') == 256
