"""Many devices and processes on one machine, with the shapes of a large model: a JSON line a case.

  python benchmarks/processes.py --variant L/16 --processes 4 --devices 64

  one          one process, one device: what the others must agree with
  devices      one process, many fake devices, the state cut over all of them
  processes    real processes on loopback, the state cut over them; one is killed, all stop
  fewer        the same run gone on with half as many processes, from the last checkpoint

Pictures are small (32 px, the digits enlarged), so that parameters are what counts. `peak_gb` is
the most memory that a process took, without the `base_gb` of one that only imports what the command
needs; `checkpoint_gb` is the whole state on disk. A copy of it in each process would show.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from work import machine

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = f'--config={ROOT}/configs/vit_digits.py'


class Process:
  """The command in a process of its own, whose memory is watched."""

  def __init__(self, words: list[str], log: pathlib.Path, devices: int = 1):
    flags = f'--xla_force_host_platform_device_count={devices}' if devices > 1 else ''
    flags += ' --xla_cpu_collective_call_terminate_timeout_seconds=3600'
    env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'}
    if devices > 1:
      del env['JAX_NUM_CPU_DEVICES']
    self.log, self.peak = log, 0.0
    self.popen = subprocess.Popen(words, stderr=log.open('w'), env=env, cwd=ROOT)
    threading.Thread(target=self.watch, daemon=True).start()

  def watch(self) -> None:
    """Keeps the high-water mark of the process, in GB."""
    status = pathlib.Path(f'/proc/{self.popen.pid}/status')
    while self.popen.poll() is None:
      lines = [line for line in status.read_text().splitlines() if line.startswith('VmHWM')]
      if lines:
        self.peak = max(self.peak, int(lines[0].split()[1]) * 1024 / 1e9)
      time.sleep(0.05)

  def wait(self, timeout: float = 3000) -> int:
    return self.popen.wait(timeout)

  def say(self) -> str:
    return self.log.read_text()


def words_of(
  options: argparse.Namespace, workdir: pathlib.Path, steps: int, fsdp: int
) -> list[str]:
  settings = {
    'data.image_size': '(32,32)', 'data.channels': 3, 'model.variant': options.variant,
    'model.drop_path': 0.0, 'ema_decay': 0.0,
    'optimizer.clip_norm': 0.0, 'model.initialisers': 'torch', 'optimizer.learning_rate': 1e-4,
    'total_steps': steps, 'batch_size': options.batch_size, 'log_every': 1, 'eval_every': 0,
    'checkpoint_every': 2, 'keep_checkpoints': 2, 'fsdp': fsdp, 'optimizer.schedule': 'constant',
    'model.scan': options.scan,
  }  # fmt: skip
  given = [f'--config.{key}={value}' for key, value in settings.items()]
  return [sys.executable, '-m', 'vit_jax.main', RECIPE, f'--workdir={workdir}', *given]


def start(words: list[str], count: int, folder: pathlib.Path, name: str) -> list[Process]:
  """Processes that find one another on loopback."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    port = found.getsockname()[1]
  many = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}']
  return [
    Process([*words, *many, f'--process_id={i}'], folder / f'{name}.{i}') for i in range(count)
  ]


def losses(workdir: pathlib.Path) -> list[float]:
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line)['train/loss'] for line in lines]


def base() -> float:
  """GB of a process that imports what the command needs, and starts JAX."""
  code = 'import vit_jax.train, jax; jax.devices(); print(open("/proc/self/status").read())'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                        env=os.environ | {'JAX_PLATFORMS': 'cpu'})  # fmt: skip
  line = next(line for line in done.stdout.splitlines() if line.startswith('VmHWM'))
  return int(line.split()[1]) * 1024 / 1e9


def report(
  case: str, running: list[Process], workdir: pathlib.Path, seconds: float, **more
) -> None:
  peak = max(process.peak for process in running)
  files = [
    path.stat().st_size for path in workdir.glob('checkpoints/*/state/**/*') if path.is_file()
  ]
  steps = max(1, len(list(workdir.glob('checkpoints/[0-9]*'))))
  line = {
    'case': case, 'processes': len(running),
    'peak_gb': round(peak - BASE, 2), 'base_gb': round(BASE, 2),
    'checkpoint_gb': round(sum(files) / steps / 1e9, 2), 'seconds': round(seconds, 1),
    'losses': [round(x, 5) for x in losses(workdir)],
  }  # fmt: skip
  print(json.dumps(line | more | machine()), flush=True)


def run(case: str, words: list[str], folder: pathlib.Path, count: int, devices: int = 1):
  """Starts, waits and reports; ends with what was said where it failed."""
  begin = time.monotonic()
  running = (
    [Process(words, folder / case, devices)] if count == 1 else start(words, count, folder, case)
  )
  codes = [process.wait() for process in running]
  if any(codes):
    sys.exit(f'{case}: {codes}\n' + '\n'.join(process.say()[-2000:] for process in running))
  workdir = pathlib.Path(next(w for w in words if w.startswith('--workdir=')).partition('=')[2])
  report(case, running, workdir, time.monotonic() - begin, devices=devices * count)


def kill_one(words: list[str], folder: pathlib.Path, count: int, workdir: pathlib.Path) -> None:
  """Starts processes, kills the last one after step 3, and sees all of them stop."""
  begin, running = time.monotonic(), start(words, count, folder, 'processes')
  while len(losses(workdir)) < 3:
    if any(process.popen.poll() for process in running):
      sys.exit('processes: ' + running[0].say()[-2000:])
    time.sleep(0.2)
  running[-1].popen.send_signal(signal.SIGKILL)
  killed = time.monotonic()
  codes = [process.wait(120) for process in running]
  stopped = round(time.monotonic() - killed, 1)
  report('processes', running, workdir, killed - begin, stopped_after=stopped, exit_codes=codes,
         said=running[0].say().strip().splitlines()[-1][:120])  # fmt: skip


def main() -> None:
  global BASE
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--variant', default='L/16')
  parser.add_argument('--processes', type=int, default=4)
  parser.add_argument('--devices', type=int, default=64)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--scan', action='store_true', help='blocks in a loop, gathered one by one')
  parser.add_argument('--cases', default='one,devices,processes')
  options = parser.parse_args()
  BASE = base()
  cases, count = options.cases.split(','), options.processes
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if 'one' in cases:
      run('one', words_of(options, folder / 'w1', 4, 1), folder, 1)
    if 'devices' in cases:
      words = words_of(options, folder / 'w2', 4, options.devices)
      run('devices', words, folder, 1, options.devices)
    if 'processes' in cases:
      workdir = folder / 'w3'
      kill_one(words_of(options, workdir, 100, count), folder, count, workdir)
      words = words_of(options, workdir, 4, count // 2)
      run('fewer', words, folder, count // 2)


BASE = 0.0
if __name__ == '__main__':
  main()
