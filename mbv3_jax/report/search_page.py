"""The report of searches as one HTML file, in the shell of the other reports."""

import math
from collections.abc import Sequence

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.report import search_charts as charts
from mbv3_jax.report import search_tables as tables
from mbv3_jax.report.page import render, sortable
from mbv3_jax.report.search import Search


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
        "networks": sortable(tables.rows(search), tables.columns(search)),
        "trust": tables.trust(search),
        "warning": tables.warning(search),
        "rewards": charts.rewards(search),
        "front": charts.front(search),
        "drawings": drawings(search),
        "measured": charts.measured(search),
        "adapted": [
            (network.name, sortable(tables.step_rows(network), tables.step_columns(search)))
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
