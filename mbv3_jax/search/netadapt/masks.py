"""Narrower networks: which ones a step of NetAdapt proposes, as masks of the first network.

MobileNetV3 section 4.2 has two kinds of proposals: a smaller expansion layer, and a smaller
bottleneck in all blocks that share it, so that shortcuts stay.

A narrower network is represented by the first one with other weights at zero. A channel whose
kernels, BatchNorm scale and bias are zero stays zero throughout: every nonlinearity maps 0 to 0,
and a gate times 0 is 0. Hence the masked network computes exactly the narrower one, in evaluation
and in training, and one compiled program serves all of them.

A width is a number of channels that layers share: "stem" or "block4" for the output of the first
layer of a bottleneck, "block3/expansion", "block3/squeezed". `Kept` says which of its channels are
left.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.nn import functional
from mbv3_jax.nn.functional import Variables

# A step saves at least this fraction of the first cost (section 4.2).
DELTA = 0.01
KEEP = ("norm", "first")

# The channels that are left of each width, in ascending order.
Kept = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A narrower network, what was cut ("block3 expansion 72 -> 64"), and the cost saved."""

    change: str
    spec: NetSpec
    saved: float


def bottlenecks(spec: NetSpec) -> list[tuple[int, ...]]:
    """Returns the bottlenecks as groups of layers that must be equally wide.

    Layer 0 is the stem and layer i is block i. A block with a shortcut joins the layer before it. A
    stem that no block is added to is left out.
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
    """Returns the least narrowing that saves `cut`, for each expansion layer and each bottleneck.

    Layers that cannot save as much are left out, and so are narrowings by which a block would gain
    or lose its expansion layer (`BlockSpec`) or its shortcut: the weights would no longer compute
    nearly the same. A block without an expansion layer stays as wide as its input.

    Args:
      spec: The network to narrow.
      cost: The cost of a network: `arch.cost.madds`, or a latency model's milliseconds.
      cut: The least that a proposal saves, above zero, in the unit of `cost`.
      divisor: All new channel counts are multiples of it.

    Raises:
      ValueError: `cut` is not above zero.
    """
    if not cut > 0:
        raise ValueError(f"cut: got {cut!r}, expected a number above zero")
    full_cost = cost(spec)
    narrowings: list[tuple[str, int, Callable[[int], NetSpec]]] = [
        (f"block{i} expansion", block.expansion, functools.partial(_expansion, spec, i))
        for i, block in enumerate(spec.blocks, start=1)
        if _expands(spec)[i - 1]
    ]
    narrowings += [
        (_name(group), _widths(spec)[group[0]], functools.partial(_bottleneck, spec, group))
        for group in bottlenecks(spec)
    ]
    result = []
    for name, width, narrowed in narrowings:
        for new in range((width - 1) // divisor * divisor, 0, -divisor):
            candidate = narrowed(new)
            saved = full_cost - cost(candidate)
            same_layers = _expands(candidate) == _expands(spec)
            if saved >= cut and same_layers and bottlenecks(candidate) == bottlenecks(spec):
                result.append(Proposal(f"{name} {width} -> {new}", candidate, saved))
                break
    return result


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


def widths(spec: NetSpec) -> dict[str, int]:
    """Returns the number of channels of each width."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(functional.shapes(spec)):
        names = _axes(spec, path, leaf.ndim)
        sizes |= {name: size for name, size in zip(names, leaf.shape, strict=True) if name}
    return sizes


def whole(spec: NetSpec) -> Kept:
    """Returns all channels of a network."""
    return {name: np.arange(size) for name, size in widths(spec).items()}


def narrow(
    spec: NetSpec, variables: Variables, kept: Kept, narrower: NetSpec, *, keep: str = "norm"
) -> Kept:
    """Returns which of the channels that are left stay in a narrower network.

    These are the channels with the largest L2 norm (NetAdapt, section 3.3) of the kernels that
    produce a channel, summed over the layers that do. Of equals, the first stays.

    Args:
      spec: The whole network.
      variables: Its variables, zero outside of `kept`.
      kept: The channels that are left.
      narrower: The narrower network, with the same layers.
      keep: "norm", or "first" for the first channels.

    Raises:
      ValueError: The narrower network has other layers, or is wider somewhere.
    """
    choose("keep", keep, KEEP)
    sizes = widths(narrower)
    if sizes.keys() != kept.keys():
        raise ValueError(f"{narrower.name} has other layers than {spec.name}")
    norms, result = _norms(spec, variables), {}
    for name, channels in kept.items():
        count = sizes[name]
        if count > len(channels):
            raise ValueError(f"{name}: got {count} channels, of which {len(channels)} are left")
        order = np.arange(len(channels))
        if keep == "norm":
            order = np.argsort(-norms[name][channels], kind="stable")
        result[name] = np.sort(channels[order[:count]])
    return result


def mask(spec: NetSpec, kept: Kept) -> Variables:
    """Returns float32 arrays like the variables: 1 for what belongs to kept channels, else 0."""

    def of_leaf(path, leaf):
        ones = np.ones(leaf.shape, np.float32)
        for axis, name in enumerate(_axes(spec, path, leaf.ndim)):
            if name:
                alive = np.isin(np.arange(leaf.shape[axis]), kept[name])
                ones *= np.expand_dims(alive, [i for i in range(leaf.ndim) if i != axis])
        return ones

    return jax.tree_util.tree_map_with_path(of_leaf, functional.shapes(spec))


def truncate(spec: NetSpec, variables: Variables, narrower: NetSpec, kept: Kept) -> Variables:
    """Returns the variables of the narrower network: those of the kept channels, in NumPy arrays.

    Raises:
      ValueError: They do not fit the network.
    """

    def of_leaf(path, leaf):
        leaf = np.asarray(leaf)
        for axis, name in enumerate(_axes(spec, path, leaf.ndim)):
            if name:
                leaf = np.take(leaf, kept[name], axis)
        return leaf

    result = jax.tree_util.tree_map_with_path(of_leaf, variables)
    functional.check(narrower, result)
    return result


def _norms(spec: NetSpec, variables: Variables) -> dict[str, np.ndarray]:
    """Returns the L2 norms, float64, of the kernels that produce each channel of each width."""
    norms: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *layer, kind = (p.key for p in path)
        name = _axes(spec, [None, *path], leaf.ndim)[-1]
        # A depthwise kernel and a gate change channels that other layers produce.
        if name and kind == "kernel" and "depthwise" not in layer and layer[1:] != ["se", "expand"]:
            norm = np.sqrt(np.square(np.asarray(leaf, np.float64)).sum((0, 1, 2)))
            norms[name] = norms.get(name, 0.0) + norm
    return norms


def _axes(spec: NetSpec, path, ndim: int) -> tuple[str | None, ...]:
    """Returns the width that each axis of a variable runs over; None for axes that stay."""
    _, stage, *layer = (p and p.key for p in path)
    outputs = _outputs(spec)
    if stage in ("head", "logits"):
        return (None,) * ndim
    if stage == "stem":
        inputs, wide, out = None, outputs[0], None
    elif stage == "last":
        inputs, wide, out = outputs[-1], None, None
    else:
        number = int(stage.removeprefix("block"))
        inputs, out = outputs[number - 1 : number + 1]
        wide = f"{stage}/expansion" if spec.has_expand(number - 1) else inputs
    between = {
        "conv": (inputs, wide),
        "bn": (inputs, wide),
        "expand": (inputs, wide),
        "depthwise": (None, wide),
        "project": (wide, out),
        "se": (wide, f"{stage}/squeezed"),
    }[layer[0]]
    if layer[:2] == ["se", "expand"]:
        between = between[::-1]
    return (None, None, *between) if ndim == 4 else between[1:]


@functools.lru_cache(maxsize=64)
def _outputs(spec: NetSpec) -> list[str]:
    """Returns the width that the stem (0) and each block puts out, named after its first layer."""
    names = ["stem", *(f"block{i}" for i in range(1, len(spec.blocks) + 1))]
    for group in bottlenecks(spec):
        for i in group:
            names[i] = names[group[0]]
    return names
