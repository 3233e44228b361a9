"""The numbers of a sweep's table: each trial's results and costs, and the published figures."""

import json
import statistics
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

from mbv3_jax.arch import cost
from mbv3_jax.arch.published import ablation, published
from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import in_pixels
from mbv3_jax.core.files import open_atomically
from mbv3_jax.core.json_values import Number, read_json
from mbv3_jax.report.collect import Sweep, Trial, same_data

MEASURES = (
    *("top5", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "ece"),
    "loss",
)

# Measures a network: returns {"ms": median latency of a batch of one, "runtime": what ran it and
# on which machine}, or {"error": why the network cannot be measured}.
Measure = Callable[[NetSpec], dict]


class _Latency(TypedDict):
    network: str
    ms: Number
    runtime: str


class Latencies:
    """Measured latencies by network, cached in a file so that the next report need not measure.

    Args:
      measure: None measures nothing.
      file: a JSON file; None caches nothing.
      runtime: the name of the runtime of `measure`; cached figures of another runtime or machine
        are not used.

    Raises:
      ValueError: the file is damaged.
    """

    def __init__(self, measure: Measure | None, file: Path | None = None, runtime: str = ""):
        self._measure, self._file, self._runtime = measure, file, runtime
        self._cached: dict[str, _Latency] = {}
        if file and file.is_file():
            advice = "remove it to measure again"
            self._cached = read_json(file, dict[str, _Latency], error=ValueError, advice=advice)

    def __call__(self, spec: NetSpec) -> dict | None:
        """{"ms", "runtime"} or {"error"}; None if nothing is measured."""
        if self._measure is None:
            return None
        key = sha256(f"{self._runtime}\n{spec_to_json(spec)}".encode()).hexdigest()
        if key not in self._cached:
            measured = self._measure(spec)
            if "error" in measured:  # not cached, because the next attempt may succeed
                return measured
            self._cached[key] = {
                "network": spec.name,
                "ms": measured["ms"],
                "runtime": measured["runtime"],
            }
            if self._file:
                with open_atomically(self._file) as file:
                    file.write(json.dumps(self._cached, indent=1).encode())
        return dict(self._cached[key])


def rows(sweep: Sweep, latencies: Callable[[NetSpec], dict | None]) -> list[dict]:
    """One flat row for each trial.

    Args:
      sweep: the trials.
      latencies: network -> {"ms", "runtime"}, {"error"} or None, see `Latencies`.

    Returns:
      Dicts whose values are None where a figure is not known:
      "trial", "missing", "runs" (how many have finished), "data" and "held_out" (what they were
      evaluated on, and how many images), "resolution" (pixels; "224x320"
      for a height of 224), "top1" and "top1_std" (percent;
      mean and sample deviation over the seeds, which needs two), "top1_values", those of `MEASURES`
      (percent, but for the loss; means over the seeds), "best_top1" (percent, of the best
      checkpoints; a mean) and "best_step" (of a single run), "test_top1" (percent, of a third
      split; a mean), "params", "madds", "latency_ms",
      "runtime", "images_per_second", "seconds";
      the published figures "published_network", "published_top1", "published_madds_m",
      "published_params_m", "published_ms" (Pixel 1), "published_source", and "difference" (our
      top-1 - the published one, in percentage points);
      for a sweep, "effect" and "published_effect": top-1 - the first trial's, in percentage points,
      where both were evaluated on the same data.
    """
    table = [_row(sweep, trial, latencies) for trial in sweep.trials]
    for row, trial in zip(table, sweep.trials, strict=True):
        comparable = sweep.name and row is not table[0] and same_data(sweep.trials[0], trial)
        for effect, value in (("effect", "top1"), ("published_effect", "published_top1")):
            of_trial, of_first = row[value], table[0][value]
            known = comparable and None not in (of_trial, of_first)
            row[effect] = of_trial - of_first if known else None
    return table


def _row(sweep: Sweep, trial: Trial, latencies: Callable[[NetSpec], dict | None]) -> dict:
    spec, top1 = trial.spec, trial.values("top1")
    measured = (spec and latencies(spec)) or {}
    missing = [*trial.missing]
    if "error" in measured:
        missing.append(f"latency: {measured['error']}")
    mean_top1 = statistics.fmean(top1) if top1 else None
    best = [run.summary["best"] for run in trial.runs if run.summary and "best" in run.summary]
    tests = [run.summary["test"] for run in trial.runs if run.summary and "test" in run.summary]
    return {
        "trial": trial.name,
        "missing": "; ".join(missing) or None,
        "runs": len(trial.finished),
        "data": trial.data,
        "held_out": trial.held_out,
        "resolution": spec and _pixels(spec),
        "top1": mean_top1,
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1_values": top1,
        **{
            metric: statistics.fmean(values) if (values := trial.values(metric)) else None
            for metric in MEASURES
        },
        "best_top1": 100 * statistics.fmean(b["top1"] for b in best) if best else None,
        "best_step": best[0]["step"] if len(best) == 1 else None,
        "test_top1": 100 * statistics.fmean(t["top1"] for t in tests) if tests else None,
        "params": spec and cost.params(spec),
        "madds": spec and cost.madds(spec),
        "latency_ms": measured.get("ms"),
        "runtime": measured.get("runtime"),
        "images_per_second": trial.images_per_second,
        "seconds": trial.seconds,
        **_published(sweep, trial, mean_top1),
    }


def _pixels(spec: NetSpec) -> int | str:
    """The side of squares, which tables sort as a number, or "224x320"."""
    return spec.resolution if isinstance(spec.resolution, int) else in_pixels(spec.resolution)


def _published(sweep: Sweep, trial: Trial, top1: float | None) -> dict:
    """The published figures of the ablation's trial, or else of the network."""
    figures: dict[str, Any] = dict.fromkeys(
        ("network", "top1", "madds_m", "params_m", "ms", "source")
    )
    if sweep.name and (entry := ablation(sweep.name, trial.name)):
        figures |= {key: entry.get(key) for key in ("network", "top1", "madds_m", "source")}
        figures["ms"] = entry.get("pixel1_ms")
    elif trial.spec and (paper := published(trial.spec)):
        figures = {
            "network": trial.spec.name,
            "top1": paper.top1,
            "madds_m": paper.madds_m,
            "params_m": paper.params_m,
            "ms": paper.pixel1_ms,
            "source": paper.source,
        }
    both_known = top1 is not None and figures["top1"] is not None
    return {
        **{f"published_{name}": value for name, value in figures.items()},
        "difference": top1 - figures["top1"] if both_known else None,
    }


def runtimes(table: Iterable[dict]) -> list[str]:
    """The runtimes that measured the latencies of a table, without repetitions."""
    return list(dict.fromkeys(row["runtime"] for row in table if row["runtime"]))
