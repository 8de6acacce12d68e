"""Logit lens: what the classifier would say of each token after every block.

A token of any block passes the norm after the last one and is put in the place of every token:
what the readout and the head then say is their answer to that token alone, whatever the readout is.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax import figures
from vit_jax.evaluation import token_health
from vit_jax.interpret import overlay
from vit_jax.interpret.picture import Measured, Picture, rounded
from vit_jax.objectives.classification import probabilities
from vit_jax.predict import Predictor
from vit_jax.runtime.choices import check_choice

PANEL = 110  # pixels of the longer side of a map
COLUMNS = 7  # maps beside one another


class Lens(Picture):
  """What the classifier would say of every patch after each block (logit lens)."""

  def add_options(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--target_class', help='the class of the maps; else the predicted one')

  def measure(
    self, predictor: Predictor, images: np.ndarray, options: argparse.Namespace
  ) -> list[Measured]:
    program, names = lens(predictor, images), predictor.class_names
    if options.target_class is not None:
      check_choice('--target_class', options.target_class, names)
    found = predictor.stream(images, program)
    return [
      self.of_image(predictor, image, {key: x[i] for key, x in found.items()}, options)
      for i, image in enumerate(images)
    ]

  def of_image(
    self, predictor: Predictor, image: np.ndarray, found: Any, options: argparse.Namespace
  ) -> Measured:
    """The maps of one image, from the probabilities of each depth and token: `L T K`."""
    model, names, first = predictor.model, predictor.class_names, len(predictor.model.prefix)
    predicted = int(found['answer'].argmax())
    wanted = options.target_class
    target = predicted if wanted is None else names.index(wanted)
    said = found['lens'].argmax(-1)
    content = {
      'grid': list(model.grid or ()), 'prefix': list(model.prefix), 'predicted': names[predicted],
      'target_class': names[target], 'probability': rounded(found['answer'][target], 4),
      'agreement_of_patches': rounded((said[:, first:] == predicted).mean(1), 4),
      'probability_of_prefix': {name: rounded(found['lens'][:, i, target], 4)
                                for i, name in enumerate(model.prefix)},
    }  # fmt: skip
    title = f'what the classifier would say of each patch: the probability of {names[target]}'
    arrays = {'probability': found['lens'][..., target], 'class': said}
    return Measured(content, title, arrays, image)

  def scale(self, found: Sequence[Measured]) -> overlay.Limits:
    return 0.0, 1.0

  def size(self, measured: Measured) -> tuple[float, float]:
    depths = len(measured.arrays['probability'])
    height, width = overlay.fitting(measured.pixels, 1000)
    columns = min(depths, COLUMNS)
    rows = -(-depths // columns)
    return 5.6 + columns * 1.1 * width / 1000, max(3.0, 0.7 + rows * 1.3 * height / 1000)

  def draw(self, figure: Any, measured: Measured, scale: overlay.Limits) -> None:
    wide = self.size(measured)[0] - 4.2
    left, right = figure.subfigures(1, 2, width_ratios=(4.2, wide))
    draw_depths(left.subplots(), measured)
    first, image = len(measured.numbers['prefix']), measured.pixels
    values = measured.arrays['probability'][:, first:]
    maps = values.reshape(-1, *measured.numbers['grid'])
    columns = min(len(maps), COLUMNS)
    axes = right.subplots(-(-len(maps) // columns), columns, squeeze=False)
    size = overlay.fitting(image, PANEL)
    for depth, axis in enumerate(axes.flat):
      axis.axis('off')
      if depth < len(maps):
        axis.imshow(overlay.blend(image, maps[depth], scale, size))
        axis.set_title(f'block {depth}' if depth else 'input', fontsize=8)
    overlay.colour_bar(right, axes, scale, 'probability', shrink=0.8)


def draw_depths(axis: Any, measured: Measured) -> None:
  """Agreement of patches with the prediction, and the class's probability for the prefix."""
  content = measured.numbers
  agreement = content['agreement_of_patches']
  depths = range(len(agreement))
  axis.plot(depths, agreement, color=figures.COLOURS[0], label='patches that agree', marker='o',
            ms=3)  # fmt: skip
  shown = list(content['probability_of_prefix'].items())[: len(figures.COLOURS) - 1]
  for (name, values), colour in zip(shown, figures.COLOURS[1:], strict=False):
    axis.plot(depths, values, color=colour, label=f'p({name.replace("_", " ")})')
  predicted = figures.plain(content['predicted'])
  axis.set(xlabel='block (0: the input)', title=f'predicted: {predicted}')
  axis.set_ylim(-0.02, 1.02)
  axis.set_xticks(range(0, len(agreement), 1 + len(agreement) // 9))
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=8)


def lens(predictor: Predictor, images: Any) -> Callable[..., dict[str, Any]]:
  """`(params, images) -> {'lens': probabilities B L T K, 'answer': those of the image B K}`.

  Args:
    images: that will be asked for, of which one is read to see that there is one answer.

  Raises:
    ValueError: the model has no head or several, no tokens on a grid, no norm after its last block,
      or one answer a token.
  """
  model, kind = predictor.model, predictor.passport.predictions
  name = predictor.passport.model['name']
  shapes = token_health.shapes_of(predictor)
  depths = token_health.depths_of(model, shapes, name)
  if not model.num_classes or model.heads:
    what = 'two heads' if model.heads else 'no head'
    raise ValueError(f'a logit lens needs one head, and these weights have {what}')
  jax.eval_shape(model.normalise, predictor.params, shapes[depths[0]])  # Refused here, if at all.
  if predictor(images[:1], ('logits',))['logits'].ndim != 2:
    raise ValueError('a logit lens needs a readout that gives one answer an image')

  def program(params, images):
    logits, named = predictor.forward(params, images)
    said = [of_tokens(model, params, named[depth]) for depth in depths]
    found = {'lens': jnp.stack(said, 1), 'answer': logits}
    return {key: probabilities(x, kind) for key, x in found.items()}

  return program


def of_tokens(model: Any, params: Any, tokens: Any) -> Any:
  """Logits `B T K` of the head for each token of a block, `B T D`, taken for the only one."""
  normed = model.normalise(params, tokens)
  count = normed.shape[1]

  def one(token):  # B D
    alike = jnp.broadcast_to(token[:, None], (len(token), count, token.shape[-1]))
    return model.apply({'params': params}, alike, method='read')[0]

  return jnp.swapaxes(jax.lax.map(one, jnp.swapaxes(normed, 0, 1)), 0, 1)
