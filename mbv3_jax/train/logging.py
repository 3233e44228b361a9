"""Metrics as they come: lines of JSON, TensorBoard events, a progress bar."""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"


class Metrics:
    """Appends records to `metrics.jsonl` and to TensorBoard events in the same folder.

    A record is {"step": int, "kind": "train" or "eval", ...floats}. A run that resumes at a step
    drops the records past it, which it is about to write again: each step stands there once.
    """

    def __init__(self, run: Path, *, resume_step: int):
        self._path = run / FILE
        records = [r for r in read(run) if r["step"] <= resume_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in records))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(run), purge_step=resume_step + 1, write_to_disk=True)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Adds one record; it is with the operating system when this returns."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._events.close()


def read(run: Path) -> list[dict]:
    """The records of a run folder; a last line that a kill cut short is left out."""
    path = run / FILE
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class ProgressBar:
    """A live line: step, loss, top-1, images/s, time left. Plain lines where there is no terminal.

    Use as a context manager.
    """

    _SECONDS_BETWEEN_LINES = 5.0

    def __init__(self, console: Console, *, total_steps: int, start_step: int):
        self._console, self._total = console, total_steps
        self._live = console.is_terminal
        self._last_line = 0.0
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]:.3f}  top-1 {task.fields[top1]:6.2%}"),
            TextColumn("{task.fields[rate]:.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=start_step, loss=float("nan"), top1=0.0, rate=0.0
        )

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self, step: int, *, loss: float, top1: float, rate: float) -> None:
        """Shows the numbers of the latest steps; `rate` in images/s."""
        self._progress.update(self._task, completed=step, loss=loss, top1=top1, rate=rate)
        now = time.monotonic()
        due = now - self._last_line >= self._SECONDS_BETWEEN_LINES or step == self._total
        if not self._live and due:
            self._last_line = now
            self._console.print(
                f"step {step}/{self._total}  loss {loss:.3f}  top-1 {top1:.2%}  {rate:.0f} images/s"
            )

    def print(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text)
