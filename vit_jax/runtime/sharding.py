"""The mesh of devices, and where the batch and the state lie on it.

One mesh with axes `data` and `fsdp`: a batch is cut over both, the state over `fsdp` alone. The
same code serves one CPU, several GPUs, a TPU slice, or several processes.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

# Smaller arrays gain nothing from being cut: they cost a message and save a few kilobytes.
SMALLEST_SHARDED = 2**10


def make_mesh(fsdp: int) -> Mesh:
  """The mesh of all devices, with axes `data` and `fsdp`.

  Raises:
    ValueError: `fsdp` does not divide the devices.
  """
  count = jax.device_count()
  if fsdp < 1 or count % fsdp:
    raise ValueError(f'config.fsdp={fsdp} must divide the {count} devices')
  return jax.make_mesh((count // fsdp, fsdp), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def check_batch(key: str, batch_size: int, accumulation_steps: int = 1) -> None:
  """Refuses a global batch that does not divide.

  Raises:
    ValueError: names the batch size, the devices, and the nearest sizes that divide.
  """
  unit = jax.device_count() * accumulation_steps
  if accumulation_steps < 1 or batch_size < 1 or batch_size % unit:
    lower = batch_size // unit * unit if accumulation_steps > 0 else 0
    raise ValueError(
      f'{key}={batch_size} must be a multiple of {jax.device_count()} devices times '
      f'config.accumulation_steps={accumulation_steps}; nearest: {lower or unit} or {lower + unit}'
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding that cuts rows over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that puts everything on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices as part of the global batch."""
  place = jax.make_array_from_process_local_data
  return {key: place(batch_sharding(mesh), value) for key, value in batch.items()}


def state_shardings(shapes, mesh: Mesh):
  """Chooses a sharding for each array: its largest axis that `fsdp` divides, else replicated."""

  def choose(x) -> NamedSharding:
    fsdp = mesh.shape['fsdp']
    axes = [axis for axis in range(len(x.shape)) if x.shape[axis] % fsdp == 0]
    if fsdp == 1 or not axes or x.size < SMALLEST_SHARDED:
      return replicated(mesh)
    largest = max(axes, key=lambda axis: x.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*([None] * largest), 'fsdp'))

  return jax.tree.map(choose, shapes)


def place_state(tree, mesh: Mesh):
  """Puts host arrays on the devices as a state lies there."""
  return jax.tree.map(jax.device_put, tree, state_shardings(tree, mesh))
