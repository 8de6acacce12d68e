r"""Pre-training of the ViT paper (table 3): `configs/vit_paper.py:DATA,VARIANT`.

python -m vit_jax.main --config=configs/vit_paper.py:jft,H/14 --config.data.data_dir=D --workdir=W

DATA is `imagenet`, `imagenet21k` or `jft`; VARIANT a ViT (B/16, L/32, H/14, ...), a hybrid
(R50+B/16, ...) or a ResNet (R50x1, ...). Batches of 4,096, Adam, 10,000 steps of warm-up. JFT is
not public: its rows are for any TFDS set, --config.data.dataset=NAME, with the paper's number of
steps; `imagenet21k,L/16` and `jft,L/16` are the longer of the paper's two (90 and 14 epochs).

Not run at this scale. Published, fine-tuned to ImageNet at 384: B/16 77.9 (imagenet), 84.0 (21k),
84.2 (JFT); L/16 76.5, 85.2, 87.1; H/14 from JFT 88.0 (table 5).
"""

from vit_jax import defaults

EXAMPLES = {'imagenet': 1_281_167, 'imagenet21k': 14_197_122, 'jft': 303_000_000}
# Epochs and learning rate on JFT.
JFT = {
  'B/16': (7, 8e-4), 'B/32': (7, 8e-4), 'L/32': (7, 6e-4), 'L/16': (14, 4e-4), 'H/14': (14, 3e-4),
  'R50x1': (7, 1e-3), 'R50x2': (7, 1e-3), 'R101x1': (7, 8e-4), 'R152x1': (7, 6e-4),
  'R152x2': (7, 6e-4), 'R50+B/16': (7, 8e-4), 'R50+B/32': (7, 8e-4), 'R50+L/32': (7, 2e-4),
  'R50+L/16': (14, 4e-4),
}  # fmt: skip
EPOCHS_21K = {'B/16': 90, 'B/32': 90, 'L/16': 90, 'L/32': 90}
IMAGENET = ('B/16', 'B/32', 'L/16', 'L/32')


def get_config(which='imagenet,B/16'):
  source, _, variant = which.partition(',')
  rows = {'imagenet': IMAGENET, 'imagenet21k': EPOCHS_21K, 'jft': JFT}
  if variant not in rows.get(source, ()):
    known = '; '.join(f'{name} with {", ".join(variants)}' for name, variants in rows.items())
    raise ValueError(f'configs/vit_paper.py:{which}: choose {known}')
  config = defaults.get_config()
  config.data = dict(name='tfds', dataset='imagenet2012', crop='random_resized', flip=True)
  if source == 'imagenet':
    config.data.test_split = 'validation'
    epochs, rate, schedule, decay, dropout = 300, 3e-3, 'cosine', 0.3, 0.1
  elif source == 'imagenet21k':
    config.data.dataset = 'imagenet21k'
    config.data.train_split, config.data.test_split = 'train[51200:]', 'train[:25600]'
    epochs, rate, schedule, decay, dropout = EPOCHS_21K[variant], 1e-3, 'linear', 0.03, 0.1
  else:
    config.data.dataset = None  # Not public: name one.
    (epochs, rate), schedule, decay, dropout = JFT[variant], 'linear', 0.1, 0.0
  config.model = model(variant, dropout)
  config.objective.loss = 'softmax' if source == 'imagenet' else 'sigmoid'
  config.optimizer = dict(
    name='adamw', learning_rate=rate, schedule=schedule, weight_decay=decay, warmup_steps=10_000,
    clip_norm=1.0 if source == 'imagenet' else 0.0,
  )  # fmt: skip
  config.batch_size = 4096
  config.total_steps = epochs * EXAMPLES[source] // config.batch_size
  config.eval_every = 10_000
  config.checkpoint_every = 1000
  return config


def model(variant, dropout):
  """The model's section: a ViT or hybrid with a tanh layer before its head, or a ResNet."""
  if variant.startswith('R') and '+' not in variant:
    return dict(name='bit', variant=variant, dtype='bfloat16')
  width = 1024 if 'L/' in variant else 1280 if 'H/' in variant else 768
  kind = 'hybrid' if '+' in variant else 'vit'
  return dict(
    name=kind, variant=variant, pre_logits=width, dropout=dropout, dtype='bfloat16',
    head_bias=0.0,
  )  # fmt: skip
