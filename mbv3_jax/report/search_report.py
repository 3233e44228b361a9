"""The report of a search: its tables as text or data, and its page."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import sides
from mbv3_jax.report import search_charts, tables
from mbv3_jax.report.page import render, sortable, title_of
from mbv3_jax.report.search_result import TRUSTED_SPEARMAN, Network, Search
from mbv3_jax.report.tables import Column


def write(searches: Sequence[Search], form: str) -> str:
    """Writes the tables of searches.

    Args:
      searches: at least one.
      form: "md" has the networks, the evaluator's agreement and NetAdapt's steps, as people read
        them; "json" has the same, unrounded; "csv" and "latex" have only the networks.
    """
    if form == "json":
        return json.dumps([_record(search) for search in searches], indent=1) + "\n"
    if form == "csv":
        lines = [{"search": s.title, **row} for s in searches for row in rows(s)]
        texts = [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines]
        return tables.plain(texts, form)
    return "\n".join((_markdown if form == "md" else _latex)(search) for search in searches)


def search_page(searches: Sequence[Search]) -> str:
    """The HTML of a report about searches."""
    return render(
        "search.html.j2",
        title=title_of([(search.folder.resolve().name, search.title) for search in searches]),
        searches=[_section(search) for search in searches],
    )


def rows(search: Search) -> list[dict]:
    """One flat row for each network.

    Returns:
      Dicts whose values are None where a figure is not known: "network", "kind" ("found" or
      "reference"), "target", "cost" (the predicted one) and "measured" (all in "unit"), "unit",
      "params", "madds", "predicted" and "uncertainty" (percent), "top1" (percent), "split".
    """
    return [
        {
            "network": network.name,
            "kind": "found" if network.is_found else "reference",
            "target": network.target,
            "cost": network.cost,
            "measured": network.measured,
            "unit": search.unit,
            "params": cost.params(network.spec),
            "madds": network.madds,
            "predicted": network.predicted,
            "uncertainty": network.uncertainty,
            "top1": network.top1,
            "split": network.split,
        }
        for network in search.networks
    ]


def step_rows(network: Network) -> list[dict]:
    """One row for each step of NetAdapt, numbered from 1."""
    return [
        {"step": i, **dataclasses.asdict(step)} for i, step in enumerate(network.steps, start=1)
    ]


def _columns(search: Search) -> tuple[Column, ...]:
    """The columns of `rows` that people read."""
    unit = search.label
    predicted_and_measured = (
        Column("cost", f"predicted {unit}", "", _cost("cost", search)),
        Column("measured", f"measured {unit}", "", _cost("measured", search)),
    )
    return (
        Column("network", "network", "", lambda row: row["network"]),
        Column("kind", "kind", "", lambda row: row["kind"]),
        Column("target", f"target {unit}", "", _cost("target", search)),
        # Multiply-adds are counted, neither predicted nor measured.
        *(() if search.cost_name == "madds" else predicted_and_measured),
        Column("madds", "MAdds M", "", lambda row: _number(row["madds"] / 1e6)),
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


def _step_columns(search: Search) -> tuple[Column, ...]:
    """The columns of `step_rows`."""
    return (
        Column("step", "step", "", lambda row: str(row["step"])),
        Column("change", "change", "", lambda row: row["change"]),
        Column("cost", search.label, "", _cost("cost", search)),
        Column("accuracy", "top-1 %", "", lambda row: _percent(row["accuracy"])),
    )


def _cost(key: str, search: Search) -> Callable[[dict], str]:
    return lambda row: _number(None if row[key] is None else row[key] * search.scale)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _agreement(search: Search) -> str:
    """A sentence on how well the evaluator ranks candidates that it was not trained on."""
    spearman = "not known" if search.spearman is None else f"{search.spearman:.2f}"
    count = "" if search.count is None else f"{search.count} "
    if search.spearman is not None and search.interval:
        spearman += f" (95%: {search.interval[0]:.2f} to {search.interval[1]:.2f})"
    return (
        f"Evaluator: {search.evaluator}. Spearman's rank correlation with the accuracies of "
        f"{count}held-out candidates: {spearman}."
    )


def _warning(search: Search) -> str | None:
    """What to do about an evaluator that should not be trusted; None if it can be."""
    if search.trusted:
        return None
    reason = "unknown" if search.spearman is None else f"below {TRUSTED_SPEARMAN}"
    return (
        f"Warning: this rank correlation is {reason}. The choice of networks may owe more to "
        "chance than to the evaluator: train more candidates, or train them longer, before you "
        "rely on it."
    )


def _record(search: Search) -> dict:
    return {
        "search": search.title,
        "cost": {"name": search.cost_name, "unit": search.unit, "source": search.source},
        "networks": rows(search),
        "agreement": {
            "evaluator": search.evaluator,
            "spearman": search.spearman,
            "count": search.count,
            "interval": search.interval,
            "trusted": search.trusted,
        },
        "adapted": {n.name: step_rows(n) for n in search.found if n.steps},
    }


def _markdown(search: Search) -> str:
    networks = tables.plain(_shown(rows(search), _columns(search)), "md")
    parts = [f"## {tables.markdown(search.title)}\n", networks]
    if search.source:
        parts.append(f"Costs in {search.unit}: {tables.markdown(search.source)}.\n")
    parts.append(" ".join(filter(None, (_agreement(search), _warning(search)))) + "\n")
    for network in search.found:
        if network.steps:
            steps = tables.plain(_shown(step_rows(network), _step_columns(search)), "md")
            parts += [f"### NetAdapt: {tables.markdown(network.name)}\n", steps]
    return "\n".join(parts)


def _latex(search: Search) -> str:
    networks = tables.plain(_shown(rows(search), _columns(search)), "latex")
    return f"{tables.latex_comment(search.title)}\n{networks}"


def _shown(table: Sequence[dict], columns: Sequence[Column]) -> list[dict[str, str]]:
    used = tables.used_columns(columns, table)
    return [{column.label: column.show(row) for column in used} for row in table]


def _section(search: Search) -> dict:
    """The values of one search for search.html.j2."""
    return {
        "search": search,
        "best": [network.name for network in search.found],
        "networks": sortable(rows(search), _columns(search)),
        "agreement": _agreement(search),
        "warning": _warning(search),
        "rewards": search_charts.rewards(search),
        "front": search_charts.accuracy_against_cost(search),
        "drawings": _drawings(search),
        "measured": search_charts.measured_against_predicted(search),
        "adapted": [
            (network.name, sortable(step_rows(network), _step_columns(search)))
            for network in search.found
            if network.steps
        ],
    }


def _drawings(search: Search) -> list[dict]:
    """The found networks as stages of blocks, with the widest expansion of all networks."""
    widest = max(block.expansion for n in search.found for block in n.spec.blocks)
    return [
        {"name": n.name, "spec": n.spec, "stages": stages(n.spec), "widest": widest}
        for n in search.found
    ]


def stages(spec: NetSpec) -> list[dict]:
    """Groups the blocks of a network; a stage begins at another width or at a stride of 2.

    Returns:
      Dicts with "width", "size" (of the feature map, in pixels) and "blocks": dicts with "number",
      "kernel", "expansion", "factor" (expansion / input channels), "se" and "act".
    """
    result: list[dict] = []
    strides = spec.strides()
    for i, (block, inputs) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True), 1):
        if not result or block.stride == 2 or block.out != result[-1]["width"]:
            size = " x ".join(
                str(math.ceil(side / strides[f"block{i}"])) for side in sides(spec.resolution)
            )
            result.append({"width": block.out, "size": size, "blocks": []})
        result[-1]["blocks"].append(
            {
                "number": i,
                "kernel": block.kernel,
                "expansion": block.expansion,
                "factor": f"{block.expansion / inputs:.3g}",
                "se": block.se is not None,
                "act": block.act.replace("_", "-"),
            }
        )
    return result
