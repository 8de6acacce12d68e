r"""Masked patch prediction, the ViT paper's self-supervision: `configs/masked_patches.py[:WHAT]`.

python -m vit_jax.main --config=configs/masked_patches.py --workdir=W [--config.run=sweep]

Half of the patches are corrupted, and the model predicts their colours; no label is read
(arXiv:2010.11929, B.1.2). WHAT is `digits` (the default: built in, grey, 8 classes of brightness),
`cifar10` (--config.data.data_dir=D), `folder` (--config.data.path=PATH) or `paper`. Other targets:
--config.objective.target=colours (patches of 4 px or more) or pixels.

The result is an ordinary ViT whose head is still zero, for `--config.init_from=W` of any recipe.
The sweep does that, with three seeds: pre-trained, then fine-tuned on few labels, against the same
labels from scratch for as many steps, and for as many as both together.

The sweep of `digits` (1.0.0), 100 labels, test accuracy in %, means of three seeds: fine-tuned
92.1, from scratch 89.1, twice as long 89.9; nothing below 3.5 points is told apart. The pre-trained
models guess 55.3 % of the hidden colours, with a loss of 1.17 nats, where who sees no picture has
1.77. 24 min of one busy core. The same of `cifar10`, 5,000 labels: fine-tuned 44.4, from scratch
41.1, twice as long 48.4, all told apart: pre-training helps, and labels for as long help more. 24.2
% of the colours, 2.83 nats instead of 4.24. 40 min beside other work.
"""

from vit_jax import defaults

SEEDS = 3
STEPS = {'digits': 1000, 'cifar10': 600}
BATCH_SIZE = {'digits': 128, 'cifar10': 64}
LABELS = {'digits': 100, 'cifar10': 5000}  # of the training pictures, to fine-tune on


def get_config(what='digits'):
  if what not in SETS:
    raise ValueError(f'configs/masked_patches.py:{what}: choose {", ".join(SETS)}')
  config = defaults.get_config()
  config.objective = dict(name='masked_patches')
  config.evaluators = ('masked_patches',)
  SETS[what](config)
  return config


def digits(config):
  """4 x 4 patches of 2 x 2 pixels."""
  config.data.rotate = 15.0
  config.data.scale = 0.15
  config.data.shear = 10.0
  config.data.translate = 0.05
  config.model.variant = 'digits/2'
  small(config, 'digits')
  config.optimizer.learning_rate = 2e-3
  config.ema_decay = 0.99


def cifar10(config):
  """8 x 8 patches of 4 x 4 pixels, 5,000 pictures."""
  config.data = dict(
    name='tfds', dataset='cifar10', image_size=(32, 32), crop='padded', crop_padding=4,
    crop_border='reflect', train_examples=5000,
  )  # fmt: skip
  config.model.variant = 'digits/4'
  config.model.width = 96
  config.model.mlp_dim = 192
  small(config, 'cifar10')


def small(config, what):
  """What runs in minutes on a CPU."""
  # The class token predicts nothing, so what reads it would have to learn it anew.
  config.model.readout = 'mean'
  config.evaluators = ('masked_patches', 'fewshot')
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.1
  config.total_steps = STEPS[what]
  config.batch_size = BATCH_SIZE[what]
  config.log_every = 100
  config.eval_every = STEPS[what]
  config.checkpoint_every = STEPS[what]


def folder(config):
  """Photos of any size at 96 x 96, 12 x 12 patches of 8 x 8 pixels. Not run."""
  config.data = dict(name='folder', image_size=(96, 96))
  config.model.variant = 'cifar/8'
  config.model.readout = 'mean'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 500
  config.optimizer.weight_decay = 0.1
  config.total_steps = 10_000
  config.eval_every = 1000
  config.checkpoint_every = 1000


def paper(config):
  """B/16, 14 epochs of JFT, which is not public: any TFDS set, --config.data.dataset=NAME. Not run.

  Decay, dropout and clipping are not told there; here are none.
  """
  config.data = dict(name='tfds', dataset=None, crop='random_resized', flip=True)
  config.model.variant = 'B/16'
  config.model.dtype = 'bfloat16'
  config.optimizer = dict(name='adam', learning_rate=2e-4, warmup_steps=10_000, clip_norm=0.0)
  config.total_steps = 1_000_000
  config.batch_size = 4096
  config.eval_every = 10_000
  config.checkpoint_every = 1000


SETS = {x.__name__: x for x in (digits, cifar10, folder, paper)}


def sweep(what='digits'):
  """Pre-trained and fine-tuned against from scratch, on the same labels."""
  if what not in STEPS:
    raise ValueError(f'configs/masked_patches.py:{what}: the sweep has {" and ".join(STEPS)}')
  judged = {
    'objective.name': 'classification', 'evaluators': ('classification',),
    'data.train_examples': LABELS[what],
  }  # fmt: skip
  long = dict.fromkeys(('total_steps', 'eval_every', 'checkpoint_every'), 2 * STEPS[what])
  rows = [
    {'label': 'pre-trained'},
    {'label': 'from scratch, twice as long'} | judged | long,
    {'label': 'from scratch'} | judged,
    {'label': 'fine-tuned'} | judged | {'init_from': 'run:pre-trained'},
  ]
  return [row | {'seed': seed} for row in rows for seed in range(SEEDS)]
