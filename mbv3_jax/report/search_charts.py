"""The charts of a search's page: reward by step, accuracy against cost, measured against predicted.

Like `charts`, they are SVG for a light and a dark page.
"""

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mbv3_jax.core.errors import printable
from mbv3_jax.report import charts
from mbv3_jax.report.search_result import Network, Search

_SHORT_NAMES = {
    "mobilenet_v2": "V2",
    "mobilenet_v3_large": "V3-Large",
    "mobilenet_v3_small": "V3-Small",
}


def rewards(search: Search) -> str | None:
    """The controller's reward by step, with a line for each target.

    Returns:
      SVG; None if there are no rewards on record.
    """
    with charts.style():
        figure = Figure(figsize=charts.SIZE, layout="constrained")
        axes = figure.subplots()
        for network, (line, colour) in zip(
            search.found, itertools.cycle(charts.LINE_STYLES), strict=False
        ):
            if network.rewards:
                steps = range(1, len(network.rewards) + 1)
                axes.plot(
                    steps,
                    network.rewards,
                    line,
                    color=colour,
                    lw=1.2,
                    label=printable(network.name),
                )
        if not axes.lines:
            return None
        axes.set(xlabel="controller step", ylabel="mean reward of a step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return charts.to_svg(figure, "reward by controller step")


def accuracy_against_cost(search: Search) -> str | None:
    """Top-1 against predicted cost, with the Pareto front of the fully trained networks.

    Candidates are pale dots, found networks circles and references squares. If no network was
    trained, top-1 is the predicted one, and the front is that of the networks which the search for
    each target has visited.

    Returns:
      SVG; None if no network has both figures.
    """
    points = [
        (n, n.cost * search.scale, top1)
        for n in search.networks
        if (top1 := n.top1 if search.is_trained else n.predicted) is not None and n.cost is not None
    ]
    if not points:
        return None
    with charts.style():
        figure = Figure(figsize=charts.SIZE, layout="constrained")
        axes = figure.subplots()
        candidate_costs = [cost * search.scale for cost, _ in search.candidates]
        axes.scatter(
            candidate_costs,
            [top1 for _, top1 in search.candidates],
            s=12,
            color=charts.SERIES[7],
            alpha=0.45,
            lw=0,
        )
        visited = [] if search.is_trained else [pair for n in search.found for pair in n.front]
        rows = [{"cost": cost, "top1": top1} for _, cost, top1 in points]
        rows += [{"cost": cost * search.scale, "top1": top1} for cost, top1 in visited]
        steps = [(row["cost"], row["top1"]) for row in charts.front_of(rows, "cost")]
        axes.step(*zip(*steps, strict=True), where="post", color=charts.GRID, lw=1.5, zorder=1)
        charts.choose_scale(axes, "x", candidate_costs + [row["cost"] for row in rows])
        label = "top-1 (%)" if search.is_trained else "predicted top-1 (%)"
        axes.set(xlabel=_cost_label(search), ylabel=label)
        _add_networks(axes, points)
        return charts.to_svg(figure, f"top-1 against {_cost_label(search)}")


def measured_against_predicted(search: Search) -> str | None:
    """Measured against predicted cost, with the diagonal.

    Returns:
      SVG; None if no network has both figures.
    """
    points = [
        (n, n.cost * search.scale, n.measured * search.scale)
        for n in search.networks
        if n.cost is not None and n.measured is not None
    ]
    if not points:
        return None
    with charts.style():
        figure = Figure(figsize=charts.SIZE, layout="constrained")
        axes = figure.subplots()
        some_cost = points[0][1]
        axes.axline((some_cost, some_cost), slope=1, color=charts.GRID, lw=1.5, zorder=1)
        axes.set(xlabel=_cost_label(search), ylabel=f"measured cost ({search.label})")
        _add_networks(axes, points)
        return charts.to_svg(figure, f"measured against predicted cost ({search.label})")


def _cost_label(search: Search) -> str:
    return "MAdds (millions)" if search.cost_name == "madds" else f"predicted cost ({search.unit})"


def _add_networks(axes: Axes, points: Sequence[tuple[Network, float, float]]) -> None:
    """Draws networks (network, x, y) as points with their names."""
    for network, x, y in points:
        marker, colour = ("o", charts.SERIES[0]) if network.is_found else ("s", charts.SERIES[1])
        axes.plot(x, y, marker, ms=6, color=colour)
    axes.margins(x=0.2, y=0.15)
    charts.add_names(axes, [(_SHORT_NAMES.get(n.name, n.name), x, y) for n, x, y in points])
