"""Latency on an Android phone by TFLite's own benchmark_model: its command lines, its output.

Flags: tensorflow/lite/tools/benchmark/README.md. Two runs, because the profiler and the thread
that watches memory take time themselves: the first for the latency, the second for the rest.
"""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.core.errors import RunError, UsageError

FOLDER = "/data/local/tmp"  # where Android lets adb run a program
_PREFIX = re.compile(r"^.*?(?:\btflite\s*:|INFO:)\s?")  # of logcat, and of newer versions
_NUMBER = r"[\d.]+(?:e[+-]?\d+)?"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER}), "
    rf"Warmup \(avg\): ({_NUMBER}), Inference \(avg\): ({_NUMBER})"
)
_COUNT = re.compile(r"^count=(\d+) ")
_MEMORY = re.compile(rf"(?:Peak memory footprint|Memory footprint delta).*overall=({_NUMBER})")
# Both tables end in: share, sum of shares, memory, times called.
_TAIL = rf"({_NUMBER})\s+{_NUMBER}%\s+{_NUMBER}%\s+{_NUMBER}\s+\d+"
_BY_TYPE = re.compile(rf"^\s*(\S.*?)\s+(\d+)\s+{_TAIL}\s*$")
_IN_ORDER = re.compile(rf"^\s*(\S.*?)\s+(?:{_NUMBER}\s+)+?{_TAIL}\s+(\S.*?)\s*$")


def commands(
    file: Path,
    *,
    binary: Path = Path("benchmark_model"),
    serial: str | None = None,
    threads: int = 1,
    cpu_mask: str | None = None,
    runs: int = 100,
) -> list[list[str]]:
    """The command lines that measure a TFLite file.

    Args:
      file: the model.
      binary: benchmark_model for the phone's processor, on this machine.
      serial: of the phone, where several are connected.
      threads: how many.
      cpu_mask: hexadecimal, which cores: f0 are the large ones of many phones.
      runs: at least; and at least a second.
    """
    adb = ["adb", *(["-s", serial] if serial else [])]
    there, model = f"{FOLDER}/benchmark_model", f"{FOLDER}/{file.name}"
    run = [*adb, "shell", *(["taskset", cpu_mask] if cpu_mask else []), there]
    run += [f"--graph={shlex.quote(model)}", f"--num_threads={threads}", f"--num_runs={runs}"]
    run += ["--warmup_runs=10"]
    return [
        [*adb, "push", str(binary), there],
        [*adb, "shell", "chmod", "+x", there],
        [*adb, "push", str(file), model],
        run,
        [*run, "--enable_op_profiling=true", "--report_peak_memory_footprint=true"],
    ]


def run(lines: Sequence[Sequence[str]]) -> list[str]:
    """Runs the command lines, and returns what each printed.

    Raises:
      UsageError: there is no adb.
      RunError: one failed; with what it says.
    """
    printed = []
    for line in lines:
        try:
            done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except FileNotFoundError as e:
            raise UsageError(
                f"{line[0]} is not installed: it is in Android's platform-tools"
            ) from e
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise RunError(f"{shlex.join(line)}: exit code {done.returncode}: {last}")
        printed.append(done.stdout)
    return printed


def read(texts: Sequence[str], name: str, machine: str | None = None) -> dict:
    """What benchmark_model printed, as `results.record` has it.

    Args:
      texts: of one run, or of one for the latency and one with the profiler.
      name: of the model, for people.
      machine: the phone, for people.

    Returns:
      "ms" and "mean" are the tool's average of the first text, in milliseconds, "runs" how many;
      "init_ms", "first_ms"; of the last text "memory_mb", "profile" by kind of operation, and
      "operations" in order of execution; None where the tool did not print them.

    Raises:
      ValueError: a text is not of benchmark_model, or of a run that did not end.
    """
    found = [_read(text) for text in texts]
    first, last = found[0], found[-1]
    return {
        "name": name,
        "unit": "ms",
        "statistic": "mean",
        "machine": {"cpu": machine},
        "runtime": "benchmark_model",
        **{k: first[k] for k in ("ms", "runs", "init_ms", "first_ms", "threads")},
        **{k: last[k] for k in ("memory_mb", "profile", "operations")},
    }


def _read(text: str) -> dict:
    lines = [_PREFIX.sub("", line.rstrip()) for line in text.splitlines()]
    timings = [m for line in lines if (m := _TIMINGS.search(line))]
    if not timings:
        raise ValueError(
            "no line 'Inference timings in us: ...': not the output of benchmark_model, or of a "
            "run that did not end"
        )
    init, first, _, mean = (float(v) / 1e3 for v in timings[-1].groups())
    counts = [int(m[1]) for line in lines if (m := _COUNT.match(line.strip()))]
    memory = [float(m[1]) for line in lines if (m := _MEMORY.search(line))]
    threads = re.search(r"Num threads: \[(\d+)\]", text)
    by_type = [
        {"op": m[1], "count": int(m[2]), "ms": float(m[3])}
        for line in _section(lines, "Summary by node type")
        if (m := _BY_TYPE.match(line))
    ]
    in_order = [
        {"op": m[1], "ms": float(m[2]), "name": m[3].strip("[]")}
        for line in _section(lines, "Run Order")
        if (m := _IN_ORDER.match(line))
    ]
    return {
        "ms": mean,
        # Of the warm-up, then of the runs.
        "runs": counts[1] if len(counts) > 1 else None,
        "init_ms": init,
        "first_ms": first,
        "threads": int(threads[1]) if threads else None,
        "memory_mb": memory[-1] if memory else None,
        "profile": by_type or None,
        "operations": in_order or None,
    }


def _section(lines: list[str], title: str) -> list[str]:
    """The lines of the last table of this title: earlier ones are of the initialization."""
    starts = [i for i, line in enumerate(lines) if f"= {title} =" in line]
    if not starts:
        return []
    rest = lines[starts[-1] + 2 :]  # and the heads of the columns
    end = next((i for i, line in enumerate(rest) if not line.strip()), len(rest))
    return rest[:end]
