"""Where the network is in a file: the names that the library itself uses, and what is beside it.

Wrappers put their own names before those of the network: DataParallel `module.`, `torch.compile`
`_orig_mod.`, a Lightning module or a detector any attribute's; Keras nests a network that is used
as a layer. None of these are listed here: they are whatever stands before the stem, whose name each
library fixes.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from mbv3_jax.core.errors import UsageError, printable

Shapes = Mapping[str, tuple[int, ...]]

# The kernel of the stem in each library (4 axes).
STEMS = {
    "timm": ("conv_stem.weight",),
    "torchvision": ("features.0.0.weight", "layers.0.weight"),
    "keras": ("layers/conv2d/vars/0",),
}
# Wrappers of single modules: torch.compile, FSDP, activation checkpoints.
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What wrappers and profilers (thop) count beside the weights.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
_AVERAGED = re.compile(r"(^|[^a-z])(ema|swa|averaged|average)([^a-z]|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
    """The names of a file's tensors, sorted by where they belong.

    inside: the library's name -> the file's name, of the tensors of the network.
    beside: the other names of the file.
    prefix: what stands before the network's names.
    """

    inside: dict[str, str]
    beside: tuple[str, ...]
    prefix: str


def is_counter(name: str) -> bool:
    """Whether a tensor counts something and is no weight."""
    return name.rpartition(".")[2] in _COUNTERS


def has_stem(shapes: Shapes) -> bool:
    """Whether tensors are those of a network that one of the libraries may have."""
    return bool(_prefixes(shapes, [s for stems in STEMS.values() for s in stems]))


def locate(library: str, shapes: Shapes) -> Located:
    """Finds the network among the tensors of a file.

    Args:
      library: "timm", "torchvision" or "keras".
      shapes: the shape of each tensor, by its name in the file.

    Returns:
      Where each belongs; all are inside, with the names that they have, if there is no stem.

    Raises:
      UsageError: there are several networks.
    """
    names = {_unwrapped(name): name for name in shapes if not is_counter(name)}
    if len(names) < sum(not is_counter(name) for name in shapes):
        names = {name: name for name in shapes if not is_counter(name)}
    by_name = {new: shapes[old] for new, old in names.items()}
    others = [stem for key in STEMS if key != library for stem in STEMS[key]]
    prefixes = _prefixes(by_name, STEMS[library])
    own = ""
    if not prefixes and library == "torchvision" and (prefixes := _features(by_name)):
        own = "features."
    # The names may be those of another library, which is then said.
    prefixes = prefixes or _prefixes(by_name, others)
    if len(prefixes) > 1:
        prefixes = [p for p in prefixes if _AVERAGED.search(p.lower())] or prefixes
    if len(prefixes) > 1:
        listed = ", ".join(printable(p.rstrip("./") or "the top level") for p in prefixes)
        raise UsageError(f"it holds several networks ({listed}); save the one to read by itself")
    prefix = prefixes[0] if prefixes else ""
    inside = {own + n.removeprefix(prefix): old for n, old in names.items() if n.startswith(prefix)}
    beside = tuple(old for n, old in names.items() if not n.startswith(prefix))
    return Located(inside=inside, beside=beside, prefix=prefix)


def summary(names: Iterable[str]) -> list[str]:
    """The layers that tensors belong to, each once, in order."""
    layers = [re.sub(r"(\.[^.]*|/vars/\d+)$", "", name) for name in names]
    return list(dict.fromkeys(printable(layer) for layer in layers))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER)


def _features(shapes: Shapes) -> list[str]:
    """What stands before `0.0.weight`, where torchvision's `model.features` was saved alone.

    Segmentation networks have it as `backbone`, an nn.Sequential by a number.
    """
    found = [
        name.removesuffix("0.0.weight")
        for name, shape in shapes.items()
        if re.search(r"(^|\.)0\.0\.weight$", name) and len(shape) == 4
    ]
    shortest = min(found, key=len, default="")
    is_stem = f"{shortest}0.1.running_mean" in shapes and f"{shortest}1.block.0.0.weight" in shapes
    is_stem = is_stem or f"{shortest}1.conv.0.0.weight" in shapes
    return [shortest] if found and is_stem else []


def _prefixes(shapes: Shapes, stems: Iterable[str]) -> list[str]:
    """What stands before a stem, for each of the networks in a file."""
    found = [
        name.removesuffix(stem)
        for name, shape in shapes.items()
        for stem in stems
        if name.endswith(stem) and len(shape) == 4
    ]
    prefixes = [p for p in dict.fromkeys(found) if not p or p[-1] in "./"]
    # Of Keras, a convolution before the network has the name of a stem.
    prefixes = [
        p
        for p in prefixes
        if f"{p}{STEMS['keras'][0]}" not in shapes or f"{p}layers/depthwise_conv2d/vars/0" in shapes
    ]
    # MNASNet's stages are named like its stem.
    stages = tuple(f"{p}layers." for p in prefixes)
    return [p for p in prefixes if not p.startswith(stages)]
