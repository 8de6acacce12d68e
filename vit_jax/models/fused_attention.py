"""Kernels in which attention writes no scores to memory: which can run where, and how to call them.

Letters in annotations as in `layers.py`.
"""

from typing import Any, Literal

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from vit_jax.runtime.choices import check_choice

FUSED = ('cudnn', 'pallas')
OLD_TPUS = ('TPU v2', 'TPU v3')  # Their compiler: "Unsupported matmul RHS type".
ATTENTION = ('auto', 'plain', *FUSED)


def obstacles(kernel: str, device: Any, section: dict[str, Any], length: int) -> list[str]:
  """Reasons why a fused kernel cannot run.

  Args:
    kernel: a name of FUSED.
    device: that computes, or that is compiled for.
    section: of a ViT, complete.
    length: how many tokens there are.
  """
  heads, dtype = section['num_heads'], section['dtype']
  head_dim = section['width'] // heads
  inside = ['attention dropout needs the weights'] * (section['attention_dropout'] > 0)
  inside += ['relative positions add to the scores'] * (section['positions'] == 'relative')
  if kernel == 'pallas':
    inside += ['it has no causal mask'] * section.get('causal', False)
    if device.platform != 'tpu':
      return ['the device is no TPU', *inside]
    if device.device_kind in OLD_TPUS and dtype != 'float32':
      return [f'a {device.device_kind} takes float32 alone in a kernel', *inside]
    from vit_jax.models import tpu_attention  # Pallas takes half a second to import.

    reason = tpu_attention.obstacle(head_dim, heads, length, dtype)
    return [reason, *inside] if reason else inside
  capability = float(getattr(device, 'compute_capability', 0) or 0)
  reasons = {
    'the device is no NVIDIA GPU of compute capability 8.0 or later': capability < 8,
    'dtype is not bfloat16 or float16': dtype not in ('bfloat16', 'float16'),
    f'the heads are {head_dim} wide, not a multiple of 8 up to 128': head_dim % 8 or head_dim > 128,
  }
  return [reason for reason, holds in reasons.items() if holds] + inside


def choose(section: dict[str, Any], device: Any, length: int) -> str:
  """The kernel that attention runs in: plain, or a name of FUSED; `auto` takes what can run.

  Raises:
    ValueError: the section asks for one that cannot run there.
  """
  asked = section['attention']
  check_choice('config.model.attention', asked, ATTENTION)
  if asked == 'auto':
    fitting = [kernel for kernel in FUSED if not obstacles(kernel, device, section, length)]
    return fitting[0] if fitting else 'plain'
  why = obstacles(asked, device, section, length) if asked in FUSED else []
  if why:
    raise ValueError(f"attention={asked!r} cannot run here: {'; '.join(why)}; use 'auto'")
  return asked


def on_gpu(
  qkv: Float[Array, 'B T 3 h d'],
  scale: float,
  implementation: Literal['cudnn', 'xla'],
  causal: bool = False,
) -> Float[Array, 'B T h d']:
  """Attention in one kernel, which writes no scores to memory.

  JAX lets cuDNN's kernel train on even numbers of tokens alone ("Unsupported sequence length Q 197"
  otherwise, jax 0.10.2): an odd one gets a token more, which the lengths mask.

  Args:
    implementation: of `jax.nn.dot_product_attention`: 'cudnn', or 'xla' to see the same elsewhere.
  """
  batch, length = qkv.shape[:2]
  lengths = None
  if length % 2:
    qkv = jnp.pad(qkv, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    lengths = jnp.full(batch, length, jnp.int32)
  query, key, value = (qkv[:, :, i] for i in range(3))
  y = jax.nn.dot_product_attention(
    query, key, value, scale=scale, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    is_causal=causal, implementation=implementation,
  )  # fmt: skip
  return y[:, :length]


def on_tpu(qkv: Float[Array, 'B T 3 h d'], scale: float) -> Float[Array, 'B T D']:
  """Attention in our own kernel; `qkv` is a view of one in which head lies after head."""
  from vit_jax.models import tpu_attention

  batch, length, _, heads, head_dim = qkv.shape
  flat = qkv.swapaxes(2, 3).reshape(batch, length, 3 * heads * head_dim)
  return tpu_attention.attend(flat, head_dim, scale)
