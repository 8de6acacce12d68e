"""What a benchmark times: a ViT's size, a batch, a direction; and how many FLOPs that is.

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
  """A step of a ViT with a class token and a head of 1,000 classes.

  Attributes:
    kind: 'inference', or 'training': forward, backward and an update.
    variant: size and patch side, 'B/16'; what follows from it stands in the fields below.
    image_size: side in pixels.
    dtype: of the computation; parameters stay float32.
  """

  kind: str
  variant: str
  batch_size: int
  image_size: int
  dtype: str
  patch: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int

  @property
  def tokens(self) -> int:
    """The number of patches and the class token."""
    return (self.image_size // self.patch) ** 2 + 1

  @property
  def flops(self) -> float:
    """FLOPs of the matrix products of a step, two for each multiplication and addition.

    Backward takes two products for each of forward's, but for the patch embedding, whose input is
    the picture and wants no gradient. Nothing is counted for what is computed again.
    """
    tokens, width = self.tokens, self.width
    linear = 4 * width * width + 2 * width * self.mlp_dim  # Query, key, value, out; the MLP.
    block = 2 * tokens * linear + 4 * tokens * tokens * width  # The last: scores, and their use.
    embedding = 2 * (tokens - 1) * 3 * self.patch**2 * width
    rest = self.depth * block + 2 * width * CLASSES
    once, all_of_it = (1, 1) if self.kind == 'inference' else (2, 3)
    return float(self.batch_size * (once * embedding + all_of_it * rest))

  def about(self) -> dict:
    """What identifies a line of results."""
    keys = ('variant', 'batch_size', 'image_size', 'dtype')
    return {'case': self.kind} | {key: getattr(self, key) for key in keys}


def of(kind: str, variant: str, batch_size: int, image_size: int, dtype: str) -> Work:
  """The work of a variant that our package names."""
  from vit_jax.models import vit_sizes

  name, patch = vit_sizes.decode_variant(variant)
  return Work(kind, variant, batch_size, image_size, dtype, patch, **vit_sizes.SIZES[name])


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
