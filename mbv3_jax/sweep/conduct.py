"""The course of a sweep: submit what is to be done, watch, retry, sum up."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.sweep import state
from mbv3_jax.sweep.executors import base
from mbv3_jax.sweep.plan import DESCRIPTIONS, Job
from mbv3_jax.sweep.state import Reader, Record, summaries
from mbv3_jax.sweep.view import Row, View

_STOPS = {
    signal.SIGINT: base.EXIT_INTERRUPTED,
    signal.SIGTERM: base.EXIT_RESTART,
    signal.SIGHUP: base.EXIT_RESTART,  # the terminal is gone; local trials would go on unwatched
}


class _Stop:
    """Ctrl-C, SIGTERM or SIGHUP as a request; a second Ctrl-C raises where it comes."""

    def __init__(self):
        self.number: int | None = None

    def __enter__(self) -> "_Stop":
        self._previous = {
            number: signal.signal(number, self._request)
            for number in _STOPS
            if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN)  # nohup
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def wait(self, seconds: float) -> bool:
        """Waits, but hardly longer than to a request; returns whether there was one.

        Not by a threading.Event: to set one in a handler can wait for ever for a lock that the
        interrupted thread holds.
        """
        end = time.monotonic() + seconds
        while self.number is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self.number is not None


def conduct(
    jobs: Sequence[Job],
    executor: base.Executor,
    entries: Record,
    view: View,
    *,
    max_failures: int,
) -> int:
    """Runs a sweep and returns its exit code.

    Trials that have ended are skipped; jobs that still run on their engine are watched again;
    the rest is submitted, and what fails is submitted once more until it has failed
    `max_failures` times in all. A configuration that main.py refuses is not tried again.

    Returns:
      0: all trials have finished. 1: some have failed. 75: some are unfinished; the same command
      goes on. 130: interrupted; the same.
    """
    course = _Course(jobs, executor, entries, view, max_failures)
    try:
        with _Stop() as stop:
            try:
                course.start()
                while course.live:
                    course.look()
                    if not course.live or stop.wait(executor.interval):
                        break
            finally:  # a request, or whatever went wrong here
                if course.live:
                    course.stop()
    finally:
        course.close()
    if stop.number is not None and not course.all_finished():
        return _STOPS[stop.number]
    return course.exit_code()


class _Course:
    def __init__(self, jobs, executor, entries: Record, view: View, max_failures: int):
        self.jobs = {job.name: job for job in jobs}
        self.executor, self.entries, self.view = executor, entries, view
        self.max_failures = max_failures
        self.live: dict[str, str] = {}  # name -> handle
        self._notes: dict[str, str] = {}
        self._read = Reader()

    def start(self) -> None:
        todo = []
        for name, job in self.jobs.items():
            entry = self.entries[name]
            if self._has_ended(job):
                entry.state, entry.handle, entry.error = state.FINISHED, None, None
            elif entry.handle is not None and self.executor.outlives:
                self.live[name] = entry.handle
            elif entry.failures >= self.max_failures:
                entry.state, entry.handle = state.FAILED, None
                self._notes[name] = self._limit(entry)
            else:
                entry.state, entry.handle = state.WAITING, None
                todo.append(job)
        self._submit(todo)

    def _has_ended(self, job: Job) -> bool:
        return bool(summaries(job.folder))

    def _limit(self, entry: state.Entry) -> str:
        more = f"--max-failures={entry.failures + 1} tries again"
        return f"failed {entry.failures} times; {more}: {entry.error or ''}"

    def _submit(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            self.entries.save()
            return
        handles = self.executor.submit(jobs)
        for name, handle in handles.items():
            entry = self.entries[name]
            entry.state, entry.handle = state.QUEUED, handle
        self.live.update(handles)
        self.entries.save()

    def look(self) -> None:
        """Takes in what the engine and the run folders say; submits again what failed."""
        again, changed = [], False
        for name, status in self.executor.poll(self.live).items():
            entry = self.entries[name]
            before = (entry.state, entry.handle)
            if status.state in (base.ENDED, base.STOPPED):
                if self._ended(name, status):
                    again.append(self.jobs[name])
            else:
                entry.state = status.state
                self._notes[name] = status.reason if status.state == base.QUEUED else ""
            changed |= before != (entry.state, entry.handle)
        if again:
            self._submit(again)
        elif changed:
            self.entries.save()
        self._show()

    def _ended(self, name: str, status: base.Status) -> bool:
        """Notes how a job ended; returns whether it is to be tried again."""
        job, entry = self.jobs[name], self.entries[name]
        del self.live[name]
        entry.code, entry.handle = status.code, None
        # Where the run folders cannot be seen from here, the exit code is all there is.
        if self._has_ended(job) or (status.code == 0 and not job.folder.exists()):
            entry.state, entry.error = state.FINISHED, None
            self._notes.pop(name, None)
            return False
        if status.state == base.STOPPED:
            entry.state = state.INTERRUPTED
            self._notes[name] = status.reason
            return False
        entry.failures += 1
        entry.state = state.FAILED
        entry.error = self._error(job, status)
        again = status.code != UsageError.exit_code and entry.failures < self.max_failures
        self._notes[name] = entry.error
        return again

    def _error(self, job: Job, status: base.Status) -> str:
        if status.reason:
            return status.reason
        said = last_words(base.log_of(self.entries.folder / DESCRIPTIONS, job.name))
        return said or f"exit code {status.code}"

    def stop(self) -> None:
        """Leaves everything so that the same command goes on."""
        if self.executor.outlives:
            return
        stopped = dict(self.live)
        try:
            self.executor.cancel(stopped)
        finally:
            for name, status in self.executor.poll(stopped).items():
                entry = self.entries[name]
                entry.handle, entry.code = None, status.code
                if self._has_ended(self.jobs[name]):
                    entry.state = state.FINISHED
                else:
                    waited = status.state == base.QUEUED
                    entry.state = state.WAITING if waited else state.INTERRUPTED
            self.live.clear()

    def close(self) -> None:
        """Writes the results so far."""
        found = state.rows(self.jobs.values())
        state.write_results(self.entries.folder, found)
        self.entries.save(results=found, groups=state.groups(found))
        self._show(is_last=True)

    def _show(self, *, is_last: bool = False) -> None:
        rows = [
            Row(
                name=name,
                state=self.entries[name].state,
                progress=self._read(job.folder, job.config),
                note=self._notes.get(name, ""),
            )
            for name, job in self.jobs.items()
        ]
        self.view.update(rows, is_last=is_last)

    def all_finished(self) -> bool:
        return all(self.entries[name].state == state.FINISHED for name in self.jobs)

    def exit_code(self) -> int:
        states = {self.entries[name].state for name in self.jobs}
        if state.FAILED in states:
            return RunError.exit_code
        return 0 if states == {state.FINISHED} else base.EXIT_RESTART


def last_words(log: Path) -> str:
    """The last line of a log that reports an error, or its last line."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-50:]
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
