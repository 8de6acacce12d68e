r"""AugReg (arXiv:2106.10270): ViTs on ImageNet-21k, `configs/vit_augreg.py:VARIANT[,PRESET]`.

python -m vit_jax.main --config=configs/vit_augreg.py:B/16 --config.data.data_dir=D --workdir=W

PRESET is none, light1, light2, medium1, medium2, strong1 or strong2: how strong RandAugment and
mixup are; left out, the one that big_vision takes for that size. 300 epochs in batches of 4,096,
sigmoid loss, mean of the patches, Adam whose decay does not follow the rate's height. Any other
TFDS set: --config.data.dataset=NAME (and its --config.total_steps, of 4,096 pictures each).

Not run at this scale. RandAugment has timm's operations; big_vision's have Cutout too.
"""

from vit_jax import defaults

EXAMPLES = 14_197_122 - 51_200
# Magnitude of RandAugment (None: none; 0 is not nothing), and mixup's alpha.
PRESETS = {
  'none': (None, 0.0),
  'light1': (0, 0.0),
  'light2': (10, 0.2),
  'medium1': (15, 0.2),
  'medium2': (15, 0.5),
  'strong1': (20, 0.5),
  'strong2': (20, 0.8),
}
USUAL = {
  'Ti/16': 'none', 'S/32': 'none', 'S/16': 'light1', 'B/32': 'light2', 'B/16': 'light2',
  'L/16': 'medium2',
}  # fmt: skip


def get_config(which='B/16'):
  variant, _, preset = which.partition(',')
  preset = preset or USUAL.get(variant, '')
  if preset not in PRESETS:
    raise ValueError(
      f'configs/vit_augreg.py:{which}: VARIANT,PRESET with PRESET one of {", ".join(PRESETS)}; '
      f'{", ".join(USUAL)} have a usual one'
    )
  magnitude, mixup = PRESETS[preset]
  config = defaults.get_config()
  config.data = dict(
    name='tfds', dataset='imagenet21k', train_split='train[51200:]', test_split='train[:25600]',
    fit='crop', crop='random_resized', flip=True,
  )  # fmt: skip
  if magnitude is not None:
    config.data.randaugment = 2
    config.data.randaugment_magnitude = float(magnitude)
    config.data.randaugment_std = 0.0
    config.data.randaugment_probability = 1.0
    config.data.randaugment_max = 30.0
    # big_vision's operations: the older forms, where 0 keeps no bit of a picture and 20 all of
    # them, and no interpolation.
    config.data.randaugment_increasing = False
    config.data.randaugment_resize = 'nearest'
  config.model = dict(name='vit', variant=variant, readout='mean', class_token=False)
  config.model.head_bias = -10.0
  config.model.dtype = 'bfloat16'
  config.objective = dict(name='classification', loss='sigmoid', mixup=mixup)
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, decay='independent', weight_decay=1e-4,
    momentum_dtype='bfloat16', warmup_steps=10_000,
  )  # fmt: skip
  config.batch_size = 4096
  config.total_steps = 300 * EXAMPLES // config.batch_size
  config.log_every = 50
  config.eval_every = 10_000
  config.checkpoint_every = 1000
  return config
