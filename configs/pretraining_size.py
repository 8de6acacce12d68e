r"""How much data a ViT needs (figures 3 and 4): `configs/pretraining_size.py[:DATA]`.

python -m vit_jax.main --config=configs/pretraining_size.py --workdir=W

Seeded parts of a training set, of which smaller ones lie inside larger ones, for models of several
sizes, three seeds each. For each size validation chooses weight decay, dropout and label smoothing
(off or on together), and the checkpoint: early stopping. Pictures: accuracy and 5-shot accuracy
against the number of training pictures. The paper pre-trains on ImageNet, ImageNet-21k and parts of
JFT-300M, and finds that larger models need more. DATA is `digits` or `cifar10`, with
--config.data.data_dir=D.

`digits` (1.0.0), test accuracy in %, means of three seeds, with 150, 300, 600 and 1,149 pictures:
digits/2 65.6, 73.8, 83.3, 91.9, each regularised by choice; mu/2, a tenth as large, 64.3, 74.7,
80.8, 80.9, none regularised. The larger model needs more pictures, and makes more of them: of 1,149
it is clearly above (Tukey), of 600 and fewer the two are not told apart. 20 min of one busy core.
`cifar10`: not run.
"""

from vit_jax import defaults

SIZES = {'digits': (150, 300, 600, 1149), 'cifar10': (1000, 5000, 20000, 45000)}
MODELS = ('mu', 'digits')
PLAIN = {'optimizer.weight_decay': 0.0, 'model.dropout': 0.0, 'objective.label_smoothing': 0.0}
REGULAR = {'optimizer.weight_decay': 0.3, 'model.dropout': 0.1, 'objective.label_smoothing': 0.1}
SEEDS = 3
TUNED = tuple(PLAIN)
PICTURES = (('data.train_examples', 'test/accuracy'), ('data.train_examples', 'test/fewshot_5'))


def get_config(data='digits'):
  if data not in SIZES:
    raise ValueError(f'configs/pretraining_size.py:{data}: choose {" or ".join(SIZES)}')
  config = defaults.get_config()
  config.run = 'sweep'
  config.total_steps = 300
  if data == 'cifar10':
    config.data = dict(name='tfds', dataset='cifar10', image_size=(32, 32), crop='padded')
    config.total_steps = 2000
  config.data.validation_fraction = {'digits': 0.2, 'cifar10': 0.1}[data]
  config.model.variant = 'digits/2'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  config.eval_every = config.total_steps // 6
  config.checkpoint_every = config.total_steps // 6
  config.keep_checkpoints = 2
  config.best = 'max:validation/accuracy'
  config.evaluators = ('classification', 'fewshot')
  config.evaluation = dict(fewshot=dict(shots=(5,)))
  return config


def sweep(data='digits'):
  """Every model and size of data, plain and regularised, with each seed."""
  patch = {'digits': 2, 'cifar10': 4}[data]
  return [
    {'model.variant': f'{model}/{patch}', 'data.train_examples': size} | regular | {'seed': seed}
    for model in MODELS
    for size in SIZES[data]
    for regular in (PLAIN, REGULAR)
    for seed in range(SEEDS)
  ]


def line(overrides):
  """The model of a run."""
  return overrides['model.variant']
