"""Narrower networks as parts of the network that they come from, whose other weights are zero.

A channel whose kernels, BatchNorm scale and bias are zero is zero from end to end: every
nonlinearity maps 0 to 0, and a gate times 0 is 0. So the masked network computes exactly the
narrower one, in evaluation and in training, and one compiled program serves all of them.

A width is a number of channels that layers share: "stem" or "block4" for the output of the first
layer of a bottleneck, "block3/expansion", "block3/squeezed". Which of its channels are left, `Kept`
says.
"""

import functools

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec, choose
from mbv3_jax.nn import functional
from mbv3_jax.nn.functional import Variables
from mbv3_jax.search.netadapt.proposals import bottlenecks

Kept = dict[str, np.ndarray]  # width -> its channels that are left, rising
KEEP = ("norm", "first")


def widths(spec: NetSpec) -> dict[str, int]:
    """The number of channels of each width."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(functional.shapes(spec)):
        names = _axes(spec, path, leaf.ndim)
        found |= {name: size for name, size in zip(names, leaf.shape, strict=True) if name}
    return found


def whole(spec: NetSpec) -> Kept:
    """All channels."""
    return {name: np.arange(size) for name, size in widths(spec).items()}


def narrow(
    spec: NetSpec, variables: Variables, kept: Kept, narrower: NetSpec, *, keep: str = "norm"
) -> Kept:
    """Which of the channels that are left stay in a narrower network.

    Those of the largest L2 norm (NetAdapt, section 3.3): of the kernels that produce a channel,
    summed over the layers that do. Ties go to the first.

    Args:
      spec: the whole network.
      variables: its own, zero outside of `kept`.
      kept: what is left of it.
      narrower: the network, of the same layers.
      keep: "norm", or "first" for the first channels.

    Raises:
      ValueError: it has other layers, or is wider somewhere.
    """
    choose("keep", keep, KEEP)
    wanted = widths(narrower)
    if wanted.keys() != kept.keys():
        raise ValueError(f"{narrower.name} has other layers than {spec.name}")
    norms, found = _norms(spec, variables), {}
    for name, channels in kept.items():
        count = wanted[name]
        if count > len(channels):
            raise ValueError(f"{name}: got {count} channels, of which {len(channels)} are left")
        order = np.arange(len(channels))
        if keep == "norm":
            order = np.argsort(-norms[name][channels], kind="stable")
        found[name] = np.sort(channels[order[:count]])
    return found


def mask(spec: NetSpec, kept: Kept) -> Variables:
    """float32 of the shapes of the variables: 1 for what belongs to kept channels, else 0."""

    def of_leaf(path, leaf):
        ones = np.ones(leaf.shape, np.float32)
        for axis, name in enumerate(_axes(spec, path, leaf.ndim)):
            if name:
                alive = np.isin(np.arange(leaf.shape[axis]), kept[name])
                ones *= np.expand_dims(alive, [i for i in range(leaf.ndim) if i != axis])
        return ones

    return jax.tree_util.tree_map_with_path(of_leaf, functional.shapes(spec))


def truncate(spec: NetSpec, variables: Variables, narrower: NetSpec, kept: Kept) -> Variables:
    """The variables of the narrower network, as NumPy arrays: those of the kept channels.

    Raises:
      ValueError: they do not fit it.
    """

    def of_leaf(path, leaf):
        leaf = np.asarray(leaf)
        for axis, name in enumerate(_axes(spec, path, leaf.ndim)):
            if name:
                leaf = np.take(leaf, kept[name], axis)
        return leaf

    found = jax.tree_util.tree_map_with_path(of_leaf, variables)
    functional.check(narrower, found)
    return found


def _norms(spec: NetSpec, variables: Variables) -> dict[str, np.ndarray]:
    """L2 norms of what produces each channel of each width, float64."""
    norms = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *layer, kind = (p.key for p in path)
        name = _axes(spec, [None, *path], leaf.ndim)[-1]
        # A depthwise kernel and a gate work on channels that are there already.
        if name and kind == "kernel" and "depthwise" not in layer and layer[1:] != ["se", "expand"]:
            norm = np.sqrt(np.square(np.asarray(leaf, np.float64)).sum((0, 1, 2)))
            norms[name] = norms.get(name, 0) + norm
    return norms


def _axes(spec: NetSpec, path, ndim: int) -> tuple[str | None, ...]:
    """The width that each axis of a variable runs over; None for those that stay as they are."""
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
    """The width that the stem (0) and each block puts out, called after its first layer."""
    names = ["stem", *(f"block{i}" for i in range(1, len(spec.blocks) + 1))]
    for group in bottlenecks(spec):
        for i in group:
            names[i] = names[group[0]]
    return names
