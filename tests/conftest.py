"""What the tests share: eight fake devices, a run small enough for seconds, the command."""

import gc
import os

from commands import UNOPTIMISED, Commands

# XLA aborts the process when a device waits 40 s for the others, as one of eight may on two cores.
os.environ['XLA_FLAGS'] = ' '.join(
  (
    '--xla_force_host_platform_device_count=8',
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
    UNOPTIMISED,
    os.environ.get('XLA_FLAGS', ''),
  )
)
os.environ['JAX_PLATFORMS'] = 'cpu'

import pathlib
import subprocess
import sys

from absl import logging
import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax import defaults

# What is imported stays: no need to look through it for garbage, some 7 % of the time of a run.
gc.freeze()
logging.set_verbosity(logging.INFO)
ROOT = pathlib.Path(__file__).parent.parent

# Six steps of the smallest ViT on the digits: the shipped recipe, shrunk.
SMALL = (
  '--config.model.variant=mu/4',
  '--config.model.dropout=0.1',
  '--config.total_steps=6',
  '--config.batch_size=16',
  '--config.log_every=1',
  '--config.eval_every=3',
  '--config.checkpoint_every=2',
)


def small_config(**overrides):
  """A config of six steps; dotted keys override, '__' stands for '.'."""
  config = defaults.get_config()
  config.data.rotate = 10.0
  config.model.variant = 'mu/4'
  config.model.dropout = 0.1
  config.model.drop_path = 0.1
  config.total_steps = 6
  config.batch_size = 16
  config.log_every = 1
  config.eval_every = 3
  config.checkpoint_every = 2
  sections = {
    key.split('__')[0]: value for key, value in overrides.items() if key.endswith('__name')
  }
  config = defaults.complete(config, sections)
  for key, value in overrides.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


def command(*arguments, module='vit_jax.main', **kwargs):
  """Runs `python -m module arguments` on one device."""
  environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
    [sys.executable, '-m', module, *map(str, arguments)],
    capture_output=True,
    text=True,
    **({'cwd': ROOT, 'timeout': 300, 'env': environment} | kwargs),
  )


@pytest.fixture(scope='session')
def compiled(tmp_path_factory):
  """The folder of compiled programs: what one worker has compiled, the others need not.

  With VIT_JAX_TEST_COMPILED one folder serves several sessions, as of the fast part and the slow.
  """
  base = tmp_path_factory.getbasetemp()
  own = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'compiled'
  return pathlib.Path(os.environ.get('VIT_JAX_TEST_COMPILED') or own)


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory, compiled):
  """Downloads, checks of files and compiled programs are remembered here, not in the user's cache.

  Many tests train the same small models, and compiling one takes longer than training it.
  """
  os.environ['VIT_JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))
  jax.config.update('jax_compilation_cache_dir', str(compiled))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@pytest.fixture(scope='session')
def quick(_own_cache, tmp_path_factory, compiled):
  """As `command`, in processes of their own that are forks: without seconds of imports."""
  with Commands(tmp_path_factory.mktemp('commands'), compiled) as commands:
    yield commands


def real_data(name):
  """A folder of real data, where the machine has them."""
  root = os.environ.get('VIT_JAX_TEST_DATA')
  if not root or not (pathlib.Path(root) / name).is_dir():
    pytest.skip(f'no {name} below the folder that VIT_JAX_TEST_DATA names')
  return pathlib.Path(root) / name


def make_folder(root, counts, size=(12, 10)):
  """Class folders of PNG files: {'train/cat': 3, ...}; pixels depend on name and number."""
  for name, count in counts.items():
    (root / name).mkdir(parents=True)
    for i in range(count):
      rng = np.random.default_rng([*name.encode(), i])
      pixels = rng.integers(0, 256, (*size, 3), np.uint8)
      Image.fromarray(pixels).save(root / name / f'{i}.png')
  return root


@pytest.fixture(autouse=True)
def _see_information(caplog):
  caplog.set_level('INFO', logger='absl')


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """The folder of a finished small run, with a validation split."""
  from vit_jax import train

  workdir = tmp_path_factory.mktemp('trained')
  train.train(small_config(data__validation_fraction=0.2), workdir)
  return workdir
