"""Races contenders: one process each, which take turns; medians and ratios in one table.

Only one contender runs at a time and they alternate every few steps, so that a machine that
speeds up or slows down does so for all of them. They share its memory, though: with `fresh` every
turn is a process of its own, as training usually is, and the start is paid each time. All get the
allocator setting that `main.py` uses, unless the environment has GLIBC_TUNABLES; an empty value
means glibc's default.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.task import Task
from mbv3_jax.cli import HUGE_PAGES


@dataclasses.dataclass
class Result:
    """What one contender did; times in seconds a step, one per round.

    setup_peak_bytes: the most memory until the first steps were done, compilation included;
    peak_bytes: the most since then.
    """

    name: str
    absent: str | None = None
    info: str = ""
    first_step_s: float = 0.0
    wall_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)
    setup_peak_bytes: int = 0
    peak_bytes: int = 0


def race(
    task: Task,
    contenders: list[str],
    *,
    rounds: int,
    seconds_per_round: float,
    fresh: bool = False,
) -> list[Result]:
    """Runs all contenders on one task, in turns.

    Args:
      task: what to do.
      contenders: modules of `benchmarks.contenders`, the first is what ratios refer to.
      rounds: turns of each.
      seconds_per_round: about how long a turn lasts.
      fresh: a new process for every turn, so that no other contender holds memory meanwhile;
        else processes live through the race.

    Returns:
      A `Result` per contender, in order.
    """
    results = [Result(name) for name in contenders]
    processes: dict[str, subprocess.Popen] = {}
    steps: dict[str, int] = {}
    try:
        for turn in range(rounds + 1):
            for result in results:
                if not result.absent and result.name not in processes:
                    processes[result.name] = _start(task, result)
                if result.absent:
                    continue
                answer = _ask(processes[result.name], steps.get(result.name, 1))
                result.peak_bytes = max(result.peak_bytes, answer["peak_bytes"])
                if fresh:
                    _close(processes.pop(result.name))
                if turn == 0:  # a warm-up that also finds how many steps fill a turn
                    steps[result.name] = max(1, round(seconds_per_round / answer["wall_s"]))
                    continue
                result.wall_s.append(answer["wall_s"])
                result.cpu_s.append(answer["cpu_s"])
    finally:
        for process in processes.values():
            _close(process)
    return results


def _start(task: Task, result: Result) -> subprocess.Popen:
    """A contender's process, its first steps done; what it says of itself goes into `result`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", result.name, task.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"GLIBC_TUNABLES": HUGE_PAGES, **os.environ},
    )
    ready = json.loads(process.stdout.readline() or '{"absent": "it crashed, see above"}')
    if "absent" in ready:
        result.absent = ready["absent"]
    else:
        result.info = ready["info"]
        result.first_step_s = result.first_step_s or ready["first_step_s"]
        result.setup_peak_bytes = result.setup_peak_bytes or ready["setup_peak_bytes"]
    return process


def _close(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait()


def _ask(process: subprocess.Popen, steps: int) -> dict:
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def results_table(task: Task, results: list[Result]) -> Table:
    """The race as a table: median, least and most milliseconds a step, ratio to the first."""
    table = Table(
        title=f"{task.kind} {task.network}, batch {task.batch}, {task.resolution} pixels, "
        f"{task.dtype}, {task.threads} threads"
    )
    table.add_column("contender", no_wrap=True)
    for name in (
        "ms a step",
        "least",
        "most",
        "images/s",
        "ratio",
        "CPU ms",
        "peak MB",
        "1st step s",
        "1st peak MB",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    ours = None
    for result in results:
        if result.absent:
            table.add_row(result.name, *["-"] * 9, f"absent: {result.absent}")
            continue
        median = statistics.median(result.wall_s)
        ours = ours or median
        table.add_row(
            result.name,
            f"{median * 1e3:.2f}",
            f"{min(result.wall_s) * 1e3:.2f}",
            f"{max(result.wall_s) * 1e3:.2f}",
            f"{task.batch / median:.0f}",
            f"{median / ours:.2f}",
            f"{statistics.median(result.cpu_s) * 1e3:.2f}",
            f"{result.peak_bytes / 2**20:.0f}",
            f"{result.first_step_s:.1f}",
            f"{result.setup_peak_bytes / 2**20:.0f}",
            result.info,
        )
    return table


def main(kind: str, contenders: list[str], doc: str) -> None:
    """The command line that `train_step` and `inference` share."""
    import argparse

    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v3_small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=contenders)
    parser.add_argument("--fresh", action="store_true", help="a new process for every turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds-per-round", type=float, default=1.0)
    flags = parser.parse_args()
    # Wide even without a terminal, so that no column is cut off in a log.
    console = Console(width=None if sys.stdout.isatty() else 160)
    for network in flags.networks:
        for batch in flags.batches:
            task = Task(
                kind=kind,
                network=network,
                batch=batch,
                resolution=flags.resolution,
                threads=flags.threads,
                dtype=flags.dtype,
            )
            results = race(
                task,
                flags.contenders,
                rounds=flags.rounds,
                seconds_per_round=flags.seconds_per_round,
                fresh=flags.fresh,
            )
            console.print(results_table(task, results))
