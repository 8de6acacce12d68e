r"""Fine-tuning as in the ViT paper (table 4): `configs/finetune.py:DATA`, from any weights.

python -m vit_jax.main --config=configs/finetune.py:folder --workdir=W \
  --config.init_from=WEIGHTS --config.data.path=PATH

DATA is `digits` (the default: built in), `folder`, or a TFDS set: `cifar10`, `cifar100`, `pets`,
`flowers`, `imagenet`; `imagenet_512` (L/16) and `imagenet_518` (H/14) are the paper's highest
resolutions, with averaged weights. WEIGHTS is a run, a file (.npz, .safetensors, .pth) or
hf://OWNER/NAME; the model's size and all that belongs to the weights comes with them.

SGD with momentum 0.9 kept in bfloat16, cosine, gradient norm 1, no weight decay, a fresh head that
starts at 0, batches of 512 in 8 parts, 384 x 384. The paper chose the learning rate from GRIDS on
the share DEV of the training set, and then trained on all of it: --config.run=sweep does the first,
and its table names the rate for the second.

--config.optimizer.train=head trains the head alone, last:4 four blocks too;
--config.optimizer.layer_decay=0.75 gives lower blocks less. With real ViT-B/16 weights: not run.
"""

from vit_jax import defaults

GRIDS = {
  'imagenet': (0.003, 0.01, 0.03, 0.06),
  'cifar100': (0.001, 0.003, 0.01, 0.03),
  'cifar10': (0.001, 0.003, 0.01, 0.03),
  'pets': (0.001, 0.003, 0.01, 0.03),
  'flowers': (0.001, 0.003, 0.01, 0.03),
}
DEV = {'imagenet': 0.01, 'cifar100': 0.02, 'cifar10': 0.02, 'pets': 0.1, 'flowers': 0.1}
STEPS = {'imagenet': 20_000, 'cifar100': 10_000, 'cifar10': 10_000, 'pets': 500, 'flowers': 500}
SETS = {
  'imagenet': dict(dataset='imagenet2012', test_split='validation'),
  'cifar100': dict(dataset='cifar100'),
  'cifar10': dict(dataset='cifar10'),
  'pets': dict(dataset='oxford_iiit_pet'),
  # The paper's 2,040 pictures.
  'flowers': dict(dataset='oxford_flowers102', train_split='train+validation'),
}


def get_config(data='digits'):
  word, (data, _, side) = data, data.partition('_')
  sides = ('',) if data == 'digits' else ('', '512', '518')
  if data not in (*SETS, 'digits', 'folder') or side not in sides:
    raise ValueError(
      f'configs/finetune.py:{word}: choose digits, folder, {", ".join(SETS)}; all but digits '
      'also with _512 or _518 behind'
    )
  config = defaults.get_config()
  size = (int(side or 384), int(side or 384))
  if data == 'digits':
    config.data = dict(name='digits', image_size=(16, 16))
  elif data == 'folder':
    config.data = dict(name='folder', image_size=size)
  else:
    config.data = dict(name='tfds', image_size=size, **SETS[data])
  config.optimizer = dict(
    name='sgd', learning_rate=0.03, momentum_dtype='bfloat16', clip_norm=1.0, weight_decay=0.0
  )
  config.total_steps = STEPS.get(data, 500)
  config.optimizer.warmup_steps = 100 if config.total_steps <= 500 else 500
  config.batch_size = 512
  config.accumulation_steps = 8
  config.eval_every = max(100, config.total_steps // 10)
  config.checkpoint_every = max(100, config.total_steps // 10)
  if data in ('digits', 'folder'):
    config.batch_size = 64
    config.accumulation_steps = 1
  if side:
    config.ema_decay = 0.9999
  return config


def sweep(data='digits'):
  """Each learning rate, judged on a share of the training set."""
  data = data.partition('_')[0]
  dev = DEV.get(data, 0.1)
  return [
    {'optimizer.learning_rate': rate, 'data.validation_fraction': dev, 'checkpoint_every': 0}
    for rate in GRIDS.get(data, (0.001, 0.003, 0.01, 0.03))
  ]
