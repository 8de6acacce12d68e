"""What a run keeps to go on from: checkpoints/<step>/ with state and passport (Orbax).

The newest few stay, and the best; they are written in the background.
"""

import json
import operator
import pathlib
import time
from typing import Any
import zlib

from absl import logging
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vit_jax import defaults, distributed

POLICY = ocp.checkpoint_managers
# Orbax logs hundreds of lines a run, warnings about nothing included; its errors are raised anyway.
logging.get_absl_logger().addFilter(lambda record: 'orbax' not in record.pathname)


def claim(workdir: pathlib.Path, config: dict) -> None:
  """Makes `workdir` and writes `config.json`, or compares with the one that is there.

  Raises:
    ValueError: the folder belongs to another config; lists the keys that differ.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'config.json'
  text = json.dumps(config, indent=2)
  now = traverse_util.flatten_dict(json.loads(text), sep='.')
  if path.exists():
    then = traverse_util.flatten_dict(json.loads(path.read_text()), sep='.')
    differ = {key for key in now | then if now.get(key) != then.get(key)}
    refused = sorted(differ - set(defaults.MAY_CHANGE))
    if refused:
      rows = [f'  {key}: {then.get(key)!r} there, {now.get(key)!r} now' for key in refused]
      raise ValueError(
        f'{workdir} was started with another config:\n' + '\n'.join(rows) + '\nchoose another '
        f'--workdir, or the values there; only {", ".join(defaults.MAY_CHANGE)} may change'
      )
    for key in sorted(differ):
      logging.info('%s was %r, is now %r', key, then.get(key), now.get(key))
  if distributed.is_first():
    write_whole(path, text)


def write_whole(path: pathlib.Path, text: str) -> None:
  """Replaces a file at once, so that a crash leaves the old one or the new one."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text)
  partial.replace(path)


@jax.jit
def checksum(tree) -> jax.Array:
  """A sum over every bit of a tree of arrays, the same however they are sharded."""

  def add(x) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
    # Odd factors, so that values that change places are noticed too; sums of integers are exact.
    factors = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
    return jnp.sum(bits.reshape(-1) * factors, dtype=jnp.uint32)

  return jnp.stack([add(x) for x in jax.tree.leaves(tree)])


def fingerprint(state) -> int:
  """Tells whether a state is the one that was saved.

  Orbax notices a file that is short or missing, but not a flipped bit (tried with 0.12.8).
  """
  return zlib.crc32(np.asarray(checksum(state)).tobytes())


class Checkpoints:
  """The folder `checkpoints/` of a run; use as a context.

  Args:
    workdir: the run's folder.
    keep: how many of the newest stay.
    best: whether the best by validation accuracy stays beside them.
    read_only: leave the folder as it is.
  """

  def __init__(
    self, workdir: pathlib.Path, keep: int = 2, best: bool = False, read_only: bool = False
  ):
    if keep < 2:
      raise ValueError(f'config.keep_checkpoints={keep} must be at least 2: one may be damaged')
    self.folder = workdir.absolute() / 'checkpoints'  # Orbax fails late on a relative path.
    if not read_only:
      for step in unreadable_steps(self.folder):
        self._set_aside(step, 'its metrics or passport cannot be read')
      distributed.barrier('checkpoints looked at')
    accuracy = operator.itemgetter('accuracy')
    policies = [POLICY.LatestN(keep)] + [POLICY.BestN(get_metric_fn=accuracy, n=1)] * best
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=POLICY.AnyPreservationPolicy(policies),
        best_fn=accuracy,
        read_only=read_only,
        create=not read_only,
      ),
      item_names=('state', 'passport'),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def save(self, step: int, state, passport: dict, scores: dict[str, float] | None = None) -> None:
    """Starts writing in the background; an error of the save before this one surfaces here."""
    passport = passport | {'step': step, 'fingerprint': fingerprint(state)}
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), passport=ocp.args.JsonSave(passport)
    )
    self._manager.check_for_errors()
    self._manager.save(step, args=items, metrics=scores)

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
        items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        state = self._manager.restore(step, args=items)['state']
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
      ValueError: there is none, or none can be read.
    """
    steps, damaged = self._newest_first(), {}
    for step in dict.fromkeys([self._manager.best_step() or steps[0], *steps] if steps else []):
      try:
        passport = self._passport(step)
        return self._arrays(step, passport['weights'])['model'], passport
      except Exception as error:  # As above.
        damaged[step] = ' '.join(str(error).split())[:300]
        logging.warning('checkpoint %s is damaged: %s', self.folder / str(step), damaged[step])
    self._refuse(damaged)
    raise ValueError(f'{self.folder} holds no checkpoint yet: train first, with --mode=train')

  def wanted_step(self) -> int | None:
    """The step of the best checkpoint, else of the newest."""
    return self._manager.best_step() or self._manager.latest_step()

  def _newest_first(self) -> list[int]:
    return sorted(self._manager.all_steps(), reverse=True)

  def _passport(self, step: int) -> dict:
    items = ocp.args.Composite(passport=ocp.args.JsonRestore())
    return self._manager.restore(step, args=items)['passport']

  def _arrays(self, step: int, weights: str) -> dict:
    """The tree 'params' or 'ema' of a checkpoint alone, as numpy arrays."""
    name = {'raw': 'params', 'ema': 'ema'}[weights]
    reader, path = ocp.PyTreeCheckpointer(), self.folder / str(step) / 'state'
    metadata: Any = reader.metadata(path).item_metadata
    item = {name: metadata.tree[name]}
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=kinds, partial_restore=True)
    return reader.restore(path, args=args)[name]

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
  for step in (path for path in folder.glob('*') if path.name.isdigit()):
    try:
      for name in (
        'passport/metadata',
        *(['metrics/metrics'] if (step / 'metrics').exists() else []),
      ):
        json.loads((step / name).read_text())
    except (OSError, ValueError):
      steps.append(int(step.name))
  return steps
