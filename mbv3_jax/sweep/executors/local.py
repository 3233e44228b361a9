"""Trials as processes of this machine, as many at a time as asked for."""

import collections
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from mbv3_jax.core.checks import check_number, check_whole
from mbv3_jax.sweep.executors.base import (
    ENDED,
    EXIT_RESTART,
    QUEUED,
    ROOT,
    RUNNING,
    STOPPED,
    Status,
    ended,
    log_of,
)
from mbv3_jax.sweep.plan import Job

# Libraries that would start a thread for every core of the machine, whatever the trial may use.
# XLA and this package's own workers follow the affinity.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# A trial that asks to be restarted again and again without getting on is broken.
_IDLE_RESTARTS = 3


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one trial may use: cores by number (none: all), GPUs as CUDA names them (none: all)."""

    cores: frozenset[int] = frozenset()
    gpus: tuple[str, ...] = ()


@dataclasses.dataclass
class _Process:
    job: Job
    slot: Slot
    popen: subprocess.Popen
    progress: str  # of its checkpoints when it was started
    idle: int  # restarts in a row that began at the same checkpoint


def slots(jobs: int | None, gpus: str | None, cores: Sequence[int]) -> list[Slot]:
    """Shares the cores and GPUs of a machine among trials.

    Args:
      jobs: how many run at a time; None: one a GPU, or one.
      gpus: "0,1,2,3"; None: no GPU is assigned, a trial takes all that JAX finds.
      cores: the numbers of those that may be used; empty: none is assigned.

    Raises:
      ValueError: there are not enough for everyone.
    """
    names = [name for name in (gpus or "").split(",") if name]
    jobs = check_whole("jobs", jobs if jobs is not None else len(names) or 1, at_least=1)
    for what, have in (("gpus", names), ("cores", cores)):
        if have and len(have) < jobs:
            raise ValueError(f"jobs: got {jobs}, but there are only {len(have)} {what}")
    shared = jobs > 1

    def share(of: Sequence, index: int) -> Sequence:
        return of[index * len(of) // jobs : (index + 1) * len(of) // jobs]

    return [
        Slot(frozenset(share(sorted(cores), i)) if shared else frozenset(), tuple(share(names, i)))
        for i in range(jobs)
    ]


def make(
    descriptions: Path,
    lock,
    *,
    jobs: int | None = None,
    gpus: str | None = None,
    cores: str | None = None,
    grace: float = 60.0,
) -> "Local":
    """The executor.

    Args:
      descriptions: the folder for logs.
      lock: an open file that trials keep open as long as they live.
      jobs: trials at a time.
      gpus: their numbers, "0,1".
      cores: their numbers, "0-3,8"; default all that this process may use.
      grace: seconds that a trial has to save when it is stopped.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        allowed = set()
    wanted = _numbers(cores) if cores is not None else sorted(allowed)
    if missing := sorted(set(wanted) - allowed):
        raise ValueError(f"cores: {missing[0]} is none of those that this process may use")
    check_number("grace", grace, at_least=0)
    return Local(descriptions, lock, slots(jobs, gpus, wanted), grace)


def _numbers(text: str) -> list[int]:
    """As in "0-3,8": 0, 1, 2, 3, 8."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ValueError(f"cores: got {text!r}, expected numbers such as '0-3,8'")
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


class Local:
    """See `base.Executor`. A handle is the id of a process."""

    outlives = False
    interval = 0.5
    programs = types.MappingProxyType({})

    def __init__(self, descriptions: Path, lock, slots: Sequence[Slot], grace: float):
        self._descriptions, self._lock, self._grace = descriptions, lock, grace
        self._free = list(reversed(slots))
        self._queue: collections.deque[tuple[Job, int]] = collections.deque()
        self._running: dict[str, _Process] = {}
        self._ended: dict[str, Status] = {}

    def command(self, job: Job) -> list[str]:
        main = os.path.relpath(ROOT / "main.py")
        return [sys.executable, main, *job.arguments, f"--workdir={job.folder}"]

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
        """SIGTERM, on which a trial saves; SIGKILL for one that has not ended after `grace` s.

        Interrupted by a second Ctrl-C it kills at once.
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

    def _start(self, job: Job, idle: int, slot: Slot) -> None:
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
                # A terminal sends Ctrl-C to its whole process group; a trial is to get SIGTERM.
                start_new_session=True,
                pass_fds=(self._lock.fileno(),),
            )
        progress = _checkpoints(job.folder)
        self._running[job.name] = _Process(job, slot, popen, progress, idle)

    def _end(self, process: _Process, code: int) -> None:
        self._release(process)
        job = process.job
        if code != EXIT_RESTART:
            self._ended[job.name] = ended(code)
            return
        idle = process.idle + 1 if _checkpoints(job.folder) == process.progress else 0
        if idle < _IDLE_RESTARTS:
            self._queue.appendleft((job, idle))
            return
        reason = f"it asked {idle} times to be restarted and did not get on"
        self._ended[job.name] = Status(ENDED, code, reason)

    def _release(self, process: _Process) -> None:
        del self._running[process.job.name]
        self._free.append(process.slot)


@contextlib.contextmanager
def _affinity(cores: frozenset[int]):
    """Processes started in here run on these cores."""
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
