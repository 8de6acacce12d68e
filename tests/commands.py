"""Commands as processes of their own, without the seconds of their imports.

`Commands` starts this file as a server that imports what the commands need and touches no device.
Each command is a fork of it, so that JAX, flags, threads and logs start anew in each.
"""

import gc
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).parent.parent
MODULES = (
  'vit_jax.train', 'vit_jax.predict', 'vit_jax.convert.__main__', 'vit_jax.figures',
  'vit_jax.explore.readouts', 'vit_jax.explore.sweep', 'vit_jax.data.folder', 'orbax.checkpoint',
  'matplotlib.pyplot', 'sklearn.datasets', 'tensorboardX',
)  # fmt: skip
# Programs that run for milliseconds take seconds to optimise: a train step of two blocks 6.3 s of
# CPU, 2.4 s without LLVM's optimisation, 0.9 s with loops that are not fused by emitters either.
# For tests in their own process; commands, and so exact resume, are compiled as users' are, but for
# those that only have to run.
UNOPTIMISED = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
)
SECONDS = 300  # A command that takes longer is ended by SIGALRM.


class Commands:
  """Runs commands on one device, one after another; use as a context.

  Args:
    folder: for what they print.
    compiled: where compiled programs are kept.
  """

  def __init__(self, folder: pathlib.Path, compiled: pathlib.Path):
    self.folder = folder
    environment = os.environ | {
      'XLA_FLAGS': '',
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(compiled),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    }
    self.server = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.server.communicate()  # Closes its input, at which it ends.

  def __call__(
    self,
    *words,
    module: str = 'vit_jax.main',
    cwd: pathlib.Path = ROOT,
    kill: bool = False,
    optimised: bool = True,
  ) -> subprocess.CompletedProcess:
    """`python -m module words`, compiled as a user's or hastily.

    With `kill`, SIGKILL ends it once a checkpoint is saved.
    """
    folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
    argv = [module, *map(str, words)]
    request = {'argv': argv, 'cwd': str(cwd), 'folder': str(folder), 'kill': kill}
    request['flags'] = '' if optimised else UNOPTIMISED
    self.server.stdin.write(json.dumps(request) + '\n')
    self.server.stdin.flush()
    code = json.loads(self.server.stdout.readline())
    output, errors = ((folder / name).read_text() for name in ('stdout', 'stderr'))
    return subprocess.CompletedProcess(argv, code, output, errors)


def serve() -> dict | None:
  """Forks for each line of the input and answers with the exit status; in a fork, the request."""
  warnings.filterwarnings('ignore', '.*os.fork.*')
  for name in MODULES:
    importlib.import_module(name)
  gc.freeze()  # A fork then copies no page of what is imported.
  for line in sys.stdin:
    child = os.fork()
    if not child:
      return json.loads(line)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
  return None


def run(request: dict) -> None:
  """Does what `python -m` does, and ends as that does."""
  signal.alarm(SECONDS)
  folder = pathlib.Path(request['folder'])
  for number, name in enumerate((os.devnull, 'stdout', 'stderr')):
    os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT), number)
  os.chdir(request['cwd'])
  os.environ['XLA_FLAGS'] = request['flags']
  sys.argv = request['argv']
  if request['kill']:
    kill_after_the_first_checkpoint()
  module = importlib.import_module(sys.argv[0])
  if hasattr(module, '__path__'):
    module = importlib.import_module(f'{sys.argv[0]}.__main__')
  module.main()


def kill_after_the_first_checkpoint() -> None:
  from vit_jax import checkpoint

  save = checkpoint.Checkpoints.save

  def save_and_die(self, *args, **kwargs):
    save(self, *args, **kwargs)
    self.wait()
    os.kill(os.getpid(), signal.SIGKILL)

  checkpoint.Checkpoints.save = save_and_die


if __name__ == '__main__':
  wanted = serve()
  if wanted:
    run(wanted)
