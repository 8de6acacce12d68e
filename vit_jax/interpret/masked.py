"""What a run of masked patch prediction hides of an image, and what it says is there.

python -m vit_jax.interpret masked RUN [IMAGES...] --out=DIR [--count=1] [--seed=0]

RUN is the folder of a run with its checkpoints: weight files hold the model alone, and not what
predicts. Without IMAGES test pictures of its data are taken.
"""

import argparse
from collections.abc import Callable
import functools
import json
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import UInt8
import numpy as np

from vit_jax import defaults, figures, objectives, predict
from vit_jax.interpret.picture import folder
from vit_jax.objectives.masked_patches import Corruption, MaskedPatches, pick
from vit_jax.objectives.patch_targets import cut
from vit_jax.step import load_params

GREY = 128  # where the mask stands
PANELS = ('image', 'seen: {masked} masked, {moved} moved', 'predicted', 'to be predicted')


def parse(words: list[str]) -> argparse.Namespace:
  """The options of the command, `words` being all that stands behind `vit_jax.interpret`."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.interpret masked',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('what')
  parser.add_argument('checkpoint', metavar='RUN', help='the folder of a run')
  parser.add_argument('images', nargs='*', help='image files, or folders of them')
  parser.add_argument('--out', required=True, type=folder, metavar='DIR')
  parser.add_argument('--count', type=int, help='the first so many images (else 1 without IMAGES)')
  parser.add_argument('--seed', type=int, default=0, help='of what is hidden')
  return parser.parse_intermixed_args(words)


def open_objective(predictor: predict.Predictor, run: str) -> tuple[MaskedPatches, Callable]:
  """The objective of a run, and what it tells: `(images, keys) -> (what is hidden, outputs)`.

  Args:
    predictor: the run's model.
    run: its folder.

  Raises:
    ValueError: the folder is no run of masked patch prediction, or has no checkpoint.
  """
  path = pathlib.Path(run)
  if not (path / 'config.json').exists():
    raise ValueError(
      f'{run} has no config.json: give the folder of a run, whose checkpoints hold what predicts; '
      'weight files hold the model alone'
    )
  section = defaults.upgrade(json.loads((path / 'config.json').read_text()))['objective']
  if section['name'] != 'masked_patches':
    raise ValueError(
      f'{run} was trained with config.objective.name={section["name"]}, which hides no patches'
    )
  normalise = predictor.preprocess.normalise
  objective: Any = objectives.build(model=predictor.model, normalise=normalise, **section)
  shape = (*predictor.preprocess.image_size, predictor.preprocess.channels)
  see = jax.jit(functools.partial(objective.apply, method='predict_patches'))
  return objective, functools.partial(see, {'params': load_params(path, objective, shape)})


def masked(
  objective: MaskedPatches, see: Callable, image: UInt8[np.ndarray, 'H W C'], seed: int
) -> tuple[Any, dict[str, Any]]:
  """The image, what the model sees of it, what it predicts, and what it should.

  The mask is grey. A moved patch stands where another was; one that is neither is left as it is,
  and predicted all the same. Colours are the middle of their bins. Patches that are not predicted
  are shown as they are.
  """
  images, keys = jnp.asarray(image)[None], jax.random.key(seed)[None]
  drawn, outputs = see(images, keys)
  kind = objective.kind
  targets = pick(kind.targets(images), drawn.places)
  patches = cut(images, objective.model.sizes()['patch_size'])
  seen = jnp.where(drawn.masked[..., None, None, None], GREY, pick(patches, drawn.sources))
  rows = (seen, kind.paint(kind.decide(outputs)), kind.paint(targets))
  changed = [replace(patches, drawn, new, objective.model.grid or (1, 1)) for new in rows]
  judged = {name: float(x.mean()) for name, x in kind.judge(outputs, targets).items()}
  numbers = count(drawn) | judged | {'seed': seed, 'patches': objective.num_patches}
  return draw([image, *changed], numbers), numbers


def count(drawn: Corruption) -> dict[str, int]:
  """How many patches of one image are hidden by the mask, moved, and left as they are."""
  masked, total = int(drawn.masked.sum()), drawn.places.size
  moved = int((~drawn.masked & (drawn.sources != drawn.places)).sum())
  return {'masked': masked, 'moved': moved, 'unchanged': total - masked - moved}


def replace(
  patches: Any, drawn: Corruption, new: Any, grid: tuple[int, int]
) -> UInt8[np.ndarray, 'H W C']:
  """One image with other patches where it is corrupted."""
  cells = np.array(patches[0])
  cells[np.asarray(drawn.places[0])] = np.asarray(new[0])
  side, channels = cells.shape[1], cells.shape[-1]
  cells = cells.reshape(*grid, side, side, channels).swapaxes(1, 2)
  return cells.reshape(grid[0] * side, grid[1] * side, channels)


def draw(images: list[np.ndarray], numbers: dict[str, Any]) -> Any:
  """The four pictures in a row, with the loss of this image."""
  figure, axes = figures.new_figure(2.7 * len(images), 3.1, 1, len(images))
  for axis, image, title in zip(axes[0], images, PANELS, strict=True):
    figures.show(axis, image)
    axis.set_title(title.format(**numbers), fontsize=9)
  accuracy = f', accuracy {numbers["accuracy"]:.0%}' if 'accuracy' in numbers else ''
  hidden = numbers['masked'] + numbers['moved'] + numbers['unchanged']
  figure.suptitle(
    f'{hidden} of {numbers["patches"]} patches predicted: loss {numbers["loss"]:.3g}{accuracy}',
    fontsize=10,
  )
  return figure
