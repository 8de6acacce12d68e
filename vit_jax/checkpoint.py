"""What a run keeps to go on from: checkpoints/<step>/, the newest few and the best (Orbax)."""

import json
import os
import pathlib
import time
from typing import Any

from absl import logging

from vit_jax import defaults, models
from vit_jax.runtime import atomic, distributed
from vit_jax.runtime.fingerprint import fingerprint


def belongs(workdir: pathlib.Path) -> bool:
  """Whether a workdir belongs to its `config.json`: there is a checkpoint, a probe, or a failure.

  An attempt that failed before leaves the folder free for any other config.
  """
  steps = any(path.name.isdecimal() for path in workdir.glob('checkpoints/*'))
  probes = any(any(workdir.glob(f'{path}probes/*/*.npz')) for path in ('', 'backbones/*/'))
  return steps or probes or (workdir / 'failed.txt').exists()


def check_owner(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Compares `config` with the one that `workdir` belongs to; touches nothing.

  Raises:
    ValueError: the folder belongs to another config; lists the keys that differ.
    OSError: the folder cannot be written.
  """
  there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  if not there.is_dir() or not os.access(there, os.W_OK):
    raise OSError(f'--workdir={workdir}: {there} is not a folder that can be written')
  path = workdir / 'config.json'
  if path.exists() and belongs(workdir):
    check_same(workdir, config)


def check_same(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Compares `config` with `config.json`, which is there; touches nothing.

  Raises:
    ValueError: keys differ that may not change; lists them.
  """
  path = workdir / 'config.json'
  try:
    then, now = (comparable(x) for x in (json.loads(path.read_text()), config))
  except ValueError as error:
    raise ValueError(f'{path}: {error}; was it written by a later version?') from None
  differ = sorted(key for key in then | now if then.get(key) != now.get(key))
  refused = [key for key in differ if key not in defaults.MAY_CHANGE]
  if refused:
    rows = [f'  {key}: {then.get(key)!r} there, {now.get(key)!r} now' for key in refused]
    raise ValueError(
      f'{workdir} was started with another config:\n' + '\n'.join(rows) + '\nchoose another '
      f'--workdir, or the values there; only {", ".join(defaults.MAY_CHANGE)} may change'
    )
  for key in differ:
    logging.info('%s was %r, is now %r', key, then.get(key), now.get(key))


def comparable(config: dict[str, Any]) -> dict[str, Any]:
  """A config of any version as flat JSON; what is None in the model as in the official code."""
  whole = defaults.upgrade(json.loads(json.dumps(config)))
  whole['model'] = models.complete(whole['model'])
  return defaults.flatten(json.loads(json.dumps(whole)))


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Writes `config.json`; process 0 does it, just before what makes the folder belong to it."""
  if distributed.is_first():
    atomic.write_text(workdir / 'config.json', json.dumps(config, indent=2))


def newest_passport(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The passport of the newest finished checkpoint that can be read; None where there is none."""
  folder = workdir / 'checkpoints'
  for step in steps_in(folder):
    try:
      return json.loads((folder / str(step) / 'passport/metadata').read_text())
    except (OSError, ValueError):  # `Checkpoints` says what is wrong with it.
      continue
  return None


def steps_in(folder: pathlib.Path) -> list[int]:
  """The finished checkpoints of a folder, the newest first: Orbax renames them when they are."""
  return sorted((int(p.name) for p in folder.glob('*') if p.name.isdecimal()), reverse=True)


# The number that `config.best` names, its sign turned for min: the highest is the best.
GOODNESS = 'goodness'


def goodness(metrics: dict[str, float]) -> float:
  """How good a checkpoint is; before 0.2.0 always by validation accuracy."""
  return metrics[GOODNESS] if GOODNESS in metrics else metrics['accuracy']


def orbax() -> Any:
  """What calls Orbax, loaded when it is first needed: predictions never do, training late."""
  from vit_jax.runtime import orbax_folder

  return orbax_folder


class Checkpoints:
  """The folder `checkpoints/` of a run; use as a context.

  Args:
    workdir: the run's folder.
    keep: how many of the newest stay.
    best: what `config.best` asks for, 'max:NAME' or 'min:NAME': the best by that number stays
      beside them; None: nothing does.
    read_only: leave the folder as it is; any process may read by itself.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    keep: int = 2,
    best: str | None = None,
    read_only: bool = False,
  ):
    if keep < 2:
      raise ValueError(f'config.keep_checkpoints={keep} must be at least 2: one may be damaged')
    self.folder = workdir.absolute() / 'checkpoints'  # Orbax fails late on a relative path.
    if not read_only:
      for step in unreadable_steps(self.folder):
        self._set_aside(step, 'its metrics or passport cannot be read')
      distributed.barrier('checkpoints looked at')
    self._keep, self._best, self._read_only = keep, best, read_only
    self._open = None

  @property
  def _manager(self) -> Any:
    """Orbax's; it makes the folder, so that a start which fails before has left nothing."""
    if self._open is None:
      how = self._keep, goodness, bool(self._best)
      self._open = orbax().open_folder(self.folder, *how)
    return self._open

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._open is not None:
      self._open.close()

  def save(self, step: int, state, passport: dict, scores: dict[str, float] | None = None) -> None:
    """Starts writing in the background; an error of the save before this one surfaces here.

    Args:
      scores: numbers of this step by name; the one that `best` names is kept with it.
    """
    passport = passport | {'step': step, 'fingerprint': fingerprint(state)}
    metrics = None
    if self._best and scores:
      mode, _, name = self._best.partition(':')
      metrics = scores | {GOODNESS: scores[name] * (1 if mode == 'max' else -1)}
    orbax().save(self._manager, step, state, passport, metrics)

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def restore_latest(self, shapes):
    """The newest readable state, placed as the shapes' shardings say; None where there is none.

    A damaged checkpoint is named, set aside in `checkpoints-damaged/`, and the one before it used.

    Raises:
      ValueError: there are checkpoints, but none can be read.
    """
    damaged = {}
    for step in self._newest_first():
      state, reason = None, 'another process cannot read it'
      try:
        state = orbax().restore_state(self._manager, step, shapes)
      except Exception as error:  # Orbax raises many kinds; each means that this one is unusable.
        reason = ' '.join(str(error).split())[:300]
      if not distributed.all_agree(state is not None):
        damaged[step] = reason
        continue
      if fingerprint(state) != self._passport(step)['fingerprint']:
        damaged[step] = 'its arrays differ from what was saved'
        continue
      for bad, why in damaged.items():
        self._set_aside(bad, why)
      distributed.barrier('damaged checkpoints set aside')
      self._manager.reload()
      return state
    self._refuse(damaged)
    return None

  def restore_params(self) -> tuple[dict, dict]:
    """The model's parameters (numpy) and passport: of the best checkpoint, else of the newest.

    Raises:
      as `restore_whole`.
    """
    params, passport = self.restore_whole()
    return params['model'], passport

  def restore_whole(self) -> tuple[dict, dict]:
    """All parameters of the objective (numpy), the model's in 'model', and passport: as above.

    Raises:
      ValueError: there is none, or none can be read.
    """
    steps, damaged = self._newest_first(), {}
    for step in dict.fromkeys([self._best_step() or steps[0], *steps] if steps else []):
      try:
        passport = self._passport(step)
        return self._arrays(step, passport['weights']), passport
      except Exception as error:  # As above.
        damaged[step] = ' '.join(str(error).split())[:300]
        logging.warning('checkpoint %s is damaged: %s', self.folder / str(step), damaged[step])
    self._refuse(damaged)
    raise ValueError(f'{self.folder} holds no checkpoint yet: train first, with --mode=train')

  def wanted_step(self) -> int | None:
    """The step of the best checkpoint, else of the newest."""
    return self._best_step() or next(iter(self._newest_first()), None)

  def _best_step(self) -> int | None:
    """The step with the best metrics; None where none has any. The folder is read without Orbax,
    which refuses all of it where the metrics of one are damaged, if it is to stay as it is."""
    if not self._read_only:
      return self._manager.best_step()
    told = {}
    for step in self._newest_first():
      path = self.folder / str(step) / 'metrics/metrics'
      try:
        told |= {step: goodness(json.loads(path.read_text()))} if path.exists() else {}
      except (OSError, ValueError) as error:
        logging.warning('%s cannot be read (%s); another checkpoint may be the best', path, error)
    return max(told, key=lambda step: (told[step], step), default=None)

  def _newest_first(self) -> list[int]:
    if not self.folder.exists():
      return []
    return steps_in(self.folder) if self._read_only else sorted(self._manager.all_steps())[::-1]

  def _passport(self, step: int) -> dict:
    if self._read_only:
      return json.loads((self.folder / str(step) / 'passport/metadata').read_text())
    return orbax().restore_passport(self._manager, step)

  def _arrays(self, step: int, weights: str) -> dict:
    """The tree 'params' or 'ema' of a checkpoint alone, as numpy arrays."""
    name = {'raw': 'params', 'ema': 'ema'}[weights]
    return orbax().restore_tree(self.folder / str(step) / 'state', name)

  def _refuse(self, damaged: dict[int, str]) -> None:
    if damaged:
      rows = [f'  {step}: {reason}' for step, reason in damaged.items()]
      raise ValueError(f'no checkpoint in {self.folder} can be read:\n' + '\n'.join(rows))

  def _set_aside(self, step: int, reason: str) -> None:
    target = self.folder.with_name('checkpoints-damaged') / f'{step}-{time.time_ns()}'
    if not distributed.is_first():
      return
    target.parent.mkdir(exist_ok=True)
    logging.warning(
      'checkpoint %s is damaged (%s); set aside in %s', self.folder / str(step), reason, target
    )
    (self.folder / str(step)).rename(target)


def unreadable_steps(folder: pathlib.Path) -> list[int]:
  """Finished checkpoints whose small files are damaged: Orbax cannot open a folder with those."""
  steps = []
  for step in (path for path in folder.glob('*') if path.name.isdecimal()):
    try:
      for name in (
        'passport/metadata',
        *(['metrics/metrics'] if (step / 'metrics').exists() else []),
      ):
        json.loads((step / name).read_text())
    except (OSError, ValueError):
      steps.append(int(step.name))
  return steps
