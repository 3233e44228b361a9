"""Measures the latency of models on this machine.

Models are measured by `worker.py` in a fresh process, in which threads and cores are set before a
runtime counts them, and no earlier work has left caches and memory behind.
"""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.packages import installed
from mbv3_jax.latency.subjects import write_random

RUNTIMES = ("litert", "onnxruntime", "xla")
LABELS = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime", "xla": "XLA"}
PROFILERS = {
    "litert": "LiteRT's Python package has no profiler; on a phone, benchmark_model has one",
    "onnxruntime": "ONNX Runtime's own profiler, time by kind of operation",
    "xla": "XLA fuses operations on the CPU, and times none of them",
}
# How often the bootstrap of a ratio's interval draws turns again.
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long each model is measured.

    Attributes:
      warmup_seconds: The time that it first runs without being timed, at least once.
      seconds, runs: It is timed until both are reached.
      turn_seconds: Several models take turns of this length.
    """

    warmup_seconds: float = 0.3
    seconds: float = 1.0
    runs: int = 50
    turn_seconds: float = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """The latencies of one model in milliseconds.

    Attributes:
      ms: The median.
      low, high: The quartiles.
      mad: The median distance from the median.
      least: The shortest run.
      runs: The number of timed runs.
      turns: The median of each turn.
      runtime: One of `RUNTIMES`.
      threads: The number of threads.
      versions: The versions of the runtime's packages.
      profile: [{"op", "count", "ms"}], the longest first; None without a profiler.
      when: The time of the measurement: UTC, ISO 8601.
    """

    ms: float
    low: float
    high: float
    mad: float
    least: float
    runs: int
    turns: tuple[float, ...]
    runtime: str
    threads: int
    versions: dict[str, str]
    profile: list[dict] | None
    when: str


def measure_files(
    models: Sequence[tuple[str, Path]],
    *,
    threads: int = 1,
    effort: Effort = Effort(),
    profile: bool = False,
) -> list[Timing]:
    """Measures models in turns, in one process.

    Args:
      models: Pairs of a runtime of `RUNTIMES` and a file: TFLite for "litert", ONNX for
        "onnxruntime", a spec (JSON) or StableHLO from jax.export for "xla".
      threads: The number of threads and, on Linux, of cores.
      effort: How long each model is measured.
      profile: Whether to profile the first model, if its runtime has a profiler.

    Returns:
      The timing of each model.

    Raises:
      RunError: A runtime cannot run a file; the message has the runtime's reason.
    """
    for runtime, _ in models:
        choose("runtime", runtime, RUNTIMES)
    job = {
        "models": [{"runtime": runtime, "path": str(path)} for runtime, path in models],
        "threads": threads,
        "profile": profile,
        **dataclasses.asdict(effort),
    }
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    done = subprocess.run(
        [sys.executable, "-m", "mbv3_jax.latency.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        names = ", ".join(dict.fromkeys(LABELS[runtime] for runtime, _ in models))
        raise RunError(f"{names}: cannot run {reason}")
    result = parse_json(done.stdout.strip().splitlines()[-1], dict)
    return [
        _timing(
            turns,
            runtime=runtime,
            threads=threads,
            versions=result["versions"],
            profile=None if i else result["profile"],
            when=began,
        )
        for i, ((runtime, _), turns) in enumerate(zip(models, result["turns"], strict=True))
    ]


def _timing(turns: list[list[float]], **rest) -> Timing:
    runs = [ms for turn in turns for ms in turn]
    low, middle, high = statistics.quantiles(runs, n=4) if len(runs) > 1 else runs * 3
    return Timing(
        ms=middle,
        low=low,
        high=high,
        mad=statistics.median(abs(ms - middle) for ms in runs),
        least=min(runs),
        runs=len(runs),
        turns=tuple(map(statistics.median, turns)),
        **rest,
    )


def measure_spec(
    spec: NetSpec,
    runtime: str = "litert",
    *,
    precision: str = "float32",
    threads: int = 1,
    effort: Effort = Effort(),
) -> Timing:
    """Measures a network at a batch of one. Its weights are random, which does not affect the time.

    Args:
      spec: The network.
      runtime: One of `RUNTIMES`.
      precision: "float32", or "int8" for "litert".
      threads: The number of threads.
      effort: How long the network is measured.

    Raises:
      UsageError: The runtime is not installed or does not have this precision.
      RunError: The runtime cannot run the network.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_random(Path(folder), spec, runtime, precision)
        return measure_files([(runtime, path)], threads=threads, effort=effort)[0]


def best_runtime() -> str:
    """Returns "litert" if it and its converter are installed, else "xla"."""
    return "litert" if installed("litert_converter", "ai_edge_litert") else "xla"


def versions_of(runtime: str) -> dict[str, str]:
    """Returns the versions of a runtime's packages, as in `Timing.versions`.

    Raises:
      UsageError: A package is not installed.
    """
    packages = {"litert": ("ai-edge-litert",), "xla": ("jax", "jaxlib")}
    try:
        return {name: metadata.version(name) for name in packages.get(runtime, ("onnxruntime",))}
    except metadata.PackageNotFoundError as e:
        raise UsageError(f"{LABELS[runtime]} is not installed ({e})") from e


def describe(runtime: str, threads: int = 1) -> str:
    """Returns runtime, version, number of threads and CPU, to print."""
    *_, version = versions_of(runtime).values()
    count = "one thread" if threads == 1 else f"{threads} threads"
    return f"{LABELS[runtime]} {version}, {count}, {machine()['cpu']}"


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A latency over the first model's: the median over turns and its 95% interval."""

    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Returns each latency over the first one, compared turn by turn.

    Whatever slows the machine in a turn slows both models. The interval is a bootstrap over turns
    with a fixed seed.

    Args:
      timings: At least one timing, all from the same call of `measure_files`.

    Raises:
      ValueError: The numbers of turns differ, so that the timings are from several measurements.
    """
    if len({len(t.turns) for t in timings}) != 1:
        raise ValueError("timings: expected those of one measurement, with as many turns each")
    turns = np.array([t.turns for t in timings])  # [models, turns]
    relative = turns / turns[0]
    count = turns.shape[1]
    chosen = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    medians = np.median(relative[:, chosen], axis=2)
    low, high = np.quantile(medians, (0.025, 0.975), axis=1)
    middle = np.median(relative, axis=1)
    return [Ratio(*map(float, row)) for row in zip(middle, low, high, strict=True)]


def machine() -> dict:
    """Describes the machine that this process runs on.

    Returns:
      {"cpu": the model, "cores": how many this process may use, "features": the vector
      instructions that matter to runtimes, "system": the operating system}.
    """
    cpu = platform.processor() or platform.machine()
    flags: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields: dict[str, str] = {}
        for line in info.read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields[name.strip()] = value.strip()
        cpu = fields.get("model name", cpu)
        flags = fields.get("flags", fields.get("Features", "")).split()
    elif platform.system() == "Darwin":
        command = ("sysctl", "-n", "machdep.cpu.brand_string")
        cpu = subprocess.run(command, capture_output=True, text=True).stdout.strip() or cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return {
        "cpu": cpu,
        "cores": cores,
        "features": [name for name in known if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }
