"""How time and memory grow: python -m benchmarks.growth [--subjects ...] [--plot FILE]

Every size of a subject is measured in processes of its own, and a table gives the power by which
the time grows from one size to the next: with 1 it grows as fast as the work, with less a part of
it does not depend on the work. The figures are for this machine; run it when the machine is quiet.

  batch, resolution, width     a training step and an inference of a network, by the step
  examples                     from the configuration to the first batch of a computed data set
  files                        the same for a folder of JPEG files, 100 classes
  trials                       `sweep --dry-run` of as many seeds
  lines                        `report` of a run with as many lines of metrics
  runs                         `report` of as many runs with 2,000 lines each
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.miniature import photograph
from benchmarks.race import race
from benchmarks.task import Task

NETWORK = "mobilenet_v3_small"
TINY = (
    "--config=small:synthetic",
    "--config.net.resolution=32",
    "--config.net.num_classes=5",
    "--config.data.num_classes=5",
    "--config.data.num_examples=40",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.total_epochs=None",
    "--config.total_steps=20",
    "--config.eval_every_epochs=None",
    "--config.eval_every_steps=5",
    "--config.log_every_steps=1",
)
FIRST_BATCH = """import sys
from mbv3_jax.run.config import parse_config
from mbv3_jax.train.experiment import make_experiment
batches = make_experiment(parse_config(sys.argv[1], sys.argv[2:])).train_batches(0)
next(batches)
batches.close()
"""
SWEEP = """from mbv3_jax.sweep.combinators import Sweep, seeds
def get_sweep():
    return Sweep("small:synthetic", seeds({count}))
"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one size took: seconds (of a step, or of a command), the most MB, seconds to start."""

    seconds: float
    megabytes: float
    start: float | None = None


class Desk:
    """Measures commands, with files that it makes in a folder of its own."""

    def __init__(self, folder: Path, rounds: int):
        self.folder, self.rounds = folder, rounds

    def examples(self, count: int) -> Measured:
        options = (f"--config.data.num_examples={count}", "--config.net.resolution=32")
        return self.python("-c", FIRST_BATCH, "small:synthetic", *options)

    def files(self, count: int) -> Measured:
        root, image = self.folder / f"files_{count}", photograph(0, (90, 120, 150))
        for split, share in (("train", 0.9), ("validation", 0.1)):
            for label in range(100):
                folder = root / split / f"class_{label:02d}"
                folder.mkdir(parents=True)
                for i in range(max(1, round(count * share / 100))):
                    (folder / f"{i}.jpg").write_bytes(image)
        options = ("--config.net.resolution=32", "--config.net.num_classes=100")
        return self.python("-c", FIRST_BATCH, f"small:folder={root}", *options)

    def trials(self, count: int) -> Measured:
        file = self.folder / f"seeds_{count}.py"
        file.write_text(SWEEP.format(count=count))
        workdir = self.folder / f"sweep_{count}"
        return self.command("sweep", f"--sweep={file}", f"--workdir={workdir}", "--dry-run")

    def lines(self, count: int) -> Measured:
        return self.command("report", self.run(f"lines_{count}", count), f"--out={self.page}")

    def runs(self, count: int) -> Measured:
        runs = [self.run(f"runs_{i}", 2000, seed=i) for i in range(count)]
        return self.command("report", *runs, f"--out={self.page}")

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    def run(self, name: str, lines: int, seed: int = 0) -> Path:
        """A run folder whose metrics are as long as is wanted, copied from a short training."""
        trained, folder = self.folder / "trained", self.folder / name
        if not trained.exists():
            self.command("train", *TINY, f"--workdir={trained}", rounds=1)
        if folder.exists():
            return folder
        shutil.copytree(trained, folder)
        records = [json.loads(line) for line in (trained / "metrics.jsonl").open()]
        steps = [r for r in records if r["kind"] == "train"]
        evaluations = [r for r in records if r["kind"] == "eval"]
        with (folder / "metrics.jsonl").open("w") as file:
            for step in range(1, lines + 1):
                file.write(json.dumps(steps[step % len(steps)] | {"step": step}) + "\n")
            for i, record in enumerate(evaluations, 1):
                at = lines * i // len(evaluations)
                file.write(json.dumps(record | {"step": at}) + "\n")
        config = json.loads((folder / "config.json").read_text()) | {"seed": seed}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def command(self, *arguments: object, rounds: int | None = None) -> Measured:
        return self.python("-m", "mbv3_jax", *arguments, rounds=rounds)

    def python(self, *arguments: object, rounds: int | None = None) -> Measured:
        """Runs Python `rounds` times; the median of the seconds and of the most memory."""
        seconds, memory = [], []
        for _ in range(rounds or self.rounds):
            with tempfile.TemporaryFile() as output:
                began = time.perf_counter()
                process = subprocess.Popen(
                    [sys.executable, *map(str, arguments)], stdout=output, stderr=output
                )
                _, status, usage = os.wait4(process.pid, 0)
                seconds.append(time.perf_counter() - began)
                memory.append(usage.ru_maxrss / 1024)
                if status:
                    output.seek(0)
                    raise SystemExit(f"{arguments}: {output.read().decode()[-2000:]}")
        return Measured(statistics.median(seconds), statistics.median(memory))


def steps(kind: str, rounds: int, **sizes) -> Measured:
    """A step of V3-Small, of 32 images of 128 pixels but for what `sizes` says."""
    usual: dict = {"batch": 32, "resolution": 128, "threads": len(os.sched_getaffinity(0))}
    task = Task(kind=kind, network=NETWORK, **usual | sizes)
    [result] = race(task, ["ours"], rounds=rounds, seconds_per_round=1.0)
    if result.absent:
        raise SystemExit(f"{task}: {result.absent}")
    peak = max(result.peak_bytes, result.setup_peak_bytes) / 2**20
    return Measured(statistics.median(result.wall_s), peak, result.first_step_s)


# name -> (sizes, to which power of a size the work grows)
SUBJECTS: dict[str, tuple[Sequence[Any], int]] = {
    "train, batch": ((1, 8, 32, 128, 512), 1),
    "train, resolution": ((32, 64, 128, 224, 384), 2),
    "train, width": ((0.35, 0.5, 0.75, 1.0, 1.5, 2.0), 2),
    "infer, batch": ((1, 8, 32, 128, 512), 1),
    "infer, resolution": ((32, 64, 128, 224, 384), 2),
    "infer, width": ((0.35, 0.5, 0.75, 1.0, 1.5, 2.0), 2),
    "examples": ((10**3, 10**4, 10**5, 10**6, 10**7), 1),
    "files": ((10**3, 10**4, 10**5), 1),
    "trials": ((1, 10, 100, 300, 1000), 1),
    "lines": ((10**3, 10**4, 10**5, 200_000), 1),
    "runs": ((1, 10, 30, 60), 1),
}


def measure(name: str, size: Any, desk: Desk) -> Measured:
    """One size of a subject."""
    kind, _, what = name.partition(", ")
    return steps(kind, desk.rounds, **{what: size}) if what else getattr(desk, kind)(size)


def power(sizes: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The exponent of growth from each size to the next."""
    pairs = zip(sizes, sizes[1:], seconds, seconds[1:], strict=False)
    return [math.log(t / s) / math.log(b / a) for a, b, s, t in pairs]


def section(name: str, measured: dict[float, Measured]) -> str:
    """The table of a subject, in Markdown."""
    work = SUBJECTS[name][1]
    exponents = [None, *power(list(measured), [m.seconds for m in measured.values()])]
    lines = [
        f"## {name.capitalize()}",
        "",
        f"Work grows by the power {work}.",
        "",
        "| size | seconds | power of growth | peak MB | first step, s |",
        "|-:|-:|-:|-:|-:|",
    ]
    for (size, m), exponent in zip(measured.items(), exponents, strict=True):
        grown = "" if exponent is None else f"{exponent:.2f}"
        start = "" if m.start is None else f"{m.start:.1f}"
        lines.append(f"| {size:,} | {m.seconds:.3g} | {grown} | {m.megabytes:.0f} | {start} |")
    return "\n".join(lines) + "\n"


def draw(everything: dict[str, dict[float, Measured]], path: Path) -> None:
    """Seconds against size, a panel for each subject."""
    columns = min(4, len(everything))
    rows = math.ceil(len(everything) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.2 * rows), layout="constrained")
    for place, (name, measured) in enumerate(everything.items(), 1):
        panel = figure.add_subplot(rows, columns, place)
        panel.loglog(list(measured), [m.seconds for m in measured.values()], "o-", ms=3)
        panel.set(title=name, ylabel="seconds")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="where to draw seconds against size, as PNG")
    parser.add_argument("--most", type=float, default=math.inf, help="no sizes above it")
    flags = parser.parse_args()
    everything = {}
    for name in flags.subjects:
        sizes = SUBJECTS[name][0]
        with tempfile.TemporaryDirectory() as folder:
            desk = Desk(Path(folder), flags.rounds)
            everything[name] = {s: measure(name, s, desk) for s in sizes if s <= flags.most}
        print(section(name, everything[name]), flush=True)
    if flags.plot:
        draw(everything, flags.plot)


if __name__ == "__main__":
    main()
