"""The layer table of a network, laid out like the tables of the MobileNetV3 paper."""

from rich.table import Table

from mbv3_jax.arch import cost
from mbv3_jax.arch.published import published
from mbv3_jax.arch.spec import NetSpec, SESpec

_BYTES = 4  # of a float32


def layer_table(spec: NetSpec) -> Table:
    """One row per part: input shape, operator, k, exp, out, SE, NL, s, and what it costs.

    SE is the squeezed width. Activations are the feature maps that the part writes for one image
    in float32: what training keeps for the backward pass.
    """
    table = Table(title=f"{spec.name}, {spec.resolution} pixels", header_style="bold")
    for name in ("part", "input", "operator"):
        table.add_column(name, no_wrap=True)
    for name in ("k", "exp", "out", "SE", "NL", "s", "params", "MAdds", "activations"):
        table.add_column(name, justify="right", no_wrap=True)
    parts: dict[str, list[cost.Layer]] = {}
    for layer in cost.layers(spec):
        parts.setdefault(layer.part, []).append(layer)
    for (part, layers), description in zip(parts.items(), _descriptions(spec), strict=True):
        height, width, channels = layers[0].inputs
        table.add_row(
            part,
            f"{height}x{width}x{channels}",
            *description,
            f"{sum(x.params for x in layers):,}",
            f"{sum(x.madds for x in layers):,}",
            _kib(sum(x.activations for x in layers)),
            end_section=part == "stem" or part == f"block{len(spec.blocks)}",
        )
    return table


def _descriptions(spec: NetSpec):
    """Operator, k, exp, out, SE, NL, s of each part, as text."""

    def squeezed(se: SESpec | None, expansion: int, block_input: int) -> str:
        return str(se.channels(expansion=expansion, block_input=block_input)) if se else "-"

    def conv(c, inputs: int):
        se = squeezed(c.se, c.out, inputs)
        operator = f"conv {c.kernel}x{c.kernel}, BN"
        return operator, str(c.kernel), "-", str(c.out), se, c.act, str(c.stride)

    yield conv(spec.stem, spec.in_channels)
    for i, (b, inputs) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True)):
        operator = "bneck" + (", shortcut" if spec.has_shortcut(i) else "")
        se = squeezed(b.se, b.expansion, inputs)
        yield (operator, str(b.kernel), str(b.expansion), str(b.out), se, b.act, str(b.stride))
    yield conv(spec.last, spec.blocks[-1].out)
    if spec.head:
        yield ("pool, conv 1x1", "1", "-", str(spec.head.out), "-", spec.head.act, "1")
    operator = "conv 1x1" if spec.head else "pool, conv 1x1"
    yield (operator, "1", "-", str(spec.num_classes), "-", "-", "1")


def totals_table(spec: NetSpec) -> Table:
    """Parameters, multiply-adds and memory of the whole network, with the published figures."""
    figures = published(spec)
    table = Table(title="totals", header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("here", justify="right", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    params, madds = (f"{figures.params_m} M", f"{figures.madds_m} M") if figures else (None, None)
    written = sum(layer.activations for layer in cost.layers(spec))
    table.add_row("parameters", f"{cost.params(spec):,}", params)
    table.add_row("MAdds", f"{cost.madds(spec):,}", madds)
    table.add_row("activations written", _kib(written))
    table.add_row("most alive at inference", _kib(cost.peak_activations(spec)))
    if figures:
        table.add_row("ImageNet top-1", None, f"{figures.top1}%")
        table.add_row("latency on a Pixel 1", None, f"{figures.pixel1_ms} ms")
        table.caption = f"published: {figures.source}, 1000 classes, 224 pixels"
    else:
        table.caption = "not a published network; arch/published.py lists those that are"
    return table


def _kib(values: int) -> str:
    return f"{values * _BYTES / 1024:,.0f} KiB"
