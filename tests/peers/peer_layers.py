"""Between a peer's layers, listed in the order of the forward pass, and this package's variables.

A peer gives one dict a layer: {"kernel"} and maybe {"bias"} of a convolution or dense layer
(kernel HWIO as in `nn/functional.py`), or {"scale", "bias", "mean", "var"} of a BatchNorm.
"""

import numpy as np

from mbv3_jax.nn import functional

STATISTICS = ("mean", "var")


def paths(spec) -> list[str]:
    """The path of every layer with weights, in the order of the forward pass."""
    found = ["stem/conv", "stem/bn"]
    for i, block in enumerate(spec.blocks):
        name = f"block{i + 1}"
        if spec.has_expand(i):
            found += [f"{name}/expand/conv", f"{name}/expand/bn"]
        found += [f"{name}/depthwise/conv", f"{name}/depthwise/bn"]
        if block.se is not None:
            found += [f"{name}/se/reduce", f"{name}/se/expand"]
        found += [f"{name}/project/conv", f"{name}/project/bn"]
    found += ["last/conv", "last/bn"]
    return found + (["head"] if spec.head is not None else []) + ["logits"]


def to_variables(spec, layers: list[dict]) -> dict:
    """The peer's weights as variables of `spec`.

    Every layer is used exactly once and every variable is filled exactly once, with its shape;
    anything else raises ValueError with the differing paths and shapes.
    """
    tree = {"params": {}, "batch_stats": {}}
    for path, layer in zip(paths(spec), layers, strict=True):
        for name, value in layer.items():
            node = tree["batch_stats" if name in STATISTICS else "params"]
            for parent in path.split("/"):
                node = node.setdefault(parent, {})
            node[name] = np.array(value, np.float32)
    functional.check(spec, tree)
    return tree


def redraw(name: str, shape: tuple[int, ...], rng: np.random.Generator, fan_in=None) -> np.ndarray:
    """Random values for a peer's tensor; the peer's own start at zeros and ones hides errors.

    Wide enough for ReLU6 and h-swish to saturate here and there. Kernels are He-normal by
    `fan_in`: torchvision's depthwise ones start so small that the signal dies out in inference.
    """
    if name == "kernel":
        values = rng.normal(0.0, np.sqrt(2 / fan_in), shape)
    elif name in ("scale", "var"):
        values = rng.uniform(0.5, 3.0, shape)
    else:
        values = rng.normal(0.0, 0.5, shape)
    return values.astype(np.float32)
