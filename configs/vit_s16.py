r"""Better plain ViT baselines for ImageNet (arXiv:2205.01580): S/16, `configs/vit_s16.py[:300]`.

python -m vit_jax.main --config=configs/vit_s16.py --config.data.data_dir=D --workdir=W

90 epochs (or 300) in batches of 1,024: mean of the patches, a tanh layer before the head,
RandAugment 2 x 10, mixup 0.2, Adam whose decay does not follow the rate's height.

Not run at this scale. Published: 76.5 % after 90 epochs, 79.8 % after 300, with sine-cosine
positions; here they are learned.
"""

from vit_jax import defaults

EXAMPLES = 1_281_167 * 99 // 100


def get_config(epochs='90'):
  if epochs not in ('90', '300'):
    raise ValueError(f'configs/vit_s16.py:{epochs}: choose 90 or 300 epochs')
  config = defaults.get_config()
  config.data = dict(
    name='tfds', dataset='imagenet2012', train_split='train[:99%]', test_split='validation',
    fit='crop', crop='random_resized', flip=True, randaugment=2, randaugment_magnitude=10.0,
    randaugment_std=0.0, randaugment_probability=1.0,
    # big_vision's operations: the older forms, where 10 is mild for some, and no interpolation.
    randaugment_increasing=False, randaugment_resize='nearest',
  )  # fmt: skip
  config.model = dict(name='vit', variant='S/16', readout='mean', class_token=False, pre_logits=384)
  config.model.dtype = 'bfloat16'
  config.objective = dict(name='classification', mixup=0.2)
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, decay='independent', weight_decay=1e-4,
    momentum_dtype='bfloat16', warmup_steps=10_000,
  )  # fmt: skip
  config.batch_size = 1024
  config.total_steps = int(epochs) * EXAMPLES // config.batch_size
  config.log_every = 50
  config.eval_every = 2500
  config.checkpoint_every = 1000
  return config
