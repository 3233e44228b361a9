"""How far a trial is, read from its run folder alone."""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.run.config import to_steps
from mbv3_jax.sweep.plan import DESCRIPTIONS, Job

_TAIL = 1 << 18  # bytes of metrics.jsonl: some epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known; None: not yet.

    Attributes:
      step: of the newest training record.
      total_steps: of the whole run.
      top1: of the newest evaluation, 0 to 1.
      seconds_left: of training, at the speed of the newest record.
    """

    step: int | None = None
    total_steps: int | None = None
    top1: float | None = None
    seconds_left: float | None = None


class Reader:
    """Reads run folders, each file again only when it has changed."""

    def __init__(self):
        self._seen: dict[Path, tuple[tuple, Progress]] = {}

    def __call__(self, run: Path, config: ConfigDict) -> Progress:
        path = min(_runs(run)) / "metrics.jsonl"
        try:
            stat = path.stat()
        except OSError:
            return Progress()
        key = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._seen.get(path, (None,))[0] != key:
            self._seen[path] = (key, _progress(_tail(path), config))
        return self._seen[path][1]


def _tail(path: Path) -> list[dict]:
    """The newest whole records of metrics.jsonl."""
    with path.open("rb") as f:
        size = f.seek(0, 2)
        start = f.seek(max(0, size - _TAIL))
        lines = f.read().split(b"\n")
    records = []
    for line in lines[1 if start else 0 : -1]:  # the first may be cut, the last is being written
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _progress(records: list[dict], config: ConfigDict) -> Progress:
    last = {record["kind"]: record for record in records}
    top1 = last["eval"]["top1"] if "eval" in last else None
    if "train" not in last:
        return Progress(top1=top1)
    step, epoch = last["train"]["step"], last["train"].get("epoch")
    total = _total_steps(step, epoch, config)
    rate = last["train"].get("images_per_second")
    known = total is not None and rate
    left = (total - step) * config.batch_size / rate if known else None
    return Progress(step=step, total_steps=total, top1=top1, seconds_left=left)


def _total_steps(step: int, epoch: float | None, config: ConfigDict) -> int | None:
    """How many steps the run has; the size of its data set follows from step and epoch."""
    if epoch is None:
        return config.total_steps
    given = {unit: config[f"total_{unit}"] for unit in ("steps", "epochs", "examples")}
    examples = max(1, round(step * config.batch_size / epoch))
    return to_steps("total", **given, batch_size=config.batch_size, train_examples=examples)


def summaries(run: Path) -> dict[str, dict]:
    """The results of a trial that has ended, by seed folder; "" for an ordinary run.

    A run over `config.seeds` has a run folder for each seed inside its own; it has ended when
    all of them have.
    """
    read = {p.name if p != run else "": _summary(p) for p in _runs(run)}
    return {} if None in read.values() else read


def _runs(run: Path) -> list[Path]:
    """The run folders of a trial: that of each seed, or its own."""
    return [p for p in sorted(run.glob("seed*")) if (p / "config.json").is_file()] or [run]


def _summary(run: Path) -> dict | None:
    try:
        return json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return None


# sweep.json: what was started, by which executor, and what became of it.

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


# What came out of a sweep: a row a run, and mean and spread over seeds.

RESULTS = "results.csv"


def rows(jobs: Iterable[Job]) -> list[dict]:
    """A flat row for each run that has ended: trial, group, seed, overrides and final metrics."""
    found = []
    for job in jobs:
        for part, summary in summaries(job.folder).items():
            seed = int(part.removeprefix("seed")) if part else job.config.seed
            metrics = {f"eval.{name}": value for name, value in summary["eval"].items()}
            kept = ("steps", "epochs", "weights", "seconds", "images_per_second")
            found.append(
                {
                    "trial": "/".join(filter(None, (job.name, part))),
                    "group": job.group,
                    "seed": seed,
                    **{f"config.{field}": value for field, value in job.overrides.items()},
                    **metrics,
                    **{name: summary[name] for name in kept if name in summary},
                }
            )
    return found


def groups(found: Iterable[Mapping]) -> dict[str, dict]:
    """Mean and spread over the seeds of each group.

    Returns:
      group -> {"runs", "top1_mean", "top1_std", "loss_mean", "loss_std"}; the spread is the
      sample standard deviation (n - 1), None for a single run.
    """
    by_group: dict[str, list[Mapping]] = {}
    for row in found:
        by_group.setdefault(row["group"], []).append(row)
    result = {}
    for group, members in by_group.items():
        result[group] = {"runs": len(members)}
        for name in ("top1", "loss"):
            values = [row[f"eval.{name}"] for row in members]
            result[group][f"{name}_mean"] = statistics.fmean(values)
            spread = statistics.stdev(values) if len(values) > 1 else None
            result[group][f"{name}_std"] = spread
    return result


def write_results(folder: Path, found: list[dict]) -> None:
    """Writes results.csv: a line a run, a column for each field that any of them has."""
    columns = dict.fromkeys(name for row in found for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomically(folder / RESULTS, text.getvalue())
