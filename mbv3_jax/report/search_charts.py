"""The charts of a search's report: reward by step, accuracy against cost, predicted, measured."""

import itertools
from collections.abc import Sequence

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mbv3_jax.report import theme
from mbv3_jax.report.charts import SIZE, front_of
from mbv3_jax.report.search import Network, Search

_SHORT = {
    "mobilenet_v2": "V2",
    "mobilenet_v3_large": "V3-Large",
    "mobilenet_v3_small": "V3-Small",
}
_WIDE = 8  # the dearest over the cheapest, beyond which costs stand on a logarithmic axis


def rewards(search: Search) -> str | None:
    """The controller's reward by step, a line for each target: SVG; None if none is on record."""
    with theme.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for network, (line, colour) in zip(
            search.found, itertools.cycle(theme.STYLES), strict=False
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
        return theme.to_svg(figure, "reward by controller step")


def front(search: Search) -> str | None:
    """Top-1 against predicted cost, and the front of what was trained to the end.

    Candidates are pale dots, found networks filled circles, references squares.

    Returns:
      SVG; None if no network has both.
    """
    known = [n for n in search.networks if n.top1 is not None and n.cost is not None]
    if not known:
        return None
    with theme.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        prices = [x * search.scale for x, _ in search.candidates]
        axes.scatter(
            prices, [y for _, y in search.candidates], s=12, color=theme.SERIES[7], alpha=0.45, lw=0
        )
        best = front_of([{"cost": n.cost * search.scale, "top1": n.top1} for n in known], "cost")
        steps = [(row["cost"], row["top1"]) for row in best]
        axes.step(*zip(*steps, strict=True), where="post", color=theme.GRID, lw=1.5, zorder=1)
        points = [(n, n.cost * search.scale, n.top1) for n in known]
        prices += [x for _, x, _ in points]
        if min(prices) > 0 and max(prices) > _WIDE * min(prices):
            _logarithmic(axes)
        axes.set(xlabel=_predicted(search), ylabel="top-1 (%)")
        _draw(axes, points)
        return theme.to_svg(figure, f"top-1 against {_predicted(search)}")


def measured(search: Search) -> str | None:
    """Measured against predicted cost, with the diagonal: SVG; None if no network has both."""
    points = [
        (n, n.cost * search.scale, n.measured * search.scale)
        for n in search.networks
        if None not in (n.cost, n.measured)
    ]
    if not points:
        return None
    with theme.style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        middle = points[0][1:]
        axes.axline(middle[:1] * 2, slope=1, color=theme.GRID, lw=1.5, zorder=1)
        axes.set(xlabel=_predicted(search), ylabel=f"measured cost ({search.label})")
        _draw(axes, points)
        return theme.to_svg(figure, f"measured against predicted cost ({search.label})")


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
        marker, colour = ("o", theme.SERIES[0]) if network.is_found else ("s", theme.SERIES[1])
        axes.plot(x, y, marker, ms=6, color=colour)
    axes.margins(x=0.2, y=0.15)
    names = [
        axes.text(x, y, _SHORT.get(n.name, n.name), fontsize=9, parse_math=False)
        for n, x, y in points
    ]
    adjust_text(names, ax=axes, time_lim=2, arrowprops={"arrowstyle": "-", "color": theme.GRID})
