"""Orbax as this project wants it: a folder of checkpoints opened, saved to, restored from.

Importing Orbax takes a third of a second: import this where a checkpoint is read or written.
"""

from collections.abc import Callable
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

POLICY = ocp.checkpoint_managers
# Orbax logs hundreds of lines a run, warnings about nothing included; its errors are raised anyway.
logging.get_absl_logger().addFilter(lambda record: 'orbax' not in record.pathname)


def write_whole() -> None:
  """Has a process that saves alone write each array in one piece.

  Orbax cuts what lies on several devices into slices for as many writers; of one process they are
  eager operations alone, six thousand in seven checkpoints of a small model on eight devices.
  """
  if jax.process_count() == 1:
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def alone() -> ocp.options.MultiprocessingOptions:
  """This process reads by itself; the others need not even be there."""
  own = jax.process_index()
  return ocp.options.MultiprocessingOptions(own, {own}, f'alone_{own}')


def open_folder(
  folder: pathlib.Path,
  keep: int,
  goodness: Callable[[dict[str, float]], float],
  keep_best: bool,
) -> ocp.CheckpointManager:
  """Orbax's manager of a folder, which it makes.

  Args:
    keep: how many of the newest stay.
    goodness: of a checkpoint, from its metrics: the highest is the best.
    keep_best: whether the best one stays beside them.
  """
  write_whole()
  policies: list[Any] = [POLICY.LatestN(keep)]
  if keep_best:
    # What an interruption saved has no metrics; all of these would stay else.
    best = POLICY.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
    policies.append(best)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=POLICY.AnyPreservationPolicy(policies),
    best_fn=goodness,
  )
  return ocp.CheckpointManager(folder, options=options, item_names=('state', 'passport'))


def save(manager: Any, step: int, state: Any, passport: dict, metrics: Any) -> None:
  """Starts writing in the background; an error of the save before this one surfaces here."""
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state), passport=ocp.args.JsonSave(passport)
  )
  manager.check_for_errors()
  manager.save(step, args=items, metrics=metrics)


def restore_state(manager: Any, step: int, shapes: Any) -> Any:
  """The state of a step, placed as the shapes' shardings say."""
  items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
  return manager.restore(step, args=items)['state']


def restore_passport(manager: Any, step: int) -> dict:
  """The passport of a step."""
  items = ocp.args.Composite(passport=ocp.args.JsonRestore())
  return manager.restore(step, args=items)['passport']


def restore_tree(path: pathlib.Path, name: str) -> dict:
  """One tree of a state on disk alone, by its name, as NumPy arrays."""
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
  reader = ocp.Checkpointer(handler, multiprocessing_options=alone())
  metadata: Any = reader.metadata(path).item_metadata
  item = {name: metadata.tree[name]}
  kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
  args = ocp.args.PyTreeRestore(item=item, restore_args=kinds, partial_restore=True)
  return reader.restore(path, args=args)[name]
