"""How the processes of one run find each other.

A process finds the others by the first of these that is present; without any of them it runs alone:

flags      --coordinator=HOST:PORT --num-processes=N --process-id=I, all three
variables  JAX_COORDINATOR_ADDRESS, with JAX_NUM_PROCESSES or NNODES, and JAX_PROCESS_ID,
           NODE_RANK or JOB_COMPLETION_INDEX, as a Kubernetes JobSet sets them, also on GKE
SLURM      a step of several tasks that `srun` started. A bare batch script is one process: only
           `srun` tells a task its number
TPU        a TPU VM: JAX asks its metadata server, or GKE's TPU_WORKER_HOSTNAMES, for the others
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbv3_jax.core.errors import UsageError

_FLAGS = ("coordinator", "num_processes", "process_id")


def detect_processes(
    flags: Mapping[str, Any], environ: Mapping[str, str], *, on_tpu: bool
) -> dict | None:
    """The arguments of `jax.distributed.initialize`, or None for a process that runs alone.

    Args:
      flags: coordinator, num_processes and process_id, each None if not given.
      environ: the environment.
      on_tpu: whether this is a TPU VM.

    Raises:
      UsageError: only some of the flags are given, or their values make no sense.
    """
    typed = [name for name in _FLAGS if flags.get(name) is not None]
    if typed:
        if len(typed) < len(_FLAGS):
            absent = ", ".join(f"--{n.replace('_', '-')}" for n in _FLAGS if n not in typed)
            raise UsageError(
                f"--{typed[0].replace('_', '-')} needs the other two flags; missing: {absent}"
            )
        return _explicit(*(flags[name] for name in _FLAGS))
    if address := environ.get("JAX_COORDINATOR_ADDRESS"):
        count = _first(environ, "JAX_NUM_PROCESSES", "NNODES")
        index = _first(environ, "JAX_PROCESS_ID", "NODE_RANK", "JOB_COMPLETION_INDEX")
        if count is not None and index is not None:
            if ":" not in address:
                address += f":{environ.get('JAX_COORDINATOR_PORT', '8476')}"
            return _explicit(address, count, index)
    tasks = _first(environ, "SLURM_NTASKS") or 1
    if "SLURM_STEP_NODELIST" in environ and tasks > 1:
        arguments: dict[str, Any] = {"cluster_detection_method": "slurm"}
        # JAX gives each task one device, that of its number on the node; a task that has the node
        # to itself gets all of them.
        alone = environ.get("SLURM_STEP_NUM_NODES") == str(tasks)
        if alone and (devices := _first(environ, "SLURM_GPUS_ON_NODE")):
            arguments["local_device_ids"] = list(range(devices))
        return arguments
    return {} if on_tpu else None


def _first(environ: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        if environ.get(name):
            try:
                return int(environ[name])
            except ValueError as e:
                raise UsageError(f"{name}: got {environ[name]!r}, expected a number") from e
    return None


def _explicit(address: str, count: int, index: int) -> dict | None:
    if not re.fullmatch(r".+:\d+", address):
        raise UsageError(f"--coordinator: got {address!r}, expected HOST:PORT of process 0")
    if not 0 <= index < count:
        raise UsageError(
            f"--process-id: got {index} of --num-processes {count}, expected 0 to {count - 1}"
        )
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def on_tpu_vm() -> bool:
    """Whether this machine has a TPU, and JAX the library for it."""
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None
