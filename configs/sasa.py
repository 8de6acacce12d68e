r"""Stand-alone self-attention in a ResNet (arXiv:1906.05909): `configs/sasa.py:WHAT`.

python -m vit_jax.main --config=configs/sasa.py:digits --workdir=W
python -m vit_jax.main --config=configs/sasa.py:cifar10 --config.data.data_dir=D --workdir=W
python -m vit_jax.main --config=configs/sasa.py:R50 --config.data.data_dir=D --workdir=W

`digits`: enlarged to 32 x 32; 0.864 of 360 test pictures, seed 0, 300 steps, 8 min beside
other work (0.7.0).
`cifar10`: 0.294 of 2,000 after 200 steps of 32, seed 0, 9 min beside other work (0.7.0).
Compiled for an H100, R26 in batches of 64 takes 18.3 GB (--mode=plan).
R26, R38, R50: ImageNet. Not run at this scale; what the paper publishes, top-1 with attention's and
with convolution's stem: 74.8 and 75.8, 76.9 and 77.1, 77.6 and 77.4 %, where convolutions have
74.5, 76.2, 76.9. Its training is not known to us in detail: these are 130 epochs of Axial-DeepLab's
(SGD with Nesterov momentum, 0.05 for 128 pictures, weight decay 8e-5). Its ablations are
`configs/ablate_sasa.py`.
"""

from vit_jax import defaults

EPOCH = 1_281_167 // 1024
SMALL = ('digits', 'cifar10')
LARGE = ('R26', 'R38', 'R50')


def get_config(which='digits'):
  if which not in (*SMALL, *LARGE):
    raise ValueError(f'configs/sasa.py:{which}: choose from {", ".join((*SMALL, *LARGE))}')
  config = defaults.get_config()
  config.model = dict(name='sasa', variant='digits', kernel=5)
  if which in SMALL:
    small(config, which)
  else:
    imagenet(config, which)
  return config


def small(config, which):
  """Maps of 8 x 8 and 4 x 4 places, from 32 x 32 pixels: a place of the first sees 5 x 5."""
  config.data.image_size = (32, 32)
  config.data.rotate = 15.0
  config.data.scale = 0.15
  config.total_steps = 300
  config.batch_size = 64
  if which == 'cifar10':
    config.data = dict(name='tfds', dataset='cifar10', test_split='test[:2000]',
                       image_size=(32, 32), crop='padded')  # fmt: skip
    config.total_steps = 200
    config.batch_size = 32
  config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=50, weight_decay=0.1)
  config.log_every = 50
  config.eval_every = config.total_steps
  config.checkpoint_every = 100


def imagenet(config, variant):
  """224 x 224 pixels, neighbourhoods of 7 x 7."""
  config.data = dict(
    name='tfds', dataset='imagenet2012', test_split='validation', image_size=(224, 224),
    fit='crop', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop='random_resized',
    crop_area=(0.08, 1.0), flip=True,
  )  # fmt: skip
  config.model.variant = variant
  config.model.kernel = 7
  config.model.dtype = 'bfloat16'
  config.objective.label_smoothing = 0.1
  config.optimizer = dict(
    name='sgd',
    learning_rate=0.4,
    warmup_steps=10 * EPOCH,
    weight_decay=8e-5,
    nesterov=True,
    clip_norm=0.0,
  )
  config.batch_size = 1024
  config.total_steps = 130 * EPOCH
  config.log_every = 100
  config.eval_every = 5 * EPOCH
  config.checkpoint_every = EPOCH
