r"""Fine-tuning a BiT by its HyperRule (arXiv:1912.11370): `configs/bit_hyperrule.py:WHAT`.

python -m vit_jax.main --config=configs/bit_hyperrule.py:2040 --workdir=W \
  --config.init_from=BIT --config.data.path=PATH

WHAT is the number of training pictures (of a folder), or a TFDS set: cifar10, cifar100, pets,
flowers, imagenet. The rule gives steps, learning rates, mixup and size by the number and area of
pictures: below 20,000 500 steps without mixup, below 500,000 10,000, else 20,000 with mixup 0.1;
SGD 0.003 in batches of 512, momentum 0.9, divided by 10 at each of its support points. Pictures of
less than 96 x 96 are cropped to 128 of 160 pixels, others to 384 of 448; evaluation resizes whole.
Not run with real weights.
"""

from vit_jax import defaults

# Largest number of pictures -> support points; training ends at the last.
RULE = (
  (20_000, (100, 200, 300, 400, 500)),
  (500_000, (500, 3000, 6000, 9000, 10_000)),
  (None, (500, 6000, 12_000, 18_000, 20_000)),
)
SETS = {  # training pictures, side of a picture, data
  'cifar10': (50_000, 32, dict(dataset='cifar10')),
  'cifar100': (50_000, 32, dict(dataset='cifar100')),
  'pets': (3680, 224, dict(dataset='oxford_iiit_pet')),
  'flowers': (2040, 224, dict(dataset='oxford_flowers102', train_split='train+validation')),
  'imagenet': (1_281_167, 224, dict(dataset='imagenet2012', test_split='validation')),
}


def get_config(what='2040'):
  if what not in SETS and not what.isdigit():
    raise ValueError(f'configs/bit_hyperrule.py:{what}: give a number, or {", ".join(SETS)}')
  count, side, data = SETS[what] if what in SETS else (int(what), 224, {})
  points = next(points for below, points in RULE if below is None or count < below)
  config = defaults.get_config()
  whole, size = (160, 128) if side < 96 else (448, 384)
  config.data = dict(
    name='tfds' if what in SETS else 'folder', image_size=(size, size),
    crop='squashed', crop_from=(whole, whole), **data,
  )  # fmt: skip
  config.model = dict(name='bit')
  config.optimizer = dict(
    name='sgd', learning_rate=0.003, schedule='steps', warmup_steps=points[0],
    drops=points[1:-1], clip_norm=0.0, weight_decay=0.0,
  )  # fmt: skip
  config.objective.mixup = 0.0 if count < 20_000 else 0.1
  config.total_steps = points[-1]
  config.batch_size = 512
  config.accumulation_steps = 8
  config.eval_every = points[0]
  config.checkpoint_every = points[0]
  return config
