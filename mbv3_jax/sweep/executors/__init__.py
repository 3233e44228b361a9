"""Engines that run trials, behind the protocol of `base.py`."""

from collections.abc import Callable, Mapping

from mbv3_jax.sweep.executors import gcluster, local, skypilot, slurm, xpk
from mbv3_jax.sweep.executors.base import Executor

# Name -> make(descriptions, lock, *, options).
EXECUTORS: Mapping[str, Callable[..., Executor]] = {
    "local": local.make,
    "slurm": slurm.make,
    "gcluster": gcluster.make,
    "xpk": xpk.make,
    "skypilot": skypilot.make,
}
