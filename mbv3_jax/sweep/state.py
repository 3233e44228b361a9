"""What is on disk about a sweep: its record, its trials' run folders, and its results.

A sweep's folder holds

sweep.json    the command, and for each trial its state, its job and how often it failed
results.csv   a row for each finished run
jobs/         job descriptions, logs, and the lock that one sweep command holds
TRIAL/        the run folder of each trial
"""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import shlex
import statistics
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from ml_collections import ConfigDict

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.json_values import Number, read_json
from mbv3_jax.run.durations import to_steps
from mbv3_jax.run.metrics import Record as MetricsRecord
from mbv3_jax.run.metrics import means, parse_record
from mbv3_jax.sweep.plan import DESCRIPTIONS, Job

RECORD, RESULTS = "sweep.json", "results.csv"

# The version of sweep.json. 1: commit c7ffdd9 and earlier, without a field "format".
# 2: with that field.
FORMAT_VERSION = 2

# States of a trial. The sweep has ended well when all trials have finished.
FINISHED, FAILED, INTERRUPTED, WAITING, QUEUED, RUNNING = (
    "finished",
    "failed",
    "interrupted",
    "waiting",
    "queued",
    "running",
)

_TAIL_BYTES = 1 << 18  # of metrics.jsonl: the records of some epochs


@dataclasses.dataclass
class Entry:
    """What sweep.json says about a trial.

    Attributes:
      overrides: the trial's own fields, dotted name -> value.
      state: one of the states above.
      failures: how often it has failed; interruptions and restarts do not count.
      handle: the engine's name for its job, while there is one.
      code: the exit code of its last job.
      error: the message of its last failure.
    """

    overrides: dict
    state: str = WAITING
    failures: int = 0
    handle: str | None = None
    code: int | None = None
    error: str | None = None


class _Version(TypedDict):
    format: NotRequired[int]  # since version 2


class _Stored(TypedDict):
    executor: NotRequired[str]
    trials: NotRequired[dict[str, Entry]]


class _Eval(TypedDict):
    top1: Number
    loss: Number


class _Summary(TypedDict):
    """summary.json of a run, as far as the results of a sweep need it."""

    eval: _Eval


class Record:
    """The trials of a sweep as sweep.json has them; `save` writes the file.

    Attributes:
      folder: the sweep's folder.
      entries: trial name -> `Entry`; trials that the sweep no longer has are kept.
      previous_executor: the executor of the last sweep command in this folder.

    Raises:
      UsageError: the file is damaged, or a newer version of mbv3_jax wrote it.
    """

    def __init__(self, folder: Path, jobs: Iterable[Job], *, sweep: str, executor: str):
        self.folder = folder
        self._header = {
            "format": FORMAT_VERSION,
            "sweep": sweep,
            "executor": executor,
            "command": shlex.join(sys.orig_argv),
        }
        stored = _read_record(folder / RECORD)
        self.previous_executor = stored.get("executor")
        self.entries = dict(stored.get("trials", {}))
        for job in jobs:
            entry = self.entries.setdefault(job.name, Entry(overrides={}))
            entry.overrides = dict(job.overrides)

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def save(self, **fields) -> None:
        """Writes sweep.json with these further fields."""
        trials = {name: dataclasses.asdict(entry) for name, entry in self.entries.items()}
        text = json.dumps({**self._header, **fields, "trials": trials}, indent=1, default=str)
        write_atomically(self.folder / RECORD, text)


def _read_record(path: Path) -> _Stored:
    if not path.is_file():
        return {}
    advice = "remove it: the run folders say which trials have finished"
    version = read_json(path, _Version, error=UsageError, advice=advice).get("format", 1)
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{path} was written by a newer version of mbv3_jax, in format {version}; this one "
            f"reads formats up to {FORMAT_VERSION}"
        )
    return read_json(path, _Stored, error=UsageError, advice=advice)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[typing.TextIO]:
    """Locks a sweep's folder, which it makes if needed, and yields the locked file.

    Local trials inherit the file, so that the folder stays locked while any of them lives, even
    if the sweep command was killed: two processes in one run folder would corrupt it.

    Raises:
      UsageError: the folder cannot be written, or is locked already.
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


def summaries(run: Path) -> dict[str, _Summary]:
    """The results of a finished trial, by seed folder; "" for an ordinary run.

    A trial over `config.seeds` has a run folder for each seed inside its own, and has finished
    when all of them have. The dict is empty if the trial has not finished.
    """
    result = {}
    for folder in _run_folders(run):
        try:
            summary = read_json(folder / "summary.json", _Summary)
        except RunError:  # none yet; a damaged one is named by the trial when it resumes
            return {}
        result["" if folder == run else folder.name] = summary
    return result


def _run_folders(run: Path) -> list[Path]:
    """The run folders of a trial: one for each seed, or the trial's folder itself."""
    seeds = [path for path in sorted(run.glob("seed*")) if (path / "config.json").is_file()]
    return seeds or [run]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a trial is; None where its run folder does not say yet.

    Attributes:
      step: the step of the newest training record.
      total_steps: the steps of the whole run.
      top1: the newest held-out top-1, from 0 to 1.
      seconds_left: how long training will take, at the speed of the newest record.
    """

    step: int | None = None
    total_steps: int | None = None
    top1: float | None = None
    seconds_left: float | None = None


class ProgressReader:
    """Reads the progress of trials; a file is read again only when it has changed."""

    def __init__(self) -> None:
        self._cache: dict[Path, tuple[tuple[int, int, int], Progress]] = {}

    def __call__(self, run: Path, config: ConfigDict) -> Progress:
        path = min(_run_folders(run)) / "metrics.jsonl"
        try:
            stat = path.stat()
        except OSError:
            return Progress()
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        cached = self._cache.get(path)
        if cached is None or cached[0] != version:
            cached = self._cache[path] = (version, _progress(_newest_records(path), config))
        return cached[1]


def _newest_records(path: Path) -> list[MetricsRecord]:
    """The last complete records of a metrics.jsonl."""
    with path.open("rb") as f:
        size = f.seek(0, 2)
        start = f.seek(max(0, size - _TAIL_BYTES))
        lines = f.read().split(b"\n")
    records = []
    # The first line may be cut, and the last is still being written.
    for line in lines[1 if start else 0 : -1]:
        # A damaged line is named by the trial when it resumes, and by a report.
        with contextlib.suppress(ValueError):
            records.append(parse_record(line))
    return records


def _progress(records: list[MetricsRecord], config: ConfigDict) -> Progress:
    newest = {record["kind"]: record for record in records}
    top1 = newest["eval"].get("top1") if "eval" in newest else None
    if "train" not in newest:
        return Progress(top1=top1)
    step, epoch = newest["train"]["step"], newest["train"].get("epoch")
    total = _total_steps(step, epoch, config)
    images_per_second = newest["train"].get("images_per_second")
    seconds_left = None
    if total is not None and images_per_second:
        seconds_left = (total - step) * config.batch_size / images_per_second
    return Progress(step=step, total_steps=total, top1=top1, seconds_left=seconds_left)


def _total_steps(step: int, epoch: float | None, config: ConfigDict) -> int | None:
    """The steps of a whole run; the size of its data set follows from step and epoch."""
    if epoch is None:
        return config.total_steps
    duration = {unit: config[f"total_{unit}"] for unit in ("steps", "epochs", "examples")}
    examples = max(1, round(step * config.batch_size / epoch))
    return to_steps("total", **duration, batch_size=config.batch_size, train_examples=examples)


def rows(jobs: Iterable[Job]) -> list[dict]:
    """A flat row for each finished run: trial, group, seed, overrides and final metrics."""
    result = []
    for job in jobs:
        for part, summary in summaries(job.folder).items():
            kept = ("steps", "epochs", "weights", "seconds", "images_per_second")
            result.append(
                {
                    "trial": "/".join(filter(None, (job.name, part))),
                    "group": job.group,
                    "seed": int(part.removeprefix("seed")) if part else job.config.seed,
                    **{f"config.{field}": value for field, value in job.overrides.items()},
                    **{f"eval.{name}": value for name, value in means(summary["eval"]).items()},
                    **{name: value for name, value in summary.items() if name in kept},
                }
            )
    return result


def groups(rows: Iterable[Mapping]) -> dict[str, dict]:
    """Mean and spread over the seeds of each group.

    Returns:
      group -> {"runs", "top1_mean", "top1_std", "loss_mean", "loss_std"}; the spread is the
      sample standard deviation (n - 1), None for a single run.
    """
    by_group: dict[str, list[Mapping]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row)
    return {
        group: {"runs": len(members), **_mean_and_std(members, "top1", "loss")}
        for group, members in by_group.items()
    }


def _mean_and_std(rows: list[Mapping], *metrics: str) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for name in metrics:
        values = [row[f"eval.{name}"] for row in rows]
        result[f"{name}_mean"] = statistics.fmean(values)
        result[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return result


def write_results(folder: Path, rows: list[dict]) -> None:
    """Writes results.csv: a line for each row, a column for each field that any of them has."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / RESULTS, text.getvalue())
