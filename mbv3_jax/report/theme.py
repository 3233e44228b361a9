"""Pictures for a page that is light or dark: SVG whose colours are the page's CSS variables."""

import io
import itertools
import re

import matplotlib
from matplotlib.figure import Figure

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
