"""ViT on the built-in digits (8 x 8 pixels, 10 classes) from scratch: the first run.

  python -m vit_jax.main --config=configs/vit_digits.py --workdir=runs/digits
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.data.rotate = 10.0
  config.data.scale = 0.1
  config.data.shear = 5.0
  config.model.variant = 'digits/2'  # 4 x 4 = 16 patches
  config.model.drop_path = 0.1
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.05
  config.total_steps = 1200
  config.batch_size = 128
  return config
