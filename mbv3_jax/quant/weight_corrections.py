"""Changes to folded weights before they are rounded: equalisation and bias correction.

Both are from Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721), sections 4.1 and 4.2.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import Convolution, lookup
from mbv3_jax.nn.fake_quant import FastForward, fake_weight
from mbv3_jax.nn.folded import INT8, Tensor

_LIMIT = 1e4  # channels with larger factors contribute next to nothing


def equalize(spec: NetSpec, folded: dict) -> tuple[dict, int]:
    """Makes the channels of the blocks' kernels similar in magnitude, wherever that is exact.

    Multiplying output channel i of a layer by 1 / s_i and input channel i of the next layer by s_i
    changes nothing if what lies between commutes with a positive factor. A homogeneous activation
    such as ReLU does, and so does squeeze-and-excite, whose first convolution is multiplied by s_i
    too. Blocks with another activation are left as they are: ReLU6 would clip at 6 / s_i.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.

    Returns:
      Folded weights of the same function (up to float32 rounding), and the number of blocks that
      were equalised.
    """
    copied = _copy(folded)
    equalized = 0
    for index, block in enumerate(spec.blocks):
        if not ACTIVATIONS[block.act].homogeneous:
            continue
        equalized += 1
        layers = copied[f"block{index + 1}"]
        depthwise, project = layers["depthwise"]["conv"], layers["project"]["conv"]
        # Equation (11) of the paper, solved for three layers at once: all get the same magnitude.
        r2 = np.max(np.abs(depthwise["kernel"]), axis=(0, 1, 2))
        r3 = np.max(np.abs(project["kernel"]), axis=(0, 1, 3))
        if spec.has_expand(index):
            expand = layers["expand"]["conv"]
            r1 = np.max(np.abs(expand["kernel"]), axis=(0, 1, 2))
            mean = np.cbrt(r1 * r2 * r3)
            first, second = _factor(r1, mean), _factor(mean, r3)  # s between each two layers
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
    return copied, equalized


def _factor(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, or 1 if that is not a usable number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        s = above / below
    return np.where((s > 1 / _LIMIT) & (s < _LIMIT), s, 1).astype(np.float32)


def _copy(tree: dict) -> dict:
    return {k: _copy(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}


class _ShiftForward(FastForward):
    """Computes in float, and records by how much rounding each kernel shifts each channel."""

    def __init__(self, spec: NetSpec, folded: dict):
        super().__init__(spec, folded, INT8)
        self.shifts: dict[str, jax.Array] = {}

    def conv(
        self, op: Convolution, x: Tensor, *, factor: float = 1.0, offset: float = 0.0
    ) -> jax.Array:
        self.current, self.factor = op.path, factor
        return super().conv(op, x, factor=factor, offset=offset)

    def convolve(self, x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        error = super().convolve(x, fake_weight(kernel) - kernel, stride)
        # In units of the network; the stored tensor may be 6 times as large.
        self.shifts[self.current] = jnp.mean(error, axis=(0, 1, 2)) / self.factor
        return super().convolve(x, kernel, stride)


def correct_bias(spec: NetSpec, folded: dict, batches: Iterable[np.ndarray]) -> dict:
    """Subtracts from the biases what rounding the kernels adds to the outputs on average.

    Rounding a kernel shifts the mean of its output channels, most of all in depthwise layers, whose
    channels sum only 9 or 25 products. The shift is measured on images, with the inputs of each
    layer as they are in float.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batches: normalised images [N, H, W, C]; at least one.

    Returns:
      Folded weights with new biases.
    """

    @jax.jit
    def shifts(folded, images):
        forward = _ShiftForward(spec, folded)
        forward.logits(images)
        return forward.shifts

    totals: dict[str, np.ndarray] = {}
    images = 0
    for batch in batches:
        for path, shift in shifts(folded, batch).items():
            totals[path] = totals.get(path, 0.0) + np.asarray(shift) * len(batch)
        images += len(batch)
    corrected = jax.tree.map(np.asarray, folded)
    for path, total in totals.items():
        layer = lookup(corrected, path)
        layer["bias"] = (layer["bias"] - total / images).astype(np.float32)
    return corrected
