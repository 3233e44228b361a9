"""The charts of a report: training curves, accuracy against cost, where a network's cost lies."""

import itertools
import statistics
from collections.abc import Sequence

from adjustText import adjust_text
from matplotlib.figure import Figure

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.report import theme
from mbv3_jax.report.collect import Trial

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
    with theme.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes, drawn = figure.subplots(), False
        for trial, (line, colour) in zip(trials, itertools.cycle(theme.STYLES), strict=False):
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
        return theme.to_svg(figure, f"{label} on {data} by training step")


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
    with theme.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        front = front_of(known, against)
        points = [(row[against] * scale, row["top1"]) for row in front]
        axes.step(*zip(*points, strict=True), where="post", color=theme.GRID, lw=1.5, zorder=1)
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
                color=theme.SERIES[0],
                mfc=theme.SERIES[0] if on_front else theme.PAGE,
            )
        axes.margins(x=0.25, y=0.15)
        labels = [
            axes.text(row[against] * scale, row["top1"], row["trial"], fontsize=9, parse_math=False)
            for row in known
        ]
        axes.set(xlabel=label, ylabel="top-1 (%)")
        # Apart from each other and from the points; without limits it would take its time.
        adjust_text(
            labels, ax=axes, time_lim=2, arrowprops={"arrowstyle": "-", "color": theme.GRID}
        )
        return theme.to_svg(figure, f"top-1 against {label}")


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
    with theme.style():
        figure = Figure(figsize=(4.8, 0.21 * len(names) + 0.8), layout="constrained")
        for axes, column, label, colour in zip(
            figure.subplots(1, 2, sharey=True),
            (0, 1),
            ("MAdds (millions)", "parameters (thousands)"),
            theme.SERIES,
            strict=False,
        ):
            axes.barh(names, [parts[name][column] for name in names], color=colour, height=0.75)
            axes.set(xlabel=label)
            axes.grid(axis="y", visible=False)
        figure.axes[0].invert_yaxis()
        return theme.to_svg(figure, f"cost of each part of {spec.name}")
