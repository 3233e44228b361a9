"""python -m mbv3_jax search spaces: the spaces that there are."""

import math
from collections.abc import Sequence

from mbv3_jax.train.errors import UsageError


def add_parser(commands) -> None:
    """Adds `search` to the subparsers; `run_command(flags, overrides)` runs it."""
    search = commands.add_parser("search", help="spaces of networks")
    actions = search.add_subparsers(dest="what", required=True)
    spaces = actions.add_parser("spaces", help="the preset spaces and how many networks they have")
    spaces.set_defaults(run_command=_spaces)


def _spaces(flags, overrides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mbv3_jax.search.presets import PRESETS
    from mbv3_jax.search.size import combinations, size

    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; search spaces takes none")
    table = Table(title="search spaces", header_style="bold")
    for name in ("space", "decisions", "combinations", "different networks"):
        table.add_column(name, justify="left" if name == "space" else "right", no_wrap=True)
    for name, make in PRESETS.items():
        space = make()
        numbers = (_number(combinations(space)), _number(size(space)))
        table.add_row(name, str(len(space.decisions)), *numbers)
    table.caption = "combinations count choices of blocks that are left out, as papers do"
    Console().print(table)


def _number(value: int) -> str:
    return f"{value:,}" if value < 10**6 else f"10^{math.log10(value):.1f}"
