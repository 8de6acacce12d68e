r"""Which token, or which mix, should a classifier read? `configs/explore_readouts.py[:study]`.

python -m vit_jax.main --config=configs/explore_readouts.py --config.init_from=C --workdir=W

C is a run or any weight file that the project reads. The data are those of the checkpoint; others:
--config.data.name=folder --config.data.path=PATH. Every patch, every mix, 5 seeds; the report is
W/reports/readouts.html. 75 s for 77 readouts of the digits at 8 x 8 patches, 5 min 24 s with 20,000
CIFAR-10 pictures and all 10,000 test pictures, on two CPU cores (0.1.0).

`study` is the protocol of the token-readout study: Adam at 1e-3, batches of 32, 10 epochs, heads
that start as torch's. For its ViT-B/16 with 3 classes that trains 2,307 parameters for the class
token. It reports one run on 75 pictures; here there are 5 seeds. With random B/16 weights on its
pictures: 5 min 31 s on two busy CPU cores. With real ones: not run.
"""

from vit_jax import defaults


def get_config(protocol='fair'):
  if protocol not in ('fair', 'study'):
    raise ValueError(f'configs/explore_readouts.py:{protocol}: choose fair or study')
  config = defaults.get_config()
  config.run = 'explore'
  config.data = dict(name='checkpoint')
  config.evaluation.batch_size = 64
  if protocol == 'study':
    config.explore.learning_rates = (1e-3,)
    config.explore.schedule = 'constant'
    config.explore.batch_size = 32
    config.explore.head = 'torch'
  return config
