"""Our variables and the tensors of timm, torchvision and Keras: one table, read both ways.

A `Pair` is a variable, the name of the tensor that holds the same numbers elsewhere, and how its
axes lie there. Import and export both walk the same pairs.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec, choose
from mbv3_jax.interop.layer_names import NAMES
from mbv3_jax.train.errors import UsageError

# Position of their axes in our kernels [k, k, in, out].
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
# PyTorch's BatchNorm counts its batches; no network here uses the count.
BOOKKEEPING = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A variable and a tensor with the same numbers.

    ours: "params/block1/depthwise/conv/kernel".
    theirs: "blocks.0.0.conv_dw.weight"; None where they have none: it is zero there.
    shape: of ours.
    axes: of a kernel: our axes in terms of theirs.
    flat: their kernel is a matrix, of a dense layer.
    """

    ours: str
    theirs: str | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    flat: bool = False

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of their tensor."""
        if self.axes is None:
            return self.shape
        places = [self.axes.index(i) for i in range(4)]  # of their axes in our kernel
        return tuple(self.shape[p] for p in places if not (self.flat and p < 2))

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """Their tensor as our variable."""
        if self.axes is None:
            return value
        if self.flat:
            value = value.reshape([self.shape[self.axes.index(i)] for i in range(4)])
        return np.ascontiguousarray(value.transpose(self.axes))

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """Our variable as their tensor."""
        if self.axes is None:
            return value
        return np.ascontiguousarray(value.transpose(np.argsort(self.axes))).reshape(
            self.their_shape
        )


def pairs(library: str, spec: NetSpec) -> list[Pair]:
    """Every variable of `spec` once, in the order of the forward pass.

    Args:
      library: "timm", "torchvision" or "keras".
      spec: a network of that library; its name decides how the library numbers its layers.
    """
    choose("library", library, NAMES)
    kind = "keras" if library == "keras" else "torch"
    kernels = _kernels(spec)
    found = []
    for path, (name, flat) in NAMES[library](spec).items():
        if path.endswith("/bn"):
            width = kernels[path[: -len("bn")] + "conv"][3]
            for ours, theirs in _BATCH_NORM[kind].items():
                collection, leaf = ours.split("/")
                full = f"{name}{'/' if kind == 'keras' else '.'}{theirs}"
                found.append(Pair(ours=f"{collection}/{path}/{leaf}", theirs=full, shape=(width,)))
            continue
        shape, separator = kernels[path], "/" if kind == "keras" else "."
        for ours, theirs in _CONV[kind].items():
            collection, leaf = ours.split("/")
            if leaf == "bias" and path.endswith("/conv"):
                continue  # followed by BatchNorm
            is_kernel, full = leaf == "kernel", f"{name}{separator}{theirs}"
            if kind == "torch":
                axes = _OIHW
            else:
                axes = _HWOI if path.endswith("/depthwise/conv") else _HWIO
            if not is_kernel and path == "head" and spec.name == "mobilenet_v3_rw":
                full = None
            found.append(
                Pair(
                    ours=f"{collection}/{path}/{leaf}",
                    theirs=full,
                    shape=shape if is_kernel else shape[3:],
                    axes=axes if is_kernel else None,
                    flat=flat and is_kernel,
                )
            )
    return found


def _kernels(spec: NetSpec) -> dict[str, tuple[int, int, int, int]]:
    """The path of each convolution -> the shape of its kernel [k, k, in, out]."""
    found = {}
    for layer in cost.layers(spec):
        plain = layer.name in ("head", "logits") or "/se/" in layer.name
        fan_in = 1 if layer.name.endswith("/depthwise") else layer.inputs[2]
        found[layer.name if plain else f"{layer.name}/conv"] = (
            layer.kernel,
            layer.kernel,
            fan_in,
            layer.outputs[2],
        )
    return found


def problems(table: list[Pair], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Everything that keeps tensors of these shapes from being the variables of `table`."""
    wanted = {p.theirs: p for p in table if p.theirs is not None}
    found = [
        f"{name} ({p.ours}): missing, expected {p.their_shape}"
        for name, p in wanted.items()
        if name not in shapes
    ]
    found += [
        f"{name}: surplus, has {tuple(shape)}"
        for name, shape in shapes.items()
        if name not in wanted
    ]
    return found + [
        f"{name} ({p.ours}): has {tuple(shapes[name])}, expected {p.their_shape}"
        for name, p in wanted.items()
        if name in shapes and tuple(shapes[name]) != p.their_shape
    ]


def to_ours(table: list[Pair], tensors: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Their tensors as {"params", "batch_stats"}: each used once, each variable filled once.

    Raises:
      UsageError: listing every missing, surplus and misshapen tensor.
    """
    if wrong := problems(table, {name: value.shape for name, value in tensors.items()}):
        raise UsageError("the tensors do not fit:\n  " + "\n  ".join(wrong))
    variables: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for pair in table:
        *parents, leaf = pair.ours.split("/")
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        if pair.theirs is None:
            node[leaf] = np.zeros(pair.shape, np.float32)
        else:
            node[leaf] = pair.to_ours(np.asarray(tensors[pair.theirs], np.float32))
    return variables


def to_theirs(table: list[Pair], variables: Mapping[str, dict]) -> dict[str, np.ndarray]:
    """Our variables as their tensors, in the order of the pass; the inverse of `to_ours`.

    Raises:
      UsageError: a variable that they do not have is not zero.
    """
    tensors = {}
    for pair in table:
        node = variables
        for part in pair.ours.split("/"):
            node = node[part]
        value = np.asarray(node, np.float32)
        if pair.theirs is not None:
            tensors[pair.theirs] = pair.to_theirs(value)
        elif value.any():
            raise UsageError(f"{pair.ours} is not zero, and their network has nothing like it")
    return tensors
