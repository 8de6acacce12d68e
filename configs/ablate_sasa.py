r"""Ablations of stand-alone self-attention (arXiv:1906.05909, section 5), small.

python -m vit_jax.main --config=configs/ablate_sasa.py:stages --workdir=W
python -m vit_jax.main --config=configs/ablate_sasa.py:kernel --workdir=W
python -m vit_jax.main --config=configs/ablate_sasa.py:positions --workdir=W
python -m vit_jax.main --config=configs/ablate_sasa.py:stem --workdir=W

Which stages attend and which convolve; sides of a neighbourhood; offsets learned, waves, neither,
and offsets without content; stems of convolution, of attention, and of attention whose values do
not know their place. Three seeds each, on the digits enlarged to 32 x 32 in a ResNet of two stages;
with `stages,cifar10` and so on of 5,000 pictures: --config.data.data_dir=D. Not run.

The paper's, ImageNet top-1 of a ResNet-50: convolution in stages 1 and 2 with attention in 3 and 4
80.7 %, attention throughout 80.2, convolution throughout 79.5; sides 3, 5, 7, 9, 11: 76.4, 77.2,
77.4, 77.7, 77.6; offsets 80.2, waves 78.2, neither 77.6; offsets without content 76.9 for 77.4;
stems 77.6 with mixtures, 76.2 without. At that scale: `configs/sasa.py:R50` with the keys below
(--config.model.attention_stages=3,4). Not run.
"""

from vit_jax import defaults

KINDS = {
  'stages': [{'model.attention_stages': stages} for stages in ('none', '1', '2', 'all')],
  'kernel': [{'model.kernel': kernel} for kernel in (3, 5, 7)],
  'positions': [
    *({'model.positions': kind} for kind in ('relative', 'absolute', 'none')),
    {'model.content': False},
  ],
  'stem': [
    {'model.stem': 'convolution'}, {'model.stem': 'attention'}, {'model.mixtures': 1},
  ],
}  # fmt: skip
SEEDS = 3


def get_config(words='stages'):
  _, data = parse(words)
  config = defaults.get_config()
  config.run = 'sweep'
  config.data.image_size = (32, 32)
  config.model = dict(name='sasa', variant='digits', kernel=5)
  config.total_steps = 150
  if data == 'cifar10':
    config.data = dict(name='tfds', dataset='cifar10', image_size=(32, 32), train_examples=5000,
                       crop='padded')  # fmt: skip
    config.total_steps = 1000
  config.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=30, weight_decay=0.1)
  config.batch_size = 64
  config.log_every = 50
  config.eval_every = config.total_steps
  config.checkpoint_every = config.total_steps
  return config


def parse(words):
  """'stages,cifar10' -> what is changed, and the data.

  Raises:
    ValueError: no such ablation.
  """
  what, _, data = words.partition(',')
  data = data or 'digits'
  if what not in KINDS or data not in ('digits', 'cifar10'):
    raise ValueError(
      f'configs/ablate_sasa.py:{words}: choose {", ".join(KINDS)}, then digits or cifar10'
    )
  return what, data


def sweep(words='stages'):
  """Every row of an ablation with each seed."""
  what, _ = parse(words)
  return [row | {'seed': seed} for row in KINDS[what] for seed in range(SEEDS)]
