"""Runs a sweep: submits what has not finished, watches it, retries it, and sums up."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.sweep import state
from mbv3_jax.sweep.executors import base
from mbv3_jax.sweep.plan import DESCRIPTIONS, Job
from mbv3_jax.sweep.state import Entry, ProgressReader, Record, summaries
from mbv3_jax.sweep.view import Row, View

# The signals that stop a sweep, and its exit code then. SIGHUP means that the terminal has been
# closed: local trials would otherwise run on with nobody to watch them.
_STOP_CODES: dict[int, int] = {
    signal.SIGINT: base.EXIT_INTERRUPTED,
    signal.SIGTERM: base.EXIT_RESTART,
    signal.SIGHUP: base.EXIT_RESTART,
}


class _StopRequest:
    """Catches the signals of `_STOP_CODES`; a second Ctrl-C raises KeyboardInterrupt.

    Attributes:
      signal: the number of the first signal that has come, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "_StopRequest":
        self._previous = {
            number: signal.signal(number, self._on_signal)
            for number in _STOP_CODES
            # nohup ignores SIGHUP, and it stays ignored.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def wait(self, seconds: float) -> bool:
        """Waits until a signal arrives or the time is over; returns whether one has arrived.

        A threading.Event cannot be used: setting one in a signal handler can wait for ever for a
        lock that the interrupted thread holds.
        """
        end = time.monotonic() + seconds
        while self.signal is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self.signal is not None


def run_sweep(
    jobs: Sequence[Job],
    executor: base.Executor,
    record: Record,
    view: View,
    *,
    max_failures: int,
) -> int:
    """Runs the trials of a sweep to their ends.

    Finished trials are skipped. Jobs that still run on their engine are watched again. All other
    trials are submitted, and again after a failure, until they have failed `max_failures` times in
    all. A configuration that was refused is not submitted again.

    Args:
      jobs: the trials.
      executor: runs them.
      record: the sweep's record, which is kept up to date on disk.
      view: shows their states.
      max_failures: the number of failures after which a trial is not submitted again.

    Returns:
      The exit code. 0: all trials have finished. 1: some have failed. 75: some have not finished,
      and the same command resumes them. 130: interrupted by Ctrl-C; the same command resumes.
    """
    runner = _Runner(jobs, executor, record, view, max_failures)
    try:
        with _StopRequest() as request:
            try:
                runner.start()
                while runner.live:
                    runner.update()
                    if not runner.live or request.wait(executor.interval):
                        break
            finally:  # after a signal, and after any error here
                if runner.live:
                    runner.stop()
    finally:
        runner.close()
    if request.signal is not None and not runner.all_finished():
        return _STOP_CODES[request.signal]
    return runner.exit_code()


class _Runner:
    """The state of a running sweep command.

    Attributes:
      live: trial name -> handle of every job that has been submitted and has not ended.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        executor: base.Executor,
        record: Record,
        view: View,
        max_failures: int,
    ):
        self.live: dict[str, str] = {}
        self._jobs = {job.name: job for job in jobs}
        self._executor, self._record, self._view = executor, record, view
        self._max_failures = max_failures
        self._notes: dict[str, str] = {}
        self._read_progress = ProgressReader()

    def start(self) -> None:
        """Finds out the state of every trial, and submits those that have to run."""
        to_submit = []
        for name, job in self._jobs.items():
            entry = self._record[name]
            if _has_finished(job):
                entry.state, entry.handle, entry.error = state.FINISHED, None, None
            elif entry.handle is not None and self._executor.outlives:
                self.live[name] = entry.handle
            elif entry.failures >= self._max_failures:
                entry.state, entry.handle = state.FAILED, None
                self._notes[name] = _limit_note(entry)
            else:
                entry.state, entry.handle = state.WAITING, None
                to_submit.append(job)
        self._submit(to_submit)

    def _submit(self, jobs: Sequence[Job]) -> None:
        handles = self._executor.submit(jobs) if jobs else {}
        for name, handle in handles.items():
            entry = self._record[name]
            entry.state, entry.handle = state.QUEUED, handle
        self.live.update(handles)
        self._record.save()

    def update(self) -> None:
        """Reads the states of the live jobs, submits failed ones again, and shows all trials."""
        to_retry, has_changed = [], False
        for name, status in self._executor.poll(self.live).items():
            entry = self._record[name]
            before = (entry.state, entry.handle)
            if status.state in (base.ENDED, base.STOPPED):
                if self._should_retry(name, status):
                    to_retry.append(self._jobs[name])
            else:
                entry.state = status.state
                self._notes[name] = status.reason if status.state == base.QUEUED else ""
            has_changed |= before != (entry.state, entry.handle)
        if to_retry:
            self._submit(to_retry)
        elif has_changed:
            self._record.save()
        self._show()

    def _should_retry(self, name: str, status: base.Status) -> bool:
        """Records how a job ended; returns whether it is submitted again."""
        job, entry = self._jobs[name], self._record[name]
        del self.live[name]
        entry.code, entry.handle = status.code, None
        # Where the run folders cannot be seen from here, the exit code is all there is.
        if _has_finished(job) or (status.code == 0 and not job.folder.exists()):
            entry.state, entry.error = state.FINISHED, None
            self._notes.pop(name, None)
            return False
        if status.state == base.STOPPED:
            entry.state = state.INTERRUPTED
            self._notes[name] = status.reason
            return False
        entry.failures += 1
        entry.state = state.FAILED
        entry.error = status.reason or self._logged_error(job) or f"exit code {status.code}"
        self._notes[name] = entry.error
        return status.code != UsageError.exit_code and entry.failures < self._max_failures

    def _logged_error(self, job: Job) -> str:
        return last_error(base.log_of(self._record.folder / DESCRIPTIONS, job.name))

    def stop(self) -> None:
        """Stops the jobs that do not outlive this command, so that it can resume them."""
        if self._executor.outlives:
            return
        stopped = dict(self.live)
        try:
            self._executor.cancel(stopped)
        finally:
            for name, status in self._executor.poll(stopped).items():
                entry = self._record[name]
                entry.handle, entry.code = None, status.code
                if _has_finished(self._jobs[name]):
                    entry.state = state.FINISHED
                elif status.state == base.QUEUED:
                    entry.state = state.WAITING
                else:
                    entry.state = state.INTERRUPTED
            self.live.clear()

    def close(self) -> None:
        """Writes the results so far."""
        rows = state.rows(self._jobs.values())
        state.write_results(self._record.folder, rows)
        self._record.save(results=rows, groups=state.groups(rows))
        self._show(is_last=True)

    def _show(self, *, is_last: bool = False) -> None:
        rows = [
            Row(
                name=name,
                state=self._record[name].state,
                progress=self._read_progress(job.folder, job.config),
                note=self._notes.get(name, ""),
            )
            for name, job in self._jobs.items()
        ]
        self._view.update(rows, is_last=is_last)

    def all_finished(self) -> bool:
        """Whether every trial has finished."""
        return all(self._record[name].state == state.FINISHED for name in self._jobs)

    def exit_code(self) -> int:
        """The exit code of `run_sweep` if no signal has come."""
        if any(self._record[name].state == state.FAILED for name in self._jobs):
            return RunError.exit_code
        return 0 if self.all_finished() else base.EXIT_RESTART


def _has_finished(job: Job) -> bool:
    return bool(summaries(job.folder))


def _limit_note(entry: Entry) -> str:
    more = f"--max-failures={entry.failures + 1} tries again"
    return f"failed {entry.failures} times; {more}: {entry.error or ''}"


def last_error(log: Path) -> str:
    """The last line of a log that reports an error, else its last line, or ""."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    lines = [line for line in map(str.strip, text.splitlines()[-50:]) if line]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
