r"""Swin Transformer (arXiv:2103.14030, section 4): `configs/swin.py:WHAT`.

python -m vit_jax.main --config=configs/swin.py:digits --workdir=W
python -m vit_jax.main --config=configs/swin.py:cifar10 --config.data.data_dir=D --workdir=W
python -m vit_jax.main --config=configs/swin.py:T --config.data.data_dir=D --workdir=W
python -m vit_jax.main --config=configs/swin.py:B_384 --config.init_from=W_OF_B ...

`digits`: 0.972 of 360 test pictures, seed 0, 3 min on two cores beside other work (0.6.0).
`cifar10_long`: Swin-T on 16 x 16 patches of 2 x 2, 40 epochs, for one GPU: not run.
`cifar10`: 0.547 of 10,000 test pictures (0.477 half way), 20 min on two busy cores (1.3.2).
T, S, B: ImageNet from scratch, 300 epochs in batches of 1,024 with RandAugment, mixup, cutmix,
erasing and drop path 0.2, 0.3, 0.5. B_22k, L_22k: ImageNet-21k's 21,841 classes, 90 epochs.
B_384: 30 epochs at 384 pixels, windows of 12, from `init_from`; B_1k, L_1k: the same at 224 from
ImageNet-21k. Not run at this scale. Published, top-1: T 81.3, S 83.0, B 83.5, B_384 84.5, B from
ImageNet-21k 85.2, L 86.3. Compiled for 8 H100, T takes 9.5 GB of each; for v5e:4x4, 8.7 GB.

Paper and published settings differ; these are the paper's: clipping at 1 (settings 5), fine-tuning
at a constant 1e-5 (cosine from 4e-5), drop path 0.1 at 384 (0.5), ImageNet-21k with a linear decay
and weight decay 0.01 (cosine, 0.05). TFDS's imagenet21k has one class for each folder it finds.
"""

from vit_jax import defaults

EXAMPLES = {'imagenet2012': 1_281_167, 'imagenet21k': 14_197_122 - 51_200}
DROP_PATH = {'T': 0.2, 'S': 0.3, 'B': 0.5, 'L': 0.2}
SMALL = ('digits', 'cifar10', 'cifar10_long')
LARGE = ('T', 'S', 'B', 'B_384', 'B_22k', 'L_22k', 'B_1k', 'L_1k')


def get_config(which='digits'):
  if which not in (*SMALL, *LARGE):
    raise ValueError(f'configs/swin.py:{which}: choose from {", ".join((*SMALL, *LARGE))}')
  config = defaults.get_config()
  config.model = dict(name='swin', variant='T/4')
  if which in SMALL:
    {'digits': digits, 'cifar10': cifar10, 'cifar10_long': cifar10_long}[which](config)
    return config
  size, _, stage = which.partition('_')
  config.model.variant = f'{size}/4'
  imagenet(config, size)
  {'': lambda _: None, '384': higher, '22k': larger, '1k': tuned}[stage](config)
  return config


def digits(config):
  """Maps of 8 x 8 and 4 x 4 single pixels, windows of 4."""
  config.data.rotate = 15.0
  config.data.scale = 0.15
  config.data.shear = 10.0
  config.data.translate = 0.05
  config.model.variant = 'digits/1'
  config.model.window = 4
  config.model.initialisers = 'official'  # 0.02 is little for layers of 32
  config.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=100, weight_decay=0.3)
  config.ema_decay = 0.99
  config.total_steps = 1000
  config.batch_size = 128
  config.log_every = 50
  config.eval_every = 250
  config.checkpoint_every = 250


def cifar10(config):
  """Maps of 16 x 16 and 8 x 8 patches of 2 x 2 pixels, windows of 4."""
  config.data = dict(
    name='tfds', dataset='cifar10', image_size=(32, 32), crop='padded', crop_padding=4, flip=True
  )
  config.model.variant = 'digits/2'
  config.model.window = 4
  config.model.initialisers = 'official'
  config.objective.label_smoothing = 0.1
  config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=200, weight_decay=0.05)
  config.total_steps = 2000
  config.batch_size = 128
  config.eval_every = 1000
  config.checkpoint_every = 500


def cifar10_long(config):
  """Swin-T of 16 x 16 patches, four maps down to 2 x 2, windows of 4; for one GPU, 40 epochs."""
  cifar10(config)
  config.data.crop_border = 'reflect'
  config.objective.cutmix = 1.0
  config.objective.mix_probability = 0.5
  config.model = dict(name='swin', variant='T/2', window=4, drop_path=0.1, dtype='bfloat16')
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 800
  config.ema_decay = 0.999
  config.total_steps = 40 * 50_000 // 256
  config.batch_size = 256
  config.eval_every = 2000
  config.checkpoint_every = 4000


def imagenet(config, size):
  """300 epochs from scratch (section 4.1)."""
  config.data = dict(
    name='tfds', dataset='imagenet2012', test_split='validation', image_size=(224, 224),
    fit='crop', resize='bicubic', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    crop='random_resized', crop_area=(0.08, 1.0), crop_resize='bicubic', flip=True,
    randaugment=2, randaugment_magnitude=9.0, randaugment_std=0.5, randaugment_resize='bicubic',
  )  # fmt: skip
  config.model.drop_path = DROP_PATH[size]
  config.model.dtype = 'bfloat16'
  config.objective = dict(
    name='classification', mixup=0.8, cutmix=1.0, switch_probability=0.5, erasing=0.25,
    label_smoothing=0.1,
  )  # fmt: skip
  config.optimizer = dict(name='adamw', learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)
  epochs(config, 300, 1024, warmup=20)


def epochs(config, count, batch_size, warmup=0):
  """So many epochs of the data set, evaluated every fifth."""
  epoch = EXAMPLES[config.data.dataset] // batch_size
  config.batch_size = batch_size
  config.total_steps = count * epoch
  config.optimizer.warmup_steps = warmup * epoch
  config.log_every = 100
  config.eval_every = 5 * epoch
  config.checkpoint_every = epoch


def larger(config):
  """ImageNet-21k (section 4.1), which has one split: the same part is tested as by big_vision."""
  config.data.dataset = 'imagenet21k'
  config.data.train_split, config.data.test_split = 'train[51200:]', 'train[:25600]'
  config.model.drop_path = 0.2
  config.optimizer.schedule = 'linear'
  config.optimizer.weight_decay = 0.01
  epochs(config, 90, 4096, warmup=5)


def tuned(config):
  """Fine-tuning for 30 epochs at one small rate."""
  config.model.drop_path = 0.2
  config.optimizer = dict(
    name='adamw', learning_rate=1e-5, schedule='constant', weight_decay=1e-8, clip_norm=1.0
  )
  epochs(config, 30, 1024)


def higher(config):
  """The same at 384 x 384 with windows of 12, whose tables of positions are resampled."""
  tuned(config)
  config.data.image_size = (384, 384)
  config.data.fit = 'squash'  # The published code resizes straight to 384.
  config.model.window = 12
  config.model.drop_path = 0.1
