"""The layer table of a network, laid out like the tables of the MobileNetV3 paper."""

from collections.abc import Sequence

from rich.table import Table

from mbv3_jax.arch import cost
from mbv3_jax.arch.published import published
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import Convolution, Operation, ResidualAdd, stages
from mbv3_jax.core.checks import in_pixels

_BYTES = 4  # of a float32


def layer_table(spec: NetSpec) -> Table:
    """One row for each part: input shape, operator, k, exp, out, SE, NL, s, and its costs.

    SE is the squeezed width. Activations are the feature maps that the part writes for one image in
    float32, which training keeps for the backward pass.
    """
    table = Table(title=f"{spec.name}, {in_pixels(spec.resolution)} pixels", header_style="bold")
    for name in ("part", "input", "operator"):
        table.add_column(name, no_wrap=True)
    for name in ("k", "exp", "out", "SE", "NL", "s", "params", "MAdds", "activations"):
        table.add_column(name, justify="right", no_wrap=True)
    parts: dict[str, list[cost.Layer]] = {}
    for layer in cost.layers(spec):
        parts.setdefault(layer.part, []).append(layer)
    operations = stages(spec)
    for part, layers in parts.items():
        height, width, channels = layers[0].inputs
        table.add_row(
            part,
            f"{height}x{width}x{channels}",
            *_description(operations[part], is_pooled=part == "logits" and not spec.head),
            f"{sum(x.params for x in layers):,}",
            f"{sum(x.madds for x in layers):,}",
            _kib(sum(x.activations for x in layers)),
            end_section=part == "stem" or part == f"block{len(spec.blocks)}",
        )
    return table


def _description(operations: Sequence[Operation], is_pooled: bool) -> tuple[str, ...]:
    """Operator, k, exp, out, SE, NL, s of a stage, as text; `is_pooled`: pooling precedes it."""
    convs = {op.name: op for op in operations if isinstance(op, Convolution)}
    stage = operations[-1].stage
    reduce = convs.get(f"{stage}/se/reduce")
    squeezed = str(reduce.out_shape[2]) if reduce else "-"
    if depthwise := convs.get(f"{stage}/depthwise"):
        has_shortcut = any(isinstance(op, ResidualAdd) for op in operations)
        operator = "bneck, shortcut" if has_shortcut else "bneck"
        conv, expansion = depthwise, str(depthwise.out_shape[2])
        out = convs[f"{stage}/project"].out_shape[2]
    else:
        conv, expansion = convs[stage], "-"
        out = conv.out_shape[2]
        operator = f"conv {conv.kernel}x{conv.kernel}" + (", BN" if conv.batch_norm else "")
        operator = f"pool, {operator}" if is_pooled or stage == "head" else operator
    kernel, stride = str(conv.kernel), str(conv.stride)
    return operator, kernel, expansion, str(out), squeezed, conv.act or "-", stride


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
