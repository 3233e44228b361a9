"""Latencies as files and as tables."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbv3_jax.core.errors import RunError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.latency.cost_model import Errors
from mbv3_jax.latency.measure import LABELS, PROFILERS, Ratio, Timing, machine


def record(name: str, precision: str, timing: Timing) -> dict:
    """One measurement as JSON has it; the same fields as `phone.read`."""
    return {
        "name": name,
        "precision": precision,
        "unit": "ms",
        "clock": "time.perf_counter_ns",
        "machine": machine(),
        **dataclasses.asdict(timing),
    }


def save(path: Path | None, tree: dict) -> None:
    """Writes JSON, whole or not at all; nothing without a path.

    Raises:
      RunError: it cannot be written.
    """
    if path is None:
        return
    try:
        write_atomically(path, json.dumps(tree, indent=1))
    except OSError as e:
        raise RunError(f"--out: cannot write {path}: {e.strerror}") from e
    print(path)


def console() -> Console:
    """Without a terminal rich would wrap tables at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)


def timings_table(
    names: Sequence[str], timings: Sequence[Timing], ratios: Sequence[Ratio] | None = None
) -> Table:
    """Medians and quartiles, and beside the first one's where there are several."""
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
    """Time by kind of operation, the longest first."""
    table, total = Table(header_style="bold"), sum(row["ms"] for row in rows)
    table.add_column("operation")
    for column in ("count", "ms", "share"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda row: -row["ms"]):
        share = f"{row['ms'] / total:.1%}" if total else ""
        table.add_row(row["op"], str(row["count"]), f"{row['ms']:.3f}", share)
    return table


def footer(timing: Timing) -> str:
    """Runtime, machine, and what the profile is."""
    here, versions = machine(), ", ".join(f"{k} {v}" for k, v in timing.versions.items())
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    return (
        f"{LABELS[timing.runtime]} ({versions}), {threads}, {here['cpu']} "
        f"({', '.join(here['features'])})\n{PROFILERS[timing.runtime]}"
    )


def errors_table(by_name: dict[str, Errors]) -> Table:
    """Errors of a model, by what it was tried on."""
    table = Table(title="predicted latency against measured", header_style="bold")
    table.add_column("")
    for column in ("networks", "MAPE", "errors", "Spearman", "Kendall"):
        table.add_column(column, justify="right")
    for name, e in by_name.items():
        spread = f"{e.low:+.1f} to {e.high:+.1f}%"
        ranks = (f"{e.spearman:.3f}", f"{e.kendall:.3f}")
        table.add_row(name, str(e.networks), f"{e.mape:.1f}%", spread, *ranks)
    return table
