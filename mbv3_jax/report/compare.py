"""Two runs, trials or sweeps side by side: their different settings, and their results."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy import stats

from mbv3_jax.arch import cost
from mbv3_jax.core.errors import printable, printable_lines
from mbv3_jax.report.collect import Trial, same_data

CONFIDENCE = 0.95
_METRICS = ("top1", "top5", "balanced_accuracy", "macro_f1", "ece", "loss")
_RULE = (
    f"real: Welch's {CONFIDENCE:.0%} interval of the difference, from the seeds of both sides, "
    "does not contain 0"
)


def match_trials(a: Sequence[Trial], b: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Decides which trial of A is compared with which trial of B.

    A single trial is compared with every trial of the other side; trials of two sweeps are
    compared where they have the same name.

    Raises:
      ValueError: no trial of one sweep has the name of a trial of the other.
    """
    if len(a) == 1 or len(b) == 1:
        return list(itertools.product(a, b))
    by_name = {trial.name: trial for trial in b}
    matched = [(trial, by_name[trial.name]) for trial in a if trial.name in by_name]
    if not matched:
        raise ValueError("the two sweeps have no trial of the same name")
    return matched


def changed_fields(a: Trial, b: Trial) -> dict[str, tuple]:
    """Configuration fields that differ, seeds apart: dotted name -> (A's value, B's value)."""
    config_a, config_b = (_flatten(t.runs[0].config) if t.runs else {} for t in (a, b))
    names = sorted((config_a.keys() | config_b.keys()) - {"seed", "seeds"})
    values = {name: (config_a.get(name), config_b.get(name)) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference B - A of a metric of the final evaluations.

    a, b: means over the seeds; in percent, but for the loss.
    low, high: ends of the confidence interval; None if a side has fewer than two seeds.
    real: whether the difference exceeds the spread of the seeds; None if that cannot be decided.
    same_data: whether both sides were evaluated on the same images; if not, nothing can be said.
    """

    metric: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None
    real: bool | None = None
    same_data: bool = True


def metric_differences(a: Trial, b: Trial) -> list[Difference]:
    """How the metrics differ; empty if a side has no finished run."""
    values = [(metric, a.values(metric), b.values(metric)) for metric in _METRICS]
    found = [difference(m, of_a, of_b) for m, of_a, of_b in values if of_a and of_b]
    if same_data(a, b):
        return found
    return [Difference(metric=d.metric, a=d.a, b=d.b, same_data=False) for d in found]


def difference(metric: str, a: Sequence[float], b: Sequence[float]) -> Difference:
    """The difference of the means, with Welch's confidence interval.

    Args:
      metric: its name.
      a, b: values by seed, at least one each.
    """
    mean_a, mean_b = statistics.fmean(a), statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return Difference(metric=metric, a=mean_a, b=mean_b)
    if np.ptp(a) == np.ptp(b) == 0:  # Welch's test would divide by the spread
        low = high = mean_b - mean_a
    else:
        interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    return Difference(
        metric=metric, a=mean_a, b=mean_b, low=low, high=high, real=not low <= 0 <= high
    )


def missing_runs(a: Trial, b: Trial) -> str:
    """One line for each side with runs that are missing; "" if both are complete."""
    lines = [
        f"{side.name}: {'; '.join(side.missing)}" + ("" if side.finished else ", no run has ended")
        for side in (a, b)
        if side.missing
    ]
    return "\n".join(lines)


def as_record(a: Trial, b: Trial) -> dict:
    """A pair for a program: {"a", "b", "missing", "fields", "metrics"}."""
    return {
        "a": a.name,
        "b": b.name,
        "missing": missing_runs(a, b) or None,
        "fields": {name: list(values) for name, values in changed_fields(a, b).items()},
        "metrics": [dataclasses.asdict(d) for d in metric_differences(a, b)],
    }


def as_rows(a: Trial, b: Trial) -> list[dict[str, str]]:
    """A pair as rows of one table: changed fields, costs and metrics, then what is missing."""
    rows = [(name, *map(str, values), "", "", "") for name, values in changed_fields(a, b).items()]
    rows += _result_rows(a, b)
    if missing := missing_runs(a, b):
        rows.append(("missing", "", "", "", missing.replace("\n", "; "), ""))
    headings = ("what", "of A", "of B", "B - A", "95% interval", "real")
    return [{"A": a.name, "B": b.name, **dict(zip(headings, row, strict=True))} for row in rows]


def as_tables(a: Trial, b: Trial) -> list[Table]:
    """A pair for a terminal: a table of changed fields and one of costs and metrics."""
    title = Text(printable(f"A {a.name}   B {b.name}"))
    fields = Table("field", "A", "B", title=title, header_style="bold")
    for name, values in changed_fields(a, b).items():
        fields.add_row(*map(printable, (name, *map(str, values))))
    if not fields.rows:
        fields.caption = "no field differs but the seed"
    lines = filter(None, (missing_runs(a, b), _RULE))
    caption = Text(printable_lines("\n".join(lines)))
    results = Table(title=title, header_style="bold", caption=caption)
    for name in ("metric", "A", "B", "B - A", "95% interval", "real"):
        results.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for row in _result_rows(a, b):
        results.add_row(*row)
    return [fields, results]


def _result_rows(a: Trial, b: Trial) -> list[tuple[str, ...]]:
    """Texts: metric or cost, A's value, B's value, B - A, interval, verdict."""
    rows: list[tuple[str, ...]] = []
    for count, name in ((cost.params, "params"), (cost.madds, "MAdds")):
        if a.spec and b.spec:
            cost_a, cost_b = count(a.spec), count(b.spec)
            change = f"{cost_b - cost_a:+,} ({cost_b / cost_a - 1:+.1%})"
            rows.append(
                (name, f"{cost_a:,}", f"{cost_b:,}", change if cost_a != cost_b else "same", "", "")
            )
    for d in metric_differences(a, b):
        change = f"{d.b - d.a:+.3f}" if d.same_data else ""
        rows.append((d.metric, f"{d.a:.3f}", f"{d.b:.3f}", change, *_verdict(d)))
    return rows


def _verdict(d: Difference) -> tuple[str, str]:
    if not d.same_data:
        return "of different data", "?"
    if d.real is None:
        return "needs two seeds on each side", "?"
    return f"{d.low:+.3f} to {d.high:+.3f}", "yes" if d.real else "no"
