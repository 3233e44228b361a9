"""The charts of a search's report: reward by step, accuracy against cost, predicted, measured."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.report import charts, tables
from mbv3_jax.report.charts import SIZE, front_of
from mbv3_jax.report.page import render, sortable
from mbv3_jax.report.search import TRUSTED, Network, Search
from mbv3_jax.report.tables import Column

_SHORT = {
    "mobilenet_v2": "V2",
    "mobilenet_v3_large": "V3-Large",
    "mobilenet_v3_small": "V3-Small",
}
_WIDE = 8  # the dearest over the cheapest, beyond which costs stand on a logarithmic axis


def rewards(search: Search) -> str | None:
    """The controller's reward by step, a line for each target: SVG; None if none is on record."""
    with charts.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for network, (line, colour) in zip(
            search.found, itertools.cycle(charts.STYLES), strict=False
        ):
            if network.rewards:
                steps = range(1, len(network.rewards) + 1)
                axes.plot(steps, network.rewards, line, color=colour, lw=1.2, label=network.name)
        if not axes.lines:
            return None
        axes.set(xlabel="controller step", ylabel="mean reward of a step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for text in axes.legend().get_texts():
            text.set_parse_math(False)  # a name may have dollars
        return charts.to_svg(figure, "reward by controller step")


def front(search: Search) -> str | None:
    """Top-1 against predicted cost, and the front of what was trained to the end.

    Candidates are pale dots, found networks filled circles, references squares.

    Returns:
      SVG; None if no network has both.
    """
    known = [n for n in search.networks if n.top1 is not None and n.cost is not None]
    if not known:
        return None
    with charts.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        prices = [x * search.scale for x, _ in search.candidates]
        axes.scatter(
            prices,
            [y for _, y in search.candidates],
            s=12,
            color=charts.SERIES[7],
            alpha=0.45,
            lw=0,
        )
        best = front_of([{"cost": n.cost * search.scale, "top1": n.top1} for n in known], "cost")
        steps = [(row["cost"], row["top1"]) for row in best]
        axes.step(*zip(*steps, strict=True), where="post", color=charts.GRID, lw=1.5, zorder=1)
        points = [(n, n.cost * search.scale, n.top1) for n in known]
        prices += [x for _, x, _ in points]
        if min(prices) > 0 and max(prices) > _WIDE * min(prices):
            _logarithmic(axes)
        axes.set(xlabel=_predicted(search), ylabel="top-1 (%)")
        _draw(axes, points)
        return charts.to_svg(figure, f"top-1 against {_predicted(search)}")


def measured(search: Search) -> str | None:
    """Measured against predicted cost, with the diagonal: SVG; None if no network has both."""
    points = [
        (n, n.cost * search.scale, n.measured * search.scale)
        for n in search.networks
        if None not in (n.cost, n.measured)
    ]
    if not points:
        return None
    with charts.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        middle = points[0][1:]
        axes.axline(middle[:1] * 2, slope=1, color=charts.GRID, lw=1.5, zorder=1)
        axes.set(xlabel=_predicted(search), ylabel=f"measured cost ({search.label})")
        _draw(axes, points)
        return charts.to_svg(figure, f"measured against predicted cost ({search.label})")


def _predicted(search: Search) -> str:
    return "MAdds (millions)" if search.cost_name == "madds" else f"predicted cost ({search.unit})"


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw(axes: Axes, points: Sequence[tuple[Network, float, float]]) -> None:
    """Networks as points with names that keep apart from each other."""
    for network, x, y in points:
        marker, colour = ("o", charts.SERIES[0]) if network.is_found else ("s", charts.SERIES[1])
        axes.plot(x, y, marker, ms=6, color=colour)
    axes.margins(x=0.2, y=0.15)
    names = [
        axes.text(x, y, _SHORT.get(n.name, n.name), fontsize=9, parse_math=False)
        for n, x, y in points
    ]
    adjust_text(names, ax=axes, time_lim=2, arrowprops={"arrowstyle": "-", "color": charts.GRID})


# The tables of a search's report, for people, papers and programs.


def rows(search: Search) -> list[dict]:
    """A flat row for each network; None where something is not known.

    Returns:
      Dicts with "network", "kind" ("found" or "reference"), "target", "cost" (predicted),
      "measured" (all three in "unit"), "unit", "params", "madds", "predicted", "uncertainty",
      "top1" (percent) and "split".
    """
    return [
        {
            "network": network.name,
            "kind": "found" if network.is_found else "reference",
            **{key: getattr(network, key) for key in ("target", "cost", "measured")},
            "unit": search.unit,
            "params": cost.params(network.spec),
            **{
                key: getattr(network, key)
                for key in ("madds", "predicted", "uncertainty", "top1", "split")
            },
        }
        for network in search.networks
    ]


def number(value: float | None) -> str:
    """A cost for people."""
    return "" if value is None else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def columns(search: Search) -> tuple[Column, ...]:
    """What people read of `rows`."""
    unit, scale = search.label, search.scale

    def price(key: str):
        return lambda row: number(None if row[key] is None else row[key] * scale)

    of_cost = [
        Column("cost", f"predicted {unit}", "", price("cost")),
        Column("measured", f"measured {unit}", "", price("measured")),
    ]
    return (
        Column("network", "network", "", lambda row: row["network"]),
        Column("kind", "kind", "", lambda row: row["kind"]),
        Column("target", f"target {unit}", "", price("target")),
        *([] if search.cost_name == "madds" else of_cost),  # MAdds are counted, not predicted
        Column("madds", "MAdds M", "", lambda row: number(row["madds"] / 1e6)),
        Column("params", "params M", "", lambda row: f"{row['params'] / 1e6:.2f}"),
        Column(
            "predicted",
            "predicted top-1 %",
            "",
            lambda row: _percent(row["predicted"], row["uncertainty"]),
        ),
        Column("top1", "top-1 %", "", lambda row: _percent(row["top1"])),
        Column("split", "split", "", lambda row: row["split"] or ""),
    )


def step_rows(network: Network) -> list[dict]:
    """A row for each step of NetAdapt, numbered from 1."""
    return [
        {"step": i, **dataclasses.asdict(step)} for i, step in enumerate(network.steps, start=1)
    ]


def step_columns(search: Search) -> tuple[Column, ...]:
    """What people read of `step_rows`."""
    return (
        Column("step", "step", "", lambda row: str(row["step"])),
        Column("change", "change", "", lambda row: row["change"]),
        Column(
            "cost",
            search.label,
            "",
            lambda row: number(None if row["cost"] is None else row["cost"] * search.scale),
        ),
        Column("accuracy", "top-1 %", "", lambda row: _percent(row["accuracy"])),
    )


def trust(search: Search) -> str:
    """A sentence on how well the evaluator ranks networks that it has not learnt from."""
    said = "not known" if search.spearman is None else f"{search.spearman:.2f}"
    of = "held-out candidates" if search.count is None else f"{search.count} held-out candidates"
    return f"Evaluator: {search.evaluator}. Spearman with the accuracies of {of}: {said}."


def warning(search: Search) -> str | None:
    """What to do about an evaluator that is not to be trusted."""
    if search.trusted:
        return None
    reason = "unknown" if search.spearman is None else f"below {TRUSTED}"
    return (
        f"Warning: this rank correlation is {reason}. What was found may owe more to chance than "
        "to the evaluator: train more candidates, or longer ones, before the choice is relied on."
    )


def write(searches: Sequence[Search], form: str) -> str:
    """Writes tables of searches.

    Args:
      searches: at least one.
      form: "md" has the networks, the evaluator's agreement and NetAdapt's steps, as people read
        them, and "json" the same unrounded; "csv" and "latex" only the networks.
    """
    if form == "json":
        return json.dumps([_record(search) for search in searches], indent=1) + "\n"
    if form == "csv":
        lines = [{"search": s.title, **row} for s in searches for row in rows(s)]
        texts = [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines]
        return tables.plain(texts, form)
    return "\n".join((_markdown if form == "md" else _latex)(search) for search in searches)


def _record(search: Search) -> dict:
    return {
        "search": search.title,
        "cost": {"name": search.cost_name, "unit": search.unit, "source": search.source},
        "networks": rows(search),
        "agreement": {
            "evaluator": search.evaluator,
            "spearman": search.spearman,
            "count": search.count,
            "trusted": search.trusted,
        },
        "adapted": {n.name: step_rows(n) for n in search.found if n.steps},
    }


def _shown(table: Sequence[dict], of: Sequence[Column]) -> list[dict[str, str]]:
    used = [column for column in of if any(column.show(row) for row in table)]
    return [{column.label: column.show(row) for column in used} for row in table]


def _markdown(search: Search) -> str:
    parts = [f"## {search.title}\n", tables.plain(_shown(rows(search), columns(search)), "md")]
    if search.source:
        parts.append(f"Costs in {search.unit}: {search.source}.\n")
    parts.append(" ".join(filter(None, (trust(search), warning(search)))) + "\n")
    for network in search.found:
        if network.steps:
            table = _shown(step_rows(network), step_columns(search))
            parts += [f"### NetAdapt: {network.name}\n", tables.plain(table, "md")]
    return "\n".join(parts)


def _latex(search: Search) -> str:
    shown = _shown(rows(search), columns(search))
    return f"% {search.title}\n" + tables.plain(shown, "latex")


# The report of searches as one HTML file, in the shell of the other reports.


def page(searches: Sequence[Search]) -> str:
    """The HTML of a report of searches; see `search.read`."""
    return render(
        "search.html.j2",
        title=", ".join(search.folder.resolve().name for search in searches),
        searches=[_section(search) for search in searches],
    )


def _section(search: Search) -> dict:
    return {
        "search": search,
        "best": [network.name for network in search.found],
        "networks": sortable(rows(search), columns(search)),
        "trust": trust(search),
        "warning": warning(search),
        "rewards": rewards(search),
        "front": front(search),
        "drawings": drawings(search),
        "measured": measured(search),
        "adapted": [
            (network.name, sortable(step_rows(network), step_columns(search)))
            for network in search.found
            if network.steps
        ],
    }


def stages(spec: NetSpec) -> list[dict]:
    """The blocks of a network, in stages that begin at another width or with stride 2.

    Returns:
      Dicts with "width", "side" (of the feature map, in pixels) and "blocks": each with "kernel",
      "expansion", "factor" (expansion over input), "se", "act".
    """
    found, strides = [], spec.strides()
    for i, (block, inputs) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True), 1):
        if not found or block.stride == 2 or block.out != found[-1]["width"]:
            side = math.ceil(spec.resolution / strides[f"block{i}"])
            found.append({"width": block.out, "side": side, "blocks": []})
        found[-1]["blocks"].append(
            {
                "number": i,
                "kernel": block.kernel,
                "expansion": block.expansion,
                "factor": f"{block.expansion / inputs:.3g}",
                "se": block.se is not None,
                "act": block.act.replace("_", "-"),
            }
        )
    return found


def drawings(search: Search) -> list[dict]:
    """What is drawn of each found network; bars of all are shares of the widest expansion."""
    widest = max(block.expansion for n in search.found for block in n.spec.blocks)
    return [
        {"name": n.name, "spec": n.spec, "stages": stages(n.spec), "widest": widest}
        for n in search.found
    ]
