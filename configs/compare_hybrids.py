r"""Hybrids, ViTs and ResNets at equal compute (figure 5), and Adam against SGD (table 7).

python -m vit_jax.main --config=configs/compare_hybrids.py --workdir=W
python -m vit_jax.main --config=configs/compare_hybrids.py:optimizers --workdir=W

The first trains ViTs, a hybrid and BiT ResNets at several sizes, the second BiT with Adam and with
SGD at two rates each, of which validation chooses; three seeds. Pictures: accuracy and 5-shot
accuracy against the compute of the training. On the digits: enlarged to 64 x 64 for the
first, as a hybrid's patch is 32 pixels wide, to 32 x 32 and for a small BiT for the second; other
data: --config.data.name=folder --config.data.path=PATH --config.data.image_size='(224,224)'. The
paper's are pre-trained on JFT-300M: hybrids lead at small compute, and Adam is better than SGD for
ResNets by half a point on average.

The digits (1.0.0), test accuracy in %, means of three seeds after 60 steps of 32: BiT R26x1 97.5
(2.1e12 floating point operations), ViT Ti/32 79.1 (3.2e11), hybrid R+Ti/16 60.7 (3.8e11), ViT
Ti/16 38.2 (1.1e12); BiT is told from the last two, and Ti/32 from Ti/16. That a hybrid leads at
small compute is not seen after so few steps. 24 min beside other work. `optimizers`, 120 steps:
Adam 97.6, SGD 92.2, told apart, each at the larger of its rates; 6 min beside other work.
"""

from vit_jax import defaults

SEEDS = 3
PICTURES = (('compute', 'test/accuracy'), ('compute', 'test/fewshot_5'))


def get_config(what='models'):
  if what not in ('models', 'optimizers'):
    raise ValueError(f'configs/compare_hybrids.py:{what}: choose models or optimizers')
  config = defaults.get_config()
  config.run = 'sweep'
  config.data.image_size = (64, 64)
  config.data.validation_fraction = 0.2
  config.model = dict(name='bit', variant='R26x1', head='random')
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 10
  config.total_steps = 60
  config.batch_size = 32
  if what == 'optimizers':
    config.data.image_size = (32, 32)
    config.model.variant = 'R5x2'
    config.total_steps = 120
  config.log_every = 10
  config.eval_every = config.checkpoint_every = config.total_steps
  config.evaluators = ('classification', 'fewshot')
  config.evaluation = dict(fewshot=dict(shots=(5,)))
  return config


def sweep(what='models'):
  """Every model, or every optimizer, with each seed."""
  if what == 'optimizers':
    rows = [{'optimizer.name': 'adam', 'optimizer.learning_rate': rate} for rate in (3e-4, 1e-3)]
    rows += [{'optimizer.name': 'sgd', 'optimizer.learning_rate': rate} for rate in (0.01, 0.03)]
  else:
    rows = [{'model.name': 'vit', 'model.variant': f'Ti/{patch}'} for patch in (32, 16)]
    rows += [{'model.name': 'hybrid', 'model.variant': 'R+Ti/16'}]
    rows += [{'model.name': 'bit', 'model.variant': 'R26x1', 'model.head': 'random'}]
  return [
    row | {'optimizer.warmup_steps': 10, 'seed': seed} for row in rows for seed in range(SEEDS)
  ]


def line(overrides):
  """The optimizer or the family of a run."""
  return overrides.get('optimizer.name') or overrides['model.name']
