"""Trials as processes on this machine, a chosen number at a time."""

import collections
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import time
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from mbv3_jax.core.checks import check_number, check_whole
from mbv3_jax.sweep.executors.base import (
    ENDED,
    EXIT_RESTART,
    QUEUED,
    RUNNING,
    STOPPED,
    Status,
    ended,
    log_of,
    training_command,
)
from mbv3_jax.sweep.plan import Job

# Libraries that would start a thread for every core of the machine, even if the trial may use only
# some. XLA and this package's own workers follow the affinity.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# A trial that asks for this many restarts in a row without a new checkpoint is broken.
_IDLE_RESTARTS = 3

T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Slot:
    """The cores and GPUs of one trial, by their numbers; empty: all that there are."""

    cores: frozenset[int] = frozenset()
    gpus: tuple[str, ...] = ()


@dataclasses.dataclass
class _Process:
    job: Job
    slot: Slot
    popen: subprocess.Popen
    checkpoints: str  # what it had when it was started
    idle_restarts: int  # in a row, from the same checkpoints


def slots(jobs: int | None, gpus: str | None, cores: Sequence[int]) -> list[Slot]:
    """Shares the cores and GPUs of a machine among trials.

    Args:
      jobs: how many trials run at a time; None: as many as there are GPUs, or one.
      gpus: "0,1,2,3"; None: no GPU is assigned, and a trial takes all that JAX finds.
      cores: the numbers of the cores that may be used; empty: no core is assigned.

    Raises:
      ValueError: there are fewer GPUs or cores than trials.
    """
    names = [name for name in (gpus or "").split(",") if name]
    jobs = check_whole("jobs", jobs if jobs is not None else len(names) or 1, at_least=1)
    for kind, numbers in (("gpus", names), ("cores", cores)):
        if numbers and len(numbers) < jobs:
            raise ValueError(f"jobs: got {jobs}, but there are only {len(numbers)} {kind}")
    # One trial at a time may use every core.
    to_share = sorted(cores) if jobs > 1 else []
    return [
        Slot(frozenset(_share(to_share, i, jobs)), tuple(_share(names, i, jobs)))
        for i in range(jobs)
    ]


def _share(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def make(
    descriptions: Path,
    lock: typing.IO | None,
    *,
    jobs: int | None = None,
    gpus: str | None = None,
    cores: str | None = None,
    grace: float = 60.0,
) -> "Local":
    """Makes the executor.

    Args:
      descriptions: the folder for logs.
      lock: an open file that trials keep open as long as they live; None for a dry run.
      jobs: how many trials run at a time.
      gpus: the GPUs to use, "0,1".
      cores: the cores to use, "0-3,8"; default all that this process may use.
      grace: seconds that a trial has to save when it is stopped.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        allowed = set()
    used = _core_numbers(cores) if cores is not None else sorted(allowed)
    if missing := sorted(set(used) - allowed):
        raise ValueError(f"cores: {missing[0]} is not among those that this process may use")
    check_number("grace", grace, at_least=0)
    return Local(descriptions, lock, slots(jobs, gpus, used), grace)


def _core_numbers(text: str) -> list[int]:
    """[0, 1, 2, 3, 8] for "0-3,8"."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ValueError(f"cores: got {text!r}, expected numbers such as '0-3,8'")
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


class Local:
    """See `base.Executor`. Processes end with the sweep command, so that handles are empty."""

    outlives = False
    interval = 0.5
    programs: Mapping[str, str] = types.MappingProxyType({})

    def __init__(
        self, descriptions: Path, lock: typing.IO | None, slots: Sequence[Slot], grace: float
    ):
        self._descriptions, self._lock, self._grace = descriptions, lock, grace
        self._free = list(reversed(slots))
        self._queue: collections.deque[tuple[Job, int]] = collections.deque()  # idle restarts
        self._running: dict[str, _Process] = {}
        self._ended: dict[str, Status] = {}

    def command(self, job: Job) -> list[str]:
        return [*training_command(), *job.arguments, f"--workdir={job.folder}"]

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        for job in jobs:
            self._ended.pop(job.name, None)
            self._queue.append((job, 0))
        return {job.name: "" for job in jobs}

    def poll(self, handles: Mapping[str, str]) -> dict[str, Status]:
        for process in list(self._running.values()):
            if (code := process.popen.poll()) is not None:
                self._end(process, code)
        while self._queue and self._free:
            self._start(*self._queue.popleft(), self._free.pop())
        statuses = {name: Status(QUEUED) for name in handles}
        statuses |= dict.fromkeys(self._running, Status(RUNNING))
        return {name: self._ended.get(name, statuses[name]) for name in handles}

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Sends SIGTERM, at which a trial saves, and SIGKILL after `grace` seconds.

        A second Ctrl-C kills the trials at once.
        """
        self._queue = collections.deque(q for q in self._queue if q[0].name not in handles)
        stopped = [p for name, p in self._running.items() if name in handles]
        for process in stopped:
            process.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        try:
            for process in stopped:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.popen.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in stopped:
                process.popen.kill()
                code = process.popen.wait()
                self._release(process)
                self._ended[process.job.name] = Status(STOPPED, code)

    def _start(self, job: Job, idle_restarts: int, slot: Slot) -> None:
        assert self._lock is not None, "only a dry run has no lock, and it starts nothing"
        environment = dict(os.environ)
        if slot.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        if slot.cores:
            environment.update(dict.fromkeys(_THREADS, str(len(slot.cores))))
        with (
            log_of(self._descriptions, job.name).open("ab") as log,
            _affinity(slot.cores),
        ):
            popen = subprocess.Popen(
                self.command(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # A terminal sends Ctrl-C to its whole process group, but trials get SIGTERM.
                start_new_session=True,
                pass_fds=(self._lock.fileno(),),
            )
        checkpoints = _checkpoints(job.folder)
        self._running[job.name] = _Process(job, slot, popen, checkpoints, idle_restarts)

    def _end(self, process: _Process, code: int) -> None:
        self._release(process)
        job = process.job
        if code != EXIT_RESTART:
            self._ended[job.name] = ended(code)
            return
        is_idle = _checkpoints(job.folder) == process.checkpoints
        idle_restarts = process.idle_restarts + 1 if is_idle else 0
        if idle_restarts < _IDLE_RESTARTS:
            self._queue.appendleft((job, idle_restarts))
            return
        reason = f"it asked for {idle_restarts} restarts without saving a new checkpoint"
        self._ended[job.name] = Status(ENDED, code, reason)

    def _release(self, process: _Process) -> None:
        del self._running[process.job.name]
        self._free.append(process.slot)


@contextlib.contextmanager
def _affinity(cores: frozenset[int]):
    """A context in which processes are started on these cores; empty: on all."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _checkpoints(run: Path) -> str:
    return ",".join(sorted(p.name for p in run.glob("**/checkpoints/*") if p.name.isdigit()))
