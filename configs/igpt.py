r"""Image GPT (Chen et al., ICML 2020), colours of pixels in a row: `configs/igpt.py[:WHAT[,HOW]]`.

python -m vit_jax.main --config=configs/igpt.py --workdir=W

WHAT is `digits` (the default: built in, 8 x 8 pixels of 16 greys), `cifar10_small` (5,000 pictures
at 16 x 16, for a CPU), `cifar10_long` (all of them, for a GPU; not run), `cifar10` (32 x 32), `s`,
`m`, `l`, `xl` (the paper's sizes on ImageNet) or `finetune`; all but the first and the last need
--config.data.data_dir=D. HOW is `ar` (the default: each pixel from those before it) or `bert`
(hidden pixels from all others). The palette is made of
the run's own training pictures, or read: --config.model.palette=FILE.npy (OpenAI's `clusters`, of
512). Then, completions and pictures from nothing; bits a pixel and a probe of every block; and
fine-tuning on pixels and labels:

python -m vit_jax.interpret sample W --out=DIR
python -m vit_jax.main --config=configs/igpt.py --workdir=W --mode=evaluate
python -m vit_jax.main --config=configs/igpt.py:finetune --config.init_from=W --workdir=W2

Digits, 1,200 steps, 14 min of two cores beside other work: 1.77 bits a pixel of the 360 test
pictures (1.228 nats), where the entropy of the colours is 2.92; probes of blocks 1 to 4 at 0.883,
0.903, 0.914, 0.922; digits that a person reads. Fine-tuned on all labels, 300 steps, 3 min: 0.900
of the test pictures, 0.922 after 200 of the steps (one seed). `cifar10_small`, 600 steps, 18 min:
2.47 bits of 5.77, probes 0.360, 0.389, 0.407, 0.414 of 2,000 pictures. Everything else: not run;
`s` compiles with config.model.scan=True for one H100 (37 GB, attention by cuDNN) and, with
config.model.remat=blocks too, for v5e:2x2 (5.3 GB a chip; 38 without, which it has not).
"""

from vit_jax import defaults

HOW = ('ar', 'bert')
EPOCH = 1_281_167 * 0.96  # ImageNet's training pictures without the 4 % that validate


def get_config(words='digits'):
  what, _, how = words.partition(',')
  how = how or 'ar'
  if what not in SETS or how not in HOW:
    known = f'{", ".join(SETS)}, then {" or ".join(HOW)}'
    raise ValueError(f'configs/igpt.py:{words}: choose {known}')
  config = defaults.get_config()
  config.model = dict(name='igpt', causal=how == 'ar')
  config.objective = dict(name='autoregressive' if how == 'ar' else 'masked_pixels')
  config.optimizer = dict(name='adam', b2=0.95, clip_norm=0.0)  # no decay, as in the paper
  config.evaluators = ('pixels',)
  SETS[what](config)
  return config


def digits(config):
  """64 tokens of 16 greys; dropout, as there are 1,437 pictures."""
  config.model.variant = 'digits'
  config.model.clusters = 16
  config.model.dropout = 0.1
  small(config, 1200)


def cifar10_small(config):
  """256 tokens of 64 colours; judged on 2,000 pictures, once."""
  config.data = dict(name='tfds', dataset='cifar10', image_size=(16, 16), crop='none', flip=True,
                     train_examples=5000, test_split='test[:2000]')  # fmt: skip
  config.model.variant = 'digits'
  config.model.clusters = 64
  small(config, 600)
  config.batch_size = 32
  config.eval_every = config.total_steps


def cifar10_long(config):
  """256 tokens of 64 colours, eight blocks of width 256; for one GPU, 15 epochs."""
  cifar10_small(config)
  config.data.train_examples = 50_000
  config.model.width = 256
  config.model.depth = 8
  config.model.num_heads = 8
  config.model.mlp_dim = 1024
  config.model.dtype = 'bfloat16'
  config.evaluators = ('pixels',)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 500
  config.total_steps = 6000
  config.batch_size = 128
  config.eval_every = 2000
  config.checkpoint_every = 2000


def small(config, steps):
  """What runs in minutes on a CPU; every layer is probed."""
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.clip_norm = 1.0
  config.evaluators = ('pixels', 'linear')
  config.evaluation = dict(linear=dict(layers='all', strengths=(1e-2, 1e-1, 1.0)))
  config.total_steps = steps
  config.eval_every = steps // 4
  config.checkpoint_every = steps // 4


def cifar10(config):
  """S on CIFAR-10 alone; the paper pre-trains on ImageNet."""
  config.data = dict(name='tfds', dataset='cifar10', image_size=(32, 32), crop='padded',
                     crop_border='reflect', flip=True, validation_fraction=0.1)  # fmt: skip
  paper(config, 'S', 32, 390 * 200, 128, 390)


def paper(config, variant, side, steps, batch, warmup):
  """The paper's settings; it searched the rate over 0.01, 0.003, 0.001, ... for each size."""
  config.data.image_size = (side, side)
  config.model.variant = variant
  config.model.dtype = 'bfloat16'
  config.optimizer.learning_rate = 3e-3 if variant == 'S' else 1e-3
  config.optimizer.warmup_steps = warmup
  config.total_steps = steps
  config.batch_size = batch
  config.eval_every = 10_000
  config.checkpoint_every = 1000
  config.best = 'min:validation/pixel_loss'


def imagenet(config, variant, side, steps=1_000_000, batch=128):
  """Windows of a third to three quarters of a picture: 224 of a shorter side of 256 to 384."""
  config.data = dict(
    name='tfds', dataset='imagenet2012', test_split='validation', validation_fraction=0.04,
    fit='crop', resize_small=side, crop='random_resized', crop_area=(0.34, 0.77),
    crop_ratio=(1.0, 1.0), flip=False,
  )  # fmt: skip
  paper(config, variant, side, steps, batch, round(EPOCH / batch))


def s(config):
  """76M parameters, 32 x 32."""
  imagenet(config, 'S', 32)


def m(config):
  """455M parameters, 32 x 32."""
  imagenet(config, 'M', 32)
  config.model.remat = 'blocks'


def l(config):  # noqa: E743
  """1.36B parameters, 48 x 48."""
  imagenet(config, 'L', 48)
  config.model.remat = 'blocks'


def xl(config):
  """6.8B parameters, 64 x 64; the paper adds 100 million pictures of the web."""
  imagenet(config, 'XL', 64, 2_000_000, 64)
  config.model.remat = 'blocks'


def finetune(config):
  """All weights of config.init_from, on pixels and labels.

  The paper stops early: --config.data.validation_fraction=0.1 with data that are named.
  """
  config.data = dict(name='checkpoint')
  config.objective.classification_weight = 1.0
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = 'constant'
  config.optimizer.warmup_steps = 20
  config.evaluators = ('classification', 'pixels')
  config.total_steps = 300
  config.eval_every = 100
  config.checkpoint_every = 100


RECIPES = (digits, cifar10_small, cifar10_long, cifar10, s, m, l, xl, finetune)
SETS = {x.__name__: x for x in RECIPES}
