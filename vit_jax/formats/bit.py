"""BiT's ResNets: the layout of the published `.npz` files, and timm's names."""

from collections.abc import Iterator
import re
from typing import Any

from vit_jax.formats import from_torch, preprocessing, weights
from vit_jax.formats.files import Arrays, Entry
from vit_jax.formats.names import OUT, Rule, back

ROOT = 'root_block/standardized_conv2d/kernel'
OURS = re.compile(
  rf'{ROOT}|group_norm/(gamma|beta)|head/conv2d/(kernel|bias)'
  r'|block\d/unit\d\d/[abc]/(group_norm/(gamma|beta)|standardized_conv2d/kernel'
  r'|proj/standardized_conv2d/kernel)'
)
DEPTHS = (5, 8, 14, 20, 26, 50, 101, 152, 200)  # layers: three a unit, the root and the head


def recognise(arrays: Arrays) -> bool:
  npz = any(re.search(r'root_block/standardized_conv2d(_\d+)?/kernel$', name) for name in arrays)
  return npz or ('stages.0.blocks.0.norm1.weight' in arrays and 'stem.conv.weight' in arrays)


def open_weights(arrays: Arrays, settings: dict[str, Any]) -> weights.Weights:
  """A BiT, of Google or of timm.

  Args:
    settings: of timm's config.json in the words of `from_torch.py`, where it is there.

  Raises:
    ValueError: arrays are missing or unknown.
  """
  torch = 'stem.conv.weight' in arrays
  ours = from_timm(arrays) if torch else tidy(arrays)
  weights.refuse({name for name in ours if not OURS.fullmatch(name)})
  model = {
    'kind': 'bit',
    **sizes(ours),
    'image_size': weights.sides(settings.get('image_size', 224)),
    'standardise': 'timm' if torch else 'bit',
    'group_norm_epsilon': 1e-5,
    'pool_padding': 'zero',
  }
  seen = preprocessing.of_settings('timm', settings, False)
  labels = from_torch.class_names(settings) if model['num_classes'] else None
  return weights.Weights(ours, 'timm' if torch else 'bit', model, seen, labels)


def tidy(arrays: Arrays) -> Arrays:
  """Without prefix and without TensorFlow's running numbers; norms and biases flat."""
  found: Arrays = {}
  for name, entry in arrays.items():
    name = re.sub(r'(standardized_conv2d|group_norm|conv2d)_\d+', r'\1', name)
    name = name.removeprefix('resnet/')
    flat = name.endswith(('gamma', 'beta', 'bias')) and len(entry.shape) > 1
    found[name] = (
      Entry(entry.shape[-1:], entry.dtype, lambda e=entry: e.load().reshape(-1)) if flat else entry
    )
  return found


def sizes(ours: Arrays) -> dict[str, Any]:
  """What the names and shapes tell.

  Raises:
    ValueError: it is none of the published depths.
  """
  stages = weights.depth_of(ours, r'block(\d)/') - 1
  units = [weights.depth_of(ours, rf'block{i}/unit(\d\d)/') - 1 for i in range(1, stages + 1)]
  depth = 3 * sum(units) + 2
  if depth not in DEPTHS or ROOT not in ours:
    raise ValueError(f'a ResNet of {units} units in its stages, which is no BiT')
  side, _, channels, features = ours[ROOT].shape
  head = ours.get('head/conv2d/kernel')
  return {
    'variant': f'R{depth}x{features // 64}',
    'root_kernel': side,
    'channels': channels,
    'num_classes': head.shape[-1] if head else 0,
  }


def timm_rules(units: tuple[int, ...] = (3, 36, 36, 3)) -> Iterator[Rule]:
  """Our array, timm's, and how it lies."""
  yield Rule((ROOT,), 'stem.conv.weight', 'conv')
  yield Rule(('group_norm/gamma',), 'norm.weight', 'same')
  yield Rule(('group_norm/beta',), 'norm.bias', 'same')
  yield Rule(('head/conv2d/kernel',), 'head.fc.weight', 'conv')
  yield Rule(('head/conv2d/bias',), 'head.fc.bias', 'same')
  for stage, count in enumerate(units):
    for unit in range(count):
      ours, theirs = f'block{stage + 1}/unit{unit + 1:02}/', f'stages.{stage}.blocks.{unit}.'
      for i, part in enumerate('abc', 1):
        yield Rule((f'{ours}{part}/group_norm/gamma',), f'{theirs}norm{i}.weight', 'same')
        yield Rule((f'{ours}{part}/group_norm/beta',), f'{theirs}norm{i}.bias', 'same')
        kernel = f'{ours}{part}/standardized_conv2d/kernel'
        yield Rule((kernel,), f'{theirs}conv{i}.weight', 'conv')
      shortcut = f'{ours}a/proj/standardized_conv2d/kernel'
      yield Rule((shortcut,), f'{theirs}downsample.conv.weight', 'conv')


def from_timm(arrays: Arrays) -> Arrays:
  found, left = {}, set(arrays)
  for rule in timm_rules():
    if rule.theirs in arrays:
      entry = arrays[rule.theirs]
      shape = [entry.shape[i] for i in (2, 3, 1, 0)] if rule.kind == 'conv' else entry.shape
      load = lambda e=entry, kind=rule.kind: back(kind, e.load(), 0)  # noqa: E731
      found[rule.ours[0]] = Entry(tuple(shape), entry.dtype, load)
      left.discard(rule.theirs)
  weights.refuse(left)
  return found


def to_timm(arrays: Arrays) -> Arrays:
  made, left = {}, set(arrays)
  for rule in timm_rules():
    if rule.ours[0] in arrays:
      entry = arrays[rule.ours[0]]
      shape = [entry.shape[i] for i in (3, 2, 0, 1)] if rule.kind == 'conv' else entry.shape
      load = lambda e=entry, kind=rule.kind: OUT[kind](e.load())  # noqa: E731
      made[rule.theirs] = Entry(tuple(shape), entry.dtype, load)
      left.discard(rule.ours[0])
  weights.refuse(left)
  return made


def to_official(arrays: Arrays) -> Arrays:
  return {f'resnet/{name}': entry for name, entry in arrays.items()}
