"""What a latency was measured on."""

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
from mbv3_jax.core.packages import installed


def machine() -> dict:
    """{"cpu", "cores", "features", "system"}: the model, the cores that this process may use, the
    vector instructions that matter to runtimes, the operating system."""
    cpu, flags = platform.processor() or platform.machine(), []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(
            (part.strip() for part in line.partition(":")[::2])
            for line in info.read_text().splitlines()
            if ":" in line
        )
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


# Measures models in a process of their own, and networks with random weights.
#
# In a fresh process threads and cores are set before a runtime counts them, and no earlier work
# leaves its caches and memory behind.

RUNTIMES = ("litert", "onnxruntime", "xla")
LABELS = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime", "xla": "XLA"}
PROFILERS = {
    "litert": "LiteRT's Python package has no profiler; on a phone, benchmark_model has one",
    "onnxruntime": "ONNX Runtime's own profiler, time by kind of operation",
    "xla": "XLA fuses operations on the CPU, and times none of them",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure.

    warmup_seconds: of runs that are not counted, at least one.
    seconds, runs: counted runs go on until both are reached, for each model.
    turn_seconds: several models take turns of this length.
    """

    warmup_seconds: float = 0.3
    seconds: float = 1.0
    runs: int = 50
    turn_seconds: float = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies of one model, in milliseconds.

    ms: the median; low, high: the quartiles; mad: the median distance from the median; least:
      the shortest run.
    runs: how many were counted.
    turns: the median of each turn.
    versions: of the runtime's packages.
    profile: [{"op", "count", "ms"}], the longest first; None where there is none.
    when: UTC, ISO 8601.
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
      models: (one of `RUNTIMES`, file): TFLite for "litert", ONNX for "onnxruntime", a spec
        (JSON) or StableHLO of jax.export for "xla".
      threads: and as many cores, on Linux.
      effort: how long.
      profile: of the first one, where its runtime has a profiler.

    Raises:
      RunError: a runtime cannot run a file; with what it says.
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
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return [
        _timing(
            turns,
            runtime=runtime,
            threads=threads,
            versions=found["versions"],
            profile=None if i else found["profile"],
            when=began,
        )
        for i, ((runtime, _), turns) in enumerate(zip(models, found["turns"], strict=True))
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
    """Measures a network at a batch of one with random weights, on which time does not depend.

    Args:
      spec: the network.
      runtime: one of `RUNTIMES`.
      precision: "float32", or "int8" for "litert".

    Raises:
      UsageError: the runtime is not installed, or has no such precision.
      RunError: it cannot run the network.
    """
    from mbv3_jax.latency.subjects import write_random

    with tempfile.TemporaryDirectory() as folder:
        path = write_random(Path(folder), spec, runtime, precision)
        return measure_files([(runtime, path)], threads=threads, effort=effort)[0]


def best_runtime() -> str:
    """ "litert" where it and its converter are installed, else "xla"."""
    return "litert" if installed("litert_converter", "ai_edge_litert") else "xla"


def versions_of(runtime: str) -> dict[str, str]:
    """Of the runtime's packages, as `Timing.versions` has them.

    Raises:
      UsageError: one is not installed.
    """
    packages = {"litert": ("ai-edge-litert",), "xla": ("jax", "jaxlib")}
    try:
        return {name: metadata.version(name) for name in packages.get(runtime, ("onnxruntime",))}
    except metadata.PackageNotFoundError as e:
        raise UsageError(f"{LABELS[runtime]} is not installed ({e})") from e


def describe(runtime: str, threads: int = 1) -> str:
    """For people: runtime, version, threads, CPU."""
    *_, version = versions_of(runtime).values()
    count = "one thread" if threads == 1 else f"{threads} threads"
    return f"{LABELS[runtime]} {version}, {count}, {machine()['cpu']}"


# Ratios of latencies that were measured in turns.

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A latency over the first model's: the median over turns, and its 95% interval."""

    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Each latency over the first one, turn by turn: what slows a turn slows both.

    The interval is a bootstrap over turns, with a fixed seed.

    Args:
      timings: of `measure_files`, which took turns; at least one.

    Raises:
      ValueError: they have different numbers of turns: not from one measurement.
    """
    if len({len(t.turns) for t in timings}) != 1:
        raise ValueError("timings: expected those of one measurement, with as many turns each")
    turns = np.array([t.turns for t in timings])
    of_turns = turns / turns[0]
    count = turns.shape[1]
    chosen = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    medians = np.median(of_turns[:, chosen], axis=2)
    low, high = np.quantile(medians, (0.025, 0.975), axis=1)
    middle = np.median(of_turns, axis=1)
    return [Ratio(*map(float, row)) for row in zip(middle, low, high, strict=True)]
