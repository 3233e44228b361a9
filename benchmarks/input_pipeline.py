"""From JPEG files to batches: python -m benchmarks.input_pipeline [--images FOLDER]

First, one core: decode, Inception crop, resize, compared with the alternatives (pip install
tensorflow-cpu opencv-python-headless torch torchvision; absent ones are named). Then the same in
the loader: one worker, process or thread, on one core, and several on as many; and memory, with a
thousand examples and with a million. Without a folder of photographs it generates some.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile

from rich.console import Console
from rich.table import Table

from benchmarks import photographs
from benchmarks.race import Result, race
from benchmarks.task import Task

CONTENDERS = [
    "input_ours",
    "input_tf_data",
    "input_tf_data_antialias",
    "input_opencv",
    "input_opencv_area",
    "input_pillow",
    "input_torchvision",
]


def one_core_table(task: Task, results: list[Result]) -> Table:
    """Rates by CPU time, which a busy machine disturbs less; ratios turn by turn."""
    table = Table(title=f"decode, crop, resize to {task.resolution}, one core, by CPU time")
    table.add_column("contender", no_wrap=True)
    for name in ("images/s", "least", "most", "time, ours = 1", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    ours = results[0].cpu_s
    for result in results:
        name = result.name.removeprefix("input_")
        if result.absent:
            table.add_row(name, *["-"] * 5, f"absent: {result.absent}")
            continue
        rates = [task.batch / seconds for seconds in result.cpu_s]
        ratio = statistics.median(t / o for t, o in zip(result.cpu_s, ours, strict=True))
        table.add_row(
            name,
            f"{statistics.median(rates):.0f}",
            f"{min(rates):.0f}",
            f"{max(rates):.0f}",
            f"{ratio:.2f}",
            f"{result.peak_bytes / 2**20:.0f}",
            result.info,
        )
    return table


def loader_run(**options) -> dict:
    """One measurement of `benchmarks.input_loader`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.input_loader", json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def loader_table(common: dict, count: int, rounds: int) -> Table:
    """One worker on one core against several on as many, in turns; then many more examples.

    The rate by the clock needs cores that are idle otherwise; CPU time an image shows what more
    workers cost also where they are not.
    """
    table = Table(title=f"in the loader, batches of {common['batch']}")
    table.add_column("workers = cores", no_wrap=True)
    for name in ("examples", "images/s", "of workers times one", "CPU ms an image", "so at most"):
        table.add_column(name, justify="right")
    table.add_column("peak MB, parent + workers", justify="right")
    runs = {(how, n): [] for how in ("processes", "threads") for n in (1, count)}
    for _ in range(rounds):
        for (how, n), done in runs.items():
            done.append(loader_run(**common, how=how, count=n, examples=1000))
    rows = [(how, n, 1000, done) for (how, n), done in runs.items()]
    many = loader_run(**common, how="processes", count=count, examples=1_000_000)
    rows.append(("processes", count, 1_000_000, [many]))

    def median(done: list[dict], what: str) -> float:
        return statistics.median(run[what] for run in done)

    for how, n, examples, done in rows:
        one = runs[how, 1]
        rate, cpu_ms = median(done, "images_per_s"), median(done, "cpu_ms")
        table.add_row(
            f"{n} {how}",
            f"{examples:,}",
            f"{rate:.0f}",
            f"{100 * rate / (n * median(one, 'images_per_s')):.0f}%",
            f"{cpu_ms:.2f}",
            f"{100 * median(one, 'cpu_ms') / cpu_ms:.0f}%",
            f"{done[-1]['parent_mb']:.0f} + {done[-1]['workers_mb']:.0f}",
        )
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", help="a folder of JPEG files; made up unless given")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds-per-round", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loader-rounds", type=int, default=3, help="0 leaves the loader out")
    parser.add_argument("--loader-seconds", type=float, default=10.0)
    flags = parser.parse_args()
    # Wide even without a terminal, so that no column is cut off in a log.
    console = Console(width=None if sys.stdout.isatty() else 160)
    with contextlib.ExitStack() as stack:
        images = flags.images
        if images is None:
            images = stack.enter_context(tempfile.TemporaryDirectory())
            photographs.write(images, 64)
        kind = {"kind": "decode", "network": "", "batch": 64, "resolution": flags.resolution}
        task = Task(**kind, threads=1, images=images)
        if flags.contenders:
            options = {"rounds": flags.rounds, "seconds_per_round": flags.seconds_per_round}
            console.print(one_core_table(task, race(task, flags.contenders, **options)))
        if flags.loader_rounds:
            common = {
                "images": images,
                "batch": task.batch,
                "resolution": flags.resolution,
                "seconds": flags.loader_seconds,
            }
            console.print(loader_table(common, flags.workers, flags.loader_rounds))


if __name__ == "__main__":
    main()
