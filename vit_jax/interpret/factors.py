"""Attention and directions of tokens in few bytes: low-rank factors in whole numbers.

A map of attention is the softmax of a product of queries and keys. So is what is kept of it: the
best product of `r` numbers a query and a key for its logarithm, each number a byte.
"""

from typing import Any

from jaxtyping import Float, Int8
import numpy as np

MOST = 16  # numbers a query or key
FLOOR = 0.02  # of uniform attention: what is smaller, is taken for this


def attention(
  weights: Float[np.ndarray, 'L h T T'], rank: int
) -> tuple[Int8[np.ndarray, 'L h 2 T r'], Float[np.ndarray, 'L h r'], float]:
  """Bytes of queries and keys, what the product of two bytes stands for, and how far it is off.

  The last number is the mean over queries of the share of attention that lies elsewhere (total
  variation, 0..1).
  """
  length = weights.shape[-1]
  logits = np.log(weights.astype(np.float64) + FLOOR / length)
  logits -= logits.mean(-1, keepdims=True)  # Softmax does not see it.
  u, s, v = np.linalg.svd(logits, full_matrices=False)
  root = np.sqrt(s[..., None, :rank])
  both = np.stack([u[..., :rank] * root, np.swapaxes(v, -1, -2)[..., :rank] * root], 2)
  unit = np.maximum(np.abs(both).max(3), 1e-12) / 127  # L h 2 r
  small = np.rint(both / unit[..., None, :]).astype(np.int8)
  scales = unit.prod(2).astype(np.float32)
  off = 0.5 * np.abs(restored(small, scales) - weights).sum(-1).mean()
  return small, scales, round(float(off), 4)


def restored(
  small: Int8[np.ndarray, 'L h 2 T r'], scales: Float[np.ndarray, 'L h r']
) -> Float[np.ndarray, 'L h T T']:
  """Attention as the page computes it from its bytes."""
  query, key = small[:, :, 0] * scales[:, :, None], small[:, :, 1].astype(np.float64)
  logits = query @ np.swapaxes(key, -1, -2)
  exponents = np.exp(logits - logits.max(-1, keepdims=True))
  return exponents / exponents.sum(-1, keepdims=True)


def directions(
  tokens: Float[np.ndarray, 'L T D'], rank: int
) -> tuple[Int8[np.ndarray, 'L T r'], float]:
  """Unit vectors whose products are nearly the cosines of tokens, 127 for 1; the mean error.

  They are the nearest of `r` numbers in the least squares of all products; a token whose direction
  is lost is short, not turned.
  """
  x = tokens.astype(np.float64)
  unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  u, s, _ = np.linalg.svd(unit, full_matrices=False)
  small = np.rint(127 * u[..., :rank] * s[..., None, :rank]).astype(np.int8)
  kept = small / 127.0
  off = np.abs(kept @ np.swapaxes(kept, -1, -2) - unit @ np.swapaxes(unit, -1, -2)).mean()
  return small, round(float(off), 4)


def scaled(values: np.ndarray, kind: Any, most: float | None = None) -> tuple[np.ndarray, float]:
  """Numbers from 0 to `most` (the largest) as whole numbers, and what 1 of them stands for."""
  unit = max(most or float(values.max()), 1e-12) / np.iinfo(kind).max
  return np.rint(values / unit).astype(kind), unit
