"""Random values for the tensors of a peer."""

import numpy as np


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
