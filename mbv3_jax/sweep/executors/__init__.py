"""Engines that run trials, behind the protocol of `base.py`."""

from mbv3_jax.sweep.executors import local, skypilot, slurm, xpk

# Name -> make(descriptions, lock, *, options).
EXECUTORS = {"local": local.make, "slurm": slurm.make, "xpk": xpk.make, "skypilot": skypilot.make}
