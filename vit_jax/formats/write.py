"""Writes weights for others: official .npz, timm, torchvision, Hugging Face, torch's .pth.

What only our own reader needs (class names, preprocessing, heads) goes into a passport beside the
file, FILE.json; a folder has the settings of the library that it is for.
"""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import numpy as np

from vit_jax.formats import configs, files, holds
from vit_jax.formats.files import Arrays
from vit_jax.runtime import atomic, optional

Sizes = dict[str, Any]
# By target that makes a folder, all that it writes there.
FOLDERS = {
  'timm': ('config.json', 'model.safetensors'),
  'huggingface': ('config.json', 'preprocessor_config.json', 'model.safetensors'),
}


def is_folder(target: str, to: pathlib.Path) -> bool:
  """Whether `to` becomes a folder with settings."""
  return target == 'huggingface' or (target == 'timm' and to.suffix != '.safetensors')


def beside(to: pathlib.Path) -> pathlib.Path:
  """Where the passport of a weight file lies."""
  return to.with_name(to.name + '.json')


def check(target: str, passport: Any, sizes: Sizes, to: pathlib.Path, accept_loss: bool) -> None:
  """Raises a ValueError, in one line, where `target` cannot hold all of a model of these sizes."""
  model = passport.model
  whose = holds.names_of(target, model['name'])
  holds.check_held(whose, model['name'], is_folder(target, to))
  lost = holds.losses(whose, model, sizes)
  lost += holds.unseen(target, passport) if is_folder(target, to) else []
  if passport.predictions != 'softmax' and is_folder(target, to) and target != 'huggingface':
    lost.append(f'predictions={passport.predictions!r}: a folder of {target} does not tell')
  if lost and not accept_loss:
    raise ValueError(
      f'--to={target} would lose {"; ".join(lost)} (--accept_loss writes it all the same, '
      '--to=vit_jax keeps everything)'
    )


def write(target: str, arrays: Arrays, passport: Any, sizes: Sizes, to: pathlib.Path) -> None:
  """Writes `to`: a file, or for Hugging Face (and timm, unless it is named .safetensors) a folder.

  Every array is written in float32, which all targets read.

  Args:
    target: official, timm, torchvision, huggingface, or pth (timm's names, a Swin's official ones).
    arrays: under our names.
    passport: `vit_jax.weights.Passport`.
    sizes: of the model: width, depth, patch_size, num_heads and mlp_dim.
    to: where; what stands there is replaced once the arrays are written. Settings and passport
      come last, so that a crash leaves no false pair.

  Raises:
    ValueError: arrays have no place there, or torch is missing.
  """
  family = passport.model['name']
  full = {name: entry.in_float32() for name, entry in arrays.items()}
  made = holds.renamed(holds.names_of(target, family), full, family)
  if is_folder(target, to):
    settings = holds.settings(target, passport, sizes)
    if target == 'huggingface' and passport.predictions == 'sigmoid':
      settings['config.json']['problem_type'] = configs.MULTI_LABEL
    about = {to / name: content for name, content in settings.items()}
    to = to / 'model.safetensors'
  else:
    about = {beside(to): passport.to_json() | {'target': target}}
  replace(to, WRITERS.get(target, write_safetensors), made, about)


def replace(
  to: pathlib.Path, writer: Callable, arrays: Arrays, about: dict[pathlib.Path, dict[str, Any]]
) -> None:
  """Writes arrays and the JSON that belongs to them; the old JSON never lies beside new arrays."""
  partial = to.with_name(f'{to.name}.new')
  writer(partial, arrays)
  for path in about:
    path.unlink(missing_ok=True)
  partial.replace(to)
  for path, content in about.items():
    atomic.write_text(path, json.dumps(content, indent=2, ensure_ascii=False))


def write_safetensors(path: pathlib.Path, arrays: Arrays) -> None:
  """As torch's users read them."""
  files.write_safetensors(path, arrays, {'format': 'pt'})


def write_pth(path: pathlib.Path, arrays: Arrays) -> None:
  """torch.save of a dictionary of tensors."""
  torch = optional.load('torch', 'torch')
  state = {name: torch.from_numpy(np.ascontiguousarray(e.load())) for name, e in arrays.items()}
  with atomic.replacing(path) as partial, partial.open('wb') as file:
    torch.save(state, file)


# By target: what writes its arrays; others take .safetensors.
WRITERS = {'official': files.write_npz, 'pth': write_pth}
