"""The mesh of devices, and where the batch and the state lie on it.

One mesh with axes `data` and `fsdp`: a batch is cut over both, the state over `fsdp` alone. The
same code serves one CPU, several GPUs, a TPU slice, or several processes.
"""

from collections.abc import Callable
import contextlib
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

# Smaller arrays gain nothing from being cut: they cost a message and save a few kilobytes.
SMALLEST_SHARDED = 2**10
AXES = ('data', 'fsdp')
AUTO = (AxisType.Auto,) * 2


def make_mesh(fsdp: int, devices: list[Any] | None = None) -> Mesh:
  """The mesh of some devices, or of all, with axes `data` and `fsdp`.

  Raises:
    ValueError: `fsdp` does not divide the devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if fsdp < 1 or count % fsdp:
    raise ValueError(f'config.fsdp={fsdp} must divide the {count} devices')
  placed = arrange(devices, (count // fsdp, fsdp))
  return Mesh(placed, AXES, axis_types=AUTO)


def arrange(devices: list[Any], shape: tuple[int, int]) -> np.ndarray:
  """Devices in rows of neighbours; those of a TPU that are no box in the order that they have."""
  failed = (AssertionError, NotImplementedError, ValueError)
  with contextlib.suppress(*failed):
    return jax.make_mesh(shape, AXES, axis_types=AUTO, devices=devices).devices
  with contextlib.suppress(*failed):  # Where no whole axis of the wires fits, a part of one may.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return np.array(devices).reshape(shape)


def rows_here(batch_size: int, mesh: Mesh) -> np.ndarray:
  """The rows of a global batch that lie on this process's devices, in order.

  They need not be next to one another: on a TPU a mesh goes along the wires, not by process.
  """
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = np.arange(batch_size)
  return np.unique(np.concatenate([rows[place] for place in places.values() if place is not None]))


def is_here(mesh: Mesh) -> bool:
  """Whether the devices of a mesh can compute; others are only compiled for."""
  return mesh.devices.flat[0].client is jax.devices()[0].client


def check_batch(key: str, batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
  """Refuses a global batch that does not divide.

  Raises:
    ValueError: names the batch size, the devices, and the nearest sizes that divide.
  """
  unit = mesh.size * accumulation_steps
  if accumulation_steps < 1 or batch_size < 1 or batch_size % unit:
    lower = batch_size // unit * unit if accumulation_steps > 0 else 0
    raise ValueError(
      f'{key}={batch_size} must be a multiple of {mesh.size} devices times '
      f'config.accumulation_steps={accumulation_steps}; nearest: {lower or unit} or {lower + unit}'
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
  """The batch size that the devices divide; for batches whose last rows only fill them up.

  Raises:
    ValueError: the batch size is not at least 1.
  """
  if batch_size < 1:
    raise ValueError(f'config.evaluation.batch_size={batch_size} must be at least 1')
  return -(-batch_size // mesh.size) * mesh.size


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding that cuts rows over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that puts everything on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices as part of the global batch."""
  place = jax.make_array_from_process_local_data
  return {key: place(batch_sharding(mesh), value) for key, value in batch.items()}


def cut(x: np.ndarray, axis: int, mesh: Mesh) -> jax.Array:
  """Puts a host array on the devices of one process, one axis cut over all of them."""
  spec = PartitionSpec(*([None] * axis), AXES)
  return jax.device_put(x, NamedSharding(mesh, spec))


def spec_of(shape: tuple[int, ...], mesh: Any, axes: tuple[str, ...] = ('fsdp',)) -> PartitionSpec:
  """How an array of the state is cut over `axes`: its largest axis that they divide, else not."""
  parts = math.prod(mesh.shape[axis] for axis in axes)
  fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
  if parts == 1 or not fitting or math.prod(shape) < SMALLEST_SHARDED:
    return PartitionSpec()
  largest = max(fitting, key=lambda axis: shape[axis])
  return PartitionSpec(*([None] * largest), axes[0] if len(axes) == 1 else axes)


def state_shardings(shapes: Any, mesh: Mesh, axes: tuple[str, ...] = ('fsdp',)) -> Any:
  """A sharding for each array of a tree, as `spec_of` says."""
  return jax.tree.map(lambda x: NamedSharding(mesh, spec_of(x.shape, mesh, axes)), shapes)


def place_state(tree: Any, mesh: Mesh) -> Any:
  """Puts host arrays on the devices as a state lies there; their shapes where none are here."""
  shardings = state_shardings(tree, mesh)
  if is_here(mesh):
    return jax.tree.map(jax.device_put, tree, shardings)
  shape = jax.ShapeDtypeStruct
  return jax.tree.map(lambda x, s: shape(x.shape, x.dtype, sharding=s), tree, shardings)


def jit_on(mesh: Mesh, function: Callable, **options: Any) -> Callable:
  """`jax.jit` of a function that knows the mesh while it is traced, as kernels on a TPU must."""
  compiled = jax.jit(function, **options)

  def call(*arguments):
    with jax.set_mesh(mesh):
      return compiled(*arguments)

  return call


def is_cut() -> bool:
  """Whether the state is cut over `fsdp`; only known within `jax.set_mesh`, as the step is."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.shape.get('fsdp', 1) > 1


def on_cpu() -> bool:
  """Whether what is traced is for a CPU: within `jax.set_mesh` the mesh's devices, else JAX's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (device.platform if device else jax.default_backend()) == 'cpu'


def in_mesh_of_cpu() -> bool:
  """Whether what is traced is for a CPU and within `jax.set_mesh`, as the train step is."""
  return not jax.sharding.get_abstract_mesh().empty and on_cpu()


@jax.custom_vjp
def product_of_cut(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel` with a kernel that is cut over devices: gathered for the product, then let go.

  The backward pass gathers it again: the compiler alone gathers all kernels once and keeps them.
  """
  return _forward(x, kernel)[0]


def _forward(x, kernel):
  return x @ jax.lax.with_sharding_constraint(kernel, PartitionSpec()), (x, kernel)


def _backward(kept, gradient):
  # The barrier ties the second gathering to its gradient; else it would be merged with the first.
  x, (kernel, gradient) = kept[0], jax.lax.optimization_barrier((kept[1], gradient))
  kernel = jax.lax.with_sharding_constraint(kernel, PartitionSpec())
  return gradient @ kernel.T, x.T @ gradient


product_of_cut.defvjp(_forward, _backward)
