"""The charts of a report's page: training curves, accuracy against cost, where the cost lies.

Charts are SVG whose colours are CSS variables of the page, so that they fit its light and its dark
theme.
"""

import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import printable
from mbv3_jax.report.collect import Trial

SIZE = (4.8, 3.6)  # inches; small, so that letters stay readable on a phone

# Charts are drawn in colours that nothing else has; `to_svg` replaces each of them by a variable
# of shell.html.j2.
_MARKS = {"#010203": "var(--text)", "#010204": "var(--grid)", "#010205": "var(--page)"}
TEXT, GRID, PAGE = _MARKS
SERIES = tuple(f"#0103{i:02d}" for i in range(8))
_MARKS |= {mark: f"var(--series{i})" for i, mark in enumerate(SERIES)}
# Beyond eight series, the style of the line tells them apart.
LINE_STYLES = tuple(itertools.product(("-", "--", ":"), SERIES))

# No text of a user is a formula, whatever dollar signs it has.
PLAIN_TEXT: Any = {"text.parse_math": False}
_STYLE: Any = {
    **PLAIN_TEXT,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_LINEAR_RANGE = 8  # above this ratio of the largest value to the smallest, an axis is logarithmic
_numbers = itertools.count()


@contextmanager
def style() -> Iterator[None]:
    """A context in which figures are drawn for `to_svg`."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the fonts; those of Matplotlib only decide how much space a text gets.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def to_svg(figure: Figure, label: str) -> str:
    """An <svg> element that is as wide as the element around it.

    Args:
      figure: a figure that was drawn inside `style()`.
      label: the description that screen readers read out.
    """
    text = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": f"report{next(_numbers)}"}):
        # With a date or a version in it, the same report would differ from day to day.
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for mark, variable in _MARKS.items():
        svg = svg.replace(mark, variable)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def spread_by_step(steps: Sequence[int], values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The different steps in order, and the mean, minimum and maximum of the values at each.

    Args:
      steps: of each value [N].
      values: [N].
    """
    different, place, counts = np.unique(steps, return_inverse=True, return_counts=True)
    grouped, starts = values[np.argsort(place, kind="stable")], np.cumsum(counts) - counts
    mean = np.bincount(place, values) / counts
    return (
        different,
        mean,
        np.minimum.reduceat(grouped, starts),
        np.maximum.reduceat(grouped, starts),
    )


def training_curves(
    trials: Sequence[Trial], *, kind: str, metric: Literal["loss", "top1"]
) -> str | None:
    """A line for each trial: the mean over its seeds, in a band from the lowest to the highest.

    Args:
      trials: the trials of a sweep.
      kind: "train" (training batches) or "eval" (held-out images).
      metric: "loss" or "top1".

    Returns:
      SVG; None if there are no such records.
    """
    scale, label = {"loss": (1, "loss"), "top1": (100, "top-1 (%)")}[metric]
    data = {"train": "training batches", "eval": "held-out images"}[kind]
    with style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        every: list[np.ndarray] = []
        for trial, (line, colour) in zip(trials, itertools.cycle(LINE_STYLES), strict=False):
            records = [r for run in trial.runs for r in run.records]
            wanted = [r for r in records if r["kind"] == kind and metric in r]
            if not wanted:
                continue
            values = np.array([r[metric] for r in wanted], float) * scale
            steps, mean, low, high = spread_by_step([r["step"] for r in wanted], values)
            every.append(values)
            marker = "o" if kind == "eval" else None
            axes.plot(
                steps,
                mean,
                line,
                color=colour,
                lw=1.4,
                marker=marker,
                ms=3,
                label=printable(trial.name),
            )
            if len(steps) < len(values):  # several seeds
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        if not every:
            return None
        axes.set(xlabel="step", ylabel=f"{label}, {data}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric == "loss":
            choose_scale(axes, "y", np.concatenate(every))
        axes.legend(ncols=1 + (len(trials) > 4))
        return to_svg(figure, f"{label} on {data} by training step")


def accuracy_against_cost(rows: Sequence[dict], *, against: str) -> str | None:
    """Top-1 against a cost, with the seeds' deviation as bars, and the Pareto front.

    Args:
      rows: see `rows.rows`.
      against: "madds" or "latency_ms".

    Returns:
      SVG; None unless two trials have both figures.
    """
    known = [row for row in rows if row["top1"] is not None and row[against] is not None]
    if len(known) < 2:
        return None
    scale, label = {"madds": (1e-6, "MAdds (millions)"), "latency_ms": (1, "latency (ms)")}[against]
    with style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        front = front_of(known, against)
        points = [(row[against] * scale, row["top1"]) for row in front]
        axes.step(*zip(*points, strict=True), where="post", color=GRID, lw=1.5, zorder=1)
        for row in known:
            axes.errorbar(
                row[against] * scale,
                row["top1"],
                yerr=row["top1_std"],
                fmt="o",
                ms=6,
                capsize=2,
                lw=1,
                color=SERIES[0],
                mfc=SERIES[0] if row in front else PAGE,
            )
        axes.margins(x=0.25, y=0.15)
        axes.set(xlabel=label, ylabel="top-1 (%)")
        axes.xaxis.set_major_locator(MaxNLocator(5))  # more long numbers would overlap
        add_names(axes, [(row["trial"], row[against] * scale, row["top1"]) for row in known])
        return to_svg(figure, f"top-1 against {label}")


def choose_scale(axes: Axes, axis: str, values: Iterable[float]) -> None:
    """Makes an axis logarithmic if its values span a wide range.

    Args:
      axes: the chart.
      axis: "x" or "y".
      values: what is drawn along this axis; at least one.
    """
    values = list(values)
    if min(values) > 0 and max(values) > _LINEAR_RANGE * min(values):
        make_logarithmic(axes, axis)


def make_logarithmic(axes: Axes, axis: str) -> None:
    """Makes an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axes.set(**{f"{axis}scale": "log"})
    ticks = axes.xaxis if axis == "x" else axes.yaxis
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
    ticks.set_minor_formatter(NullFormatter())


def add_names(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Writes names beside points (name, x, y), apart from each other and from the points.

    Call it last: the places depend on the limits of the axes.
    """
    texts = [axes.text(x, y, printable(name), fontsize=9) for name, x, y in points]
    # Without a limit, adjustText takes long for many points.
    adjust_text(texts, ax=axes, time_lim=2, arrowprops={"arrowstyle": "-", "color": GRID})


def front_of(rows: Sequence[dict], against: str) -> list[dict]:
    """The Pareto front: rows that no other row beats in top-1 at the same or a lower cost.

    Args:
      rows: dicts with "top1" and the cost.
      against: the key of the cost.

    Returns:
      The cheapest row first.
    """
    front: list[dict] = []
    for row in sorted(rows, key=lambda r: (r[against], -r["top1"])):
        if not front or row["top1"] > front[-1]["top1"]:
            front.append(row)
    return front


def layer_costs(spec: NetSpec) -> str:
    """Bars of the multiply-adds and the parameters of each part of a network, as SVG."""
    madds: dict[str, float] = {}
    params: dict[str, float] = {}
    for layer in cost.layers(spec):
        madds[layer.part] = madds.get(layer.part, 0) + layer.madds / 1e6
        params[layer.part] = params.get(layer.part, 0) + layer.params / 1e3
    with style():
        figure = Figure(figsize=(4.8, 0.21 * len(madds) + 0.8), layout="constrained")
        for axes, values, label, colour in zip(
            figure.subplots(1, 2, sharey=True),
            (madds, params),
            ("MAdds (millions)", "parameters (thousands)"),
            SERIES[:2],
            strict=True,
        ):
            axes.barh(list(values), list(values.values()), color=colour, height=0.75)
            axes.set(xlabel=label)
            axes.grid(axis="y", visible=False)
        figure.axes[0].invert_yaxis()
        return to_svg(figure, f"cost of each part of {spec.name}")
