"""Sizes of ViTs by their names: from 'B/16' to numbers, and from a file's numbers to 'B'."""

import difflib
from typing import Any

# Paper, table 1; Ti and S from DeiT; g and G from arXiv:2106.04560;
# giant2, with SwiGLU, is DINOv2's g (arXiv:2304.07193); digits and cifar are ours.
SIZES = {
  'digits': dict(width=64, depth=4, mlp_dim=128, num_heads=4),
  'cifar': dict(width=192, depth=9, mlp_dim=768, num_heads=3),
  'mu': dict(width=32, depth=1, mlp_dim=128, num_heads=2),
  'Ti': dict(width=192, depth=12, mlp_dim=768, num_heads=3),
  'S': dict(width=384, depth=12, mlp_dim=1536, num_heads=6),
  'B': dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
  'L': dict(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  'H': dict(width=1280, depth=32, mlp_dim=5120, num_heads=16),
  'g': dict(width=1408, depth=40, mlp_dim=6144, num_heads=16),
  'G': dict(width=1664, depth=48, mlp_dim=8192, num_heads=16),
  'giant2': dict(width=1536, depth=40, mlp_dim=4096, num_heads=24),
}
# Any size goes with any patch side ('S/4'); these are the ones that are listed.
VARIANTS = ['digits/2', 'cifar/4', 'mu/16']
VARIANTS += [f'{size}/{patch}' for size in ['Ti', 'S', 'B', 'L', 'H'] for patch in (8, 14, 16, 32)]
VARIANTS += ['g/14', 'G/14', 'giant2/14']
SWIGLU = ('giant2',)  # sizes whose MLP is gated


def register_names(count: int) -> tuple[str, ...]:
  """The names of registers among the tokens before the patches."""
  return tuple(f'register_{i}' for i in range(1, count + 1))


def sizes_of(facts: dict[str, Any]) -> dict[str, int]:
  """Width, depth, heads and MLP width among what was found in a file."""
  return {key: facts[key] for key in ('width', 'depth', 'num_heads', 'mlp_dim')}


def name_of(facts: dict[str, Any]) -> str | None:
  """The size that papers name so; None where none has these numbers."""
  return next((name for name, known in SIZES.items() if known == sizes_of(facts)), None)


def decode_variant(variant: str) -> tuple[str, int]:
  """The size and the patch side that a variant names: 'B/16' -> ('B', 16).

  Raises:
    ValueError: no such size, or no patch side.
  """
  size, _, patch = variant.partition('/')
  if size not in SIZES or not patch.isdecimal() or not int(patch):
    near = difflib.get_close_matches(variant, VARIANTS, n=1, cutoff=0.0)[0]
    raise ValueError(
      f'unknown variant {variant!r}; write SIZE/PATCH with SIZE one of {", ".join(SIZES)} and '
      f'PATCH the side in pixels; did you mean {near!r}?'
    )
  return size, int(patch)
