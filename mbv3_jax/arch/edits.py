"""Ablations of MobileNetV3 as edits of a network: each takes a spec and returns a spec."""

import dataclasses
import re
from collections.abc import Sequence

from mbv3_jax.arch.spec import ACTIVATIONS, BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.core.checks import check_whole, choose, flag

NONLINEARITIES = ("paper", *ACTIVATIONS, "swish_for_h_swish", "h_swish@N")
SE_PLACES = ("paper", "none", "everywhere")
LAST_STAGES = ("paper", "efficient", "original")
KERNELS = ("paper", "3x3", "5x5", "7x7")


def _map_blocks(spec: NetSpec, change) -> NetSpec:
    return spec.replace(blocks=tuple(change(b) for b in spec.blocks))


def _map_acts(spec: NetSpec, change) -> NetSpec:
    """Applies `change` to the nonlinearity of every layer that has one."""
    spec = _map_blocks(spec, lambda b: dataclasses.replace(b, act=change(b.act)))
    head = spec.head and dataclasses.replace(spec.head, act=change(spec.head.act))
    return spec.replace(
        stem=dataclasses.replace(spec.stem, act=change(spec.stem.act)),
        last=dataclasses.replace(spec.last, act=change(spec.last.act)),
        head=head,
    )


def nonlinearity(spec: NetSpec, choice: str) -> NetSpec:
    """Which nonlinearity stands where (MobileNetV3 section 5.2 and table 5).

    "paper" keeps the table; "relu", "relu6", "swish", "h_swish" put that one everywhere;
    "swish_for_h_swish" exchanges just the h-swishes; "h_swish@N" has h-swish from the first
    layer with at least N output channels on. Blocks before it have ReLU for h-swish; the stem
    keeps the table's nonlinearity (the paper's own layout, "h_swish@80" for Large, has an
    h-swish stem).
    """
    at = re.fullmatch(r"h_swish@(\d+)", choice) if isinstance(choice, str) else None
    if at:
        return _h_swish_from(spec, int(at[1]))
    if choice == "h_swish@N":
        raise ValueError("nonlinearity: 'h_swish@N' needs a number for N, as in 'h_swish@112'")
    choose("nonlinearity", choice, NONLINEARITIES)
    if choice == "paper":
        return spec
    if choice == "swish_for_h_swish":
        return _map_acts(spec, lambda act: "swish" if act == "h_swish" else act)
    return _map_acts(spec, lambda act: choice)


def _h_swish_from(spec: NetSpec, channels: int) -> NetSpec:
    widths = [spec.stem.out] + [b.out for b in spec.blocks] + [spec.last.out]
    first = next((i for i, w in enumerate(widths) if w >= channels), None)
    if first is None:
        raise ValueError(
            f"nonlinearity: no layer of {spec.name} has {channels} channels or more; "
            f"the layers have {', '.join(map(str, sorted(set(widths))))}"
        )
    stem_act = "h_swish" if first == 0 else spec.stem.act

    def act_of(i: int, block: BlockSpec) -> str:
        if i >= first:
            return "h_swish"
        return "relu" if block.act == "h_swish" else block.act

    return spec.replace(
        stem=dataclasses.replace(spec.stem, act=stem_act),
        blocks=tuple(
            dataclasses.replace(b, act=act_of(i, b)) for i, b in enumerate(spec.blocks, start=1)
        ),
        last=dataclasses.replace(spec.last, act="h_swish"),
        head=spec.head and dataclasses.replace(spec.head, act="h_swish"),
    )


def _first_se(spec: NetSpec) -> SESpec:
    """How the network sizes and gates SE; MobileNetV3's way where it has none."""
    return next((b.se for b in spec.blocks if b.se), SESpec())


def squeeze_excite(
    spec: NetSpec,
    place: str = "paper",
    *,
    ratio: float | None = None,
    of: str | None = None,
    divisor: int | None = None,
    gate: str | None = None,
) -> NetSpec:
    """Where squeeze-and-excite stands and how it is sized and gated (section 5.3).

    Args:
      spec: the network.
      place: "paper" where the table has it, "none", or "everywhere" (every block).
        The last 1x1 is `last_se`'s.
      ratio: squeezed width as a share of `of`; None keeps the table's.
      of: "expansion" (MobileNetV3) or "input" of the block (MnasNet); None keeps the table's.
      divisor: of the squeezed width: 8 (MobileNetV3), 1 (MnasNet); None keeps the table's.
      gate: "hard_sigmoid" or "sigmoid"; None keeps the table's.
    """
    choose("se", place, SE_PLACES)
    given = {"ratio": ratio, "of": of, "divisor": divisor, "gate": gate}
    changes = {k: v for k, v in given.items() if v is not None}
    if place == "none" and changes:
        raise ValueError(f"se: 'none' leaves no use for {', '.join('se_' + k for k in changes)}")
    if place == "none":
        return _map_blocks(spec, lambda b: dataclasses.replace(b, se=None))
    standard = _first_se(spec)
    try:
        dataclasses.replace(standard, **changes)
    except ValueError as e:
        raise ValueError(f"se_{e}") from e

    def change(block: BlockSpec) -> BlockSpec:
        se = block.se or (standard if place == "everywhere" else None)
        return dataclasses.replace(block, se=se and dataclasses.replace(se, **changes))

    edited = _map_blocks(spec, change)
    if changes and not any(b.se for b in edited.blocks):
        raise ValueError(
            f"se: {spec.name} has no squeeze-and-excite for "
            f"{', '.join('se_' + k for k in changes)} to change; se='everywhere' adds it"
        )
    return edited


def stem(spec: NetSpec, filters: int | None = None, act: str | None = None) -> NetSpec:
    """Number of stem filters and their nonlinearity; None keeps the table's (section 5.2).

    A first block without expansion stays without: its depthwise layer follows the stem's width.
    """
    filters = spec.stem.out if filters is None else check_whole("stem_filters", filters, 1)
    act = spec.stem.act if act is None else choose("stem_act", act, ACTIVATIONS)
    blocks = spec.blocks
    if not spec.has_expand(0):
        blocks = (dataclasses.replace(blocks[0], expansion=filters), *blocks[1:])
    new = dataclasses.replace(spec.stem, out=filters, act=act)
    return spec.replace(stem=new, blocks=blocks)


def last_stage(spec: NetSpec, choice: str) -> NetSpec:
    """The efficient or the original last stage (section 5.1, figure 5).

    Original, as in MobileNetV2 and MnasNet: one more bneck filters the last expansion and
    projects it to twice the block width, a 1x1 with BatchNorm widens that to the head's width
    at full resolution, then comes pooling. Efficient: that bneck's filtering and projection are
    gone; its expansion is pooled and widened at 1x1. Either is the inverse of the other.
    """
    choose("last_stage", choice, LAST_STAGES)
    is_efficient = spec.head is not None
    if choice == "paper" or (choice == "efficient") == is_efficient:
        return spec
    if choice == "original":
        block = BlockSpec(
            kernel=3,
            expansion=spec.last.out,
            out=2 * spec.blocks[-1].out,
            act=spec.last.act,
            se=spec.last.se,
        )
        last = ConvSpec(kernel=1, out=spec.head.out, act=spec.head.act)
        return spec.replace(blocks=(*spec.blocks, block), last=last, head=None)
    final = spec.blocks[-1]
    if final.stride != 1:
        raise ValueError(f"last_stage: the last block of {spec.name} has stride {final.stride}")
    return spec.replace(
        blocks=spec.blocks[:-1],
        last=ConvSpec(kernel=1, out=final.expansion, act=final.act, se=final.se),
        head=HeadSpec(out=spec.last.out, act=spec.last.act),
    )


def kernels(spec: NetSpec, choice: str) -> NetSpec:
    """Depthwise kernels: "paper", or the same size in every block ("3x3", "5x5", "7x7")."""
    choose("kernels", choice, KERNELS)
    if choice == "paper":
        return spec
    return _map_blocks(spec, lambda b: dataclasses.replace(b, kernel=int(choice[0])))


def expansions(spec: NetSpec, widths: Sequence[int] | None) -> NetSpec:
    """Another number of expansion channels in each block; None keeps the table's.

    What NetAdapt changed between the networks of the search and those of the tables (section
    4.2).
    """
    if widths is None:
        return spec
    if len(widths) != len(spec.blocks):
        raise ValueError(
            f"expansions: got {len(widths)}, but {spec.name} has {len(spec.blocks)} blocks here"
        )
    for width in widths:
        check_whole("expansions", width, 1)
    pairs = zip(spec.blocks, widths, strict=True)
    return spec.replace(blocks=tuple(dataclasses.replace(b, expansion=w) for b, w in pairs))


def shortcut(spec: NetSpec, allowed: bool) -> NetSpec:
    """With or without the additions of input to output where shapes allow them."""
    flag("shortcut", allowed)
    return _map_blocks(spec, lambda b: dataclasses.replace(b, shortcut=allowed and b.shortcut))


def head_filters(spec: NetSpec, filters: int) -> NetSpec:
    """Channels of the layer before the logits (Small: 1024, or 1280 in an earlier print)."""
    check_whole("head_filters", filters, 1)
    if spec.head is None:
        return spec.replace(last=dataclasses.replace(spec.last, out=filters))
    return spec.replace(head=dataclasses.replace(spec.head, out=filters))


def last_se(spec: NetSpec, present: bool) -> NetSpec:
    """Squeeze-and-excite on the last 1x1 before pooling (ticked in table 2, used by nobody)."""
    se = _first_se(spec) if flag("last_se", present) else None
    return spec.replace(last=dataclasses.replace(spec.last, se=se))
