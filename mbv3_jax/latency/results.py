"""Latencies as tables on the console, and as JSON files for programs."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbv3_jax.core.errors import RunError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.latency.cost_model import Errors
from mbv3_jax.latency.measure import LABELS, PROFILERS, Ratio, Timing, machine


def record(name: str, precision: str | None, timing: Timing) -> dict:
    """Returns a measurement for JSON, with the fields of `phone.read`.

    Args:
      name: The name of the network.
      precision: Its precision; None for a file, which may have any.
      timing: The measurement.
    """
    return {
        "name": name,
        "precision": precision,
        "unit": "ms",
        "clock": "time.perf_counter_ns",
        "machine": machine(),
        **dataclasses.asdict(timing),
    }


def save(path: Path | None, tree: dict) -> None:
    """Writes JSON atomically, and prints the path; without a path it does nothing.

    Raises:
      RunError: The file cannot be written.
    """
    if path is None:
        return
    try:
        write_atomically(path, json.dumps(tree, indent=1))
    except OSError as e:
        raise RunError(f"--out: cannot write {path}: {e.strerror}") from e
    print(path)


def console() -> Console:
    """Returns a console whose tables are wide enough, also without a terminal."""
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)


def timings_table(
    names: Sequence[str], timings: Sequence[Timing], ratios: Sequence[Ratio] | None = None
) -> Table:
    """Returns a table of medians and quartiles, with ratios to the first network if given."""
    table = Table(header_style="bold")
    table.add_column("network")
    for column in ("ms", "quartiles", "runs"):
        table.add_column(column, justify="right")
    if ratios:
        table.add_column(f"of {names[0]}", justify="right")
        table.add_column("95% interval", justify="right")
    for i, (name, t) in enumerate(zip(names, timings, strict=True)):
        row = [name, f"{t.ms:.3f}", f"{t.low:.3f}-{t.high:.3f}", str(t.runs)]
        if ratios:
            r = ratios[i]
            row += [f"{r.ratio:.3f}", f"{r.low:.3f}-{r.high:.3f}" if i else ""]
        table.add_row(*row)
    return table


def profile_table(rows: Sequence[dict]) -> Table:
    """Returns a table of the time by kind of operation, the longest first."""
    table, total = Table(header_style="bold"), sum(row["ms"] for row in rows)
    table.add_column("operation")
    for column in ("count", "ms", "share"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda row: -row["ms"]):
        share = f"{row['ms'] / total:.1%}" if total else ""
        table.add_row(row["op"], str(row["count"]), f"{row['ms']:.3f}", share)
    return table


def footer(timing: Timing) -> str:
    """Returns lines about runtime, machine and profiler, to print under a table."""
    here, versions = machine(), ", ".join(f"{k} {v}" for k, v in timing.versions.items())
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    return (
        f"{LABELS[timing.runtime]} ({versions}), {threads}, {here['cpu']} "
        f"({', '.join(here['features'])})\n{PROFILERS[timing.runtime]}"
    )


def errors_table(by_name: Mapping[str, Errors]) -> Table:
    """Returns a table of a model's errors, by the networks or the model they are of."""
    table = Table(title="predicted latency against measured", header_style="bold")
    table.add_column("")
    for column in ("networks", "MAPE", "errors", "Spearman", "Kendall"):
        table.add_column(column, justify="right")
    for name, e in by_name.items():
        spread = f"{e.low:+.1f} to {e.high:+.1f}%"
        ranks = (f"{e.spearman:.3f}", f"{e.kendall:.3f}")
        table.add_row(name, str(e.networks), f"{e.mape:.1f}%", spread, *ranks)
    return table
