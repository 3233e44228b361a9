"""The other processes of a run, watched by a thread: none waits for ever for one that is gone.

A collective waits for all processes, so the main thread can tell nothing while it waits. Hence a
thread that writes down once a second, in the key-value store of JAX's coordinator, that it lives
and how many boundaries (of steps and evaluation batches) the main thread has passed, and reads what
the others wrote. It ends the process where

  a process has said that it failed             with its code
  a process has been silent for `patience`      with 75: killed or pre-empted, so start again
  the main thread has passed no boundary        with 75: something hangs
    for `patience`

`patience` counts tenfold where programs are compiled. JAX itself aborts when the coordinator, the
first process, goes; that too becomes 75.

The thread also settles where to stop: a request (SIGTERM) reaches one process, but a checkpoint
needs all at the same step. Each writes down its boundary while it holds its main thread back from
the next one; all stop at the one after the largest.
"""

import ctypes
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mbv3_jax.core.errors import EXIT_RESTART, RunError, UsageError

_COMPILING = 10.0  # times patience
_GRACE = 5.0  # seconds for the main thread to end by itself
_handlers = []


def on_abort(action: Callable[[], None]) -> None:
    """Has `action` called where JAX aborts the process: others did not come, or the first has left.

    JAX offers no other way. It aborts in C++, where Python's own signal handlers do not run.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: action())
    _handlers.append(handler)  # kept: C calls it
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def end_process(message: str, code: int) -> NoReturn:
    """Ends the process at once: the main thread hangs, or would in the exit handlers."""
    again = "; the same command goes on from the last checkpoint" if code == EXIT_RESTART else ""
    print(f"error: {message}{again}", file=sys.stderr, flush=True)
    os._exit(code)


class Peers:
    """The processes of this run.

    Args:
      client: of JAX's coordination service.
      index: of this process.
      count: of processes.
      patience: seconds.
    """

    def __init__(self, client, *, index: int, count: int, patience: float):
        self.index, self.count, self.patience = index, count, patience
        self.name = f"process {index} of {count}"
        self._client = client
        self._boundary, self._stop_at = 0, None
        self._asked = self._closed = False
        self._code: int | None = None
        self._lock = threading.Lock()
        self._heard: dict[int, tuple[str, float]] = {}
        self._deadline = time.monotonic() + _COMPILING * patience
        on_abort(
            lambda: self._end("JAX has lost the first process of this run, see above", EXIT_RESTART)
        )
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def send(self, key: str, value: str) -> None:
        """Writes a value for all to read."""
        self._client.key_value_set(f"mbv3/{key}", value)

    def receive(self, key: str) -> str:
        """Waits for a value that a process sends.

        Raises:
          RunError: it does not come.
        """
        milliseconds = round(1000 * _COMPILING * self.patience)
        try:
            return self._client.blocking_key_value_get(f"mbv3/{key}", milliseconds)
        except Exception as e:  # whatever the runtime raises
            raise RunError(f"process 0 did not answer: {str(e).splitlines()[0]}") from e

    def ask_to_stop(self) -> None:
        """Asks all to stop at the same boundary; may be called by a signal handler."""
        self._asked = True

    def passes(self, *, compiles: bool = False) -> bool:
        """Counts a boundary; whether all stop at it. All processes call it at the same places.

        Args:
          compiles: what follows may compile a program first.
        """
        with self._lock:
            self._boundary += 1
            factor = _COMPILING if compiles else 1.0
            self._deadline = time.monotonic() + factor * self.patience
            return self._stop_at is not None and self._boundary >= self._stop_at

    def failed(self, message: str, code: int) -> None:
        """Tells the others that this process ends by an error, and with which code."""
        self._code = code
        try:
            self._client.key_value_set(f"peers/failed/{self.index}", f"{code} {message}", True)
        except Exception:  # the others are gone
            return

    def close(self, code: int) -> None:
        """Ends the watch: this process is done."""
        self._code, self._closed = code, True

    def lost(self, error: BaseException) -> NoReturn:
        """Ends the process after a collective has failed because another one is gone."""
        deadline = time.monotonic() + min(_GRACE, self.patience)
        while time.monotonic() < deadline:
            if failure := self._failure(self._read()):
                self._end(*failure)
            time.sleep(0.2)
        reason = str(error).strip().splitlines()[0][:200]
        self._end(f"another process of this run is gone ({reason})", EXIT_RESTART)

    def _read(self) -> dict[str, str]:
        try:
            found = self._client.key_value_dir_get("peers/")
        except Exception:  # the coordinator is gone; JAX, or the deadline, ends this process
            return {}
        return {key.removeprefix("peers/"): value for key, value in found}

    def _failure(self, words: dict[str, str]) -> tuple[str, int] | None:
        """What another process ended by, and the code to exit with."""
        for i in range(self.count):
            if i != self.index and f"failed/{i}" in words:
                code, _, message = words[f"failed/{i}"].partition(" ")
                return f"process {i} ended: {message}", int(code)
        return None

    def _watch(self) -> None:
        beat = 0
        while not self._closed:
            time.sleep(min(1.0, self.patience / 10))
            beat += 1
            try:
                self._client.key_value_set(
                    f"peers/at/{self.index}", f"{self._boundary} {beat}", True
                )
                if self._asked:
                    self._client.key_value_set("peers/stop", "1", True)
            except Exception:  # as in _read
                pass
            words = self._read()
            if "stop" in words and self._stop_at is None:
                self._settle_stop()
            if failure := self._failure(words):
                time.sleep(_GRACE)
                self._end(*failure)
            self._listen(words)
            if time.monotonic() > self._deadline and not self._closed:
                self._end(self._stalled(), EXIT_RESTART)

    def _settle_stop(self) -> None:
        with self._lock:
            self._client.key_value_set(f"stop/{self.index}", str(self._boundary), True)
            milliseconds = round(1000 * self.patience)
            at = [
                int(self._client.blocking_key_value_get(f"stop/{i}", milliseconds))
                for i in range(self.count)
            ]
            self._stop_at = max(at) + 1

    def _listen(self, words: dict[str, str]) -> None:
        now = time.monotonic()
        for i in range(self.count):
            word = words.get(f"at/{i}", "")
            if i not in self._heard or (word and word != self._heard[i][0]):
                self._heard[i] = (word, now)
            silent = now - self._heard[i][1]
            if silent > self.patience and not self._closed:
                self._end(f"process {i} has not been heard of for {silent:.0f} s", EXIT_RESTART)

    def _stalled(self) -> str:
        behind = []
        for i, (word, _) in sorted(self._heard.items()):
            if word and int(word.split()[0]) < self._boundary:
                behind.append(f"process {i}")
        who = f"; still before it: {', '.join(behind)}" if behind else ""
        return f"no step or batch ended within the limit (--patience {self.patience:g} s){who}"

    def _end(self, message: str, code: int) -> NoReturn:
        end_process(f"{self.name}: {message}", code if self._code is None else self._code)


# Several processes: how they find each other, and what only the first of them does.
#
# Where the others are comes from the first of these that is there:
#
# flags      --coordinator=HOST:PORT --num-processes=N --process-id=I, all three
# variables  JAX_COORDINATOR_ADDRESS, with JAX_NUM_PROCESSES or NNODES, and JAX_PROCESS_ID,
# NODE_RANK or JOB_COMPLETION_INDEX: a Kubernetes JobSet says it so, on GKE too
# SLURM      a step of several tasks that `srun` started. A bare batch script is one process: only
# `srun` tells a task which one it is
# TPU        a TPU VM: JAX asks its metadata server, or GKE's TPU_WORKER_HOSTNAMES, for the others
#
# A process that finds none of them is alone and needs nothing. All processes run the same command
# and see the same run folder. The first one alone writes configuration, metrics and summary, and
# prints; checkpoints are written by all together.

# How long a process waits for a silent or stalled one, in seconds.
PATIENCE = 300.0
_FLAGS = ("coordinator", "num_processes", "process_id")
# What a collective says when a process at its other end is gone: gloo, NCCL, and JAX's own service.
_LOST = re.compile(r"(?i)gloo|nccl|connection (reset|closed|refused)|socket closed|unavailable:")

_peers: Peers | None = None
_agreed = 0


def detect_processes(
    flags: Mapping[str, Any], environ: Mapping[str, str], *, on_tpu: bool
) -> dict | None:
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


def start_processes(flags: Mapping[str, Any], *, patience: float = PATIENCE) -> None:
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
    arguments = detect_processes(flags, os.environ, on_tpu=on_tpu_vm())
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
    on_abort(lambda: end_process(lone, EXIT_RESTART))  # some may have been lost while they started
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


def other_processes() -> Peers | None:
    """The other processes, or None for a process that is alone."""
    return _peers


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _peers is None or _peers.index == 0


def process_label() -> str:
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
