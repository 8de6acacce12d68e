r"""Axial-ViT and AxialResNet beside ViT and BiT (figure 13): `configs/compare_axial.py[:cifar10]`.

python -m vit_jax.main --config=configs/compare_axial.py --workdir=W

Each family at some sizes, three seeds; pictures: 5-shot accuracy and accuracy against the compute
of the training, and against the images a second that this machine trained. The digits are enlarged
to 32 x 32, as a ResNet's stem shrinks them by four; `cifar10` takes 5,000 pictures of it, with
--config.data.data_dir=D. The paper trains B/32 and B/16 on JFT-300M: Axial-ViT above ViT at more
compute, AxialResNet slow on a TPU.

The digits (1.0.0), test and 5-shot accuracy in %, means of three seeds after 150 steps: BiT R5x2
98.7, 97.9 (1.2e12 floating point operations); Axial-ViT of 8 x 8 patches 95.0, 94.6 (2.5e11), of 4
x 4 92.3, 92.2 (1.0e12); ViT of 8 x 8 94.2, 93.9 (1.4e11), of 4 x 4 83.7, 79.8 (6.2e11); AxialResNet
R5x2 89.3, 83.2 (1.0e12). Of 15 pairs 4 are told apart: BiT from AxialResNet, and from ViT of 4 x 4
BiT, Axial-ViT and ViT of 8 x 8. Images a second in training, beside other work: AxialResNet 140
to 230, Axial-ViT of 4 x 4, at the same compute, 160 to 170, BiT 240 to 310. 15 min.
"""

from vit_jax import defaults

# A rate for each family: attention from scratch wants more than convolutions with group norm.
TRANSFORMER, RESNET = {'optimizer.learning_rate': 2e-3}, {'optimizer.learning_rate': 1e-3}
ROWS = [
  ('vit', 'digits/8', TRANSFORMER), ('vit', 'digits/4', TRANSFORMER),
  ('axial', 'digits/8', TRANSFORMER), ('axial', 'digits/4', TRANSFORMER),
  ('bit', 'R5x2', RESNET), ('axial_resnet', 'R5x2', RESNET),
]  # fmt: skip
SEEDS = 3
PICTURES = tuple((x, y) for y in ('test/fewshot_5', 'test/accuracy') for x in ('compute', 'speed'))


def get_config(data='digits'):
  if data not in ('digits', 'cifar10'):
    raise ValueError(f'configs/compare_axial.py:{data}: choose digits or cifar10')
  config = defaults.get_config()
  config.run = 'sweep'
  config.data.image_size = (32, 32)
  config.total_steps = 150
  if data == 'cifar10':
    config.data = dict(name='tfds', dataset='cifar10', image_size=(32, 32), train_examples=5000,
                       crop='padded')  # fmt: skip
    config.total_steps = 1000
  config.optimizer.warmup_steps = 30
  config.optimizer.weight_decay = 0.1
  config.batch_size = 64
  config.log_every = 10
  config.eval_every = config.total_steps
  config.checkpoint_every = config.total_steps
  config.evaluators = ('classification', 'fewshot')
  config.evaluation = dict(fewshot=dict(shots=(5,)))
  return config


def sweep(data='digits'):
  """Every family and size with each seed."""
  del data
  rows = [{'model.name': name, 'model.variant': variant} | rate for name, variant, rate in ROWS]
  heads = {'bit': {'model.head': 'random'}, 'axial_resnet': {'model.head': 'random'}}
  return [
    row | heads.get(row['model.name'], {}) | {'seed': seed} for row in rows for seed in range(SEEDS)
  ]


def line(overrides):
  """The family of a run."""
  return overrides['model.name']
