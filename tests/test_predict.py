"""The command predict, within the process: what it refuses, and the file of features."""

import argparse
import io
import json
import os
import pathlib
import sys
import types

from conftest import ROOT, command
import numpy as np
from PIL import Image
import pytest
import test_interpret

from vit_jax import convert, predict
from vit_jax.convert import __main__ as convert_command
from vit_jax.interpret import __main__ as interpret_command
from vit_jax.interpret import attention, query
from vit_jax.models import tokens
from vit_jax.runtime import messages

LOOK = ('rollout', 'compare rollout', 'atlas', 'masked', 'batch')


@pytest.fixture(scope='module')
def predictor(tmp_path_factory):
  """A random ViT."""
  folder = tmp_path_factory.mktemp('vit')
  return predict.load(test_interpret.write(folder, 'vit', (8, 8), variant='mu/4', depth=2))


def options_of(**given):
  """What predict is told."""
  normal = dict(model='runs/a', layers=None, tokens=None, batch_size=2)
  return argparse.Namespace(**normal | given)


@pytest.mark.parametrize(
  ('section', 'reason'),
  [
    ({'readout': 'none'}, 'several answers an image, not one; use --features'),
    ({}, 'no head, so they know no classes; use --features'),
  ],
)
def test_what_does_not_answer_is_said(tmp_path, monkeypatch, section, reason):
  if not section:
    monkeypatch.setattr(test_interpret, 'CLASSES', [])
  folder = test_interpret.write(tmp_path, 'vit', (8, 8), variant='mu/4', depth=1, **section)
  with pytest.raises(ValueError, match=f'runs/a: these weights .*{reason}'):
    predict.write_predictions(predict.load(folder), [pathlib.Path('a.png')], options_of())


def test_features_take_the_place_of_a_file_at_once(predictor, tmp_path, monkeypatch):
  """After an error the old file is there; where there can be none, nothing is computed."""
  out = tmp_path / 'new/x.npz'
  broken = predict.write_features(predictor, [tmp_path / 'none.png'], options_of(out=out))
  assert len(broken) == 1 and np.load(out)['paths'].size == 0
  before = out.read_bytes()
  monkeypatch.setattr(predict, 'outputs_of_files', lambda *_: (1 / 0 for _ in 'a'))
  for place, error in ((out, ZeroDivisionError), (out / 'y.npz', OSError), (tmp_path, ValueError)):
    with pytest.raises(error):
      predict.write_features(predictor, [], options_of(out=place))
  assert [*tmp_path.rglob('*')] == [out.parent, out] and out.read_bytes() == before


@pytest.mark.parametrize('what', LOOK)
def test_a_file_is_no_folder_for_pictures(tmp_path, capsys, what):
  """It is said before any checkpoint is read: there is none."""
  (tmp_path / 'x').write_text('words')
  for out in (tmp_path / 'x', tmp_path / 'x/y/z'):
    with pytest.raises(SystemExit):
      interpret_command.main([*what.split(), 'runs/a', 'runs/b', f'--out={out}'])
    assert f'{tmp_path / "x"} is a file: give a folder' in capsys.readouterr().err


@pytest.mark.parametrize('images', [[], np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3))])
def test_no_images_are_said(predictor, images):
  with pytest.raises(ValueError, match='there are no images: give at least one'):
    predictor(images)


@pytest.mark.parametrize('count', [0, -1])
def test_a_batch_of_no_pictures_is_refused(tmp_path, count):
  words = [f'--config={ROOT}/configs/vit_digits.py', f'--out={tmp_path}', f'--count={count}']
  with pytest.raises(SystemExit, match=f'--count={count} must be at least 1'):
    interpret_command.main(['batch', *words])


@pytest.mark.parametrize('word', ['optimizer.multipliers=(1,2)', "data.mean=('a',)"])
def test_a_config_of_the_wrong_kind_is_one_line(tmp_path, word):
  words = [f'--config={ROOT}/configs/vit_digits.py', f'--out={tmp_path}', f'--config.{word}']
  with pytest.raises(SystemExit, match=r'^error: '):
    interpret_command.main(['batch', *words])


# Options.


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('--layers=99 --tokens=zzz --out=x', '--layers, --tokens, --out would be ignored without'),
    ('--layers=', '--layers would be ignored without --features'),
    ('--features --out=x --json', '--json would be ignored with --features'),
    ('--features --out=x --top=5', '--top would be ignored with --features'),
    ('--top=0', 'must be at least 1'),
  ],
)
def test_predict_ignores_no_option(words, message, capsys):
  with pytest.raises(SystemExit) as caught:
    predict.main(['runs/none', 'a.png', *words.split()])
  assert message in capsys.readouterr().err + str(caught.value)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('a b --prune --check', '--check would be ignored with --prune'),
    ('a b --prune --accept_loss', '--accept_loss would be ignored with --prune'),
    ('a b --to=torch --json', '--json would be ignored without --check or --inspect'),
    ('--inspect=a --to=torch --check', '--to, --check would be ignored with --inspect'),
    ('b --inspect=a', 'takes no SRC and DST'),
  ],
)
def test_convert_ignores_no_option(words, message, capsys, monkeypatch):
  monkeypatch.setattr(convert, 'convert', lambda *_: 1 / 0)
  with pytest.raises(SystemExit) as caught:
    convert_command.main(words.split())
  assert message in capsys.readouterr().err + str(caught.value)


def test_a_model_without_tokens_has_none_to_choose(predictor, tmp_path, monkeypatch):
  monkeypatch.setattr(predict.Predictor, 'output_names', ['features'])
  options = options_of(layers='1', out=tmp_path / 'x.npz')
  with pytest.raises(ValueError, match=r'--layers would be ignored with runs/a, which names no'):
    predict.write_features(predictor, [], options)
  assert not options.out.exists()


@pytest.mark.parametrize('word', ['²', '1,²', '①'])
def test_numbers_are_digits(word):
  """What Python's `isdigit` takes, and `int` does not, is refused by name."""
  model = types.SimpleNamespace(prefix=(), grid=(2, 2))
  blocks = [query.Attending(0, 2, (2, 2))]
  for read, key in (
    (lambda: tokens.layer_names(['block_0/tokens', 'tokens'], word), '--layers'),
    (lambda: tokens.layer_names(['block_0/tokens'], f'mean:{word}', means=True), '--layers'),
    (lambda: tokens.choose(model, np.zeros((1, 4, 3)), word), '--tokens'),
    (lambda: attention.heads_of(word, blocks), '--heads'),
    (lambda: query.query_of(model, word, (2, 2)), '--query'),
  ):
    with pytest.raises(ValueError, match=f'{key}=.*{word}: '):
      read()
  for name in (f'patch_{word}', 'patch_--1'):
    tokens.check_patch(name, (2, 2))  # No number of a patch: others say that there is no such name.


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_every_name_of_a_file_is_printed(tmp_path, encoding):
  """One that is no UTF-8 is told with backslashes, in JSON as JSON has them."""
  folder = test_interpret.write(tmp_path / 'model', 'vit', (8, 8), variant='mu/4', depth=1)
  names = [os.fsdecode(b'caf\xe9.png'), 'caf\xe9.png']
  (tmp_path / 'seen').mkdir()
  for name in names:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'a.png')
    os.rename(tmp_path / 'a.png', tmp_path / 'seen' / name)
  environment = os.environ | {'XLA_FLAGS': '', 'PYTHONIOENCODING': f'{encoding}:strict'}
  done = command(
    folder, tmp_path / 'seen', '--json', module='vit_jax.predict', env=environment, encoding='utf-8'
  )
  assert done.returncode == 0, done.stderr
  paths = [json.loads(line)['path'] for line in done.stdout.splitlines()]
  assert {pathlib.Path(path).name for path in paths} == {*names}


def test_a_picture_of_any_name_is_said(tmp_path, monkeypatch):
  folder = test_interpret.write(tmp_path / 'model', 'vit', (8, 8), variant='mu/4', depth=1)
  path = tmp_path / os.fsdecode(b'caf\xe9.png')
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'a.png')
  os.rename(tmp_path / 'a.png', path)
  said = io.TextIOWrapper(io.BytesIO(), 'utf-8', errors='strict')
  monkeypatch.setattr(sys, 'stdout', said)
  interpret_command.main(['patches', str(folder), str(path), f'--out={tmp_path / "out"}'])
  said.seek(0)
  assert said.read().endswith('patches_caf\\udce9.png\n')
  assert (tmp_path / 'out' / f'patches_{path.name}').exists()


def test_a_reader_that_goes_is_no_error(monkeypatch, capfd):
  """As behind `| head -1`; a pipe to anything else that breaks is told."""
  reading, writing = os.pipe()
  with os.fdopen(writing, 'w') as stdout:
    monkeypatch.setattr(sys, 'stdout', stdout)
    with pytest.raises(BrokenPipeError), messages.printing():
      raise BrokenPipeError
    os.close(reading)
    with pytest.raises(SystemExit) as done, messages.printing():
      print('a line')
  assert done.value.code == 1 and not capfd.readouterr().err
