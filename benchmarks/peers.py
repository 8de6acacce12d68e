"""timm and transformers in torch: the same model, batch and update, as their users run them."""

import contextlib
import functools
from typing import Any

from turns import Timed
import work as works
from work import CLASSES, Work


def open_torch() -> Any:
  """The module, on all cores; on a card, products of float32 are as JAX has them there (TF32).

  Raises:
    RuntimeError: there is a card, and torch cannot use it.
  """
  import torch

  torch.set_num_threads(works.cores())
  torch.set_float32_matmul_precision('high')
  if works.card() and not torch.cuda.is_available():
    raise RuntimeError('there is a card, but this torch is built for CPUs')
  return torch


def mend_torchvision(torch: Any) -> None:
  """Declares what torchvision's wheel for CUDA lacks beside torch for CPUs; timm wants it there."""
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    for operator in ('nms', 'qnms'):
      torch.library.define(f'torchvision::{operator}', '(Tensor a, Tensor b, float c) -> Tensor')


def build_timm(work: Work) -> Any:
  """timm's ViT or Swin, whose class makes every size that `create_model` names."""
  sizes = work.sizes
  if work.family == 'swin':
    from timm.models import swin_transformer

    return swin_transformer.SwinTransformer(
      work.image_size, sizes['patch_size'], num_classes=CLASSES, embed_dim=sizes['first_width'],
      depths=sizes['depths'], num_heads=sizes['heads'], window_size=sizes['window'],
    )  # fmt: skip
  from timm.models import vision_transformer

  return vision_transformer.VisionTransformer(
    work.image_size, sizes['patch_size'], num_classes=CLASSES, embed_dim=sizes['width'],
    depth=sizes['depth'], num_heads=sizes['num_heads'], mlp_ratio=sizes['mlp_dim'] / sizes['width'],
  )  # fmt: skip


def build_transformers(work: Work, attention: str) -> Any:
  """Hugging Face's ViT or Swin with a kind of attention: eager, sdpa."""
  import transformers

  sizes = work.sizes
  same: dict[str, Any] = dict(
    image_size=work.image_size, patch_size=sizes['patch_size'], num_labels=CLASSES,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation=attention,
  )  # fmt: skip
  if work.family == 'swin':
    config = transformers.SwinConfig(
      embed_dim=sizes['first_width'], depths=sizes['depths'], num_heads=sizes['heads'],
      window_size=sizes['window'], drop_path_rate=0.0, **same,
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config)
  else:
    config = transformers.ViTConfig(
      hidden_size=sizes['width'], num_hidden_layers=sizes['depth'],
      num_attention_heads=sizes['num_heads'], intermediate_size=sizes['mlp_dim'], **same,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
  assert model.config._attn_implementation == attention  # It might fall back in silence.
  return model


BUILDERS = {
  'timm': build_timm,
  'transformers': functools.partial(build_transformers, attention='eager'),
  'transformers_sdpa': functools.partial(build_transformers, attention='sdpa'),
}


def make(library: str, work: Work, compiled: bool) -> Timed:
  """A step of a library.

  Args:
    library: a name of BUILDERS.
    compiled: under `torch.compile`.
  """
  torch = open_torch()
  mend_torchvision(torch)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = BUILDERS[library](work).to(device)
  side = work.image_size
  images = torch.randn(work.batch_size, 3, side, side, device=device)
  if device == 'cuda':
    model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
  function = torch.compile(model) if compiled else model
  lower = work.dtype != 'float32'
  precision = functools.partial(torch.autocast, device, getattr(torch, work.dtype))
  make_run = inference if work.kind == 'inference' else training
  run = make_run(torch, model, function, images, precision if lower else contextlib.nullcontext)
  return timed(torch, device, run)


def logits_of(answer: Any) -> Any:
  """The logits in what a model returns."""
  return getattr(answer, 'logits', answer)


def inference(torch: Any, model: Any, function: Any, images: Any, precision: Any) -> Any:
  """A function that computes the logits of a batch."""
  model.eval()

  def run():
    with torch.inference_mode(), precision():
      return logits_of(function(images))

  return run


def training(torch: Any, model: Any, function: Any, images: Any, precision: Any) -> Any:
  """A function that takes one more step (forward, backward, update)."""
  model.train()
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
  labels = torch.arange(len(images), device=images.device) % CLASSES

  def run():
    optimizer.zero_grad()
    with precision():
      loss = torch.nn.functional.cross_entropy(logits_of(function(images)), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()

  return run


def timed(torch: Any, device: str, run: Any) -> Timed:
  """Something of torch to time."""
  if device == 'cpu':
    return Timed(run, lambda _: None)
  return Timed(
    run, lambda _: torch.cuda.synchronize(), queued=True,
    free=torch.cuda.empty_cache, memory=torch.cuda.max_memory_allocated,
  )  # fmt: skip


def peak(dtype: str, side: int) -> Timed:
  """The largest matrix product that this machine gives torch."""
  torch = open_torch()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  a, b = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))

  def run():
    with torch.inference_mode():
      return a @ b

  return timed(torch, device, run)
