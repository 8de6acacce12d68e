"""Reads the weights of any file: what it is, its content says."""

import dataclasses
import pathlib
from typing import Any

from vit_jax.formats import bit, configs, files, from_torch, igpt, official, swin, weights


def read(
  path: pathlib.Path, sizes: from_torch.Sizes, hints: dict[str, Any] | None = None
) -> weights.Weights:
  """The weights of a file, or of a folder as Hugging Face keeps them; arrays are not yet read.

  Args:
    path: the file or folder.
    sizes: named sizes of ViTs, for files that do not say how many heads there are.
    hints: settings that are known from elsewhere, in the words of Hugging Face's config.json.

  Raises:
    FileNotFoundError: no such path.
    ValueError: no weights, of no family that we know, or with parts that we cannot read; the
      message has their names.
  """
  settings: dict[str, Any] = {}
  if path.is_dir():
    arrays, settings = from_torch.open_folder(path)
  else:
    arrays = files.open_file(path)
    if path.suffix != '.npz' and not hints:  # A passport knows better than what lies about.
      settings = from_torch.read_settings(path.parent)
  settings |= hints or {}
  try:
    found = open_family(path, arrays, settings, sizes)
    if settings.get('problem_type') == configs.MULTI_LABEL:
      found = dataclasses.replace(found, predictions='sigmoid')
    weights.check_class_names(found.class_names, found.model['num_classes'])
    return weights.for_channels(found)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def open_family(
  path: pathlib.Path, arrays: weights.Arrays, settings: dict[str, Any], sizes: from_torch.Sizes
) -> weights.Weights:
  """The weights, by the family that their names tell; arguments and errors are those of `read`."""
  if bit.recognise(arrays):
    return bit.open_weights(arrays, settings)
  if swin.recognise(arrays):
    return swin.open_weights(arrays, settings)
  if official.recognise(arrays):
    return official.open_weights(arrays, settings)
  if igpt.recognise(arrays):
    return igpt.open_weights(arrays, settings, path if path.is_dir() else path.parent)
  if from_torch.family_of(arrays):
    return from_torch.open_weights(arrays, settings, sizes)
  foreign = weights.parts_of(set(arrays))
  raise ValueError(
    'holds no ViT, Swin or BiT of a known family'
    + (f'; it has {foreign} that we cannot read' if foreign else '')
    + f'; its arrays: {weights.shown(set(arrays))}'
  )
