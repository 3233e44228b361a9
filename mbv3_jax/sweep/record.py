"""sweep.json: what was started, by which executor, and what became of it."""

import contextlib
import dataclasses
import fcntl
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from mbv3_jax.sweep.plan import DESCRIPTIONS, Job
from mbv3_jax.train.errors import UsageError
from mbv3_jax.train.run_folder import write_atomically

FILE = "sweep.json"

# States of a trial. Only the first two end a sweep with success; the rest is for the next time.
FINISHED, FAILED, INTERRUPTED, WAITING, QUEUED, RUNNING = (
    "finished",
    "failed",
    "interrupted",
    "waiting",
    "queued",
    "running",
)


@dataclasses.dataclass
class Entry:
    """What is known of a trial.

    Attributes:
      overrides: of the trial alone.
      state: one of the states above.
      failures: how often it has failed; what was stopped or restarted does not count.
      handle: of the engine, while a job is under way.
      code: the exit code it last ended with.
      error: what it said last, if it failed.
    """

    overrides: dict
    state: str = WAITING
    failures: int = 0
    handle: str | None = None
    code: int | None = None
    error: str | None = None


class Record:
    """The entries of a sweep by trial, on disk after every `save`.

    Attributes:
      folder: of the sweep.
      entries: trial name -> `Entry`; trials that the sweep no longer has are kept.
    """

    def __init__(self, folder: Path, jobs: Iterable[Job], *, sweep: str, executor: str):
        command = shlex.join(sys.orig_argv)
        self.folder = folder
        self._header = {"sweep": sweep, "executor": executor, "command": command}
        stored = _read(folder / FILE)
        self.executor_before = stored.get("executor")
        self.entries = {name: Entry(**e) for name, e in stored.get("trials", {}).items()}
        for job in jobs:
            entry = self.entries.setdefault(job.name, Entry(dict(job.overrides)))
            entry.overrides = dict(job.overrides)

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def save(self, **more) -> None:
        """Writes the file; `more` are further fields of it."""
        trials = {name: dataclasses.asdict(entry) for name, entry in self.entries.items()}
        text = json.dumps({**self._header, **more, "trials": trials}, indent=1, default=str)
        write_atomically(self.folder / FILE, text)


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise UsageError(
            f"{path} is damaged ({e}); remove it: the run folders say what is done"
        ) from e


@contextlib.contextmanager
def claim(folder: Path):
    """Holds a sweep's folder; yields the open file that says so.

    Local trials inherit the file, so that the folder stays taken while any of them lives, even
    if the sweep command itself was killed: two processes in one run folder would spoil it.

    Raises:
      UsageError: it cannot be made, holds something else, or is taken.
    """
    try:
        (folder / DESCRIPTIONS).mkdir(parents=True, exist_ok=True)
        lock = (folder / DESCRIPTIONS / "lock").open("w")
    except OSError as e:
        raise UsageError(f"cannot write to {folder}: {e.strerror}; choose another --workdir") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UsageError(
                f"{folder}: a sweep is running there, or trials of one that was killed still are "
                f"(ps -ef | grep {folder.name}); wait, or end those first"
            ) from e
        yield lock
