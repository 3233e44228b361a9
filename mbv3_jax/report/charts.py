"""Pictures for a page that is light or dark: SVG whose colours are the page's CSS variables."""

import io
import itertools
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from adjustText import adjust_text
from matplotlib.figure import Figure

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.report.collect import Trial, read_records

# Drawn in colours that nothing else has, each then replaced by a variable of shell.html.j2.
_MARKS = {"#010203": "var(--text)", "#010204": "var(--grid)", "#010205": "var(--page)"}
TEXT, GRID, PAGE = _MARKS
SERIES = tuple(f"#0103{i:02d}" for i in range(8))
_MARKS |= {mark: f"var(--series{i})" for i, mark in enumerate(SERIES)}
# Beyond eight series, the line's style tells them apart.
STYLES = tuple(itertools.product(("-", "--", ":"), SERIES))

RC = {
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
_numbers = itertools.count()


def style():
    """A context in which figures are drawn for `to_svg`."""
    return matplotlib.rc_context(RC)


def to_svg(figure: Figure, label: str) -> str:
    """An <svg> element as wide as its place.

    Args:
      figure: drawn inside `style()`.
      label: what a screen reader says of it.
    """
    text = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": f"report{next(_numbers)}"}):
        # A date or a version would make the same report differ from day to day.
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for mark, variable in _MARKS.items():
        svg = svg.replace(mark, variable)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escaped}"', 1).strip()


# Training curves of a run folder as a picture.


def plot_curves(records: list[dict], title: str) -> Figure:
    """Loss on the left, top-1 on the right, over steps.

    Args:
      records: of `metrics.jsonl`, see `train.logging.Metrics`.
      title: of the picture.

    Raises:
      ValueError: there is no training record yet.
    """
    kinds = {kind: [r for r in records if r["kind"] == kind] for kind in ("train", "eval")}
    if not kinds["train"]:
        raise ValueError("no training record yet: the run has not reached its first log")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.suptitle(title)
    for axes, (name, scale, label) in zip(
        figure.subplots(1, 2), (("loss", 1, "loss"), ("top1", 100, "top-1 (%)")), strict=True
    ):
        for kind, style in (("train", {"lw": 1}), ("eval", {"marker": "o", "ms": 4})):
            steps = [r["step"] for r in kinds[kind]]
            values = [r[name] * scale for r in kinds[kind]]
            label_of = {"train": "training batches", "eval": "held-out images"}
            axes.plot(steps, values, label=label_of[kind], **style)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_yscale("log")
    return figure


def plot_run(run: Path) -> Figure:
    """`plot_curves` of a run folder."""
    return plot_curves(read_records(run), title=str(run))


# The charts of a report: training curves, accuracy against cost, where a network's cost lies.

SIZE = (4.8, 3.6)  # inches; small, so that letters stay readable on a phone


def curves(trials: Sequence[Trial], *, kind: str, metric: str) -> str | None:
    """A line a trial, the mean over its seeds, in a band from the least to the most.

    Args:
      trials: of a sweep.
      kind: "train" (batches) or "eval" (held-out images).
      metric: "loss" or "top1".

    Returns:
      SVG; None if nothing is on record.
    """
    scale, label = {"loss": (1, "loss"), "top1": (100, "top-1 (%)")}[metric]
    data = {"train": "training batches", "eval": "held-out images"}[kind]
    with style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes, drawn = figure.subplots(), False
        for trial, (line, colour) in zip(trials, itertools.cycle(STYLES), strict=False):
            by_step: dict[int, list[float]] = {}
            for run in trial.runs:
                for record in run.records:
                    if record["kind"] == kind:
                        by_step.setdefault(record["step"], []).append(record[metric] * scale)
            if not by_step:
                continue
            drawn, steps = True, sorted(by_step)
            mean = [statistics.fmean(by_step[s]) for s in steps]
            marker = "o" if kind == "eval" else None
            axes.plot(
                steps, mean, line, color=colour, lw=1.4, marker=marker, ms=3, label=trial.name
            )
            if any(len(values) > 1 for values in by_step.values()):
                low, high = ([of(by_step[s]) for s in steps] for of in (min, max))
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        if not drawn:
            return None
        axes.set(xlabel="step", ylabel=f"{label}, {data}")
        if metric == "loss":
            axes.set_yscale("log")
        axes.legend(ncols=1 + (len(trials) > 4))
        return to_svg(figure, f"{label} on {data} by training step")


def pareto(table: Sequence[dict], *, against: str) -> str | None:
    """Top-1 against a cost, seeds' deviation as bars, and the front: who is beaten by none.

    Args:
      table: see `rows.rows`.
      against: "madds" or "latency_ms".

    Returns:
      SVG; None unless two trials have both.
    """
    known = [row for row in table if row["top1"] is not None and row[against] is not None]
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
            x, on_front = row[against] * scale, row in front
            axes.errorbar(
                x,
                row["top1"],
                yerr=row["top1_std"],
                fmt="o",
                ms=6,
                capsize=2,
                lw=1,
                color=SERIES[0],
                mfc=SERIES[0] if on_front else PAGE,
            )
        axes.margins(x=0.25, y=0.15)
        labels = [
            axes.text(row[against] * scale, row["top1"], row["trial"], fontsize=9, parse_math=False)
            for row in known
        ]
        axes.set(xlabel=label, ylabel="top-1 (%)")
        # Apart from each other and from the points; without limits it would take its time.
        adjust_text(labels, ax=axes, time_lim=2, arrowprops={"arrowstyle": "-", "color": GRID})
        return to_svg(figure, f"top-1 against {label}")


def front_of(table: Sequence[dict], against: str) -> list[dict]:
    """The rows that no other beats in accuracy at the same or a lower cost, cheapest first."""
    front = []
    for row in sorted(table, key=lambda r: (r[against], -r["top1"])):
        if not front or row["top1"] > front[-1]["top1"]:
            front.append(row)
    return front


def layer_costs(spec: NetSpec) -> str:
    """Bars of parameters and multiply-adds by part of a network: SVG."""
    parts: dict[str, list[float]] = {}
    for layer in cost.layers(spec):
        total = parts.setdefault(layer.part, [0, 0])
        total[0] += layer.madds / 1e6
        total[1] += layer.params / 1e3
    names = list(parts)
    with style():
        figure = Figure(figsize=(4.8, 0.21 * len(names) + 0.8), layout="constrained")
        for axes, column, label, colour in zip(
            figure.subplots(1, 2, sharey=True),
            (0, 1),
            ("MAdds (millions)", "parameters (thousands)"),
            SERIES,
            strict=False,
        ):
            axes.barh(names, [parts[name][column] for name in names], color=colour, height=0.75)
            axes.set(xlabel=label)
            axes.grid(axis="y", visible=False)
        figure.axes[0].invert_yaxis()
        return to_svg(figure, f"cost of each part of {spec.name}")
