"""Shows a sweep: as a live table, or as lines of text where there is no terminal."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mbv3_jax.core.errors import printable
from mbv3_jax.sweep import state
from mbv3_jax.sweep.state import Progress

_COLOURS = {
    state.FINISHED: "green",
    state.FAILED: "red",
    state.INTERRUPTED: "yellow",
    state.RUNNING: "cyan",
}
# A table that does not fit shows trials in these states first.
_BY_INTEREST = (
    state.RUNNING,
    state.FAILED,
    state.INTERRUPTED,
    state.QUEUED,
    state.WAITING,
    state.FINISHED,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A trial as a line of the table.

    Attributes:
      name: the trial's name.
      state: one of the states in `state.py`.
      progress: how far it is.
      note: why it failed, or what the engine reports.
    """

    name: str
    state: str
    progress: Progress
    note: str = ""


class View:
    """A context manager; call `update` whenever something may have changed."""

    _SECONDS_BETWEEN_LINES = 60.0

    def __init__(self, console: Console):
        self._console = console
        self._live: Live | None = None
        self._states: dict[str, str] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def update(self, rows: Sequence[Row], *, is_last: bool = False) -> None:
        """Shows the rows in the table, or prints changes of state and, each minute, progress."""
        if self._live:
            room = None if is_last else self._console.height - 6
            self._live.update(table(rows, room), refresh=True)
            return
        for row in rows:
            before = self._states.get(row.name)
            if before != row.state and not (before is None and row.state == state.WAITING):
                self._line(row.name, *_cells(row), row.note)
            self._states[row.name] = row.state
        if time.monotonic() - self._last_line >= self._SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._line(counts(rows))
            for row in rows:
                if row.state == state.RUNNING:
                    self._line(row.name, *_cells(row))

    def _line(self, *parts: str) -> None:
        self._console.print(printable(" ".join(filter(None, parts))), markup=False)


def table(rows: Sequence[Row], room: int | None = None) -> Table:
    """A table of trials; with `room` for fewer lines than trials, the most interesting ones."""
    shown = list(rows)
    if room is not None and len(rows) > max(1, room):
        shown.sort(key=lambda row: _BY_INTEREST.index(row.state))  # keeps the order within a state
        shown = shown[: max(1, room)]
    result = Table(caption=counts(rows), caption_justify="left")
    result.add_column("trial", no_wrap=True)
    result.add_column("state", no_wrap=True)
    for name in ("step", "top-1", "left"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("", overflow="ellipsis", no_wrap=True)
    for row in shown:
        state, *numbers = _cells(row)
        colour = _COLOURS.get(row.state, "dim")
        result.add_row(_plain(row.name), f"[{colour}]{state}[/]", *numbers, _plain(row.note))
    return result


def counts(rows: Sequence[Row]) -> str:
    """A line such as "12 trials: 3 finished, 2 running, 7 waiting"."""
    by_state = {state: sum(row.state == state for row in rows) for state in reversed(_BY_INTEREST)}
    listed = ", ".join(f"{number} {state}" for state, number in by_state.items() if number)
    return f"{len(rows)} trials: {listed}"


def _cells(row: Row) -> tuple[str, str, str, str]:
    progress, left = row.progress, ""
    step = "" if progress.step is None else f"{progress.step}/{progress.total_steps or '?'}"
    top1 = "" if progress.top1 is None else f"{progress.top1:.2%}"
    if row.state == state.RUNNING and progress.seconds_left is not None:
        left = _duration(progress.seconds_left)
    return row.state, step, top1, left


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _plain(text: str) -> str:
    return printable(text).replace("[", r"\[")


def groups_table(groups: Mapping[str, Mapping]) -> Table:
    """The results of a sweep: mean and spread over the seeds of each group."""
    result = Table(title="held-out top-1", title_justify="left")
    result.add_column("trial")
    for name in ("runs", "mean", "std"):
        result.add_column(name, justify="right")
    for group, values in groups.items():
        std = values["top1_std"]
        result.add_row(
            _plain(group),
            str(values["runs"]),
            f"{values['top1_mean']:.2%}",
            "" if std is None else f"{100 * std:.2f}",
        )
    return result
