"""Lists every model of the house: python -m vit_jax.models [--image_size=224] [--json]."""

import argparse
import json
import sys
from typing import Any

from vit_jax import defaults, models


def describe(name: str, variant: str, image_size: tuple[int, int], classes: int) -> dict[str, Any]:
  """The counts of one model, from shapes alone.

  Raises:
    ValueError: the variant does not fit images of this size.
  """
  section = defaults.part('model', name).to_dict() | {'variant': variant}
  model = models.build(**section, image_size=image_size, channels=3, num_classes=classes)
  count = sum(x.size for x in models.shapes_of(model).values())
  keys = ('num_tokens', 'width', 'patch_size', 'depth', 'num_heads', 'mlp_dim')
  sizes = dict.fromkeys(keys) | model.sizes()
  return {'name': name, 'variant': variant, 'parameters': count, **sizes}


def main(arguments: list[str] | None = None) -> None:
  """Runs the command `python -m vit_jax.models`."""
  parser = argparse.ArgumentParser('python -m vit_jax.models', description=__doc__)
  parser.add_argument(
    '--image_size', type=int, nargs='+', help='side, or H W; else 224, or 32 (igpt, cordonnier)'
  )
  parser.add_argument('--num_classes', type=int, default=1000)
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  options = parser.parse_args(arguments)
  if not options.json:
    print(f'{"model":13}{"variant":17}{"parameters":>16}{"tokens":>9}{"width":>7}{"depth":>7}')
  for name, module in models.MODELS.items():
    sides = options.image_size or [getattr(module, 'IMAGE_SIZE', 224)]
    size = (sides[0], sides[-1])
    for variant in module.VARIANTS:
      try:
        row = describe(name, variant, size, options.num_classes)
      except ValueError as error:
        print(f'{name} {variant}: {error}', file=sys.stderr)
        continue
      print(json.dumps(row) if options.json else line(row))


def line(row: dict[str, Any]) -> str:
  """A row of the table."""
  tokens = row['num_tokens'] or '-'
  sizes = f'{row["parameters"]:16,}{tokens:>9}{row["width"]:7}{row["depth"]:7}'
  return f'{row["name"]:13}{row["variant"]:17}' + sizes


if __name__ == '__main__':
  main()
