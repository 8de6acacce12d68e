"""What a benchmark times: a model's size, a batch, a direction; and how many FLOPs that is.

It needs neither JAX nor torch, so that the process of either loads no more than its own.
"""

import dataclasses
from importlib import metadata
import json
import os
import pathlib
import platform
import subprocess

CLASSES = 1000
KINDS = ('inference', 'training')
LIBRARIES = ('jax', 'flax', 'torch', 'timm', 'transformers')


@dataclasses.dataclass(frozen=True)
class Work:
  """A step of a model with a head of 1,000 classes; a ViT has a class token.

  Attributes:
    kind: 'inference', or 'training': forward, backward and an update.
    family, variant: as `python -m vit_jax.models` lists them: 'vit', 'B/16'.
    image_size: side in pixels.
    dtype: of the computation; parameters stay float32.
    sizes: patch_size, width, depth, num_heads and what else the family says.
    embedding, rest: multiply-adds of a picture, in the products that see it and in all others.
  """

  kind: str
  family: str
  variant: str
  batch_size: int
  image_size: int
  dtype: str
  sizes: dict
  embedding: int
  rest: int

  @property
  def name(self) -> str:
    """The variant, with its family in front where that is no ViT."""
    return self.variant if self.family == 'vit' else f'{self.family}:{self.variant}'

  @property
  def flops(self) -> float:
    """FLOPs of the matrix products of a step, two for each multiplication and addition.

    Backward takes two products for each of forward's, but for the patch embedding, whose input is
    the picture and wants no gradient. Nothing is counted for what is computed again.
    """
    once, all_of_it = (1, 1) if self.kind == 'inference' else (2, 3)
    return 2.0 * self.batch_size * (once * self.embedding + all_of_it * self.rest)

  def about(self) -> dict:
    """What identifies a line of results."""
    keys = ('batch_size', 'image_size', 'dtype')
    found = {key: getattr(self, key) for key in keys}
    return {'case': self.kind, 'variant': self.name} | found


def of(kind: str, name: str, batch_size: int, image_size: int, dtype: str) -> Work:
  """The work of a model that our package names: a ViT 'B/16', or 'swin:T/4'."""
  from vit_jax import defaults, models

  family, _, variant = name.rpartition(':')
  family = family or 'vit'
  section = defaults.part('model', family).to_dict() | {'variant': variant}
  shape = {'image_size': (image_size, image_size), 'channels': 3, 'num_classes': CLASSES}
  model = models.build(**section | shape)
  parts = dict(model.multiply_adds())
  embedding = parts.pop('embedding')
  sizes, rest = model.sizes(), sum(parts.values())
  return Work(kind, family, variant, batch_size, image_size, dtype, sizes, embedding, rest)


def cores() -> int:
  """The number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def machine(*libraries: str) -> dict:
  """The processor or card of this machine by name, its cores, and versions of libraries."""
  versions = {}
  for name in libraries or LIBRARIES:
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return {'device': card() or processor(), 'cores': cores(), **versions}


def card() -> str | None:
  """The name of the first NVIDIA card; None where there is none, or it is not to be used."""
  if os.environ.get('JAX_PLATFORMS', '').split(',')[0] == 'cpu':
    return None
  words = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
  try:
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.partition('\n')[0].strip() or None


def processor() -> str:
  """The CPU's model name, and the widest vectors that it has, which decide between libraries."""
  path = pathlib.Path('/proc/cpuinfo')
  if not path.exists():
    return platform.processor() or platform.machine()
  fields = dict(line.split(':', 1) for line in path.read_text().splitlines() if ':' in line)
  found = {key.strip(): value.strip() for key, value in fields.items()}
  flags = found.get('flags', found.get('Features', '')).split()
  widest = next((name for name in ('avx512f', 'avx2', 'asimd') if name in flags), 'no vectors')
  return f'{found.get("model name", platform.machine())} ({widest})'


def show(line: dict) -> None:
  """Prints a JSON line."""
  print(json.dumps(line), flush=True)
