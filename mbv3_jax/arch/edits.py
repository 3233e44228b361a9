"""Ablations of MobileNetV3 as edits of a network: each takes a spec and returns a spec."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.core.checks import check_whole, choose, flag

SE_PLACES = ("paper", "none", "everywhere")
LAST_STAGES = ("paper", "efficient", "original")
KERNELS = ("paper", "3x3", "5x5", "7x7")


def _map_blocks(spec: NetSpec, change: Callable[[BlockSpec], BlockSpec]) -> NetSpec:
    return spec.replace(blocks=tuple(change(b) for b in spec.blocks))


def _map_acts(spec: NetSpec, change: Callable[[str], str]) -> NetSpec:
    """Applies `change` to the nonlinearity of every layer that has one, outside SE."""
    spec = _map_blocks(spec, lambda b: dataclasses.replace(b, act=change(b.act)))
    head = spec.head and dataclasses.replace(spec.head, act=change(spec.head.act))
    return spec.replace(
        stem=dataclasses.replace(spec.stem, act=change(spec.stem.act)),
        last=dataclasses.replace(spec.last, act=change(spec.last.act)),
        head=head,
    )


def nonlinearity(spec: NetSpec, choice: str) -> NetSpec:
    """Changes which layers have which nonlinearity (MobileNetV3 section 5.2 and table 5).

    Args:
      spec: the network.
      choice: "paper" keeps the table's; the name of an activation uses that one in every layer;
        "swish_for_h_swish" replaces only the h-swishes; "h_swish@N" uses h-swish from the first
        layer with at least N output channels on, and ReLU in place of h-swish in the blocks before
        it. The stem keeps the table's nonlinearity then (the paper's own layout, "h_swish@80" for
        Large, has an h-swish stem).
    """
    at = re.fullmatch(r"h_swish@(\d+)", choice) if isinstance(choice, str) else None
    if at:
        return _h_swish_from(spec, int(at[1]))
    if choice == "h_swish@N":
        raise ValueError("nonlinearity: 'h_swish@N' needs a number for N, as in 'h_swish@112'")
    choose("nonlinearity", choice, ("paper", *ACTIVATIONS, "swish_for_h_swish", "h_swish@N"))
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
    """The network's first squeeze-and-excite; MobileNetV3's if it has none."""
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
    """Changes where squeeze-and-excite is used and how it is sized and gated (section 5.3).

    Args:
      spec: the network.
      place: "paper" keeps the table's, "none" removes it from the blocks, "everywhere" adds it to
        every block. The last 1x1 is not changed; see `last_se`.
      ratio: squeezed width as a share of the width that `of` names; None keeps the table's.
      of: "expansion" (MobileNetV3) or "input" of the block (MnasNet); None keeps the table's.
      divisor: of the squeezed width: 8 (MobileNetV3), 1 (MnasNet); None keeps the table's.
      gate: the name of a gate; None keeps the table's.
    """
    choose("se", place, SE_PLACES)
    options = {"ratio": ratio, "of": of, "divisor": divisor, "gate": gate}
    changes: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
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
    """Changes the number of stem filters and their nonlinearity; None keeps them (section 5.2).

    A first block without expansion stays one: its depthwise layer takes the stem's width.
    """
    filters = spec.stem.out if filters is None else check_whole("stem_filters", filters, 1)
    act = spec.stem.act if act is None else choose("stem_act", act, ACTIVATIONS)
    blocks = spec.blocks
    if not spec.has_expand(0):
        blocks = (dataclasses.replace(blocks[0], expansion=filters), *blocks[1:])
    new = dataclasses.replace(spec.stem, out=filters, act=act)
    return spec.replace(stem=new, blocks=blocks)


def last_stage(spec: NetSpec, choice: str) -> NetSpec:
    """Chooses between the efficient and the original last stage (section 5.1, figure 5).

    The original, as in MobileNetV2 and MnasNet, filters the last expansion in one more block,
    projects it to twice the block width, widens that to the head's width at full resolution with a
    1x1 and BatchNorm, and then pools. The efficient one drops the block's filtering and projection,
    pools its expansion and widens that at 1x1. Each is the inverse of the other.
    """
    choose("last_stage", choice, LAST_STAGES)
    head = spec.head
    if choice == "paper" or (choice == "efficient") == (head is not None):
        return spec
    if head is not None:
        block = BlockSpec(
            kernel=3,
            expansion=spec.last.out,
            out=2 * spec.blocks[-1].out,
            act=spec.last.act,
            se=spec.last.se,
        )
        last = ConvSpec(kernel=1, out=head.out, act=head.act)
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
    """Changes the depthwise kernels: "paper" keeps them; "3x3", "5x5", "7x7" set every block's."""
    choose("kernels", choice, KERNELS)
    if choice == "paper":
        return spec
    return _map_blocks(spec, lambda b: dataclasses.replace(b, kernel=int(choice[0])))


def expansions(spec: NetSpec, widths: Sequence[int] | None) -> NetSpec:
    """Sets the number of expansion channels of each block; None keeps the table's.

    These are what NetAdapt changed between the networks found by the search and those of the tables
    (section 4.2).
    """
    if widths is None:
        return spec
    if not isinstance(widths, Sequence):
        raise ValueError(f"expansions: got {widths!r}, expected a whole number for each block")
    if len(widths) != len(spec.blocks):
        raise ValueError(
            f"expansions: got {len(widths)}, but {spec.name} has {len(spec.blocks)} blocks here"
        )
    for width in widths:
        check_whole("expansions", width, 1)
    pairs = zip(spec.blocks, widths, strict=True)
    return spec.replace(blocks=tuple(dataclasses.replace(b, expansion=w) for b, w in pairs))


def shortcut(spec: NetSpec, allowed: bool) -> NetSpec:
    """Keeps (True) or removes (False) the shortcut of every block."""
    flag("shortcut", allowed)
    return _map_blocks(spec, lambda b: dataclasses.replace(b, shortcut=allowed and b.shortcut))


def head_filters(spec: NetSpec, filters: int) -> NetSpec:
    """Sets the channels of the layer before the logits (Small: 1024; 1280 in an earlier print)."""
    check_whole("head_filters", filters, 1)
    if spec.head is None:
        return spec.replace(last=dataclasses.replace(spec.last, out=filters))
    return spec.replace(head=dataclasses.replace(spec.head, out=filters))


def last_se(spec: NetSpec, present: bool) -> NetSpec:
    """Adds squeeze-and-excite to the last 1x1, or removes it.

    Table 2 ticks it, but no published implementation has it.
    """
    se = _first_se(spec) if flag("last_se", present) else None
    return spec.replace(last=dataclasses.replace(spec.last, se=se))
