"""Kills, full disks and damaged files: does every command survive them?

python -m benchmarks.faults --cases=100
  Runs this many cases of every part, prints how many were survived, and ends with exit code 1 if
  one was not. `--parts=kills,images` runs some of the parts. Cases that were not survived are named
  by their seed; `--first=SEED --cases=1` repeats one. tests/faults runs a few of each part.

kills   A training, by one process or two, a sweep, a search, an import, an export, a report or a
        preparation of data is killed at a random moment, or stopped by SIGTERM, or paused by
        SIGSTOP and killed; the same command is run again, and may be killed again. The result must
        equal that of an undisturbed command, bit for bit.
disk    A training on a disk that is too small, by a random amount, or that becomes read-only during
        the training (only as root). Once there is room, the same command must end with the same
        bits.
The others are those of `benchmarks.hostile`.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import hostile
from benchmarks.hostile import Broken
from benchmarks.kills import TRAINING, Kills, command, finish, result, same, start, trained, whole


class Disk:
    """See the module."""

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        trained(folder.parent)
        disk = folder / "disk"
        arguments = command("train", *TRAINING, f"--workdir={disk / 'run'}")
        size = int(10 ** rng.uniform(4, 6.8))
        with mounted(disk, size):
            if rng.random() < 0.5:
                finish(arguments, codes=(0, 1, 2))
            else:
                mount("-o", "remount,size=200M", disk)
                self.read_only(arguments, disk, rng.uniform(1, whole("train", folder.parent)[1]))
            mount("-o", "remount,rw,size=200M", disk)
            finish(arguments)
            same("train", result(disk / "run"), folder.parent)
        return 1

    def read_only(self, arguments: list[str], disk: Path, after: float) -> None:
        """Makes the disk read-only in the middle of a training."""
        with start(arguments) as process:
            try:
                said, _ = process.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                # Refused while a file is open for writing; then nothing happens.
                with contextlib.suppress(subprocess.CalledProcessError):
                    mount("-o", "remount,ro", disk)
                said, _ = process.communicate(timeout=600)
        if process.returncode not in (0, 1, 2) or "Traceback" in said:
            raise Broken(f"{' '.join(arguments)}: exit code {process.returncode}: {said[-2000:]}")


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


PARTS = {
    "kills": Kills,
    "disk": Disk,
    "images": hostile.Images,
    "weights": hostile.Weights,
    "json": lambda: hostile.Json(trained),
    "texts": hostile.Texts,
    "names": hostile.Names,
}


def run_part(name: str, cases: int, first: int, folder: Path) -> tuple[int, list[str], float]:
    """Runs cases of a part.

    Returns:
      How many inputs were tried, what happened in the cases that were not survived, and the seconds
      of the slowest case.
    """
    part, tried, broken, slowest = PARTS[name](), 0, [], 0.0
    for seed in range(first, first + cases):
        place = folder / f"{name}{seed}"
        place.mkdir()
        started = time.perf_counter()
        try:
            tried += part.case(place, np.random.default_rng((seed, *name.encode())))
        except Broken as e:
            broken.append(f"{name}, seed {seed}: {e}")
        slowest = max(slowest, time.perf_counter() - started)
        shutil.rmtree(place, ignore_errors=True)
    return tried, broken, slowest


def usable(names: list[str]) -> list[str]:
    """The parts that can be run here."""
    return [name for name in names if name != "disk" or os.geteuid() == 0]


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--first", type=int, default=random.randrange(10**6))
    parser.add_argument("--parts", default=",".join(PARTS))
    flags = parser.parse_args()
    everything: list[str] = []
    print("| part | cases | inputs | not survived | slowest case, s | most memory so far, MB |")
    print("|-|-|-|-|-|-|")
    with tempfile.TemporaryDirectory() as folder:
        for name in usable(flags.parts.split(",")):
            tried, broken, slowest = run_part(name, flags.cases, flags.first, Path(folder))
            memory = max(
                resource.getrusage(who).ru_maxrss
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            print(
                f"| {name} | {flags.cases} | {tried} | {len(broken)} | {slowest:.1f} | "
                f"{memory / 1024:.0f} |",
                flush=True,
            )
            everything += broken
    print("\n".join(everything))
    return 1 if everything else 0


if __name__ == "__main__":
    sys.exit(main())
