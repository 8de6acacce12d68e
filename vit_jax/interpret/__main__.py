"""Looks inside a checkpoint: a picture (PNG, SVG) and its numbers (JSON; larger ones NPZ).

  python -m vit_jax.interpret WHAT CHECKPOINT [IMAGES...] --out=DIR
  python -m vit_jax.interpret compare WHAT CHECKPOINT CHECKPOINT... [--images=PATH,...] --out=DIR
  python -m vit_jax.interpret batch --config=RECIPE [--config.KEY=VALUE ...] --out=DIR
  python -m vit_jax.interpret masked RUN [IMAGES...] --out=DIR
  python -m vit_jax.interpret atlas CHECKPOINT [IMAGES...] --out=DIR
  python -m vit_jax.interpret serve CHECKPOINT [--host=127.0.0.1] [--port=8765] [--token=WORD]

WHAT is one of those below; `WHAT --help` shows its options, `vit_jax/interpret/README.md` what each
is. CHECKPOINT is a run, a weight file or an address. Without IMAGES test pictures of its data are
taken. `compare` draws several checkpoints on one scale; the folder of a sweep stands for a run of
each setting that it chose. `batch` shows what training sees, `masked` what a run of masked patch
prediction hides and predicts; `atlas` is a page to walk through, `serve` one on which pictures are
dropped.
"""

import argparse
from collections.abc import Sequence
import contextlib
import json
import pathlib
import sys
from typing import Any

import numpy as np

from vit_jax import interpret, predict, recipe
from vit_jax.interpret import atlas, batch, checkpoints, images, masked
from vit_jax.interpret.picture import Measured, folder
from vit_jax.runtime import atomic, messages
from vit_jax.runtime.choices import check_choice


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.interpret`."""
  words = sys.argv[1:] if arguments is None else arguments
  commands = {
    'atlas': write_atlas,
    'batch': write_batch,
    'compare': write_comparison,
    'masked': write_masked,
    'serve': serve_page,
  }
  try:
    with messages.printing():
      commands.get(words[0] if words else '', write_pictures)(words)
  except (ValueError, TypeError, OSError) as error:
    sys.exit(f'error: {error}')


def write_batch(words: list[str]) -> None:
  """Draws the first pictures that a recipe trains on."""
  parser = argparse.ArgumentParser('python -m vit_jax.interpret batch', description=batch.__doc__)
  parser.add_argument('what')
  parser.add_argument('--out', required=True, type=folder, metavar='DIR')
  parser.add_argument('--count', type=int, default=16, help='pictures')
  options, rest = parser.parse_known_args(words)
  figure, found = batch.batch(recipe.read(rest), options.count)
  save(figure, found, {}, options.out / 'batch.png')


def write_masked(words: list[str]) -> None:
  """Draws what a run of masked patch prediction predicts of each image."""
  options = masked.parse(words)
  predictor = predict.load(options.checkpoint)
  opened = masked.open_objective(predictor, options.checkpoint)
  chosen = images.named(predictor, options.checkpoint, options.images, options.count, 1)
  for name, picture in chosen:
    figure, found = masked.masked(*opened, predictor.preprocess(picture), options.seed)
    save(figure, {'image': name} | found, {}, options.out / f'masked_{name}.png')


def write_atlas(words: list[str]) -> None:
  """Writes the page on which any patch of some images can be pointed at."""
  options = atlas.parse(words)
  predictor = predict.load(options.checkpoint)
  chosen = images.named(
    predictor, options.checkpoint, options.images, options.count, atlas.IMAGES
  )  # fmt: skip
  print(atlas.write(predictor, chosen, options))


def serve_page(words: list[str]) -> None:
  """Answers to pictures that are dropped on a page of this machine, until Ctrl-C."""
  from vit_jax.interpret import serve  # What it serves with is an extra.

  serve.serve(serve.parse(words))


def write_pictures(words: list[str]) -> None:
  """Draws one of PICTURES for each image, or one of all."""
  what = what_of(words)
  parser = parser_of(what, '')
  parser.add_argument('checkpoint', help='a run, a weight file, or an address')
  picture = interpret.PICTURES[what]
  if picture.sees in ('image', 'images'):
    parser.add_argument('images', nargs='*', help='image files, or folders of them')
    add_count(parser, picture.count)
  own = parser.parse_intermixed_args(words[1:])
  predictor = predict.load(own.checkpoint)
  chosen = choose_images(what, predictor, own.checkpoint, own, getattr(own, 'images', ()))
  found = interpret.measure(what, predictor, [image for _, image in chosen], **given(what, own))
  for name, one in zip(names_of(what, chosen), found, strict=True):
    about = {'checkpoint': str(own.checkpoint)} | ({'image': name} if one.image is not None else {})
    path = own.out / (f'{what}_{name}.png' if name else f'{what}.png')
    save(interpret.draw(what, [one]), about | one.numbers, one.arrays, path)


def write_comparison(words: list[str]) -> None:
  """Draws one of PICTURES for several checkpoints beside one another, on one scale."""
  what = what_of(words[1:])
  parser = parser_of(what, 'compare ')
  parser.add_argument('checkpoints', nargs='+', help='runs, a sweep, weight files, or addresses')
  picture = interpret.PICTURES[what]
  if picture.sees in ('image', 'images'):
    parser.add_argument('--images', help='image files, or folders of them, with commas between')
    add_count(parser, picture.count)
  own = parser.parse_intermixed_args(words[2:])
  own.checkpoints, labels = checkpoints.expand(own.checkpoints)
  paths = (getattr(own, 'images', None) or '').split(',')
  chosen, rows = None, []
  for checkpoint in own.checkpoints:  # One model at a time: some are large.
    predictor = predict.load(checkpoint)
    if chosen is None:
      chosen = choose_images(what, predictor, checkpoint, own, [path for path in paths if path])
    try:
      seen = [image for _, image in chosen]
      rows.append(interpret.measure(what, predictor, seen, **given(what, own)))
    except ValueError as error:
      raise ValueError(f'{checkpoint}: {error}') from None
  for i, name in enumerate(names_of(what, chosen or [])):
    write_beside(what, name, own, labels, [row[i] for row in rows])


def write_beside(
  what: str, name: str, own: argparse.Namespace, labels: list[str], found: Sequence[Measured]
) -> None:
  """Writes one figure of several checkpoints; its files begin with `compare_`."""
  content = {
    'labels': labels,
    'checkpoints': [{'checkpoint': str(path)} | one.numbers
                    for path, one in zip(own.checkpoints, found, strict=True)],
  }  # fmt: skip
  about = {'image': name} if found[0].image is not None else {}
  arrays = {f'{i}_{key}': x for i, one in enumerate(found) for key, x in one.arrays.items()}
  path = own.out / (f'compare_{what}_{name}.png' if name else f'compare_{what}.png')
  save(interpret.draw(what, found, labels), about | content, arrays, path)


def what_of(words: list[str]) -> str:
  """The picture that a command line names first; shows the help where it names none."""
  if not words or words[0].startswith('-'):
    pictures = '\n'.join(f'  {name:14} {first_line(x)}' for name, x in interpret.PICTURES.items())
    argparse.ArgumentParser(
      'python -m vit_jax.interpret',
      description=f'{__doc__}\n{pictures}',
      formatter_class=argparse.RawDescriptionHelpFormatter,
      usage='python -m vit_jax.interpret WHAT CHECKPOINT [IMAGES...] --out=DIR',
    ).parse_args(words)
    raise ValueError(
      'say what to look at: '
      + ', '.join([*interpret.PICTURES, 'compare', 'batch', 'masked', 'atlas', 'serve'])
    )
  check_choice('picture', words[0], interpret.PICTURES)
  return words[0]


def first_line(thing: Any) -> str:
  """What a picture is, in a line."""
  return (thing.__doc__ or '').partition('\n')[0]


def parser_of(what: str, before: str) -> argparse.ArgumentParser:
  """The parser of one picture, with its own options and --out."""
  picture = interpret.PICTURES[what]
  parser = argparse.ArgumentParser(
    f'python -m vit_jax.interpret {before}{what}',
    description=first_line(picture),
    allow_abbrev=False,
  )
  parser.add_argument('--out', required=True, type=folder, metavar='DIR')
  picture.add_options(parser)
  return parser


def add_count(parser: argparse.ArgumentParser, normal: int) -> None:
  """Declares the option `--count`."""
  help = f'the first so many images; test pictures without IMAGES (else {normal})'
  parser.add_argument('--count', type=int, help=help)


def given(what: str, own: argparse.Namespace) -> dict[str, Any]:
  """The options that belong to the picture itself."""
  parser = argparse.ArgumentParser()
  interpret.PICTURES[what].add_options(parser)
  return {key: getattr(own, key) for key in vars(parser.parse_args([]))}


def choose_images(
  what: str,
  predictor: predict.Predictor,
  checkpoint: str,
  own: argparse.Namespace,
  paths: Sequence[str],
) -> images.Named:
  """The images of a picture, with their names; none where it is not of images."""
  picture = interpret.PICTURES[what]
  if picture.sees not in ('image', 'images'):
    return []
  return images.named(predictor, checkpoint, paths, own.count, picture.count)


def names_of(what: str, chosen: images.Named) -> list[str]:
  """The name in the file of each figure: of its image, or none."""
  return [name for name, _ in chosen] if interpret.PICTURES[what].sees == 'image' else ['']


def save(
  figure: Any, content: dict[str, Any], arrays: dict[str, np.ndarray], path: pathlib.Path
) -> None:
  """Writes a picture as PNG and SVG and, beside it, its numbers and arrays; says where.

  All of them are whole before the first takes its place, the numbers last.
  """
  kinds = ('json', *('npz',) * bool(arrays), 'svg', 'png')
  with contextlib.ExitStack() as stack:
    new = {
      kind: stack.enter_context(atomic.replacing(path.with_suffix(f'.{kind}'))) for kind in kinds
    }
    for kind in ('png', 'svg'):
      figure.savefig(new[kind], format=kind)
    if arrays:
      with new['npz'].open('wb') as file:  # A name of its own would get a suffix more.
        np.savez_compressed(file, **arrays)  # pyright: ignore
    new['json'].write_text(json.dumps(content) + '\n', encoding='utf-8')
  print(path)


if __name__ == '__main__':
  main()
