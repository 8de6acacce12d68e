"""Writes an Image GPT for Hugging Face: arrays under their names, and their settings."""

from typing import Any

import numpy as np

from vit_jax.formats import configs, igpt, weights
from vit_jax.formats.files import Arrays, Entry


def losses(target: str, model: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
  """What Hugging Face cannot hold of an iGPT, in words."""
  del sizes
  lost = []
  if not model['causal']:
    lost.append(f'causal=False: at {target} a pixel sees those before it alone')
  if model['channels'] != 3:
    lost.append(f'channels={model["channels"]}: {target} takes 3')
  return lost


def unseen(target: str, preprocess: Any) -> list[str]:
  """What a pixel's nearest colour of the whole picture, as theirs is, cannot say, in words."""
  lost = configs.unseen_filter(target, preprocess)
  if preprocess.fit == 'crop':
    lost.append(f"fit='crop': {target} has the whole picture")
  if len({*preprocess.std}) > 1:
    lost.append(f'std={preprocess.std}: at {target} all channels are as far apart')
  return lost


def renamed(target: str, arrays: Arrays) -> Arrays:
  """Arrays under their names; the biases that they have and we have not are zeros.

  Raises:
    ValueError: an array without a place there.
  """
  depth = weights.depth_of(arrays, r'Transformer/encoderblock_(\d+)/')
  made, left = {}, set(arrays)
  for rule in igpt.rules(depth):
    if rule.ours in arrays:
      made[rule.theirs] = igpt.lazily(arrays[rule.ours], rule.write)
      left.discard(rule.ours)
  made[f'{igpt.ROOT}wte.weight'] = joined(
    [arrays[name] for name in ('token_embedding', 'start') if name in arrays], 0
  )
  for i in range(depth):
    names = [f'Transformer/encoderblock_{i}/{igpt.ATTENTION}/{part}/kernel'
             for part in ('query', 'key', 'value')]  # fmt: skip
    made[f'{igpt.ROOT}h.{i}.attn.c_attn.weight'] = joined([arrays[name] for name in names], 1)
    left -= {*names}
  left -= {'token_embedding', 'start'}
  if left:
    raise ValueError(f'{target} has no place for {", ".join(sorted(left))}')
  for name in igpt.biases(depth):
    made[name] = Entry.of(np.zeros(made[name.replace('bias', 'weight')].shape[1], np.float32))
  return made


def joined(entries: list[Entry], axis: int) -> Entry:
  """Arrays, each as a matrix with a first axis of its own, one after another."""

  def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1) if axis else x.reshape(-1, x.shape[-1])

  parts = [igpt.lazily(entry, flat) for entry in entries]
  shape = list(parts[0].shape)
  shape[axis] = sum(part.shape[axis] for part in parts)
  return Entry(
    tuple(shape), entries[0].dtype, lambda: np.concatenate([p.load() for p in parts], axis)
  )


def settings(passport: Any, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The content of Hugging Face's files, by name: the palette is among them."""
  return {
    'config.json': config(passport, sizes),
    'preprocessor_config.json': preprocessor(passport),
  }


def config(passport: Any, sizes: dict[str, Any]) -> dict[str, Any]:
  """The config.json of ImageGPTForImageClassification, or of what tells colours alone."""
  model, labels = passport.model, passport.class_names
  what = 'ForImageClassification' if labels else 'ForCausalImageModeling'
  return {
    'architectures': [f'ImageGPT{what}'],
    'model_type': 'imagegpt',
    'vocab_size': model['clusters'] + 1,
    'n_positions': sizes['num_tokens'],
    'n_embd': sizes['width'],
    'n_layer': sizes['depth'],
    'n_head': sizes['num_heads'],
    'n_inner': sizes['mlp_dim'],
    'activation_function': configs.HUGGINGFACE_ACT[model['gelu']],
    'layer_norm_epsilon': model['epsilon'],
    **dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), 0.0),
    **igpt.FIXED,
    **configs.huggingface_labels(labels),
    'torch_dtype': 'float32',
  }


def preprocessor(passport: Any) -> dict[str, Any]:
  """The preprocessor_config.json: a resized picture, each pixel its nearest colour.

  Theirs makes -1..1 of pixels, whatever mean and deviation a file says; so is the palette written.
  """
  seen = passport.preprocess
  height, width = seen.image_size
  return {
    'image_processor_type': 'ImageGPTImageProcessor',
    'do_resize': True, 'size': {'height': height, 'width': width},
    'resample': configs.RESAMPLE[seen.resize], 'do_normalize': True, 'do_color_quantize': True,
    'image_mean': configs.spread((0.5,), seen.channels),
    'image_std': configs.spread((0.5,), seen.channels),
    'clusters': colours_of(seen, passport.model['colours']),
  }  # fmt: skip


def colours_of(seen: Any, colours: Any) -> list[list[float]]:
  """A palette in normalised pixels as one in -1..1; of a mean and deviation of 0.5 as it is."""
  mean, std = np.asarray(seen.mean), np.asarray(seen.std)
  return (np.asarray(colours) * (2 * std) + (2 * mean - 1)).tolist()
