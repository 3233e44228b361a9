"""Two runs, trials or sweeps side by side: what was set differently, and what came out."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table
from scipy import stats

from mbv3_jax.arch import cost
from mbv3_jax.report.collect import Trial

CONFIDENCE = 0.95
_METRICS = ("top1", "top5", "loss")
RULE = (
    f"real: Welch's {CONFIDENCE:.0%} interval of the difference, from the seeds of either side, "
    "does not contain 0"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Of a metric, B - A.

    a, b: means over the seeds; top-1 and top-5 in percent.
    low, high: ends of the interval; None with fewer than two seeds on a side.
    real: whether the difference is larger than the seeds' spread explains; None: cannot be said.
    """

    metric: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None
    real: bool | None = None


def fields(a: Trial, b: Trial) -> dict[str, tuple]:
    """Configuration fields that differ, seeds apart: dotted name -> (A's, B's)."""
    ours, theirs = (_flat(t.runs[0].config) if t.runs else {} for t in (a, b))
    for flat in (ours, theirs):
        for name in ("seed", "seeds"):
            flat.pop(name, None)
    names = sorted(ours.keys() | theirs.keys())
    return {n: (ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n)}


def _flat(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def metrics(a: Trial, b: Trial) -> list[Difference]:
    """What differs in the final evaluations, and whether by more than the seeds' spread.

    Empty where a side has no finished run.
    """
    found = []
    for metric in _METRICS:
        ours, theirs = a.values(metric), b.values(metric)
        if ours and theirs:
            found.append(_difference(metric, ours, theirs))
    return found


def _difference(metric: str, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    means = {"a": statistics.fmean(ours), "b": statistics.fmean(theirs)}
    if min(len(ours), len(theirs)) < 2:
        return Difference(metric=metric, **means)
    if np.ptp(ours) == np.ptp(theirs) == 0:  # no spread: Welch's test would divide by it
        low = high = means["b"] - means["a"]
    else:
        test = stats.ttest_ind(theirs, ours, equal_var=False)
        low, high = map(float, test.confidence_interval(CONFIDENCE))
    return Difference(metric=metric, **means, low=low, high=high, real=not low <= 0 <= high)


def pairs(a: Sequence[Trial], b: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Which trial of A is held against which of B.

    One on a side is held against each of the other; of two sweeps, those with one name.

    Raises:
      ValueError: two sweeps without a trial of the same name.
    """
    if len(a) == 1 or len(b) == 1:
        return list(itertools.product(a, b))
    named = {trial.name: trial for trial in b}
    same = [(trial, named[trial.name]) for trial in a if trial.name in named]
    if not same:
        raise ValueError("the two sweeps have no trial of the same name")
    return same


def missing_pairs(a: Trial, b: Trial) -> str:
    """What of a pair is not there to be compared; "" if all is."""
    sides = [
        f"{side.name}: {'; '.join(side.missing)}" + ("" if side.finished else ", no run has ended")
        for side in (a, b)
        if side.missing
    ]
    return "\n".join(sides)


def _results(a: Trial, b: Trial) -> list[tuple[str, ...]]:
    """As text: metric or cost, A's, B's, B - A, interval, verdict."""
    found = []
    for count, name in ((cost.params, "params"), (cost.madds, "MAdds")):
        if a.spec and b.spec:
            ours, theirs = count(a.spec), count(b.spec)
            change = f"{theirs - ours:+,} ({theirs / ours - 1:+.1%})" if ours != theirs else "same"
            found.append((name, f"{ours:,}", f"{theirs:,}", change, "", ""))
    for d in metrics(a, b):
        values = (f"{d.a:.3f}", f"{d.b:.3f}", f"{d.b - d.a:+.3f}")
        found.append((d.metric, *values, *_verdict(d)))
    return found


def compare_lines(a: Trial, b: Trial) -> list[dict[str, str]]:
    """A pair as rows of one table: fields first, then costs and metrics, then what is missing."""
    parts = [(name, *map(str, values), "", "", "") for name, values in fields(a, b).items()]
    parts += _results(a, b)
    if what := missing_pairs(a, b):
        parts.append(("missing", "", "", "", what.replace("\n", "; "), ""))
    names = ("what", "of A", "of B", "B - A", "95% interval", "real")
    return [{"A": a.name, "B": b.name, **dict(zip(names, part, strict=True))} for part in parts]


def compare_tables(a: Trial, b: Trial) -> list[Table]:
    """What a terminal shows of a pair: fields, costs, metrics."""
    title = f"A {a.name}   B {b.name}"
    of_fields = Table("field", "A", "B", title=title, header_style="bold")
    for name, values in fields(a, b).items():
        of_fields.add_row(name, *(str(value) for value in values))
    if not of_fields.rows:
        of_fields.caption = "no field differs but the seed"
    caption = "\n".join(filter(None, (missing_pairs(a, b), RULE)))
    found = Table(title=title, header_style="bold", caption=caption)
    for name in ("metric", "A", "B", "B - A", "95% interval", "real"):
        found.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for result in _results(a, b):
        found.add_row(*result)
    return [of_fields, found]


def _verdict(d: Difference) -> tuple[str, str]:
    if d.real is None:
        return "needs two seeds on each side", "?"
    return f"{d.low:+.3f} to {d.high:+.3f}", "yes" if d.real else "no"


def compare_records(a: Trial, b: Trial) -> dict:
    """The same for a program: {"a", "b", "missing", "fields", "metrics"}."""
    return {
        "a": a.name,
        "b": b.name,
        "missing": missing_pairs(a, b) or None,
        "fields": {name: list(values) for name, values in fields(a, b).items()},
        "metrics": [dataclasses.asdict(d) for d in metrics(a, b)],
    }
