"""Weights of any origin with their passport: a run, the inference file of one, a weight file.

model/weights.npz     the parameters, in the official layout
model/model.json      the passport: model section, preprocessing, class names, step, origin
FILE.json             the passport beside a weight file that we wrote
"""

import json
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

import vit_jax
from vit_jax import checkpoint, defaults, fetch, models
from vit_jax.checkpoint import write_whole
from vit_jax.formats import official, read, resample
from vit_jax.formats.files import Arrays, Entry
from vit_jax.formats.weights import POSITION, Weights
from vit_jax.models import hybrid, vit


def write_model(folder: pathlib.Path, params: dict, passport: dict) -> None:
  """Writes the inference file; the passport comes last, so that a crash leaves no false pair."""
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / 'partial.npz'
  official.write(partial, params)
  (folder / 'model.json').unlink(missing_ok=True)
  partial.replace(folder / 'weights.npz')
  write_whole(folder / 'model.json', json.dumps(passport, indent=2))


def load(source: str | pathlib.Path) -> tuple[dict, dict]:
  """The model's parameters (numpy) and passport.

  Args:
    source: a run's folder or its `model/`, a weight file, a folder of Hugging Face, or an address
      (`fetch.local`). Of a run, the best checkpoint (by validation accuracy) counts, else the
      newest.

  Raises:
    FileNotFoundError: no such path.
    ValueError: it holds neither a model nor a checkpoint, or weights of a model that we lack.
  """
  path = fetch.local(source)
  if path.is_file() or is_foreign(path):
    arrays, about = open_lazily(path)
    flat = {name: np.asarray(entry.load(), np.float32) for name, entry in arrays.items()}
    return traverse_util.unflatten_dict(flat, sep='/'), about
  folder = path if (path / 'model.json').exists() else path / 'model'
  if folder == path or has_current_model(path):
    there = json.loads((folder / 'model.json').read_text())
    return official.read(folder / 'weights.npz'), there
  if not (path / 'checkpoints').exists():
    raise ValueError(f'{path} holds no checkpoint: neither model/model.json nor checkpoints/')
  with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
    return checkpoints.restore_params()


def open_lazily(source: str | pathlib.Path) -> tuple[Arrays, dict]:
  """Arrays under our names, read one by one when they are asked for, and the passport.

  Raises:
    as `load`.
  """
  path = fetch.local(source)
  if not (path.is_file() or is_foreign(path)):
    params, about = load(path)
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
    return {name: Entry.of(np.asarray(x)) for name, x in flat.items()}, about
  found = read.read(path, vit.SIZES)
  own = path.with_name('model.json') if path.name == 'weights.npz' else path
  beside = own if own != path and own.exists() else path.with_name(path.name + '.json')
  known = path.is_file() and beside.exists()
  about = json.loads(beside.read_text()) if known else describe(found, path)
  check_complete(found.arrays, about['model'], path)
  return found.arrays, about


def check_complete(arrays: Arrays, section: dict[str, Any], path: pathlib.Path) -> None:
  """Raises a ValueError that lists every array that the model needs in another shape, or at all."""
  settings: dict[str, Any] = section | {'image_size': tuple(section['image_size'])}
  model = models.build(**settings)
  shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
  want: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
  names = sorted(name for name in arrays.keys() | want.keys()
                 if shape(arrays.get(name)) != shape(want.get(name)))  # fmt: skip
  if names:
    rows = [f'  {n}: {shape(arrays.get(n))} in the file, {shape(want.get(n))} asked' for n in names]
    raise ValueError(f'{path} does not fit its own sizes:\n' + '\n'.join(rows))


def has_zero_head(params: dict) -> bool:
  """Whether a head is there and all zero: it tells every class the same."""
  head = jax.tree.leaves(params.get('head', {}))
  return bool(head) and not any(np.any(x) for x in head)


def is_foreign(path: pathlib.Path) -> bool:
  """Whether a folder holds weights of Hugging Face, and no run of ours."""
  ours = ('model.json', 'model', 'checkpoints')
  return not any((path / name).exists() for name in ours) and (path / 'config.json').exists()


def has_current_model(workdir: pathlib.Path) -> bool:
  """Whether there is an inference file and the run has not gone on since it was written."""
  path = workdir / 'model/model.json'
  if not path.exists() or not (workdir / 'checkpoints').exists():
    return path.exists()
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    return checkpoints.wanted_step() in (None, json.loads(path.read_text())['step'])


def passport(source: str | pathlib.Path) -> dict[str, Any]:
  """What belongs to the weights at `source`, without reading them where that can be.

  Raises:
    as `load`.
  """
  path = fetch.local(source)
  inside = path / 'model.json' if (path / 'model.json').exists() else path / 'model/model.json'
  return json.loads(inside.read_text()) if inside.exists() else open_lazily(path)[1]


def describe(found: Weights, path: pathlib.Path) -> dict[str, Any]:
  """A passport for weights of others."""
  section = section_of(found.model)
  kept = ('image_size', 'channels', 'num_classes')
  sizes = {key: section[key] for key in kept}
  count = sizes['num_classes']
  if found.class_names is not None and len(found.class_names) != count:
    raise ValueError(f'{path}: {len(found.class_names)} class names for {count} logits')
  names = found.class_names or [f'class {i}' for i in range(count)]
  preprocess = {'resize': 'bilinear', 'fit': 'squash', 'resize_small': None} | found.preprocess
  preprocess |= {'image_size': sizes['image_size'], 'channels': sizes['channels']}
  return {
    'format': 1,
    'vit_jax': vit_jax.__version__,
    'weights': 'raw',
    'step': 0,
    'model': section,
    'preprocess': preprocess,
    'class_names': names,
    'origin': {'file': str(path), 'family': found.family, 'notes': list(found.notes)},
  }


def section_of(model: dict[str, Any]) -> dict[str, Any]:
  """The config section that builds the model of a file."""
  if model['kind'] == 'bit':
    section = defaults.part('model', 'bit').to_dict()
    return section | {key: value for key, value in model.items() if key != 'kind'}
  size = {key: model[key] for key in ('width', 'depth', 'num_heads', 'mlp_dim')}
  named = next((name for name, known in vit.SIZES.items() if known == size), None)
  units, side = model['units'], model['embedding_side']
  kind = 'vit' if units is None else 'hybrid'
  patch = side * (1 if units is None else 4 * 2 ** max(0, len(units) - 1))
  variant = f'{named or "B"}/{patch}'
  if units is not None:
    known = {settings: name for name, settings in hybrid.HYBRIDS.items()
             if hybrid.size_of(name) == named}  # fmt: skip
    if (units, side) not in known:
      raise ValueError(f'a hybrid of {units} units in its stages and {size}; known: {known}')
    variant = known[units, side]
  section = defaults.part('model', kind).to_dict() | {'variant': variant}
  same = ['class_token', 'pre_logits', 'readout', 'qkv_bias', 'gelu', 'epsilon', 'channels']
  same += ['num_classes'] + ['standardise', 'group_norm_epsilon'] * (kind == 'hybrid')
  section |= {key: model[key] for key in same} | ({} if named else size)
  return section | {'image_size': tuple(patch * cells for cells in model['grid'])}


def adapt(
  given: dict, about: dict[str, Any], shapes: dict, model: Any, source: str, resample_by: str
) -> tuple[dict, list[str]]:
  """Parameters of `given` for another model, and what was done, in words.

  Positions are resampled to the new grid, patch kernels to the new channels; a class token that the
  model lacks is left out, one that it has anew starts as it would from scratch. Readout, pre-logits
  and head belong to a task: they may be missing, extra, or of another shape.

  Args:
    given: the tree of arrays.
    about: its passport.
    shapes: the tree that is wanted.
    model: the model that is wanted.
    source: what to call the weights in messages.
    resample_by: 'official', 'bilinear' or 'bicubic'.

  Raises:
    ValueError: anything else differs; every difference is listed.
  """
  have: dict[str, Any] = traverse_util.flatten_dict(given, sep='/')
  want: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
  done = []
  if POSITION in have and POSITION in want:
    done += fit_positions(have, about['model'], model, resample_by)
  for name in ('embedding/kernel', 'conv_root/kernel', 'root_block/standardized_conv2d/kernel'):
    if name in have and name in want and have[name].shape[2] != want[name].shape[2]:
      old, new = have[name].shape[2], want[name].shape[2]
      if name == 'embedding/kernel' and 'conv_root/kernel' in have:
        continue  # It sees features, not colours.
      have[name] = resample.channels(have[name], new)
      done.append(f'{name}: {old} channels to {new}')
  same = {name for name in have.keys() & want.keys() if have[name].shape == want[name].shape}
  dropped, new = sorted(have.keys() - same), sorted(want.keys() - same)
  task = ('head/', 'pre_logits/', 'readout/', 'cls')
  wrong = sorted(name for name in {*dropped, *new} if not name.startswith(task))
  if wrong:
    rows = [f'  {n}: {shape(have.get(n))} in the file, {shape(want.get(n))} here' for n in wrong]
    raise ValueError(f'{source} does not fit the model:\n' + '\n'.join(rows))
  done += [f'dropped: {", ".join(dropped) or "-"}', f'new: {", ".join(new) or "-"}']
  return {name: have[name] for name in same}, done


def fit_positions(have: dict[str, Any], about: dict, model: Any, method: str) -> list[str]:
  """Resamples the positions in `have`; returns what was done, in words."""
  height, width = about['image_size']
  patch = patch_of(about) or 1
  old = (height // patch, width // patch)
  done, had = [], about['class_token']
  if old != model.grid:
    have[POSITION] = resample.positions(have[POSITION], old, model.grid, had, method)
    done.append(f'positions: {old[0]} x {old[1]} to {model.grid[0]} x {model.grid[1]}, {method}')
  if had and not model.class_token:
    have[POSITION] = have[POSITION][:, 1:]
    done.append('the class token and its position are left out')
  if model.class_token and not had:
    zero = np.zeros_like(have[POSITION][:, :1])
    have[POSITION] = np.concatenate([zero, have[POSITION]], axis=1)
    done.append('a class token is added, with position 0')
  return done


def patch_of(section: dict[str, Any]) -> int | None:
  """Pixels of a patch's side, whatever stem there is; None for a model without patches."""
  if section['name'] == 'hybrid':
    return hybrid.patch_of(section['variant'])
  return vit.decode_variant(section['variant'])[1] if section['name'] == 'vit' else None


def sizes_of(section: dict[str, Any]) -> dict[str, int]:
  """Width, depth, heads, MLP width and patch side of a ViT's section."""
  if section['name'] == 'bit':
    return {'depth': 0}
  patch = patch_of(section)
  size = hybrid.size_of(section['variant']) if section['name'] == 'hybrid' else None
  known = vit.SIZES[size or section['variant'].partition('/')[0]]
  given = {key: section[key] for key in known if section.get(key) is not None}
  return known | given | {'patch_size': patch or 0}


def shape(x) -> str:
  return 'nothing' if x is None else str(tuple(x.shape))
