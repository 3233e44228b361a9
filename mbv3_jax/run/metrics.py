"""Metrics while a run trains: lines of JSON, TensorBoard events, a progress bar."""

import contextlib
import itertools
import json
import math
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mbv3_jax.core.files import open_atomically, write_atomically
from mbv3_jax.core.json_lines import read_lines, say
from mbv3_jax.core.json_values import Number, parse_json
from mbv3_jax.core.packages import hidden
from mbv3_jax.run.trackers import Tracking

# tensorboardX imports PyTorch if it is installed, which takes seconds and is of no use here.
with hidden("torch"):
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c

FILE = "metrics.jsonl"
PER_CLASS = "per_class"  # of an evaluation: lists by label, which no record holds
# What of an evaluation a best checkpoint or early stopping can go by -> whether more is better.
EVAL_METRICS = {
    **dict.fromkeys(("top1", "top5", "balanced_accuracy"), True),
    **{f"{m}_{of}": True for m in ("macro", "weighted") for of in ("precision", "recall", "f1")},
    **dict.fromkeys(("auc", "average_precision"), True),
    **dict.fromkeys(("loss", "ece"), False),
    "mean_average_precision": True,  # of several labels per image
    "semantic_accuracy": True,  # of a hierarchy of classes
}
# Those of several labels per image.
MULTI_LABEL_METRICS = (
    *("loss", "mean_average_precision", "macro_precision", "macro_recall", "macro_f1"),
)
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{1,12}(?:\.\d{1,12})?)\.")


class Record(TypedDict):
    """A line of metrics.jsonl, of which only what is read again is described."""

    step: int
    kind: str
    loss: NotRequired[Number]
    top1: NotRequired[Number]
    top5: NotRequired[Number]
    balanced_accuracy: NotRequired[Number]
    macro_precision: NotRequired[Number]
    macro_recall: NotRequired[Number]
    macro_f1: NotRequired[Number]
    weighted_precision: NotRequired[Number]
    weighted_recall: NotRequired[Number]
    weighted_f1: NotRequired[Number]
    ece: NotRequired[Number]
    auc: NotRequired[Number]
    average_precision: NotRequired[Number]
    mean_average_precision: NotRequired[Number]
    epoch: NotRequired[Number]
    images_per_second: NotRequired[Number]


class Metrics:
    """Appends records to `metrics.jsonl` and to TensorBoard events in the same folder.

    A record is {"step": int, "kind": "train", "eval" or "test", ...floats}; the record of the test
    split has the step whose weights were chosen. A run that resumes at a step drops the later
    records, which it is about to write again: no step has two records of a kind. Lines that cannot
    be read are kept in another file, and a message says what is missing.

    Args:
      run: the run folder.
      resume_step: the step that training continues from; 0 for a new run.
      recorded_step: the step of the newest training record that must be there; 0 if none must be.
      keep_best: whether the best checkpoint is chosen by these records.
      early_stop: whether they decide when the run ends.
      tracking: what gets the records too.
    """

    def __init__(
        self,
        run: Path,
        *,
        resume_step: int,
        recorded_step: int = 0,
        keep_best: bool = False,
        early_stop: bool = False,
        tracking: Tracking | None = None,
    ):
        self._path = run / FILE
        existed = self._path.is_file()
        problems: list[str] = []
        records = [r for r in read_metrics(run, note=problems.append) if r["step"] <= resume_step]
        if problems:
            problems[0] += f"; {_set_aside(self._path)} is the file as it was"
        last = max((r["step"] for r in records if r["kind"] == "train"), default=0)
        if last < recorded_step:
            state = f"ends with step {last}" if existed else "is missing"
            problems.append(
                f"{self._path} {state}; the records from there to step {recorded_step} are lost"
            )
        for problem in problems:
            chosen = "; the best checkpoint is chosen by what is left" if keep_best else ""
            counted = "; early stopping counts what is left" if early_stop else ""
            say(problem + chosen + counted)
        self._written = {(r["step"], r["kind"]) for r in records}
        write_atomically(self._path, "".join(json.dumps(r) + "\n" for r in records))
        self._file = self._path.open("a")
        self._events = _Events(run, purge_step=resume_step + 1)
        self._tracking = tracking

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Adds one record; the operating system has it when this returns.

        A record that is there already is not added again: the last evaluation comes after the
        last checkpoint, and a run that was killed after both evaluates again.
        """
        if (step, kind) in self._written:
            return
        self._written.add((step, kind))
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        self._events.write(step, {f"{kind}/{name}": value for name, value in values.items()})
        if self._tracking:
            self._tracking.write(step, kind, values)

    def close(self) -> None:
        """Closes the files, and the tracker."""
        if self._tracking:
            self._tracking.close()
        for file in (self._file, self._events):
            # `write` has reported what could not be written.
            with contextlib.suppress(OSError):
                file.close()


def means(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a record holds of an evaluation: its numbers, without the lists by label."""
    return {name: value for name, value in evaluation.items() if name != PER_CLASS}


def default_metric(*, multi_label: bool) -> str:
    """The metric that compares evaluations unless another is chosen."""
    return "mean_average_precision" if multi_label else "top1"


def main_value(evaluation: Mapping[str, Any]) -> str:
    """What a line about an evaluation begins with: top-1, or of several labels the mAP."""
    if "top1" in evaluation:
        semantic = evaluation.get("semantic_accuracy")
        more = "" if semantic is None else f", semantic accuracy {semantic:.2%}"
        return f"top-1 {evaluation['top1']:.2%}{more}"
    if (value := evaluation.get("mean_average_precision")) is not None:
        return f"mean average precision {value:.2%}"
    return f"right labels {evaluation['label_accuracy']:.2%}"  # no class has an image


def best_record(run: Path, metric: str = "top1") -> Record | None:
    """The record of the best evaluation, the first of several; None if none has a number.

    Args:
      run: the run folder.
      metric: a key of `EVAL_METRICS`.
    """
    return _best([r for r in read_metrics(run) if r["kind"] == "eval"], metric)


def evaluations_since_best(run: Path, metric: str) -> int:
    """How many evaluations in a row, up to the last one, were not better than those before them.

    Arguments are those of `best_record`.
    """
    records = [r for r in read_metrics(run) if r["kind"] == "eval"]
    best = _best(records, metric)
    return len(records) if best is None else len(records) - 1 - records.index(best)


def _best(records: list[Record], metric: str) -> Record | None:
    def value(record: Record) -> float:
        number = float(record.get(metric, math.nan))  # type: ignore[arg-type]
        return number if EVAL_METRICS[metric] else -number

    known = [record for record in records if not math.isnan(value(record))]
    return max(known, key=value, default=None)


class _Events:
    """A TensorBoard event file.

    tensorboardX writes in a thread of its own: a kill loses what is queued for it, and a full disk
    ends it, after which further events wait for ever. So this class uses its formats, but not its
    thread.
    """

    def __init__(self, run: Path, *, purge_step: int):
        # TensorBoard reads the files of a folder in the order of their names, and none that comes
        # before one that it has read: a clock that was set back must not be seen in them.
        times = (_EVENT_FILE.match(path.name) for path in run.iterdir())
        newest = max((float(match[1]) for match in times if match), default=0.0)
        self._earliest = max(time.time(), newest + 1e-3)
        name = f"events.out.tfevents.{self._earliest:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (run / name).open("xb")
        self._add(Event(file_version="brain.Event:2"))
        # Readers ignore what an earlier file has from this step on.
        self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = max(time.time(), self._earliest)
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checked = (length, struct.pack("<I", masked_crc32c(length)))
        self._file.write(b"".join((*checked, data, struct.pack("<I", masked_crc32c(data)))))
        self._file.flush()


def _set_aside(path: Path) -> str:
    """Copies a damaged file beside it; returns the name of the copy."""
    copies = (f"{path.stem}.damaged-{number}{path.suffix}" for number in itertools.count(1))
    name = next(name for name in copies if not path.with_name(name).exists())
    with open_atomically(path.with_name(name)) as file:
        file.write(path.read_bytes())
    return name


def read_metrics(run: Path, *, note: Callable[[str], None] = say) -> list[Record]:
    """The records of a run folder, without a last line that a kill has cut short.

    Args:
      run: the run folder.
      note: called with a message if other lines cannot be read, which are left out.
    """
    return read_lines(run / FILE, parse_record, note=note)


def parse_record(text: str | bytes) -> Record:
    """The record of a line of metrics.jsonl.

    Raises:
      ValueError: it is none.
    """
    record = parse_json(text, Record)
    if record["step"] < 0:
        raise ValueError(f"step: got {record['step']}, expected a whole number of at least 0")
    if record["kind"] == "eval" and not {"top1", "label_accuracy"} & record.keys():
        raise ValueError("top1: missing, expected a number")
    return record


class ProgressBar:
    """A live line: step, loss, top-1, images/s, time left; plain lines if there is no terminal.

    Until the first step has been compiled it says so.

    It is a context manager.

    Args:
      console: where it is printed.
      total_steps: of the run.
      start_step: where this session starts.
    """

    _SECONDS_BETWEEN_LINES = 5.0

    def __init__(self, console: Console, *, total_steps: int, start_step: int):
        self._console, self._total = console, total_steps
        self._live = console.is_terminal
        self._last_line = 0.0
        # When what was compiled first ran, and after which step: what is left is reckoned from it.
        self._started: tuple[float, int] | None = None
        self._opened = time.monotonic()
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=start_step, state="compiling"
        )

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def compiled(self, step: int) -> None:
        """Says that the first step of this session is under way; later calls do nothing.

        Args:
          step: that step.
        """
        if self._started is None:
            self._started = time.monotonic(), step
            self._progress.update(self._task, state="compiled")
            self._console.print(f"compiled in {self._started[0] - self._opened:.0f} s")

    def update(
        self, step: int, *, loss: float, top1: float, rate: float, of: str = "top-1"
    ) -> None:
        """Shows the metrics of the latest steps; `rate` is in images/s, `of` says what top1 is."""
        state = f"loss {loss:.3f}  {of} {top1:.2%}  {rate:.0f} images/s"
        self._progress.update(self._task, completed=step, state=state)
        now = time.monotonic()
        due = now - self._last_line >= self._SECONDS_BETWEEN_LINES or step == self._total
        if not self._live and due:
            self._last_line = now
            self._console.print(f"step {step}/{self._total}  {state}{self._left(step, now)}")

    def _left(self, step: int, now: float) -> str:
        """The time to the end, by the mean speed of this session."""
        if self._started is None or step in (self._started[1], self._total):
            return ""
        seconds = (now - self._started[0]) / (step - self._started[1]) * (self._total - step)
        return f"  {_duration(seconds)} left"

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
