"""Commands that are killed at a random moment and started again: a part of `benchmarks.faults`."""

import dataclasses
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

import mbv3_jax
from benchmarks.hostile import Broken
from benchmarks.miniature import photograph, tfds_folder
from mbv3_jax.run.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (75, -15, 0), signal.SIGSTOP: (-9,)}
LIMIT = 600  # seconds that a command may take
SMALL = (
    "--config.net.resolution=32",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.total_epochs=None",
    "--config.eval_every_epochs=None",
    "--config.checkpoint_every_epochs=None",
    "--config.checkpoint_every_steps=3",
)
TRAINING = (
    "--config=small:synthetic",
    "--config.net.num_classes=5",
    "--config.data.num_classes=5",
    "--config.data.num_examples=40",
    "--config.total_steps=12",
    "--config.ema_decay=0.9",
    "--config.log_every_steps=2",
    "--config.eval_every_steps=6",
    *SMALL,
)
SWEEP = """from mbv3_jax.sweep.combinators import Sweep, seeds
def get_sweep():
    return Sweep("small:synthetic", seeds(2))
"""
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")  # when a report was made
PATIENCE = 5  # seconds that a process waits for a silent one; ten times as many while it compiles


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mbv3_jax", *map(str, arguments)]


def start(arguments: Sequence[str]) -> subprocess.Popen:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "mbv3_jax_faults")}
    environ = cache | os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*commands: Sequence[str], codes: Sequence[int] = (0,)) -> str:
    """Runs commands side by side to their end; returns what the first printed.

    Raises:
      Broken: one ended otherwise, or not at all.
    """
    return ended([start(c) for c in commands], commands, codes)


def ended(
    running: Sequence[subprocess.Popen], commands: Sequence[Sequence[str]], codes: Sequence[int]
) -> str:
    """Waits for processes; returns what the first printed, and raises as `finish`."""
    said = []
    try:
        for process, arguments in zip(running, commands, strict=True):
            said.append(process.communicate(timeout=LIMIT)[0])
            if process.returncode not in codes or "Traceback" in said[-1]:
                raise Broken(
                    f"{' '.join(arguments)}: exit code {process.returncode}: {said[-1][-2000:]}"
                )
    except subprocess.TimeoutExpired as e:
        raise Broken(f"{' '.join(arguments)}: over {LIMIT} s") from e
    finally:
        for process in running:
            process.kill()
            process.wait()
    return said[0]


def strike(
    commands: Sequence[Sequence[str]], after: float, number: signal.Signals, *, everyone: bool
) -> None:
    """Runs commands side by side, and sends one or all a signal after a time.

    Raises:
      Broken: one ended in another way than it should.
    """
    running = [start(arguments) for arguments in commands]
    time.sleep(after)
    struck = [p for p in (running if everyone else running[-1:]) if p.poll() is None]
    for process in struck:
        process.send_signal(number)
    if number == signal.SIGSTOP:
        time.sleep(0.5)
        for process in struck:
            process.kill()
    # Of several processes, those that lose another end with 75.
    codes = {0, *CODES[number]} | ({75} if len(commands) > 1 else set())
    ended(running, commands, sorted(codes))


def arrays(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def result(run: Path) -> tuple:
    """What a training ended with: both kinds of weights, and the records but for their speed."""
    weights = [arrays(mbv3_jax.load(run, weights=kind).variables) for kind in ("raw", "ema")]
    keep = [
        {k: v for k, v in record.items() if k != "images_per_second"}
        for record in read_metrics(run)
    ]
    return weights, keep


@dataclasses.dataclass(frozen=True)
class Deed:
    """What is killed.

    Attributes:
      commands: the commands that do it, run side by side; again at each call.
      result: what they have made, equal if they have made the same.
      signals: what may happen to them; where SIGTERM is missing, nothing is saved by it.
    """

    commands: Callable[[], list[list[str]]]
    result: Callable[[], object]
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL, signal.SIGSTOP)


def training(folder: Path, shared: Path) -> Deed:
    run = folder / "run"
    one = command("train", *TRAINING, f"--workdir={run}")
    return Deed(lambda: [one], lambda: result(run), (*CODES,))


def two_processes(folder: Path, shared: Path) -> Deed:
    run = folder / "run"

    def commands() -> list[list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            flags = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--num-processes=2"]
        flags += [f"--patience={PATIENCE}", f"--workdir={run}"]
        return [command("train", *TRAINING, *flags, f"--process-id={i}") for i in range(2)]

    return Deed(commands, lambda: result(run), (*CODES,))


def sweep(folder: Path, shared: Path) -> Deed:
    (folder / "two.py").write_text(SWEEP)
    place = folder / "sweep"
    one = command("sweep", f"--sweep={folder / 'two.py'}", f"--workdir={place}", *TRAINING[1:])
    return Deed(lambda: [one], lambda: [result(place / f"seed{i}") for i in range(2)], (*CODES,))


def search(folder: Path, shared: Path) -> Deed:
    place = folder / "search"
    options = ["--config=search/small", f"--workdir={place}", "--config.space.name=toy"]
    options += ["--config.cost=madds", "--config.references=()", "--config.targets.small=0.9"]
    options += ["--config.targets.large=1.1", "--config.netadapt.enabled=False"]
    options += [f"--config.rounds.{k}={n}" for k, n in {"first": 4, "per_round": 1}.items()]
    options += ["--config.rounds.rounds=1", "--config.searcher.steps=4"]
    for stage in ("brief", "final"):
        options += [o.replace("config", f"config.{stage}", 1) for o in SMALL]
        options.append(f"--config.{stage}.total_steps=6")
    one = command("train", *options)
    return Deed(lambda: [one], (place / "search.json").read_text)


def importing(folder: Path, shared: Path) -> Deed:
    weights, out = shared / "weights.safetensors", folder / "out"
    if not weights.exists():
        run = trained(shared)
        finish(command("export-weights", f"--run={run}", "--to=timm", f"--out={weights}"))
    one = command(
        "import",
        "--from=timm",
        "--network=tf_mobilenetv3_small_100",  # padded as TensorFlow does it
        f"--weights={weights}",
        f"--out={out}",
    )
    return Deed(lambda: [one], lambda: arrays(mbv3_jax.load(out).variables))


def exporting(folder: Path, shared: Path) -> Deed:
    run, out = trained(shared), folder / "out.stablehlo"
    one = command("export", f"--run={run}", "--format=stablehlo", f"--out={out}")
    # The archive after it has the day of the export.
    return Deed(lambda: [one], lambda: out.read_bytes().partition(b"PK\3\4")[0])


def reporting(folder: Path, shared: Path) -> Deed:
    out = folder / "out.html"
    one = command("report", trained(shared), "--no-latency", f"--out={out}")
    return Deed(lambda: [one], lambda: DATE.sub("", out.read_text()))


def preparing(folder: Path, shared: Path) -> Deed:
    """A copy that TFDS prepared in tfrecord format gets array_record files beside it."""
    pairs = [(photograph(i, (60 + 100 * (i % 2), 90, 90)), i % 2) for i in range(200)]
    tfds_folder(folder, "two_colours", {"train": pairs}, ["dark", "light"], "tfrecord")
    one = command("data", "prepare", "tfds/two_colours", f"--data-dir={folder}")

    def made() -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    return Deed(lambda: [one], made)


# With how often each is killed.
DEEDS: dict[str, tuple[Callable[[Path, Path], Deed], float]] = {
    "train": (training, 0.45),
    "two processes": (two_processes, 0.1),
    "sweep": (sweep, 0.1),
    "search": (search, 0.1),
    "import": (importing, 0.05),
    "export": (exporting, 0.1),
    "report": (reporting, 0.05),
    "prepare": (preparing, 0.05),
}


@functools.cache
def whole(kind: str, shared: Path) -> tuple[object, float]:
    """What a deed makes when nothing disturbs it, and in how many seconds."""
    folder = shared / f"whole {kind}"
    folder.mkdir()
    deed = DEEDS[kind][0](folder, shared)
    started = time.perf_counter()
    finish(*deed.commands())
    return deed.result(), time.perf_counter() - started


def trained(shared: Path) -> Path:
    """The run folder of a training that nothing disturbed."""
    whole("train", shared)
    return shared / "whole train" / "run"


def same(kind: str, made: object, shared: Path) -> None:
    """Raises Broken if what was made is not what the undisturbed command makes."""
    if made != whole(kind, shared)[0]:
        raise Broken(f"{kind}: it did not end with the same bits as without a disturbance")


class Kills:
    """See `benchmarks.faults`."""

    def __init__(self, kinds: Sequence[str] = tuple(DEEDS)):
        self.kinds = kinds

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        shared = folder.parent
        weights = np.array([DEEDS[kind][1] for kind in self.kinds])
        kind = self.kinds[rng.choice(len(weights), p=weights / weights.sum())]
        longest = whole(kind, shared)[1]
        deed, count = DEEDS[kind][0](folder, shared), 0
        while count < 3 and (not count or rng.random() < 0.5):
            number = deed.signals[int(rng.integers(len(deed.signals)))]
            after, everyone = rng.uniform(0.1, longest), rng.random() < 0.7
            strike(deed.commands(), after, number, everyone=everyone)
            count += 1
        finish(*deed.commands())
        same(kind, deed.result(), shared)
        return count
