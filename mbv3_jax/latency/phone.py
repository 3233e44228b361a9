"""Latency on an Android phone by TFLite's own benchmark_model: its command lines and its output.

tensorflow/lite/tools/benchmark/README.md describes the flags. There are two runs, because the
profiler and the thread that watches memory take time themselves: one for the latency, and one for
the profile and the memory.
"""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.core.checks import check_number
from mbv3_jax.core.errors import RunError, UsageError

FOLDER = "/data/local/tmp"  # Android lets adb run programs here
_PREFIX = re.compile(r"^.*?(?:\btflite\s*:|INFO:)\s?")  # by logcat, and by newer versions
_NUMBER = r"[\d.]+(?:e[+-]?\d+)?"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER}), "
    rf"Warmup \(avg\): ({_NUMBER}), Inference \(avg\): ({_NUMBER})"
)
_COUNT = re.compile(r"^count=(\d+) ")
_MEMORY = ("Peak memory footprint", "Memory footprint delta")
_OVERALL = re.compile(rf"overall=({_NUMBER})")
# The rows of both tables hold: milliseconds, share, sum of shares, memory, number of calls. Each
# word is looked at by itself: one expression for a whole row would try all ways to divide it.
_WORD = re.compile(r"\S+")
_IS_NUMBER = re.compile(_NUMBER).fullmatch
_IS_SHARE = re.compile(rf"{_NUMBER}%").fullmatch
_TAIL = (_IS_NUMBER, _IS_SHARE, _IS_SHARE, _IS_NUMBER, re.compile(r"\d+").fullmatch)


def commands(
    file: Path,
    *,
    binary: Path = Path("benchmark_model"),
    serial: str | None = None,
    threads: int = 1,
    cpu_mask: str | None = None,
    runs: int = 100,
) -> list[list[str]]:
    """Returns the command lines that measure a TFLite file: preparation, timing run, profiled run.

    Args:
      file: The model.
      binary: benchmark_model for the phone's processor, on this machine.
      serial: The phone's serial number, if several are connected.
      threads: The number of threads.
      cpu_mask: The cores to use, in hexadecimal; f0 are the large ones of many phones.
      runs: The minimum number of runs, which take at least a second.
    """
    adb = ["adb", *(["-s", serial] if serial else [])]
    program, model = f"{FOLDER}/benchmark_model", f"{FOLDER}/{file.name}"
    run = [*adb, "shell", *(["taskset", cpu_mask] if cpu_mask else []), program]
    run += [f"--graph={shlex.quote(model)}", f"--num_threads={threads}", f"--num_runs={runs}"]
    run += ["--warmup_runs=10"]
    return [
        [*adb, "push", str(binary), program],
        [*adb, "shell", "chmod", "+x", program],
        [*adb, "push", str(file), model],
        run,
        [*run, "--enable_op_profiling=true", "--report_peak_memory_footprint=true"],
    ]


def run(lines: Sequence[Sequence[str]]) -> list[str]:
    """Runs command lines; returns what each printed.

    Raises:
      UsageError: adb is not installed.
      RunError: A command failed; the message has its last line.
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
    """Reads the output of benchmark_model, into the fields of `results.record`.

    Args:
      texts: The output of one run, or of the timing run and the profiled run.
      name: The name of the model.
      machine: The name of the phone.

    Returns:
      From the first text: "ms", the tool's mean in milliseconds, "runs", "init_ms", "first_ms" and
      "threads". From the last text: "memory_mb", "profile" by kind of operation, and "operations"
      in the order of execution. Values that the tool did not print are None.

    Raises:
      ValueError: A text is not the output of benchmark_model, or its run did not end.
    """
    outputs = [_read(text) for text in texts]
    first, last = outputs[0], outputs[-1]
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
            "no line 'Inference timings in us: ...': this is not the output of benchmark_model, or "
            "its run did not end"
        )
    init, first, _, mean = (_finite(v) / 1e3 for v in timings[-1].groups())
    if not mean:
        raise ValueError("Inference (avg): got 0 microseconds, expected more")
    counts = [int(m[1]) for line in lines if (m := _COUNT.match(line.strip()))]
    memory = [
        _finite(found[-1])
        for line in lines
        if any(title in line for title in _MEMORY) and (found := _OVERALL.findall(line))
    ]
    threads = re.search(r"Num threads: \[(\d+)\]", text)
    by_type = [
        row for line in _section(lines, "Summary by node type") if (row := _row_of_kind(line))
    ]
    in_order = [row for line in _section(lines, "Run Order") if (row := _row_of_operation(line))]
    return {
        "ms": mean,
        # The first count is that of the warm-up.
        "runs": counts[1] if len(counts) > 1 else None,
        "init_ms": init,
        "first_ms": first,
        "threads": int(threads[1]) if threads else None,
        "memory_mb": memory[-1] if memory else None,
        "profile": by_type or None,
        "operations": in_order or None,
    }


def _row_of_kind(line: str) -> dict | None:
    """Reads a row of "Summary by node type": the kind, the count, and `_TAIL`."""
    op, *words = line.strip().rsplit(None, 1 + len(_TAIL)) or [""]
    if len(words) != 1 + len(_TAIL) or not words[0].isdecimal() or not _is_tail(words[1:]):
        return None
    return {"op": op, "count": int(words[0]), "ms": _finite(words[1])}


def _row_of_operation(line: str) -> dict | None:
    """Reads a row of "Run Order": the kind, one or more numbers, `_TAIL`, and the name."""
    spans = list(_WORD.finditer(line))
    words = [span[0] for span in spans]
    for i in range(2, len(words) - len(_TAIL)):
        if _is_tail(words[i : i + len(_TAIL)]) and _IS_NUMBER(words[i - 1]):
            end = i - 1
            while end > 1 and _IS_NUMBER(words[end - 1]):
                end -= 1
            name = line[spans[i + len(_TAIL)].start() :].strip().strip("[]")
            op = line[spans[0].start() : spans[end - 1].end()]
            return {"op": op, "ms": _finite(words[i]), "name": name}
    return None


def _finite(text: str) -> float:
    return check_number("the output of benchmark_model", float(text))


def _is_tail(words: Sequence[str]) -> bool:
    return all(is_kind(word) for is_kind, word in zip(_TAIL, words, strict=True))


def _section(lines: list[str], title: str) -> list[str]:
    """Returns the rows of the last table with this title; earlier ones are about initialization."""
    starts = [i for i, line in enumerate(lines) if f"= {title} =" in line]
    if not starts:
        return []
    rest = lines[starts[-1] + 2 :]  # without the title and the column names
    end = next((i for i, line in enumerate(rest) if not line.strip()), len(rest))
    return rest[:end]
