"""The names of ViT weights elsewhere, one table a library: timm, torchvision, Hugging Face."""

import dataclasses

ATTENTION = 'MultiHeadDotProductAttention_1'


@dataclasses.dataclass(frozen=True)
class Family:
  """Names of one library.

  Attributes:
    block: prefix of block i.
    modules: our module -> theirs, within a block or outside.
    parameters: 'cls', 'dist', 'reg' (registers) and 'position' -> theirs.
    packed: query, key and value as one matrix: its name before 'weight' and 'bias', if any.
    gelu, epsilon: what its models compute with.
  """

  block: str
  modules: dict[str, str]
  parameters: dict[str, str]
  packed: str | None
  gelu: str
  epsilon: float
  backbone: str | None = None  # prefix of a hybrid's ResNet
  scales: tuple[str, str] | None = None  # LayerScale of a block's branches


FAMILIES = {
  'timm': Family(
    block='blocks.{}.',
    modules={
      'embedding': 'patch_embed.proj',
      'Transformer/encoder_norm': 'norm',
      'head': 'head',
      'head_dist': 'head_dist',
      'LayerNorm_0': 'norm1',
      f'{ATTENTION}/out': 'attn.proj',
      'LayerNorm_2': 'norm2',
      'MlpBlock_3/Dense_0': 'mlp.fc1',
      'MlpBlock_3/Dense_1': 'mlp.fc2',
    },
    parameters={
      'cls': 'cls_token',
      'dist': 'dist_token',
      'reg': 'reg_token',
      'position': 'pos_embed',
    },
    packed='attn.qkv.',
    gelu='exact',
    epsilon=1e-6,
    backbone='patch_embed.backbone.',
    scales=('ls1.gamma', 'ls2.gamma'),
  ),
  'torchvision': Family(
    block='encoder.layers.encoder_layer_{}.',
    modules={
      'embedding': 'conv_proj',
      'Transformer/encoder_norm': 'encoder.ln',
      'pre_logits': 'heads.pre_logits',
      'head': 'heads.head',
      'LayerNorm_0': 'ln_1',
      f'{ATTENTION}/out': 'self_attention.out_proj',
      'LayerNorm_2': 'ln_2',
      'MlpBlock_3/Dense_0': 'mlp.0',
      'MlpBlock_3/Dense_1': 'mlp.3',
    },
    parameters={'cls': 'class_token', 'position': 'encoder.pos_embedding'},
    packed='self_attention.in_proj_',
    gelu='exact',
    epsilon=1e-6,
  ),
  'huggingface': Family(
    block='vit.encoder.layer.{}.',
    modules={
      'embedding': 'vit.embeddings.patch_embeddings.projection',
      'Transformer/encoder_norm': 'vit.layernorm',
      'pre_logits': 'vit.pooler.dense',
      'head': 'classifier',
      'LayerNorm_0': 'layernorm_before',
      f'{ATTENTION}/query': 'attention.attention.query',
      f'{ATTENTION}/key': 'attention.attention.key',
      f'{ATTENTION}/value': 'attention.attention.value',
      f'{ATTENTION}/out': 'attention.output.dense',
      'LayerNorm_2': 'layernorm_after',
      'MlpBlock_3/Dense_0': 'intermediate.dense',
      'MlpBlock_3/Dense_1': 'output.dense',
    },
    parameters={
      'cls': 'vit.embeddings.cls_token',
      'position': 'vit.embeddings.position_embeddings',
    },
    packed=None,
    gelu='exact',
    epsilon=1e-12,
  ),
}


def with_teacher(vit: Family) -> Family:
  """The names of Hugging Face's DeiTForImageClassificationWithTeacher, from those of its ViT."""
  modules = {
    ours: theirs.replace('vit.', 'deit.') for ours, theirs in vit.modules.items()
    if ours != 'pre_logits'
  }  # fmt: skip
  tokens = {ours: theirs.replace('vit.', 'deit.') for ours, theirs in vit.parameters.items()}
  return dataclasses.replace(
    vit,
    block=vit.block.replace('vit.', 'deit.'),
    modules=modules | {'head': 'cls_classifier', 'head_dist': 'distillation_classifier'},
    parameters=tokens | {'dist': 'deit.embeddings.distillation_token'},
  )


FAMILIES['huggingface_deit'] = with_teacher(FAMILIES['huggingface'])


def of_dinov2(vit: Family) -> Family:
  """The names of Hugging Face's DINOv2, with registers or without, from those of its ViT."""
  inside = {
    'LayerNorm_0': 'norm1', 'LayerNorm_2': 'norm2',
    'MlpBlock_3/Dense_0': 'mlp.fc1', 'MlpBlock_3/Dense_1': 'mlp.fc2',
  }  # fmt: skip
  modules = {
    ours: theirs.replace('vit.', 'dinov2.')
    for ours, theirs in vit.modules.items()
    if ours != 'pre_logits'
  }
  tokens = {ours: theirs.replace('vit.', 'dinov2.') for ours, theirs in vit.parameters.items()}
  return dataclasses.replace(
    vit,
    block=vit.block.replace('vit.', 'dinov2.'),
    modules=modules | inside,
    parameters=tokens | {'reg': 'dinov2.embeddings.register_tokens'},
    epsilon=1e-6,
    scales=('layer_scale1.lambda1', 'layer_scale2.lambda1'),
  )


FAMILIES['huggingface_dinov2'] = of_dinov2(FAMILIES['huggingface'])
