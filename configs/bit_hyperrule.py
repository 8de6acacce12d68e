r"""Fine-tuning a BiT by its HyperRule (arXiv:1912.11370): `configs/bit_hyperrule.py:N`, N pictures.

python -m vit_jax.main --config=configs/bit_hyperrule.py:2040 --workdir=W \
  --config.init_from=BIT --config.data.path=PATH

The rule gives steps, learning rates and size by the number of training pictures and their area:
below 20,000 500 steps, below 500,000 10,000, else 20,000; SGD 0.003 in batches of 512, momentum
0.9, divided by 10 at each of its support points; 384 x 384 pixels, for pictures of less than 96 x
96 --config.data.image_size=(128,128). Its mixup for larger sets is not there yet. Not run.
"""

from vit_jax import defaults

# Largest number of pictures -> support points; training ends at the last.
RULE = (
  (20_000, (100, 200, 300, 400, 500)),
  (500_000, (500, 3000, 6000, 9000, 10_000)),
  (None, (500, 6000, 12_000, 18_000, 20_000)),
)


def get_config(pictures='2040'):
  count = int(pictures)
  points = next(points for below, points in RULE if below is None or count < below)
  config = defaults.get_config()
  config.data = dict(name='folder', image_size=(384, 384))
  config.model = dict(name='bit')
  config.optimizer = dict(
    name='sgd', learning_rate=0.003, schedule='steps', warmup_steps=points[0],
    drops=points[1:-1], clip_norm=0.0, weight_decay=0.0,
  )  # fmt: skip
  config.total_steps = points[-1]
  config.batch_size = 512
  config.accumulation_steps = 8
  config.eval_every = points[0]
  config.checkpoint_every = points[0]
  return config
