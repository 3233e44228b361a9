"""Several processes: how they find each other, and what only the first of them does.

Where the others are comes from the first of these that is there:

  flags      --coordinator=HOST:PORT --num-processes=N --process-id=I, all three
  variables  JAX_COORDINATOR_ADDRESS, with JAX_NUM_PROCESSES or NNODES, and JAX_PROCESS_ID,
             NODE_RANK or JOB_COMPLETION_INDEX: a Kubernetes JobSet says it so, on GKE too
  SLURM      a step of several tasks that `srun` started. A bare batch script is one process: only
             `srun` tells a task which one it is
  TPU        a TPU VM: JAX asks its metadata server, or GKE's TPU_WORKER_HOSTNAMES, for the others

A process that finds none of them is alone and needs nothing. All processes run the same command
and see the same run folder. The first one alone writes configuration, metrics and summary, and
prints; checkpoints are written by all together.
"""

import importlib.util
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mbv3_jax.train.errors import EXIT_RESTART, RunError, UsageError
from mbv3_jax.train.peers import Peers, end, on_abort

# How long a process waits for a silent or stalled one, in seconds.
PATIENCE = 300.0
_FLAGS = ("coordinator", "num_processes", "process_id")
# What a collective says when a process at its other end is gone: gloo, NCCL, and JAX's own service.
_LOST = re.compile(r"(?i)gloo|nccl|connection (reset|closed|refused)|socket closed|unavailable:")

_peers: Peers | None = None
_agreed = 0


def detect(flags: Mapping[str, Any], environ: Mapping[str, str], *, on_tpu: bool) -> dict | None:
    """The arguments of `jax.distributed.initialize`, or None for a process that is alone.

    Args:
      flags: coordinator, num_processes and process_id, each None if not given.
      environ: the environment.
      on_tpu: whether this is a TPU VM.

    Raises:
      UsageError: only some of what is needed is given, or it makes no sense.
    """
    given = [name for name in _FLAGS if flags.get(name) is not None]
    if given:
        if len(given) < len(_FLAGS):
            absent = ", ".join(f"--{n.replace('_', '-')}" for n in _FLAGS if n not in given)
            raise UsageError(
                f"--{given[0].replace('_', '-')} comes with the other two; missing: {absent}"
            )
        return _explicit(*(flags[name] for name in _FLAGS))
    if address := environ.get("JAX_COORDINATOR_ADDRESS"):
        count = _first(environ, "JAX_NUM_PROCESSES", "NNODES")
        index = _first(environ, "JAX_PROCESS_ID", "NODE_RANK", "JOB_COMPLETION_INDEX")
        if None not in (count, index):
            if ":" not in address:
                address += f":{environ.get('JAX_COORDINATOR_PORT', '8476')}"
            return _explicit(address, count, index)
    tasks = int(environ.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_NODELIST" in environ and tasks > 1:
        found = {"cluster_detection_method": "slurm"}
        # JAX gives each task the device of its number on the node, even the only one of a node.
        alone = environ.get("SLURM_STEP_NUM_NODES") == str(tasks)
        if alone and (devices := int(environ.get("SLURM_GPUS_ON_NODE", "0"))):
            found["local_device_ids"] = list(range(devices))
        return found
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


def start(flags: Mapping[str, Any], *, patience: float = PATIENCE) -> None:
    """Meets the other processes, if there are any; before JAX is used otherwise.

    Args:
      flags: as `detect` takes them.
      patience: seconds after which a process that is silent or stalled is given up.

    Raises:
      UsageError: as `detect`, or `patience` out of range.
      RunError: the port is taken, or what else JAX says. Where others do not come in `patience`
        seconds, JAX aborts, and the process ends with 75.
    """
    global _peers
    if not patience > 0:
        raise UsageError(f"--patience: got {patience}, expected seconds above 0")
    arguments = detect(flags, os.environ, on_tpu=on_tpu_vm())
    if arguments is None:
        return
    import jax
    from jax._src import distributed  # its key-value store has no public name; Orbax does the same

    # Its SIGTERM handler would stand in the way of ours, and Orbax would ask it about steps that
    # are not the boundaries counted here.
    jax.config.update("jax_enable_preemption_service", False)
    where = arguments.get("coordinator_address", "the coordinator")
    if arguments.get("process_id") == 0:
        _check_port(where)
    lone = f"the processes did not meet at {where} within --patience {patience:g} s, see above"
    on_abort(lambda: end(lone, EXIT_RESTART))  # some may have been lost while they started
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=max(1, round(patience)),
            heartbeat_timeout_seconds=max(10, round(patience + 30)),  # ours comes first
            shutdown_timeout_seconds=max(1, round(patience)),
        )
    except Exception as e:  # whatever the runtime raises
        first = str(e).strip().splitlines()[0]
        raise RunError(f"the processes did not meet at {where}: {first}") from e
    finally:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
    if jax.process_count() > 1:
        _peers = Peers(
            distributed.global_state.client,
            index=jax.process_index(),
            count=jax.process_count(),
            patience=patience,
        )


def _check_port(address: str) -> None:
    """The first process listens there; where it cannot, JAX crashes, or answers another run's."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as e:
        raise RunError(f"cannot listen at {address} ({e}); choose another port for all") from e


def peers() -> Peers | None:
    """The other processes, or None for a process that is alone."""
    return _peers


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _peers is None or _peers.index == 0


def label() -> str:
    """ "process 1 of 2: " before an error; nothing where there is only one."""
    return f"{_peers.name}: " if _peers else ""


def from_first(action: Callable[[], Any]) -> Any:
    """What `action` returns, or raises, in the first process, in all of them; JSON values only.

    Raises:
      UsageError, RunError: as the action did.
    """
    global _agreed
    if _peers is None:
        return action()
    _agreed += 1
    key = f"first/{_agreed}"
    if _peers.index:
        reply = json.loads(_peers.receive(key))
        if "error" in reply:
            kind = UsageError if reply["error"] == "UsageError" else RunError
            raise kind(reply["message"])
        return reply["value"]
    try:
        value = action()
    except (UsageError, RunError) as e:
        _peers.send(key, json.dumps({"error": type(e).__name__, "message": str(e)}))
        raise
    _peers.send(key, json.dumps({"value": value}))
    return value


def is_loss_of_a_process(error: BaseException | None) -> bool:
    """Whether an error is that a process of the run is gone."""
    while _peers and error is not None:
        if not isinstance(error, UsageError | OSError) and _LOST.search(str(error)):
            return True
        error = error.__cause__
    return False
