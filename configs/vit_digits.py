"""ViT on the built-in digits (8 x 8 pixels, 10 classes) from scratch: the first run.

python -m vit_jax.main --config=configs/vit_digits.py --workdir=runs/digits [--config.run=sweep]

Test accuracy on 360 images over seeds 0 to 4: mean 0.987, range 0.983 to 0.989 (0.2.0); 68 to 76 s
each on two CPU cores, compilation included. On another CPU: 0.989, 0.986 to 0.992 (0.1.0).
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.data.rotate = 15.0
  config.data.scale = 0.15
  config.data.shear = 10.0
  config.data.translate = 0.05  # 0.4 of a pixel; whole pixels hurt, the digits fill their frame
  config.model.variant = 'digits/2'  # 4 x 4 = 16 patches
  config.model.drop_path = 0.1
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.3
  config.ema_decay = 0.99
  config.total_steps = 1600
  config.batch_size = 128
  config.log_every = 100
  config.eval_every = 400
  config.checkpoint_every = 400
  # Seeds 0 to 4 end within 0.983 to 0.989; seed 0 has 0.942 after 400 steps.
  config.bands = ((400, 'test/accuracy', 0.9, 1.0), (1600, 'test/accuracy', 0.975, 1.0))
  return config


def sweep():
  """Seeds 0 to 4: --config.run=sweep."""
  return [{'seed': seed} for seed in range(5)]
