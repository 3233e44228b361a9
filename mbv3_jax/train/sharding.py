"""Where arrays are placed: batches split over a row of devices, the rest replicated or in parts."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any  # nested dicts of arrays


def row(devices: Sequence) -> list:
    """The devices in the order of their processes, those of a process side by side.

    This is then the order of the examples in a batch, also on a TPU pod, where the numbers of a
    process's devices are not consecutive.
    """
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def make_mesh(devices: Sequence | None = None) -> Mesh:
    """All devices, or the given ones, in one row over which a batch is split."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(row(devices)), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding in which every device holds the whole array: parameters, metrics."""
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding in which every device holds its part of an axis, that of the examples."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def put_batch(batch: dict, mesh: Mesh, *, axis: int = 0) -> dict:
    """Moves this process's part of a host batch to its devices.

    Args:
      batch: NumPy arrays.
      mesh: from `make_mesh`.
      axis: of the examples.

    Returns:
      For each array one global array of the whole batch.
    """
    sharding = batch_sharded(mesh, axis)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def spread(tree: Tree, mesh: Mesh) -> Tree:
    """Shardings in which every device holds a part of each array that can be cut evenly.

    The longest axis that the number of devices divides is cut; an array without one is small, and
    is replicated. It is used for what only the update needs: the optimizer's state and the average
    (ZeRO stage 1, Rajbhandari et al. 2019, arXiv 1910.02054).

    Args:
      tree: arrays, or their shapes.
      mesh: from `make_mesh`.
    """
    devices = mesh.devices.size

    def place(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size and size % devices == 0]
        if not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, P(*[None] * axis, "data"))

    return jax.tree.map(place, tree)


def check_divides(field: str, size: int, devices: int, accum_steps: int = 1) -> None:
    """Raises ValueError, naming `field`, where devices and parts do not divide a batch."""
    divisor = devices * accum_steps
    if size % divisor:
        below, above = size // divisor * divisor, -(-size // divisor) * divisor
        near = f"{below} or {above}" if below else f"{above}"
        accum = f" times accum_steps {accum_steps}" if accum_steps > 1 else ""
        raise ValueError(
            f"{field}: got {size}, which {devices} devices{accum} do not divide; "
            f"the nearest that they divide: {near}"
        )


def bytes_per_device(tree: Tree) -> int:
    """How many bytes of the arrays, or of shapes with a sharding, one device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )
