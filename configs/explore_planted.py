r"""Do readouts find evidence whose place is known? `configs/explore_planted.py`.

python -m vit_jax.main --config=configs/explore_planted.py --workdir=W

Plants the code of a class in one patch of noise, a digit in a quarter of a canvas of noise or of
other digits, and two codes that matter only together, 20 times each, and asks the map of single
patches, learned weights and attention pooling which patches matter. The report is
W/reports/planted.html. Pictures are read as pixels, or with --config.init_from=C by any model with
tokens on a grid; without a class token with
--config.explore.readouts="('mean','max','attention_pool')". 3 min 16 s on two busy CPU cores, 70 s
of CPU time: patch map and learned weights find single evidence in 20 of 20 draws; joint evidence is
found by attention pooling alone, which in turn does not tell a digit from others beside it.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.run = 'explore'
  config.explore = dict(name='planted')
  return config
