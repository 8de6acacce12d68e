r"""Do readouts find evidence whose place is known? `configs/explore_planted.py`.

python -m vit_jax.main --config=configs/explore_planted.py --workdir=W

Plants the code of a class in one patch of noise, a digit in a quarter of a canvas of noise or of
other digits, and two codes that matter only together, 20 times each, and asks the map of single
patches, learned weights and attention pooling which patches matter. The report is
W/reports/planted.html. Pictures are read as pixels, or with --config.init_from=C by any model with
tokens on a grid.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.run = 'explore'
  config.explore = dict(name='planted')
  return config
