"""ViT from scratch on a folder of pictures: PATH/train/CLASS/* and PATH/test/CLASS/*.

python -m vit_jax.main --config=configs/vit_folder.py --config.data.path=PATH --workdir=W

PATH may also hold the class folders alone (a seeded fifth becomes the test split), or be a zip or
tar archive, or an https address of one with --config.data.sha256. `:small` is a size that a CPU
can train:

python -m vit_jax.main --config=configs/vit_folder.py:small --config.data.path=PATH --workdir=W

Small, pizza, steak and sushi (225 + 75 pictures): 0.493, one seed. Full size: not run.
"""

from vit_jax import defaults


def get_config(size='full'):
  if size not in ('full', 'small'):
    raise ValueError(f'configs/vit_folder.py:{size}: choose full or small')
  config = defaults.get_config()
  config.data = dict(name='folder', crop_area=(0.2, 1.0))
  config.model.variant = 'S/16'
  config.model.drop_path = 0.1
  config.objective.label_smoothing = 0.1
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 500
  config.optimizer.weight_decay = 0.1
  config.total_steps = 10_000
  config.batch_size = 128
  config.evaluation.batch_size = 128
  if size == 'small':
    config.data.image_size = (64, 64)
    config.model.variant = 'mu/8'
    config.model.width = 96
    config.model.depth = 4
    config.model.mlp_dim = 192
    config.model.num_heads = 4
    config.model.drop_path = 0.0
    config.optimizer.warmup_steps = 50
    config.total_steps = 500
    config.batch_size = 32
    config.eval_every = 100
    config.checkpoint_every = 100
  return config
