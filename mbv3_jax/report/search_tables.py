"""The tables of a search's report, for people, papers and programs."""

import dataclasses
import json
from collections.abc import Sequence

from mbv3_jax.arch import cost
from mbv3_jax.report import formats
from mbv3_jax.report.formats import Column
from mbv3_jax.report.search import TRUSTED, Network, Search


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
        return formats.plain(texts, form)
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
    parts = [f"## {search.title}\n", formats.plain(_shown(rows(search), columns(search)), "md")]
    if search.source:
        parts.append(f"Costs in {search.unit}: {search.source}.\n")
    parts.append(" ".join(filter(None, (trust(search), warning(search)))) + "\n")
    for network in search.found:
        if network.steps:
            table = _shown(step_rows(network), step_columns(search))
            parts += [f"### NetAdapt: {network.name}\n", formats.plain(table, "md")]
    return "\n".join(parts)


def _latex(search: Search) -> str:
    shown = _shown(rows(search), columns(search))
    return f"% {search.title}\n" + formats.plain(shown, "latex")
