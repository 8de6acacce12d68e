"""Image GPT as Hugging Face keeps it: names, fused query, key and value, palette and settings.

Their layers have biases, which OpenAI's have not: zeros are written, and only zeros are read. Their
vocabulary has the start of a sequence as its last row. `transformers` classifies a row of pixels
without that start; to compute as the paper and as we do, put it first and leave the last pixel out.
"""

from collections.abc import Callable
import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from vit_jax.formats import preprocessing, weights
from vit_jax.formats.files import Arrays, Entry
from vit_jax.formats.from_torch import GELU, class_names
from vit_jax.formats.preprocessing import RESAMPLE

ATTENTION = 'MultiHeadDotProductAttention_1'
# Masks that older files keep.
IDLE = r'h\.\d+\.attn\.(masked_)?bias'
# What ours cannot compute, and the only value that is read.
FIXED = {
  'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
  'add_cross_attention': False, 'tie_word_embeddings': False,
}  # fmt: skip
RAW = {'image_mean': [0.0], 'image_std': [1 / 255]}  # theirs without do_normalize: 0..255
ROOT = 'transformer.'


class Rule(NamedTuple):
  """An array of ours, the one of theirs that holds it, and how each becomes the other."""

  ours: str
  theirs: str
  read: Callable[[np.ndarray, int], np.ndarray]  # (theirs, heads)
  write: Callable[[np.ndarray], np.ndarray]  # ours -> theirs, or its part of theirs


def same(x: np.ndarray, heads: int = 0) -> np.ndarray:
  """An array as it is."""
  del heads
  return x


def turned(x: np.ndarray, heads: int = 0) -> np.ndarray:
  """A matrix with its axes changed."""
  del heads
  return x.T


def rules(depth: int) -> list[Rule]:
  """Every array but the embedding and what is fused."""
  found = [
    Rule('Transformer/posembed_input/pos_embedding', f'{ROOT}wpe.weight', lambda x, _: x[None],
         lambda x: x[0]),
    Rule('Transformer/encoder_norm/scale', f'{ROOT}ln_f.weight', same, same),
    Rule('predict/kernel', 'lm_head.weight', turned, turned),
    Rule('head/kernel', 'score.weight', turned, turned),
  ]  # fmt: skip
  for i in range(depth):
    ours, theirs = f'Transformer/encoderblock_{i}/', f'{ROOT}h.{i}.'
    out = Rule(
      f'{ours}{ATTENTION}/out/kernel', f'{theirs}attn.c_proj.weight',
      lambda x, heads: x.reshape(heads, -1, x.shape[-1]), lambda x: x.reshape(-1, x.shape[-1]),
    )  # fmt: skip
    found += [
      out,
      Rule(f'{ours}LayerNorm_0/scale', f'{theirs}ln_1.weight', same, same),
      Rule(f'{ours}LayerNorm_2/scale', f'{theirs}ln_2.weight', same, same),
      Rule(f'{ours}MlpBlock_3/Dense_0/kernel', f'{theirs}mlp.c_fc.weight', same, same),
      Rule(f'{ours}MlpBlock_3/Dense_1/kernel', f'{theirs}mlp.c_proj.weight', same, same),
    ]
  return found


def biases(depth: int) -> list[str]:
  """The biases that their layers have."""
  parts = ('attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj')
  return [f'{ROOT}h.{i}.{part}.bias' for i in range(depth) for part in parts]


def recognise(arrays: Arrays) -> bool:
  """Whether a file is one of GPT's kind."""
  return any(name.endswith('wte.weight') for name in arrays)


def open_weights(arrays: Arrays, settings: dict[str, Any], folder: pathlib.Path) -> weights.Weights:
  """An ImageGPT of Hugging Face, with or without a head.

  Args:
    settings: of config.json and preprocessor_config.json.
    folder: where OpenAI's clusters.npy may lie, when the settings hold no palette.

  Raises:
    ValueError: arrays or settings are missing, unknown, or nothing that our model has.
  """
  roots = ('wte.', 'wpe.', 'h.', 'ln_f.')
  arrays = {ROOT + n if n.startswith(roots) else n: entry for n, entry in arrays.items()}
  depth = weights.depth_of(arrays, r'transformer\.h\.(\d+)\.')
  check_settings(settings)
  check_biases(arrays, depth)
  heads = settings.get('n_head', settings.get('num_attention_heads'))
  if not heads:
    raise ValueError('does not say how many heads there are: write {"n_head": N} into config.json')
  ours, used = to_ours(arrays, depth, heads)
  left = {name.removeprefix(ROOT) for name in arrays.keys() - used - {*biases(depth)}}
  weights.refuse({name for name in left if not re.fullmatch(IDLE, name)})
  colours = palette_of(settings, folder)
  model = facts(ours, settings, colours) | {'depth': depth, 'num_heads': heads}
  notes = () if 'lm_head.weight' in arrays else ('no lm_head: what tells colours is zero',)
  names = class_names(settings) if model['num_classes'] else None
  return weights.Weights(ours, 'huggingface', model, seen(settings), names, notes)


def seen(settings: dict[str, Any]) -> dict[str, Any]:
  """What the weights were trained to see, and their palette is of: as settings say, else -1..1."""
  if not settings.get('do_normalize', True):
    settings = settings | {'do_normalize': True, **RAW}
  resize = RESAMPLE[settings.get('resample', 2)]
  return {'resize': resize} | preprocessing.of_settings('huggingface', settings, False)


def check_settings(settings: dict[str, Any]) -> None:
  """Raises a ValueError for a model that ours is not."""
  kind, act = settings.get('model_type', 'imagegpt'), settings.get('activation_function')
  if kind != 'imagegpt':
    raise ValueError(f'config.json says model_type={kind!r}; of this kind imagegpt alone is read')
  if act is not None and act not in GELU:
    raise ValueError(f'config.json says activation_function={act!r}; ours have {", ".join(GELU)}')
  for key, value in FIXED.items():
    if settings.get(key, value) != value:
      raise ValueError(f'config.json says {key}={settings[key]}; our model has {value}')


def check_biases(arrays: Arrays, depth: int) -> None:
  """Raises a ValueError where a bias is not zero: our model has none, and would drop it."""
  moved = [name for name in biases(depth) if name in arrays and np.any(arrays[name].load())]
  if moved:
    raise ValueError(
      f'has biases that are not zero, which an iGPT has not: {weights.shown({*moved}, 3)}'
    )


def to_ours(arrays: Arrays, depth: int, heads: int) -> tuple[Arrays, set[str]]:
  """Arrays under our names, and the names of theirs that were used.

  Raises:
    ValueError: one is missing.
  """
  found, used = {}, set()
  for rule in rules(depth):
    if rule.theirs in arrays:
      found[rule.ours] = lazily(arrays[rule.theirs], lambda x, read=rule.read: read(x, heads))
      used.add(rule.theirs)
  try:
    table = arrays[f'{ROOT}wte.weight']
    found['token_embedding'] = lazily(table, lambda x: x[:-1])
    found['start'] = lazily(table, lambda x: x[-1:][None])
    for i in range(depth):
      fused = arrays[f'{ROOT}h.{i}.attn.c_attn.weight']
      for part, name in enumerate(('query', 'key', 'value')):
        whose = f'Transformer/encoderblock_{i}/{ATTENTION}/{name}/kernel'
        found[whose] = lazily(fused, lambda x, part=part: third(x, part, heads))
  except KeyError as error:
    raise ValueError(f'{error} is missing') from None
  used |= {f'{ROOT}wte.weight', *(f'{ROOT}h.{i}.attn.c_attn.weight' for i in range(depth))}
  count, width = found['token_embedding'].shape
  if 'predict/kernel' not in found:
    found['predict/kernel'] = Entry.of(np.zeros((width, count), np.float32))
  return found, used


def third(x: np.ndarray, part: int, heads: int) -> np.ndarray:
  """Query, key or value of a fused kernel, `D 3D` -> `D h d`."""
  width = x.shape[0]
  return x[:, part * width : (part + 1) * width].reshape(width, heads, -1)


def lazily(entry: Entry, change: Callable[[np.ndarray], np.ndarray]) -> Entry:
  """An array that is changed once it is read."""
  shape = change(np.broadcast_to(np.empty((), np.bool_), entry.shape)).shape
  return Entry(shape, entry.dtype, lambda: change(entry.load()))


def palette_of(settings: dict[str, Any], folder: pathlib.Path) -> tuple[tuple[float, ...], ...]:
  """The colours, of the settings or of a file beside the weights.

  Raises:
    ValueError: there are none.
  """
  path = folder / 'clusters.npy'
  colours = settings.get('clusters')
  if colours is None and path.exists():
    colours = np.load(path, allow_pickle=False)
  if colours is None:
    raise ValueError(
      f"has no palette: neither 'clusters' in preprocessor_config.json nor {path}, OpenAI's file"
    )
  return tuple(tuple(map(float, row)) for row in np.asarray(colours, np.float32))


def facts(ours: Arrays, settings: dict[str, Any], colours: Any) -> dict[str, Any]:
  """Sizes and settings as far as arrays and settings tell.

  Raises:
    ValueError: an array is missing, or the pixels are no grid.
  """
  try:
    positions = ours['Transformer/posembed_input/pos_embedding'].shape[1]
    mlp_dim = ours['Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel'].shape[1]
  except KeyError as error:
    raise ValueError(f'an array is missing: {error}') from None
  size = settings.get('size')
  grid = (size['height'], size['width']) if isinstance(size, dict) and 'height' in size else None
  grid = grid or (math.isqrt(positions),) * 2
  if grid[0] * grid[1] != positions:
    raise ValueError(f'{positions} positions do not fill a grid of {grid[0]} x {grid[1]} pixels')
  head = ours.get('head/kernel')
  return {
    'kind': 'igpt', 'width': ours['token_embedding'].shape[1], 'mlp_dim': mlp_dim,
    'clusters': len(colours), 'colours': colours, 'causal': True, 'image_size': grid,
    'channels': len(colours[0]), 'num_classes': head.shape[-1] if head else 0,
    'gelu': GELU[settings.get('activation_function', 'quick_gelu')],
    'epsilon': settings.get('layer_norm_epsilon', 1e-5),
  }  # fmt: skip
