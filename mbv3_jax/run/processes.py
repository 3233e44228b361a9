"""Several processes of one run, which watch each other; `detection.py` says how they meet.

All processes run the same command and see the same run folder. Only the first one writes the
configuration, metrics and summary, and prints; checkpoints are written by all together.

No process waits for ever for one that has died. A collective waits for all processes and cannot be
interrupted, so each process has a thread (`Peers`) that writes once a second into the key-value
store of JAX's coordinator that the process is alive and how many boundaries (between steps and
evaluation batches) its main thread has passed, and reads what the others wrote. It ends the process

  when another process has reported a failure      with the code of that process
  when one has been silent for `patience`          with 75: it was killed, so start again
  when the main thread has passed no boundary      with 75: something hangs
    for `patience`

`patience` counts tenfold where programs are compiled. JAX itself aborts when the coordinator, the
first process, disappears; that too becomes 75.

The thread also decides where to stop: preemption (SIGTERM) reaches one process, but a checkpoint
needs all of them at the same step. Each process writes down its boundary while it keeps its main
thread from passing the next one; all stop at the one after the largest.
"""

import atexit
import contextlib
import ctypes
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from mbv3_jax.core.errors import EXIT_INTERRUPTED, EXIT_RESTART, RunError, UsageError, first_line
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.signals import STOP_SIGNALS
from mbv3_jax.run.detection import detect_processes, on_tpu_vm

# How long a process waits for a silent or stalled one, in seconds.
PATIENCE = 300.0
_COMPILING = 10.0  # times patience
_GRACE = 5.0  # seconds for the main thread to end by itself
_LATER = 30  # seconds by which JAX's own limits are longer, since it reports with a native trace
# What a collective reports when a process at its other end has died: gloo, NCCL, and JAX's service.
_LOST = re.compile(r"(?i)gloo|nccl|connection (reset|closed|refused)|socket closed|unavailable:")

_peers: "Peers | None" = None
_agreed = 0  # how many results of the first process the others have received
_handlers: list[Any] = []


def start_processes(flags: Mapping[str, Any], *, patience: float = PATIENCE) -> None:
    """Connects to the other processes, if there are any; JAX must not have been used before.

    Args:
      flags: as `detect_processes` takes them.
      patience: seconds after which a process that is silent or stalled is given up.

    Raises:
      UsageError: as `detect_processes`, or `patience` is out of range.
      RunError: the port is taken, or JAX reports another error. If others do not come within
        `patience` seconds, or this process is to stop meanwhile, it ends with 75.
    """
    global _peers
    if not 0 < patience < math.inf:
        raise UsageError(f"--patience: got {patience}, expected seconds above 0")
    arguments = detect_processes(flags, os.environ, on_tpu=on_tpu_vm())
    if arguments is None:
        return
    import jax
    from jax._src import distributed  # its key-value store has no public name; Orbax does the same

    # Its SIGTERM handler would replace ours, and Orbax would ask it about steps, which are not the
    # boundaries counted here.
    jax.config.update("jax_enable_preemption_service", False)
    where = arguments.get("coordinator_address", "the coordinator")
    if arguments.get("process_id") == 0:
        _check_port(where)
    not_met = f"the processes did not meet at {where}"
    # Some may have died while they started.
    on_abort(lambda: end_process(f"{not_met}, see above", EXIT_RESTART))
    too_late = f"{not_met} within --patience {patience:g} s; some did not come"
    try:
        with _ends_at_a_signal(patience, too_late):
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=round(patience + _LATER),
                heartbeat_timeout_seconds=max(10, round(patience + _LATER)),
                shutdown_timeout_seconds=max(1, round(patience)),
            )
    except Exception as e:  # whatever the runtime raises
        raise RunError(f"{not_met}: {first_line(e)}") from e
    finally:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
    if jax.process_count() > 1:
        _peers = Peers(
            distributed.global_state.client,
            index=jax.process_index(),
            count=jax.process_count(),
            patience=patience,
        )


@contextlib.contextmanager
def _ends_at_a_signal(seconds: float, too_late: str) -> Iterator[None]:
    """A context in which a thread ends the process at Ctrl-C, a stop signal, or a timeout.

    While processes meet, the main thread waits in C++, where Python's signal handlers do not run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def watch() -> None:
        deadline = time.monotonic() + seconds
        while True:
            numbers.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                number = numbers.recv(1)
            except TimeoutError:
                end_process(too_late, EXIT_RESTART)
            if not number:
                return
            if number[0] in STOP_SIGNALS:
                end_process("preempted before the processes had met", EXIT_RESTART, kind="")
            if number[0] == signal.SIGINT:
                end_process("interrupted before the processes had met", EXIT_INTERRUPTED, kind="")

    numbers, sender = socket.socketpair()
    with numbers:
        with sender:
            sender.setblocking(False)
            previous = signal.set_wakeup_fd(sender.fileno())
            thread = threading.Thread(target=watch, name="meeting", daemon=True)
            thread.start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(previous)
        thread.join()  # the end of `sender` has ended it


def _check_port(address: str) -> None:
    """Checks that the first process can listen there; else JAX crashes, or answers another run."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as e:
        raise RunError(f"cannot listen at {address} ({e}); choose another port for all") from e


def other_processes() -> "Peers | None":
    """The other processes, or None for a process that runs alone."""
    return _peers


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _peers is None or _peers.index == 0


def process_label() -> str:
    """The start of an error message, "process 1 of 2: "; empty for a process that runs alone."""
    return f"{_peers.name}: " if _peers else ""


def from_first(action: Callable[[], Any]) -> Any:
    """Calls `action` in the first process; all processes return, or raise, what it does there.

    Args:
      action: returns a value that JSON can hold.

    Raises:
      UsageError, RunError: as the action does.
    """
    global _agreed
    if _peers is None:
        return action()
    _agreed += 1
    key = f"first/{_agreed}"
    if _peers.index:
        reply = parse_json(_peers.receive(key), dict)
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
    """Whether an error means that another process of the run has died."""
    while _peers and error is not None:
        if not isinstance(error, UsageError | OSError) and _LOST.search(str(error)):
            return True
        error = error.__cause__
    return False


class Peers:
    """The processes of this run, watched by a thread; see the module.

    Args:
      client: JAX's client of its coordination service.
      index: the number of this process.
      count: how many processes there are.
      patience: seconds after which a process that is silent or stalled is given up.
    """

    def __init__(self, client: Any, *, index: int, count: int, patience: float):
        self.index, self.count, self.patience = index, count, patience
        self.name = f"process {index} of {count}"
        self._client = client
        self._boundary = 0
        self._stop_at: int | None = None
        self._stop_requested = self._closed = False
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
        """Writes a value that all processes can read."""
        self._client.key_value_set(f"mbv3/{key}", value)

    def receive(self, key: str) -> str:
        """Waits for a value that another process sends.

        Raises:
          RunError: it does not arrive.
        """
        milliseconds = round(1000 * _COMPILING * self.patience)
        try:
            return self._client.blocking_key_value_get(f"mbv3/{key}", milliseconds)
        except Exception as e:  # whatever the runtime raises
            raise RunError(f"process 0 did not answer: {first_line(e)}") from e

    def request_stop(self) -> None:
        """Asks all processes to stop at the same boundary; a signal handler may call it."""
        self._stop_requested = True

    def boundary(self, *, compiles: bool = False) -> bool:
        """Counts a boundary, at the same places in all processes; returns whether all stop here.

        Args:
          compiles: whether what follows may compile a program first.
        """
        with self._lock:
            self._boundary += 1
            factor = _COMPILING if compiles else 1.0
            self._deadline = time.monotonic() + factor * self.patience
            return self._stop_at is not None and self._boundary >= self._stop_at

    def report_failure(self, message: str, code: int) -> None:
        """Tells the others that this process ends with an error, and with which code."""
        self._code = code
        try:
            self._client.key_value_set(f"peers/failed/{self.index}", f"{code} {message}", True)
        except Exception:  # the others have ended
            return

    def leave(self, code: int) -> NoReturn:
        """Stops watching and ends this process with `code`.

        Python is not finalised: JAX may abort in a thread of its own when the first process has
        left, and `on_abort` needs Python to answer with `code`.
        """
        from jax._src import distributed

        self._code, self._closed = code, True
        if code:
            # JAX would wait for the others, which end without it, and print a native trace.
            state = distributed.global_state
            self._service, state.client, state.service = state.service, None, None
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            self._leave_last()
        os._exit(code)

    def _leave_last(self) -> None:
        """Waits in the first process for the others: JAX aborts them once its service is gone."""
        with contextlib.suppress(Exception):  # as in _read
            self._client.key_value_set(f"peers/left/{self.index}", "-", True)
        deadline = time.monotonic() + min(self.patience, 2 * _GRACE)
        others = {f"left/{i}" for i in range(1, self.count)}
        while self.index == 0 and time.monotonic() < deadline:
            have_left = others <= self._read().keys()
            time.sleep(0.2)
            if have_left:
                return

    def end_after_loss(self, error: BaseException) -> NoReturn:
        """Ends the process after a collective has failed because another process has died."""
        deadline = time.monotonic() + min(_GRACE, self.patience)
        while time.monotonic() < deadline:
            if failure := self._failure(self._read()):
                self._follow(*failure)
            time.sleep(0.2)
        reason = str(error).strip().splitlines()[0][:200]
        self._end(f"another process of this run has died ({reason})", EXIT_RESTART)

    def _read(self) -> dict[str, str]:
        """What all processes have written, by key."""
        try:
            entries = self._client.key_value_dir_get("peers/")
        except Exception:  # the coordinator has died; JAX, or the deadline, ends this process
            return {}
        return {key.removeprefix("peers/"): value for key, value in entries}

    def _failure(self, entries: dict[str, str]) -> tuple[str, int] | None:
        """The error that another process has reported, and the code to exit with."""
        for i in range(self.count):
            if i != self.index and f"failed/{i}" in entries:
                code, _, message = entries[f"failed/{i}"].partition(" ")
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
                if self._stop_requested:
                    self._client.key_value_set("peers/stop", "1", True)
            except Exception:  # as in _read
                pass
            entries = self._read()
            if "stop" in entries and self._stop_at is None:
                self._agree_where_to_stop()
            if failure := self._failure(entries):
                time.sleep(_GRACE)
                self._follow(*failure)
            self._check_alive(entries)
            if time.monotonic() > self._deadline and not self._closed:
                self._end(self._stalled(), EXIT_RESTART)

    def _agree_where_to_stop(self) -> None:
        with self._lock:
            self._client.key_value_set(f"stop/{self.index}", str(self._boundary), True)
            milliseconds = round(1000 * self.patience)
            boundaries = [
                int(self._client.blocking_key_value_get(f"stop/{i}", milliseconds))
                for i in range(self.count)
            ]
            self._stop_at = max(boundaries) + 1

    def _check_alive(self, entries: dict[str, str]) -> None:
        now = time.monotonic()
        for i in range(self.count):
            beat = entries.get(f"at/{i}", "")
            if i not in self._heard or (beat and beat != self._heard[i][0]):
                self._heard[i] = (beat, now)
            silent = now - self._heard[i][1]
            if silent > self.patience and not self._closed:
                self._end(f"process {i} has been silent for {silent:.0f} s", EXIT_RESTART)

    def _stalled(self) -> str:
        behind = []
        for i, (beat, _) in sorted(self._heard.items()):
            if beat and int(beat.split()[0]) < self._boundary:
                behind.append(f"process {i}")
        who = f"; not there yet: {', '.join(behind)}" if behind else ""
        return f"no step or batch ended within the limit (--patience {self.patience:g} s){who}"

    def _follow(self, message: str, code: int) -> NoReturn:
        """Ends the process because another one has reported a failure."""
        self._leave_last()
        self._end(message, code)

    def _end(self, message: str, code: int) -> NoReturn:
        end_process(f"{self.name}: {message}", code if self._code is None else self._code)


def on_abort(action: Callable[[], None]) -> None:
    """Calls `action` when JAX aborts the process: others did not come, or the first has left.

    JAX offers no other way. It aborts in C++, where Python's own signal handlers do not run.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: action())
    _handlers.append(handler)  # C calls it, so it must not be collected
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def end_process(message: str, code: int, *, kind: str = "error: ") -> NoReturn:
    """Ends the process at once: the main thread hangs, or would hang in the exit handlers."""
    advice = "; run the same command again to resume from the last checkpoint, if there is one"
    again = advice if code == EXIT_RESTART else ""
    print(f"{kind}{message}{again}", file=sys.stderr, flush=True)
    os._exit(code)
