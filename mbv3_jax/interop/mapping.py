"""Our variables and the tensors of timm, torchvision and Keras: one table for both directions.

A function for each library gives its names of the layers of a network. From these, `pairs` makes a
table of our variables, the tensors that hold the same numbers, and how their axes are ordered;
import and export both read it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import convolutions, parameter_paths
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop.networks import STAGES, Network

Names = dict[str, tuple[str, bool]]  # our layer -> their name, and whether it is a dense layer


def _block_layers(spec: NetSpec, i: int) -> list[str]:
    """The layers of block `i` (from 0) that have weights, in order: "expand/conv", ..."""
    stage = f"block{i + 1}"
    return [path.removeprefix(f"{stage}/") for path in parameter_paths(spec, stage)]


def _assemble(spec: NetSpec, block_names, **outside) -> Names:
    """Names of a whole network from those of its blocks and of what is around them."""
    names = {"stem/conv": outside["stem"][0], "stem/bn": outside["stem"][1]}
    for i in range(len(spec.blocks)):
        theirs = block_names(i)
        names |= {f"block{i + 1}/{layer}": theirs[layer] for layer in _block_layers(spec, i)}
    names |= {"last/conv": outside["last"][0], "last/bn": outside["last"][1]}
    names |= {"head": outside["head"]} if spec.head else {}
    named = {path: (name, False) for path, name in names.items()}
    if outside.get("head_is_dense") and spec.head:
        named["head"] = (outside["head"], True)
    return {**named, "logits": (outside["logits"], outside["logits_is_dense"])}


def _timm(spec: NetSpec) -> Names:
    places = [(s, j) for s, count in enumerate(STAGES[spec.name]) for j in range(count)]

    def block(i: int) -> dict[str, str]:
        stage, number = places[i]
        inside = f"blocks.{stage}.{number}"
        layers = ["conv_dw", "bn1", "conv_pw", "bn2"]
        if spec.has_expand(i):
            layers = ["conv_dw", "bn2", "conv_pwl", "bn3"]
        ours = ("depthwise/conv", "depthwise/bn", "project/conv", "project/bn")
        names = {o: f"{inside}.{t}" for o, t in zip(ours, layers, strict=True)}
        names |= {f"se/{n}": f"{inside}.se.conv_{n}" for n in ("reduce", "expand")}
        return names | {"expand/conv": f"{inside}.conv_pw", "expand/bn": f"{inside}.bn1"}

    after = f"blocks.{len(STAGES[spec.name])}.0"
    return _assemble(
        spec,
        block,
        stem=("conv_stem", "bn1"),
        last=(f"{after}.conv", f"{after}.bn1") if spec.head else ("conv_head", "bn2"),
        head="conv_head",
        logits="classifier",
        logits_is_dense=True,
    )


def _torchvision(spec: NetSpec) -> Names:
    if spec.name.startswith("mnasnet"):
        return _torchvision_mnasnet(spec)
    end = len(spec.blocks) + 1
    is_v3 = spec.head is not None

    def block(i: int) -> dict[str, str]:
        inside = f"features.{i + 1}.{'block' if is_v3 else 'conv'}"
        names: dict[str, str] = {}
        number = 0
        for layer in ("expand", "depthwise", "se", "project"):
            if layer == "se" and spec.blocks[i].se:
                names |= {"se/reduce": f"{inside}.{number}.fc1"}
                names |= {"se/expand": f"{inside}.{number}.fc2"}
            elif layer == "project" and not is_v3:  # its BatchNorm stands beside it
                names[f"{layer}/conv"] = f"{inside}.{number}"
                names[f"{layer}/bn"] = f"{inside}.{number + 1}"
            elif layer != "se" and (layer != "expand" or spec.has_expand(i)):
                names[f"{layer}/conv"] = f"{inside}.{number}.0"
                names[f"{layer}/bn"] = f"{inside}.{number}.1"
            else:
                continue
            number += 1
        return names

    return _assemble(
        spec,
        block,
        stem=("features.0.0", "features.0.1"),
        last=(f"features.{end}.0", f"features.{end}.1"),
        head="classifier.0",
        head_is_dense=True,
        logits="classifier.3" if is_v3 else "classifier.1",
        logits_is_dense=True,
    )


def _torchvision_mnasnet(spec: NetSpec) -> Names:
    """MNASNet lists stem, first block and last 1x1 flat, nonlinearities counted."""
    stages = STAGES[spec.name]
    places = [(s, j) for s, count in enumerate(stages) for j in range(count)]

    def block(i: int) -> dict[str, str]:
        stage, number = places[i]
        numbers = (3, 4, 6, 7) if not stage else (0, 1, 3, 4, 6, 7)
        inside = "layers" if not stage else f"layers.{7 + stage}.{number}.layers"
        theirs = [f"{inside}.{n}" for n in numbers]
        return dict(zip(_block_layers(spec, i), theirs, strict=True))

    after = 7 + len(stages)
    return _assemble(
        spec,
        block,
        stem=("layers.0", "layers.1"),
        last=(f"layers.{after}", f"layers.{after + 1}"),
        head=None,
        logits="classifier.1",
        logits_is_dense=True,
    )


def _keras(spec: NetSpec) -> Names:
    """Keras 3 files number the layers of each class by themselves, in order of the pass."""
    counts: dict[str, int] = {}

    def number(kind: str) -> str:
        counts[kind] = counts.get(kind, -1) + 1
        return f"layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")

    names = {}
    for path in parameter_paths(spec):
        is_dense = path == "logits" and spec.head is None
        if path.endswith("/bn"):
            kind = "batch_normalization"
        elif path.endswith("/depthwise/conv"):
            kind = "depthwise_conv2d"
        else:
            kind = "dense" if is_dense else "conv2d"
        names[path] = (number(kind), is_dense)
    return names


NAMES = {"timm": _timm, "torchvision": _torchvision, "keras": _keras}


# Where the axes of our kernels [height, width, in, out] are in those of the libraries.
_OIHW, _HWIO, _HWOI = (2, 3, 1, 0), (0, 1, 2, 3), (0, 1, 3, 2)
_BATCH_NORM = {
    "torch": {
        "params/scale": "weight",
        "params/bias": "bias",
        "batch_stats/mean": "running_mean",
        "batch_stats/var": "running_var",
    },
    "keras": {
        "params/scale": "vars/0",
        "params/bias": "vars/1",
        "batch_stats/mean": "vars/2",
        "batch_stats/var": "vars/3",
    },
}
_CONV = {
    "torch": {"params/kernel": "weight", "params/bias": "bias"},
    "keras": {"params/kernel": "vars/0", "params/bias": "vars/1"},
}
# PyTorch's BatchNorm counts its batches; no network here uses that count.
BOOKKEEPING = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One of our variables and the library's tensor with the same numbers.

    ours: the path of our variable, such as "params/block1/depthwise/conv/kernel".
    theirs: the name of the library's tensor, such as "blocks.0.0.conv_dw.weight"; None if the
      library has no such tensor, because it is zero there, or the file has no such layer.
    shape: the shape of our variable.
    axes: for kernels, the position of each of our axes in the library's tensor.
    flat: whether the library's kernel is a matrix, as in a dense layer.
    """

    ours: str
    theirs: str | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    flat: bool = False

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of the library's tensor."""
        if self.axes is None:
            return self.shape
        places = [self.axes.index(i) for i in range(4)]  # of the library's axes in our kernel
        return tuple(self.shape[p] for p in places if not (self.flat and p < 2))

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """Converts the library's tensor to our variable."""
        if self.axes is None:
            return value
        if self.flat:
            value = value.reshape([self.shape[self.axes.index(i)] for i in range(4)])
        return np.ascontiguousarray(value.transpose(self.axes))

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """Converts our variable to the library's tensor."""
        if self.axes is None:
            return value
        return np.ascontiguousarray(value.transpose(np.argsort(self.axes))).reshape(
            self.their_shape
        )


def pairs(library: str, spec: NetSpec, names: Names | None = None) -> list[Pair]:
    """Lists every variable of a network once, in the order of the forward pass.

    Args:
      library: "timm", "torchvision" or "keras".
      spec: a network of that library; its name decides how the library numbers the layers.
      names: our layers -> theirs, of a network with another head; layers that are not among them
        have no tensors.
    """
    choose("library", library, NAMES)
    kind, separator = ("keras", "/") if library == "keras" else ("torch", ".")
    kernels = _kernels(spec)
    table = []
    names = NAMES[library](spec) if names is None else names
    for path in parameter_paths(spec):
        name, is_dense = names.get(path, (None, False))
        if path.endswith("/bn"):
            width = kernels[path[: -len("bn")] + "conv"][3]
            for ours, theirs in _BATCH_NORM[kind].items():
                collection, leaf = ours.split("/")
                table.append(
                    Pair(
                        ours=f"{collection}/{path}/{leaf}",
                        theirs=name and f"{name}{separator}{theirs}",
                        shape=(width,),
                    )
                )
            continue
        shape = kernels[path]
        for ours, theirs in _CONV[kind].items():
            collection, leaf = ours.split("/")
            if leaf == "bias" and path.endswith("/conv"):
                continue  # a BatchNorm follows
            if kind == "torch":
                axes = _OIHW
            else:
                axes = _HWOI if path.endswith("/depthwise/conv") else _HWIO
            is_kernel = leaf == "kernel"
            lacks_bias = path == "head" and spec.name == "mobilenet_v3_rw"
            has_tensor = name is not None and (is_kernel or not lacks_bias)
            table.append(
                Pair(
                    ours=f"{collection}/{path}/{leaf}",
                    theirs=f"{name}{separator}{theirs}" if has_tensor else None,
                    shape=shape if is_kernel else shape[3:],
                    axes=axes if is_kernel else None,
                    flat=is_dense and is_kernel,
                )
            )
    return table


def pairs_of(network: Network, spec: NetSpec) -> list[Pair]:
    """`pairs` of a library's network with the classes and the channels of `spec`."""
    changed = network.spec.replace(num_classes=spec.num_classes, in_channels=spec.in_channels)
    return pairs(network.library, changed)


def _kernels(spec: NetSpec) -> dict[str, tuple[int, int, int, int]]:
    """The path of each convolution -> the shape of its kernel [k, k, in, out]."""
    return {conv.path: conv.kernel_shape for conv in convolutions(spec)}


def problems(table: list[Pair], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Lists every missing, surplus and misshapen tensor; empty if the tensors fit the table.

    Args:
      table: see `pairs`.
      shapes: the shape of each tensor, by name.
    """
    expected = {p.theirs: p for p in table if p.theirs is not None}
    missing = [
        f"{name} ({p.ours}): missing, expected {p.their_shape}"
        for name, p in expected.items()
        if name not in shapes
    ]
    surplus = [
        f"{name}: surplus, has {tuple(shape)}"
        for name, shape in shapes.items()
        if name not in expected
    ]
    misshapen = [
        f"{name} ({p.ours}): has {tuple(shapes[name])}, expected {p.their_shape}"
        for name, p in expected.items()
        if name in shapes and tuple(shapes[name]) != p.their_shape
    ]
    return missing + surplus + misshapen


def to_ours(table: list[Pair], tensors: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Converts a library's tensors to our variables; each is used once, and each is filled once.

    Variables without a tensor are zero, but for the last 1x1, through which a network can be
    trained: its kernel is drawn as `nn.functional.init` draws it, its BatchNorm changes nothing.

    Returns:
      {"params", "batch_stats"}, float32.

    Raises:
      UsageError: the tensors do not fit; the message lists every problem.
    """
    if listed := problems(table, {name: value.shape for name, value in tensors.items()}):
        raise UsageError("the tensors do not fit:\n  " + "\n  ".join(listed))
    variables: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for pair in table:
        *parents, leaf = pair.ours.split("/")
        node: dict[str, Any] = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        if pair.theirs is None:
            node[leaf] = _new_value(pair)
        else:
            node[leaf] = pair.to_ours(np.asarray(tensors[pair.theirs], np.float32))
    return variables


def _new_value(pair: Pair) -> np.ndarray:
    *_, layer, leaf = pair.ours.split("/")
    if layer == "conv":
        deviation = math.sqrt(2 / pair.shape[3])
        return np.random.default_rng(0).normal(0, deviation, pair.shape).astype(np.float32)
    return np.full(pair.shape, 1 if leaf in ("scale", "var") else 0, np.float32)


def to_theirs(table: list[Pair], variables: Mapping[str, dict]) -> dict[str, np.ndarray]:
    """Converts our variables to a library's tensors; the inverse of `to_ours`.

    Returns:
      The tensors by name, float32, in the order of the forward pass.

    Raises:
      UsageError: a variable that the library does not have is not zero.
    """
    tensors = {}
    for pair in table:
        node: Any = variables
        for part in pair.ours.split("/"):
            node = node[part]
        value = np.asarray(node, np.float32)
        if pair.theirs is not None:
            tensors[pair.theirs] = pair.to_theirs(value)
        elif value.any():
            raise UsageError(f"{pair.ours} is not zero, and the library's network has no such bias")
    return tensors
