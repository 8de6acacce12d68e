"""Explorations: the readout lab, sweeps of runs, and their reports."""

import pathlib

from vit_jax.defaults import Config


def run(config: Config, workdir: pathlib.Path) -> None:
  """Explores what `config.explore` names; JAX loads here.

  Raises:
    ValueError: a value that cannot work; nothing has been computed yet.
  """
  from vit_jax.explore import backbones, planted, readouts

  if config.explore.name == 'planted':
    planted.explore(config, workdir)
    return
  (backbones if config.explore.checkpoints else readouts).explore(config, workdir)
