"""The table of a sweep: what each trial came to, what it costs, and what is published of it."""

import json
import statistics
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from mbv3_jax.arch import cost
from mbv3_jax.arch.published import ablation, published
from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.report.collect import Sweep, Trial

# Measures a network: {"ms": median of a batch of one, "runtime": with which and on what}, or
# {"error": why it cannot be measured}.
Measure = Callable[[NetSpec], dict]


class Latencies:
    """Measured latencies by network, kept in a file, so that the next report need not measure.

    Args:
      measure: None measures nothing.
      file: JSON; None keeps nothing.
      runtime: as `measure` names it; figures of another runtime or machine in the file are not
        used.
    """

    def __init__(self, measure: Measure | None, file: Path | None = None, runtime: str = ""):
        self._measure, self._file, self._runtime = measure, file, runtime
        self._known = {}
        if file and file.is_file():
            try:
                self._known = json.loads(file.read_text())
            except ValueError as e:
                raise ValueError(f"{file} is damaged ({e}); remove it to measure anew") from e

    def __call__(self, spec: NetSpec) -> dict | None:
        """{"ms", "runtime"} or {"error"}, or None where nothing is measured."""
        if self._measure is None:
            return None
        text = spec_to_json(spec)
        key = sha256(f"{self._runtime}\n{text}".encode()).hexdigest()
        if key not in self._known:
            measured = self._measure(spec)
            if "error" in measured:  # not kept: another time it may go well
                return measured
            self._known[key] = {"network": spec.name, **measured}
            if self._file:
                temporary = self._file.with_suffix(".tmp")
                temporary.write_text(json.dumps(self._known, indent=1))
                temporary.replace(self._file)
        return self._known[key]


def rows(sweep: Sweep, latencies: Callable[[NetSpec], dict | None]) -> list[dict]:
    """A flat row for each trial; None where something is not known.

    Returns:
      Dicts with "trial", "missing", "runs", "top1", "top1_std" (percent; mean and sample deviation
      over the seeds, None for fewer than two), "top1_values", "loss", "params", "madds",
      "latency_ms", "runtime", "images_per_second", "seconds"; and of what is published beside it
      "published_network", "published_top1", "published_madds_m", "published_params_m",
      "published_ms" (Pixel 1), "difference" (ours - published, percentage points) and
      "published_source". Of a sweep also "effect" and "published_effect": top-1 against the first
      trial's, in points.
    """
    table = [_row(sweep, trial, latencies) for trial in sweep.trials]
    for row in table:
        for effect, value in (("effect", "top1"), ("published_effect", "published_top1")):
            mine, first = row[value], table[0][value]
            known = sweep.name and row is not table[0] and None not in (mine, first)
            row[effect] = mine - first if known else None
    return table


def _row(sweep: Sweep, trial: Trial, latencies) -> dict:
    spec, top1, loss = trial.spec, trial.values("top1"), trial.values("loss")
    measured = (spec and latencies(spec)) or {}
    lacking = [*trial.missing]
    if "error" in measured:
        lacking.append(f"latency: {measured['error']}")
    row = {
        "trial": trial.name,
        "missing": "; ".join(lacking) or None,
        "runs": len(trial.finished),
        "top1": statistics.fmean(top1) if top1 else None,
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1_values": top1,
        "loss": statistics.fmean(loss) if loss else None,
        "params": spec and cost.params(spec),
        "madds": spec and cost.madds(spec),
        "latency_ms": measured.get("ms"),
        "runtime": measured.get("runtime"),
        "images_per_second": trial.images_per_second,
        "seconds": trial.seconds,
    }
    return {**row, **_published(sweep, trial, row["top1"])}


def _published(sweep: Sweep, trial: Trial, top1: float | None) -> dict:
    names = ("network", "top1", "madds_m", "params_m", "ms", "source")
    found = dict.fromkeys(names)
    if of_sweep := sweep.name and ablation(sweep.name, trial.name):
        found |= {k: of_sweep.get(k) for k in ("network", "top1", "madds_m", "source")}
        found["ms"] = of_sweep.get("pixel1_ms")
    elif trial.spec and (figures := published(trial.spec)):
        found = {
            "network": trial.spec.name,
            "top1": figures.top1,
            "madds_m": figures.madds_m,
            "params_m": figures.params_m,
            "ms": figures.pixel1_ms,
            "source": figures.source,
        }
    both = top1 is not None and found["top1"] is not None
    return {
        **{f"published_{name}": value for name, value in found.items()},
        "difference": top1 - found["top1"] if both else None,
    }


def runtimes(table: Iterable[dict]) -> list[str]:
    """With what the latencies of a table were measured."""
    return list(dict.fromkeys(row["runtime"] for row in table if row["runtime"]))
