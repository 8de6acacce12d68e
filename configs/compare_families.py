r"""Every family beside every other, small: `configs/compare_families.py[:BUDGET[,DATA]]`.

python -m vit_jax.main --config=configs/compare_families.py:parameters --workdir=W
python -m vit_jax.main --config=configs/compare_families.py:compute --workdir=W
python -m vit_jax.main --config=configs/compare_families.py:time --workdir=W

ViT, DeiT (its recipe's mixing instead of a teacher), Swin, SASA, Cordonnier, Axial-ViT, a hybrid,
BiT and iGPT, of 300,000 to 361,000 parameters. `parameters` gives each as many steps, `compute` as
many floating point operations, `time` as many seconds of this machine, as it measures them. Three
learning rates for each family, of which validation chooses; three seeds. The digits are enlarged to
32 x 32, where a patch has 8 x 8 pixels; iGPT, whose tokens are pixels, sees them at 8 x 8. With
`parameters,cifar10` and so on the same models see 5,000 pictures of CIFAR-10, chosen by the seed of
the data, and the whole test set: --config.data.data_dir=D.

The page has accuracy with intervals over seeds, what can and what cannot be told, few-shot
accuracy, calibration error, and of each model size, arithmetic, memory and speed; pictures of
accuracy against compute and against speed.

The digits (1.0.0), test accuracy in %, means of three seeds, with `parameters` (150 steps),
`compute` (8e11 FLOPs), `time` (10 s of two quiet cores): SASA 99.4, 99.4, 97.4; BiT 99.4, 99.1,
99.4; hybrid 98.3, 94.4, 89.1; Axial-ViT 94.4, 96.8, 91.9; ViT 94.3, 96.9, 96.9; Cordonnier 88.1,
95.9, 90.7; Swin 84.4, 93.1, 87.1; DeiT 73.1, 96.6, 95.3; iGPT 55.6, 41.9, 42.5. Of 36 pairs 20, 12
and 18 are told apart. 48, 60 and 40 min of one of two busy cores.

CIFAR-10 (1.0.1), with `parameters` (200 steps), `compute` (1e12 FLOPs), `time` (12 s): BiT 43.5,
38.2, 38.5; SASA 38.4, 37.5, 32.5; Cordonnier 31.7, 33.4, 31.9; hybrid 29.4, 24.9, 22.7; ViT 28.8,
32.0, 31.1; Swin 27.2, 29.5, 26.5; Axial-ViT 27.1, 31.9, 25.4; DeiT 26.0, 30.0, 28.2; iGPT 18.9,
19.1, 18.9. Of 36 pairs 29, 29 and 30 are told apart. 140 min of one core beside other work, 64 for
49 of the 81 runs of `compute`, and 95 for 59 of the 81 of `time`.
"""

from vit_jax import defaults

RATES = (1e-3, 3e-3, 9e-3)
SEEDS = 3
TUNED = ('optimizer.learning_rate',)
PICTURES = (('compute', 'test/accuracy'), ('speed', 'test/accuracy'))
COUNTED = True
STEPS = {'digits': 150, 'cifar10': 200}
BUDGETS = {
  'digits': {'compute': 'flops:8e11', 'time': 'seconds:10'},
  'cifar10': {'compute': 'flops:1e12', 'time': 'seconds:12'},
}
MIXING = {'objective.mixup': 0.8, 'objective.cutmix': 1.0, 'objective.label_smoothing': 0.1}


def families():
  """Settings of each family's model, for pictures of 32 x 32."""
  wide = {'model.width': 96, 'model.mlp_dim': 256}
  return {
    'ViT': {'model.name': 'vit', 'model.variant': 'digits/8'} | wide,
    'DeiT': {'model.name': 'deit', 'model.variant': 'digits/8'} | wide | MIXING,
    'Swin': {'model.name': 'swin', 'model.variant': 'cifar/4', 'model.window': 4},
    'SASA': {'model.name': 'sasa', 'model.variant': 'digits', 'model.kernel': 5}
    | {'model.stem': 'convolution'},  # Learns in few steps; in the paper better but for R50.
    'Cordonnier': {'model.name': 'cordonnier', 'model.variant': 'digits/8', 'model.depth': 6},
    'Axial-ViT': {'model.name': 'axial', 'model.variant': 'digits/8', 'model.depth': 5},
    'hybrid': {'model.name': 'hybrid', 'model.variant': 'R5+digits/4', 'model.depth': 6},
    'BiT': {'model.name': 'bit', 'model.variant': 'R5x2', 'model.head': 'random'},
    'iGPT': {
      'model.name': 'igpt', 'model.variant': 'digits', 'model.clusters': 16, 'model.depth': 6,
      'data.image_size': (8, 8),
    },
  }  # fmt: skip


def parse(words):
  """'compute,cifar10' -> budget and data.

  Raises:
    ValueError: no such comparison.
  """
  budget, _, data = words.partition(',')
  data = data or 'digits'
  if data not in BUDGETS or budget not in ('parameters', *BUDGETS[data]):
    raise ValueError(
      f'configs/compare_families.py:{words}: choose parameters, compute or time, then digits or '
      'cifar10'
    )
  return budget, data


def get_config(words='parameters'):
  _, data = parse(words)
  config = defaults.get_config()
  config.run = 'sweep'
  config.data.image_size = (32, 32)
  if data == 'cifar10':
    config.data = dict(name='tfds', dataset='cifar10', image_size=(32, 32), train_examples=5000,
                       crop='padded')  # fmt: skip
  config.data.validation_fraction = 0.2
  config.optimizer = dict(name='adamw', learning_rate=1e-3, warmup_steps=20, weight_decay=0.1)
  config.batch_size = 64
  config.total_steps = STEPS[data]
  config.log_every = 10
  config.eval_every = config.checkpoint_every = 10**6  # At the end alone, wherever that is.
  config.evaluators = ('classification', 'fewshot')
  config.evaluation = dict(
    classification=dict(calibration=True), fewshot=dict(shots=(5,)),
  )  # fmt: skip
  return config


def sweep(words='parameters'):
  """Every family and learning rate with each seed."""
  budget, data = parse(words)
  steps = {'total_steps': BUDGETS[data][budget]} if budget in BUDGETS[data] else {}
  return [
    {'label': name, 'optimizer.learning_rate': rate} | settings | steps | {'seed': seed}
    for name, settings in families().items()
    for rate in RATES
    for seed in range(SEEDS)
  ]  # fmt: skip


def line(overrides):
  """The family of a run."""
  return next(
    name for name, settings in families().items()
    if settings['model.name'] == overrides['model.name']
  )  # fmt: skip
