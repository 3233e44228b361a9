"""Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

Multiplying output channel i of a layer by 1/s_i and the next layer's input channel i by s_i changes
nothing where what lies between commutes with a positive factor: ReLU does, and so does
squeeze-and-excite, whose first convolution gets s_i too. ReLU6 does not (its 6 would become
6 / s_i, one for each channel), h-swish and swish do not: these are left alone.
"""

import numpy as np

from mbv3_jax.arch.spec import NetSpec

_LIMIT = 1e4  # factors beyond it are of channels that do next to nothing


def equalize(spec: NetSpec, folded: dict) -> tuple[dict, int]:
    """Makes the kernels' channels alike in magnitude, wherever that is exact.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.

    Returns:
      The same function as folded weights (float32 rounding apart), and the number of blocks with
      something to equalise.
    """
    copied = _copy(folded)
    changed = 0
    for index, block in enumerate(spec.blocks):
        if block.act != "relu":
            continue
        changed += 1
        layers = copied[f"block{index + 1}"]
        depthwise, project = layers["depthwise"]["conv"], layers["project"]["conv"]
        # Nagel's equation (11), solved for three layers at once: all get one magnitude.
        r2 = np.max(np.abs(depthwise["kernel"]), axis=(0, 1, 2))
        readers = [project["kernel"]]
        if block.se:
            readers.append(layers["se"]["reduce"]["kernel"])
        r3 = np.max(np.abs(readers[0]), axis=(0, 1, 3))
        if spec.has_expand(index):
            expand = layers["expand"]["conv"]
            r1 = np.max(np.abs(expand["kernel"]), axis=(0, 1, 2))
            mean = np.cbrt(r1 * r2 * r3)
            first, second = _factor(r1, mean), _factor(mean, r3)  # s of each of the two gaps
            expand["kernel"] = expand["kernel"] / first
            expand["bias"] = expand["bias"] / first
            depthwise["kernel"] = depthwise["kernel"] * first / second
        else:
            second = _factor(r2, np.sqrt(r2 * r3))
            depthwise["kernel"] = depthwise["kernel"] / second
        depthwise["bias"] = depthwise["bias"] / second
        project["kernel"] = project["kernel"] * second[:, None]
        if block.se:
            reduce = layers["se"]["reduce"]
            reduce["kernel"] = reduce["kernel"] * second[:, None]
    return copied, changed


def _factor(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 1 where that is no sensible number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        s = above / below
    return np.where((s > 1 / _LIMIT) & (s < _LIMIT), s, 1).astype(np.float32)


def _copy(tree: dict) -> dict:
    return {k: _copy(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}
