"""The token-readout study's ViT from scratch on pizza, steak and sushi: 225 + 75 pictures.

python -m vit_jax.main --config=configs/vit_study.py --config.data.path=PATH --workdir=runs/study

ViT-B/16 as the study lists it: torch's initialisers, exact GELU, epsilon 1e-5, dropout 0.1 but
after attention, Adam 1e-3 with L2 0.3 on everything, 10 epochs of 8 batches of 32, the last of 1;
pixels in 0..1, squashed to 224 x 224, no augmentation. The study reports about 20 to 54 %, noisy
(published, one run). Not run at this scale here; `:small` is what a CPU can train:
0.253 of 75, one seed, below chance as the study's worst.
"""

from vit_jax import defaults


def get_config(size='full'):
  if size not in ('full', 'small'):
    raise ValueError(f'configs/vit_study.py:{size}: choose full or small')
  config = defaults.get_config()
  config.data = dict(
    name='folder', mean=(0.0,), std=(1.0,), crop='none', flip=False, whole_epochs=True
  )
  config.model.variant = 'B/16'
  config.model.initialisers = 'torch'
  config.model.gelu = 'exact'
  config.model.epsilon = 1e-5
  config.model.dropout = 0.1
  config.model.projection_dropout = 0.0
  config.optimizer = dict(
    name='adam', learning_rate=1e-3, schedule='constant', clip_norm=0.0, weight_decay=0.3,
    decay_pattern='.*',
  )  # fmt: skip
  config.total_steps = 80  # 10 epochs
  config.batch_size = 32
  config.log_every = 8
  config.eval_every = 8
  config.checkpoint_every = 40
  config.evaluation.batch_size = 32
  if size == 'small':
    config.data.image_size = (64, 64)
    config.model.variant = 'digits/8'
  return config
