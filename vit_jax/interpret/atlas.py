"""One page to walk through a model's view of images: any patch, at every depth, without a network.

python -m vit_jax.interpret atlas CHECKPOINT [IMAGES...] --out=DIR [--count=20] [--megabytes=10]

writes DIR/atlas.html. Point at a patch (mouse, finger, arrow keys) and see its similarity to all
others, its attention by block and head, its norm, and what the classifier would say of it at every
depth; choose a readout and see what it weighs. Attention and similarity are kept in few numbers
(`factors.py`); the page says how far they are off.
"""

import argparse
import base64
from collections.abc import Callable
import io
import json
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.evaluation import token_health
from vit_jax.interpret import factors, pages, shares
from vit_jax.interpret.images import Named
from vit_jax.interpret.lens import lens
from vit_jax.interpret.picture import folder
from vit_jax.predict import Predictor
from vit_jax.runtime import atomic

IMAGES = 20  # test pictures, where none are given
SIDE = 336  # pixels of the longer side of a picture in the page, at most
OTHER = 1000  # bytes of the numbers and words of an image beside its arrays
TOP = 3  # classes that are told of each token and depth
SIMILAR = 16  # numbers that a token's direction is kept in


def parse(words: list[str]) -> argparse.Namespace:
  """The options of the command, `words` being all that stands behind `vit_jax.interpret`."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.interpret atlas',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('what')
  parser.add_argument('checkpoint', help='a run, a weight file, or an address')
  parser.add_argument('images', nargs='*', help='image files, or folders of them')
  parser.add_argument('--out', required=True, type=folder, metavar='DIR')
  parser.add_argument('--count', type=int, help='the first so many (else 20 test pictures, or all)')
  parser.add_argument('--megabytes', type=float, default=10.0, help='the most that the page has')
  return parser.parse_intermixed_args(words)


def write(predictor: Predictor, chosen: Named, options: argparse.Namespace) -> pathlib.Path:
  """Writes the page of some images and says where.

  Raises:
    ValueError: the model has no patches, or the page would be too large.
  """
  seen = np.stack([predictor.preprocess(picture) for _, picture in chosen])
  names = [name for name, _ in chosen]
  text = Atlas(predictor).page(seen, names, str(options.checkpoint), options.megabytes)
  options.out.mkdir(parents=True, exist_ok=True)
  path = options.out / 'atlas.html'
  atomic.write_text(path, text)
  return path


class Atlas:
  """The page of a model: what it measures is prepared once, so that many pages compile once.

  Raises:
    ValueError: the model has no patches.
  """

  def __init__(self, predictor: Predictor):
    model = predictor.model
    name = predictor.passport.model['name']
    self._predictor = predictor
    self._depths = token_health.depths_of(model, token_health.shapes_of(predictor), name)
    self._weigh = shares.weighed(predictor)
    self._program = measures(predictor, self._depths, self._weigh)
    one = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), np.uint8)
    self._shapes = jax.eval_shape(self._program, predictor.params, one)

  def page(self, seen: np.ndarray, names: list[str], checkpoint: str, megabytes: float) -> str:
    """The page of images; arguments and errors as those of `content`."""
    about = {'checkpoint': checkpoint} | self.content(seen, names, megabytes)
    return pages.filled('atlas.html', about)

  def content(self, seen: np.ndarray, names: list[str], megabytes: float) -> dict[str, Any]:
    """What the page shows of images, as JSON; arrays in base64.

    Args:
      seen: uint8 `n H W C`, as the model sees them.
      megabytes: that the page may have, in 1e6 bytes.

    Raises:
      ValueError: it would be larger.
    """
    predictor, model, shapes = self._predictor, self._predictor.model, self._shapes
    shown = [picture(image) for image in seen]
    words = json.dumps([shown, names, predictor.class_names])
    rank = rank_of(shapes, len(seen), len(pages.template('atlas.html')) + len(words), megabytes)
    images = [
      {'name': name, 'picture': one} | self._measured(image, rank)
      for name, one, image in zip(names, shown, seen, strict=True)
    ]
    attention = shapes.get('attention')
    return {
      'grid': list(model.grid or ()), 'prefix': list(model.prefix), 'sources': list(model.sources),
      'depths': len(self._depths),
      'heads': attention.shape[2] if attention is not None else 0, 'rank': rank,
      'similar': min(SIMILAR, *shapes['tokens'].shape[2:]), 'top': min(TOP, model.num_classes),
      'classes': list(predictor.class_names) if 'top' in shapes else [],
      'readouts': [*self._weigh], 'native': predictor.passport.readout, 'images': images,
    }  # fmt: skip

  def _measured(self, image: np.ndarray, rank: int) -> dict[str, Any]:
    """The arrays of one image: attention of one at a time is in memory."""
    found = self._predictor.stream(image[None], self._program, 1)
    return packed({key: x[0] for key, x in found.items()}, rank)


def rank_of(shapes: dict[str, Any], count: int, around: int, megabytes: float) -> int:
  """How many numbers a query or key of attention may be kept in, so that all images fit.

  Args:
    shapes: of what is measured of one image.
    count: images.
    around: bytes of all that is no measure: the page, pictures, names.

  Raises:
    ValueError: not even one.
  """
  _, depths, tokens, width = shapes['tokens'].shape
  told_of = depths * tokens * (min(SIMILAR, tokens, width) + 3 + 3 * TOP)
  fixed = 4 / 3 * (told_of + 2 * shapes['weights'].shape[1] * tokens) + OTHER
  if 'attention' not in shapes:
    one, most = 0.0, 1
  else:
    _, blocks, heads, _, keys = shapes['attention'].shape
    one, most = 4 / 3 * blocks * heads * (2 * keys + 4), min(factors.MOST, keys)
  left = (megabytes * 1e6 - around) / count - fixed
  if not left >= max(one, 1):  # Nor for megabytes that are no number.
    need = (count * (fixed + one) + around) / 1e6
    remedy = 'give fewer (--count), or ' if count > 1 else 'give '
    raise ValueError(
      f'{count} images of this model need {need:.1f} MB at least: {remedy}'
      f'--megabytes={np.ceil(need):.0f}'
    )
  return int(min(most, left // one)) if one else 1


def measures(
  predictor: Predictor, depths: tuple[str, ...], weigh: dict[str, Callable[[Any, Any], Any]]
) -> Callable[..., dict[str, Any]]:
  """`(params, images) -> arrays B ...` of all that the page shows of each depth."""
  model = predictor.model
  grey = np.zeros((1, *model.image_size, model.channels), np.uint8)
  try:
    look = lens(predictor, grey)
  except ValueError:
    look = None  # The page says that there is no single classifier.

  def program(params, images):
    named = predictor.forward(params, images)[1]
    tokens = jnp.stack([named[depth].astype(jnp.float32) for depth in depths], 1)
    maps = [model.attention_map(named, i) for i in range(len(depths) - 1)]
    found = {'tokens': tokens, 'weights': jnp.stack([f(params, named) for f in weigh.values()], 1)}
    if all(x is not None for x in maps):
      found['attention'] = jnp.stack(maps, 1)
    return found | (told(look(params, images)) if look else {})

  return program


def told(found: dict[str, Any]) -> dict[str, Any]:
  """The likeliest classes of each token, and the probability of the image's own answer."""
  count = min(TOP, found['answer'].shape[-1])
  probability, top = jax.lax.top_k(found['lens'], count)
  answer = found['answer'].argmax(-1)
  own = jnp.take_along_axis(found['lens'], answer[:, None, None, None], -1)[..., 0]
  return {'top': top, 'probability': probability, 'own': own, 'answer': answer,
          'sure': found['answer'].max(-1)}  # fmt: skip


def packed(found: dict[str, Any], rank: int) -> dict[str, Any]:
  """The arrays of one image in few bytes."""
  norms = np.linalg.norm(found['tokens'], axis=-1)
  places, off = factors.directions(found['tokens'], SIMILAR)
  content = {
    'norms': encoded(*factors.scaled(norms, np.uint16)),
    'directions': encoded(places), 'similarity_off': off,
    'weights': encoded(*factors.scaled(found['weights'], np.uint16)),
  }  # fmt: skip
  if 'attention' in found:
    both, scales, off = factors.attention(found['attention'], rank)
    content |= {'attention': encoded(both), 'scales': encoded(scales), 'attention_off': off}
  if 'top' in found:
    content |= {
      'top': encoded(found['top'].astype(np.uint16)),
      'probability': encoded(*factors.scaled(found['probability'], np.uint8, 1.0)),
      'own': encoded(*factors.scaled(found['own'], np.uint8, 1.0)),
      'answer': int(found['answer']), 'sure': round(float(found['sure']), 4),
    }  # fmt: skip
  return content


def encoded(array: np.ndarray, unit: float | None = None) -> Any:
  """Bytes in base64, little endian; beside them what 1 stands for, where that is not 1."""
  text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
  return text if unit is None else [text, float(f'{unit:.6g}')]


def picture(image: np.ndarray) -> str:
  """A picture as the address of its own data, JPEG, or PNG where it is small."""
  colours = image if image.shape[-1] == 3 else image.mean(-1).astype(np.uint8)
  made = Image.fromarray(colours)
  made.thumbnail((SIDE, SIDE))
  kind = 'PNG' if max(made.size) <= 64 else 'JPEG'
  content = io.BytesIO()
  made.save(content, kind, **({'quality': 85} if kind == 'JPEG' else {}))
  return f'data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}'
