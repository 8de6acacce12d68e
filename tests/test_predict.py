"""The command predict, within the process: what it refuses, and the file of features."""

import argparse
import pathlib

import pytest
import test_interpret

from vit_jax import predict


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
  options = argparse.Namespace(model='runs/a')
  with pytest.raises(ValueError, match=f'runs/a: these weights .*{reason}'):
    predict.write_predictions(predict.load(folder), [pathlib.Path('a.png')], options)
