"""mbv3 recipes: the published training recipes, what they reached and cost, and their fields."""

import argparse
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from mbv3_jax.cli.arguments import no_more, table_console
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import program
from mbv3_jax.run.config import flatten_config
from mbv3_jax.run.shipped import make_importable

# What a recipe decides; where the data lie, and how often it evaluates and saves, are not part of
# it. Of these groups, fields that are not as in every configuration are shown, and all of _ALWAYS.
_GROUPS = ("augment.", "compute.", "data.", "distillation.", "loss.", "net.")
_ALWAYS = ("optimizer.", "schedule.", "batch_size", "total_epochs", "label_smoothing", "ema_decay")
_NO_PART = ("data.name", "data.prefetch_batches", "net.name")


def add_parsers(commands) -> None:
    """Adds `recipes` to the subparsers; `run_command(flags, overrides)` returns an exit code."""
    parser = commands.add_parser(
        "recipes", help="list the published training recipes, or the fields of one"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe, for all of its fields")
    parser.set_defaults(run_command=_run)


def _run(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
    no_more(overrides, "recipes")
    make_importable()
    importlib.import_module("configs.recipes")  # which registers them
    entries = importlib.import_module("configs.published").PUBLISHED
    if flags.name is None:
        _list(entries)
        return 0
    try:
        choose("recipe", flags.name, dict.fromkeys(entry.name for entry in entries))
    except ValueError as e:
        raise UsageError(str(e)) from e
    for entry in entries:
        if entry.name == flags.name:
            _explain(entry)
    return 0


def _list(entries: Sequence[Any]) -> None:
    table = _table("recipe", "published top-1", "epochs", "batch", "cost", "source")
    for entry in entries:
        fields = [fields_of(entry, network) for network in entry.top1]
        cells = []
        for name in ("total_epochs", "batch_size"):
            values = dict.fromkeys(f"{of_network[name]:g}" for of_network in fields)
            cells.append(", ".join(values) + "*" * (name in entry.chosen))
        cost = entry.cost or "not published"
        table.add_row(entry.name, _results(entry), *cells, cost, entry.source)
    console = table_console()
    console.print(table)
    console.print("* not published; chosen here")
    console.print(f"{program()} recipes NAME lists the fields of one, with what is not published")


def _explain(entry: Any) -> None:
    console = table_console()
    console.print(f"{entry.name}: {_results(entry)} top-1", inspect.getdoc(entry.recipe), sep="\n")
    console.print(f"Source: {entry.source}", f"Cost: {entry.cost or 'not published'}", sep="\n")
    fields = {network: fields_of(entry, network) for network in entry.top1}
    table = _table("field", *fields, "given by")
    for name in dict.fromkeys(name for of_network in fields.values() for name in of_network):
        values = [repr(of_network.get(name)) for of_network in fields.values()]
        by = "chosen here; not published" if name in entry.chosen else "the source"
        table.add_row(name, *values, by)
    console.print(table)


def fields_of(entry: Any, network: str) -> dict[str, object]:
    """The fields that a recipe decides for a network, by dotted path, with their values.

    Args:
      entry: one of `PUBLISHED` in configs/published.py.
      network: a name of `mbv3_jax.arch.build`.
    """
    default = importlib.import_module("configs.common").default
    before = flatten_config(default(network))
    after = flatten_config(entry.recipe(default(network)))
    return {
        name: value
        for name, value in after.items()
        if name in entry.chosen
        or (name.startswith(_ALWAYS) and value is not None)
        or (name.startswith(_GROUPS) and name not in _NO_PART and value != before[name])
    }


def _results(entry: Any) -> str:
    return ", ".join(f"{network} {top1:g}" for network, top1 in entry.top1.items())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("recipe", "field"))
    return table
