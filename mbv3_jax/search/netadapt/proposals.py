"""NetAdapt's proposals: the narrower networks that one step chooses among (arXiv 1804.03230).

MobileNetV3 section 4.2 has two kinds: a smaller expansion layer, and a smaller bottleneck in all
blocks that share it, so that shortcuts stay.
"""

import dataclasses
from collections.abc import Callable

from mbv3_jax.arch.spec import NetSpec

DELTA = 0.01  # of the first cost: what a step cuts at least (section 4.2)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A narrower network: what was cut ("block3 expansion 72 -> 64"), and the cost saved."""

    change: str
    spec: NetSpec
    saved: float


def bottlenecks(spec: NetSpec) -> list[tuple[int, ...]]:
    """The bottlenecks as groups of layers that must be equally wide: 0 is the stem, i block i.

    A block joins the layer before it where it has a shortcut. A stem that no block is added to
    is none.
    """
    groups = [[0]]
    for i, block in enumerate(spec.blocks, start=1):
        before = _widths(spec)[i - 1]
        if block.shortcut and block.stride == 1 and block.out == before:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [tuple(g) for g in groups if g != [0]]


def proposals(
    spec: NetSpec, cost: Callable[[NetSpec], float], cut: float, *, divisor: int = 8
) -> list[Proposal]:
    """For each expansion layer and each bottleneck, the least narrowing that saves `cut`.

    A layer that cannot save as much is not among them, nor a narrowing that would make a block
    gain or lose its expansion layer (`BlockSpec`) or its shortcut: the weights would no longer
    compute nearly the same. A block without expansion layer stays as wide as its input.

    Args:
      spec: what is narrowed.
      cost: of a network, in any unit: `arch.cost.madds`, or a latency model's milliseconds.
      cut: how much a proposal saves at least, above zero, in the unit of `cost`.
      divisor: of all new channel counts.

    Raises:
      ValueError: if `cut` is not above zero.
    """
    if not cut > 0:
        raise ValueError(f"cut: got {cut!r}, expected a number above zero")
    whole, found = cost(spec), []
    shrinks = [
        (f"block{i} expansion", block.expansion, lambda width, i=i: _expansion(spec, i, width))
        for i, block in enumerate(spec.blocks, start=1)
        if _expands(spec)[i - 1]
    ]
    shrinks += [
        (_name(group), _widths(spec)[group[0]], lambda width, g=group: _bottleneck(spec, g, width))
        for group in bottlenecks(spec)
    ]
    for name, width, narrowed in shrinks:
        for new in range((width - 1) // divisor * divisor, 0, -divisor):
            candidate = narrowed(new)
            saved = whole - cost(candidate)
            same_layers = _expands(candidate) == _expands(spec)
            if saved >= cut and same_layers and bottlenecks(candidate) == bottlenecks(spec):
                found.append(Proposal(f"{name} {width} -> {new}", candidate, saved))
                break
    return found


def _widths(spec: NetSpec) -> list[int]:
    return [spec.stem.out, *(b.out for b in spec.blocks)]


def _expands(spec: NetSpec) -> list[bool]:
    return [b.expansion != w for b, w in zip(spec.blocks, _widths(spec), strict=False)]


def _name(group: tuple[int, ...]) -> str:
    return "bottleneck of " + ", ".join("stem" if i == 0 else f"block{i}" for i in group)


def _expansion(spec: NetSpec, index: int, width: int) -> NetSpec:
    blocks = list(spec.blocks)
    blocks[index - 1] = dataclasses.replace(blocks[index - 1], expansion=width)
    return spec.replace(blocks=tuple(blocks))


def _bottleneck(spec: NetSpec, group: tuple[int, ...], width: int) -> NetSpec:
    blocks, expands = list(spec.blocks), _expands(spec)
    for i, block in enumerate(spec.blocks, start=1):
        if i - 1 in group and not expands[i - 1]:
            block = dataclasses.replace(block, expansion=width)
        if i in group:
            block = dataclasses.replace(block, out=width)
        blocks[i - 1] = block
    stem = dataclasses.replace(spec.stem, out=width) if 0 in group else spec.stem
    return spec.replace(stem=stem, blocks=tuple(blocks))
