"""What the live page tells of a picture: classes, rollout, atlas; the last few pictures are kept.

All of it is in memory, made from bytes, and found again by a random word that is made here.
"""

from collections.abc import Callable
import dataclasses
import functools
import io
import secrets
from typing import Any

import numpy as np

from vit_jax import interpret
from vit_jax.data import pictures
from vit_jax.interpret import rollout
from vit_jax.interpret.atlas import Atlas
from vit_jax.interpret.picture import options_of
from vit_jax.interpret.query import attending, query_of
from vit_jax.predict import Predictor


class Refused(ValueError):
  """What is not answered, and why; `status` is that of HTTP."""

  def __init__(self, status: int, reason: str):
    super().__init__(reason)
    self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one server takes and keeps.

  Attributes:
    file_megabytes: of a picture's file, in 1e6 bytes.
    megapixels: of a picture, which is refused before it is decoded.
    keep: pictures, of which the oldest are forgotten.
    megabytes: of the atlas of one picture.
  """

  file_megabytes: float = 20.0
  megapixels: float = 64.0
  keep: int = 20
  megabytes: float = 10.0

  def __post_init__(self):
    # Beyond 89 million pixels Pillow warns of a bomb by itself.
    for key, most in dict(file_megabytes=1e3, megapixels=89, keep=1e4, megabytes=1e3).items():
      if not 0 < getattr(self, key) <= most:
        raise ValueError(f'--{key}={getattr(self, key)} must be above 0 and at most {most:g}')

  @property
  def size(self) -> int:
    """The bytes that a picture's file may have."""
    return int(self.file_megabytes * 1e6)

  @property
  def pixels(self) -> int:
    """The pixels that a picture may have."""
    return int(self.megapixels * 1e6)


@dataclasses.dataclass
class Kept:
  """A picture that was asked about.

  Attributes:
    name: 'picture 1' for the first.
    seen: uint8 `H W C`, as the model sees it.
    parts: what was made of it, by name.
  """

  name: str
  seen: np.ndarray
  parts: dict[str, bytes] = dataclasses.field(default_factory=dict)


class Live:
  """A model that is asked about pictures, one at a time (the caller sees to that).

  Attributes:
    missing: by part of PARTS, why this model has none.
  """

  def __init__(self, predictor: Predictor, checkpoint: str, limits: Limits):
    """Compiles every part by a picture of zeros, so that no one waits for it later."""
    self.predictor, self.checkpoint, self.limits = predictor, checkpoint, limits
    self.missing: dict[str, str] = {}
    self._parts: dict[str, Callable[[Kept], Any]] = {}
    self._kept: dict[str, Kept] = {}
    self._count = 0
    model = predictor.model
    zeros = Kept('none', np.zeros((*model.image_size, model.channels), np.uint8))
    for name, make in PARTS.items():
      try:
        part = make(self)
        part(zeros)
        self._parts[name] = part
      except ValueError as error:
        self.missing[name] = str(error)

  def about(self) -> dict[str, Any]:
    """What the page says before any picture."""
    model, limits = self.predictor.model, self.limits
    return {
      'checkpoint': self.checkpoint, 'model': self.predictor.passport.model['name'],
      'image_size': list(model.image_size), 'channels': model.channels,
      'classes': len(self.predictor.class_names), 'kind': self.predictor.passport.predictions,
      'bytes': limits.size, 'keep': limits.keep, 'missing': self.missing,
    }  # fmt: skip

  def add(self, data: bytes, top: int) -> dict[str, Any]:
    """The answer to a picture, as JSON, which is kept from now on.

    Args:
      data: the content of a picture's file.
      top: how many classes are told, the likeliest first.

    Raises:
      Refused: it is too large, or no picture.
    """
    kept = Kept(f'picture {self._count + 1}', self.seen(data))
    self._count += 1
    classes: Any = []
    if 'classes' in self._parts:
      classes = self.predictor.top(self._parts['classes'](kept), top)
    word = secrets.token_urlsafe(16)
    self._kept[word] = kept
    while len(self._kept) > self.limits.keep:
      del self._kept[next(iter(self._kept))]
    shown = {name: f'pictures/{word}/{name}' for name in SHOWN if name in self._parts}
    kind = self.predictor.passport.predictions
    return {'id': word, 'classes': classes, 'kind': kind, **shown, 'missing': self.missing}

  def seen(self, data: bytes) -> np.ndarray:
    """The pixels `H W C` of a picture's file, as the model sees them.

    Raises:
      Refused: it is too large, or no picture.
    """
    if not data:
      raise Refused(400, 'no picture was sent: the body of the request is its file')
    try:
      return self.predictor.preprocess(pictures.decode_within(data, self.limits.pixels))
    except pictures.TooLarge as error:
      raise Refused(413, str(error)) from None
    except (ValueError, OSError) as error:
      raise Refused(400, str(error)) from None

  def show(self, word: str, name: str) -> bytes:
    """A part of a kept picture, one of SHOWN: a PNG file or a page; made when first asked for.

    Raises:
      Refused: the picture is forgotten, or there is no such part.
    """
    if name not in SHOWN:
      raise Refused(404, f'no such part {name!r}: there are {", ".join(SHOWN)}')
    if name in self.missing:
      raise Refused(404, self.missing[name])
    if word not in self._kept:
      raise Refused(404, f'no such picture: the last {self.limits.keep} are kept, send it again')
    kept = self._kept[word]
    if name not in kept.parts:
      kept.parts[name] = self._parts[name](kept)
    return kept.parts[name]


def classes_of(live: Live) -> Callable[[Kept], np.ndarray]:
  """The probabilities `K` of a picture's classes.

  Raises:
    ValueError: the model has no classes, or no one answer an image.
  """
  predictor = live.predictor
  predictor.check_answers()
  return lambda kept: predictor(kept.seen[None], ('probabilities',))['probabilities'][0]


def rollout_of(live: Live) -> Callable[[Kept], bytes]:
  """The picture of `interpret rollout`, a PNG file.

  Raises:
    ValueError: the model has no attention, or no one grid.
  """
  predictor = live.predictor
  options = options_of(interpret.PICTURES['rollout'], {})
  blocks = attending(predictor)
  query = query_of(predictor.model, options.query, rollout.one_grid(blocks))
  rows = rollout.rows_of(predictor.model, blocks, query, options.residual)
  program = predictor.program(rows)

  def draw(kept: Kept) -> bytes:
    found = predictor.stream(kept.seen[None], program, 1)
    one = rollout.measured(kept.seen, found[0], query, vars(options))
    content = io.BytesIO()
    interpret.draw('rollout', [one]).savefig(content, format='png')
    return content.getvalue()

  return draw


def atlas_of(live: Live) -> Callable[[Kept], bytes]:
  """The page of `interpret atlas`.

  Raises:
    ValueError: the model has no patches.
  """
  atlas, most = Atlas(live.predictor), live.limits.megabytes
  page = functools.partial(atlas.page, checkpoint=live.checkpoint, megabytes=most)
  return lambda kept: page(kept.seen[None], [kept.name]).encode()


SHOWN = ('rollout', 'atlas')
PARTS: dict[str, Callable[[Live], Callable[[Kept], Any]]] = {
  'classes': classes_of,
  'rollout': rollout_of,
  'atlas': atlas_of,
}
