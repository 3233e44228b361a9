"""Does anything break it? Kills, full disks and damaged files, by the hundred.

python -m benchmarks.faults --cases=100
  Runs so many cases of every part, prints how many were survived, and ends with exit code 1 if one
  was not. `--parts=kills,images` runs some of them. Cases that were not survived are named by their
  seed; `--first=SEED --cases=1` repeats one. tests/faults runs a few of each part.

kills   A training, a sweep, an import, an export or a report is killed at a random moment, or
        stopped by SIGTERM, or paused by SIGSTOP and killed; the same command is run again, and may
        be killed again. In the end there must be what an undisturbed command makes, bit for bit.
disk    A training on a disk that is too small, by a random size, or that is made read-only in its
        middle (as root only). Once there is room, the same command must end with the same bits.
The others are those of `benchmarks.hostile`.
"""

import argparse
import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import mbv3_jax
from benchmarks import hostile
from benchmarks.hostile import Broken
from mbv3_jax.run.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (75, -15, 0), signal.SIGSTOP: (-9,)}
TRAINING = (
    "--config=small:synthetic",
    "--config.net.resolution=32",
    "--config.net.num_classes=5",
    "--config.data.num_classes=5",
    "--config.data.num_examples=40",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.total_steps=12",
    "--config.total_epochs=None",
    "--config.ema_decay=0.9",
    "--config.log_every_steps=2",
    "--config.eval_every_epochs=None",
    "--config.eval_every_steps=6",
    "--config.checkpoint_every_epochs=None",
    "--config.checkpoint_every_steps=3",
)
SWEEP = """from mbv3_jax.sweep.combinators import Sweep, seeds
def get_sweep():
    return Sweep("small:synthetic", seeds(2))
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mbv3_jax", *map(str, arguments)]


def start(arguments: list[str]) -> subprocess.Popen:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "mbv3_jax_faults")}
    environ = cache | os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(arguments: list[str], codes=(0,)) -> str:
    """Runs a command to its end; returns what it printed.

    Raises:
      Broken: it ended otherwise.
    """
    with start(arguments) as process:
        try:
            said, _ = process.communicate(timeout=600)
        except subprocess.TimeoutExpired as e:
            process.kill()
            raise Broken(f"{' '.join(arguments)}: over 600 s") from e
    if process.returncode not in codes or "Traceback" in said:
        raise Broken(f"{' '.join(arguments)}: exit code {process.returncode}: {said[-2000:]}")
    return said


def strike(arguments: list[str], after: float, number: signal.Signals) -> None:
    """Runs a command, and sends it a signal after so many seconds if it still runs.

    Raises:
      Broken: it ended in another way than it should.
    """
    with start(arguments) as process:
        try:
            said, _ = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            if number == signal.SIGSTOP:
                time.sleep(0.5)
                process.kill()
            said, _ = process.communicate(timeout=600)
    if process.returncode not in (0, *CODES[number]) or "Traceback" in said:
        raise Broken(f"{' '.join(arguments)}: exit code {process.returncode}: {said[-2000:]}")


def result(run: Path) -> tuple:
    """What a training ended with: both kinds of weights, and the records but for their speed."""
    weights = [
        [np.asarray(leaf).tobytes() for leaf in _leaves(mbv3_jax.load(run, weights=kind).variables)]
        for kind in ("raw", "ema")
    ]
    keep = [
        {k: v for k, v in record.items() if k != "images_per_second"}
        for record in read_metrics(run)
    ]
    return weights, keep


def _leaves(tree) -> list:
    import jax

    return jax.tree.leaves(tree)


@functools.cache
def trained(folder: Path) -> Path:
    """The run folder of a training that nothing disturbed; made once."""
    run = folder / "whole"
    finish(command("train", *TRAINING, f"--workdir={run}"))
    return run


@functools.cache
def of_whole_run(run: Path) -> tuple:
    return result(run)


class Kills:
    """See the module."""

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        whole = trained(folder.parent)
        kinds: dict[str, Callable[[], tuple[list[str], Callable[[], object]]]] = {
            "train": lambda: self.training(folder),
            "sweep": lambda: self.sweep(folder),
            "import": lambda: self.made(folder, whole, "import"),
            "export": lambda: self.made(folder, whole, "export"),
            "report": lambda: self.made(folder, whole, "report"),
        }
        kind = str(rng.choice(list(kinds), p=(0.5, 0.1, 0.1, 0.2, 0.1)))
        arguments, check = kinds[kind]()
        longest = seconds_of(kind, folder.parent)
        count = 0
        while count < 3 and (not count or rng.random() < 0.5):
            number = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)[int(rng.integers(3))]
            if kind != "train" and number == signal.SIGTERM:
                number = signal.SIGKILL  # only trainings and sweeps answer it
            strike(arguments, rng.uniform(0.1, longest), number)
            count += 1
        finish(arguments)
        check()
        return count

    def training(self, folder: Path) -> tuple[list[str], Callable[[], object]]:
        run = folder / "run"
        return command("train", *TRAINING, f"--workdir={run}"), lambda: same(run, folder.parent)

    def sweep(self, folder: Path) -> tuple[list[str], Callable[[], object]]:
        (folder / "two.py").write_text(SWEEP)
        arguments = command(
            "sweep", f"--sweep={folder / 'two.py'}", f"--workdir={folder / 'sweep'}", *TRAINING[1:]
        )
        return arguments, lambda: same(folder / "sweep" / "seed0", folder.parent)

    def made(self, folder: Path, run: Path, kind: str) -> tuple[list[str], Callable[[], object]]:
        out = folder / "out"
        weights = folder.parent / "weights.safetensors"
        if kind == "import" and not weights.exists():
            finish(command("export-weights", f"--run={run}", "--to=timm", f"--out={weights}"))
        arguments = {
            "import": (
                "import",
                "--from=timm",
                "--network=tf_mobilenetv3_small_100",  # padded as TensorFlow does it
                f"--weights={weights}",
                f"--out={out}",
            ),
            "export": ("export", f"--run={run}", "--format=stablehlo", f"--out={out}.stablehlo"),
            "report": ("report", run, "--no-latency", f"--out={out}.html"),
        }[kind]

        def check() -> None:
            if kind == "import":
                mbv3_jax.load(out)
            elif not next(folder.glob("out.*")).stat().st_size:
                raise Broken(f"{kind}: an empty file")

        return command(*arguments), check


def same(run: Path, shared: Path) -> None:
    if result(run) != of_whole_run(trained(shared)):
        raise Broken(f"{run} did not end with the same bits as {trained(shared)}")


@functools.cache
def seconds_of(kind: str, shared: Path) -> float:
    """How long a command takes when nothing disturbs it."""
    with tempfile.TemporaryDirectory(dir=shared) as name:
        folder, kills = Path(name), Kills()
        makers = {"train": kills.training, "sweep": kills.sweep}
        if kind in makers:
            arguments, _ = makers[kind](folder)
        else:
            arguments, _ = kills.made(folder, trained(shared), kind)
        started = time.perf_counter()
        finish(arguments)
        return time.perf_counter() - started


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
                self.read_only(arguments, disk, rng.uniform(1, seconds_of("train", folder.parent)))
            mount("-o", "remount,rw,size=200M", disk)
            finish(arguments)
            same(disk / "run", folder.parent)
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
