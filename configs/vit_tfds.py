"""ViT from scratch on a prepared TFDS set, `configs/vit_tfds.py:cifar10`.

python -m vit_jax.main --config=configs/vit_tfds.py:cifar10 --config.data.data_dir=D --workdir=W

The set must be prepared as array_record; if it is not, the error shows the command for that.
"""

from vit_jax import defaults


def get_config(dataset='cifar10'):
  if dataset not in SETS:
    raise ValueError(f'configs/vit_tfds.py:{dataset}: choose from {", ".join(SETS)}')
  config = defaults.get_config()
  config.objective.label_smoothing = 0.1
  config.batch_size = 128
  SETS[dataset](config)
  return config


def cifar10(config):
  """A CPU's size: 8 x 8 patches of 4 x 4 pixels."""
  config.data = dict(
    name='tfds', dataset='cifar10', image_size=(32, 32), crop='padded', crop_padding=4
  )
  config.model.variant = 'digits/4'
  config.model.width = 96
  config.model.mlp_dim = 192
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 200
  config.optimizer.weight_decay = 0.1
  config.total_steps = 2000
  config.eval_every = 1000
  config.checkpoint_every = 500


SETS = {'cifar10': cifar10}
