"""Where arrays lie: devices in a row, batches split over them, the rest everywhere or in parts."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any  # nested dicts of arrays


def row(devices: Sequence) -> list:
    """Devices of a process side by side, in the order of the processes.

    The row is then the order of the examples in a batch, on a TPU pod too, where the numbers of a
    process's devices do not follow each other.
    """
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def make_mesh(devices=None) -> Mesh:
    """All devices in one row, over which the batch is split; one device is the smallest mesh."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(row(devices)), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole: parameters, metrics."""
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Every device holds its part of an axis, that of the examples: batches."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def put_batch(batch: dict, mesh: Mesh, *, axis: int = 0) -> dict:
    """Moves this process's part of a host batch to its devices, as one global array each."""
    sharding = batch_sharded(mesh, axis)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def spread(tree: Tree, mesh: Mesh) -> Tree:
    """Shardings in which every device holds a part of each array that can be cut evenly.

    Cut is the longest axis that the number of devices divides; what has none is replicated: it is
    small. Used for what only the update needs, the optimizer's state and the average (ZeRO stage 1,
    Rajbhandari et al. 2019, arXiv 1910.02054).

    Args:
      tree: arrays, or their shapes.
      mesh: from `make_mesh`.
    """
    devices = mesh.devices.size

    def place(x) -> NamedSharding:
        cut = [axis for axis, size in enumerate(x.shape) if size and size % devices == 0]
        if not cut:
            return replicated(mesh)
        axis = max(cut, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, P(*[None] * axis, "data"))

    return jax.tree.map(place, tree)


def bytes_per_device(tree: Tree) -> int:
    """What one device holds of arrays, or of shapes with a sharding, in bytes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )
