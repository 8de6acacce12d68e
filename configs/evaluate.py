r"""Judges finished weights, a run, a weight file or an address: `configs/evaluate.py[:frozen]`.

python -m vit_jax.main --config=configs/evaluate.py --config.init_from=C --workdir=W --mode=evaluate

The data are those of the checkpoint; others: --config.data.name=folder --config.data.path=PATH.
Reports and pictures go into W/reports.

`frozen` trains nothing of the model: few-shot, nearest neighbours and a linear probe on what its
head reads, so that the data may have classes of their own. Every block, read by the mean of its
patches: --config.evaluation.knn.layers=all --config.evaluation.knn.readout=mean
"""

from vit_jax import defaults


def get_config(what='head'):
  if what not in ('head', 'frozen'):
    raise ValueError(f'configs/evaluate.py:{what}: choose head or frozen')
  config = defaults.get_config()
  config.data = dict(name='checkpoint')
  if what == 'frozen':
    config.evaluators = ('fewshot', 'knn', 'linear')
  return config
