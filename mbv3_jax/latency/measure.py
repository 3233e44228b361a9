"""Measures models in processes of their own, and networks with random weights.

A process for each model: threads and cores are set before a runtime counts them, and no model
finds the caches and the memory of another.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec, choose, to_json
from mbv3_jax.export.packages import installed
from mbv3_jax.latency.machine import machine
from mbv3_jax.train.errors import RunError

RUNTIMES = ("litert", "onnxruntime", "xla")
_LABELS = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime", "xla": "XLA"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure.

    warmup_seconds: of runs that are not counted, at least one.
    seconds, runs: counted runs go on until both are reached.
    """

    warmup_seconds: float = 0.3
    seconds: float = 1.0
    runs: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies of one model, in milliseconds.

    ms: the median; low, high: the quartiles; least: the shortest run.
    runs: how many were counted.
    versions: of the runtime's packages.
    """

    ms: float
    low: float
    high: float
    least: float
    runs: int
    runtime: str
    threads: int
    versions: dict[str, str]


def measure_file(
    model: Path,
    runtime: str,
    *,
    shape: Sequence[int],
    threads: int = 1,
    effort: Effort = Effort(),
) -> Timing:
    """Measures a model.

    Args:
      model: a TFLite file for "litert", ONNX for "onnxruntime", a spec (JSON) for "xla".
      runtime: one of `RUNTIMES`.
      shape: of the images, [N, H, W, C].
      threads: and as many cores, on Linux.
      effort: how long.

    Raises:
      RunError: the runtime cannot run the file; with what it says.
    """
    choose("runtime", runtime, RUNTIMES)
    job = {
        "runtime": runtime,
        "threads": threads,
        "model": str(model),
        "shape": list(shape),
        **dataclasses.asdict(effort),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mbv3_jax.latency.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(f"{_LABELS[runtime]} cannot run {model}: {reason}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    low, middle, high = statistics.quantiles(found["ms"], n=4)
    return Timing(
        ms=middle,
        low=low,
        high=high,
        least=min(found["ms"]),
        runs=len(found["ms"]),
        runtime=runtime,
        threads=threads,
        versions=found["versions"],
    )


def best_runtime() -> str:
    """ "litert" where it and its converter are installed, else "xla"."""
    return "litert" if installed("litert_converter", "ai_edge_litert") else "xla"


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
      UsageError: the runtime is not installed.
      RunError: it cannot run the network.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model.{runtime}"
        if runtime == "xla":
            file.write_text(to_json(spec))
        else:
            from mbv3_jax.latency.models import random_model

            file.write_bytes(random_model(spec, runtime, precision))
        shape = (1, spec.resolution, spec.resolution, spec.in_channels)
        return measure_file(file, runtime, shape=shape, threads=threads, effort=effort)


def describe(runtime: str, threads: int = 1) -> str:
    """For people: runtime, version, threads, CPU."""
    from importlib import metadata

    package = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "xla": "jaxlib"}[runtime]
    count = "one thread" if threads == 1 else f"{threads} threads"
    return f"{_LABELS[runtime]} {metadata.version(package)}, {count}, {machine()['cpu']}"
