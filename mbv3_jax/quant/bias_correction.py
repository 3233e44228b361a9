"""Bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2), from calibration images.

Rounding a kernel moves the mean of its output channels, most in depthwise layers, whose channels
sum only 9 or 25 products. The mean shift on the images, of inputs as they are in float, is taken
off the bias.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn.folded import INT8, Walk
from mbv3_jax.nn.quantized import convolve, fake_weight


class _Shifts(Walk):
    """Computes in float, and notes what rounding each kernel would add to each channel."""

    def __init__(self, spec: NetSpec, folded: dict):
        super().__init__(spec, folded, INT8)
        self.shifts = {}

    def conv(self, name, x, *, stride=1, factor=1.0, offset=0.0):
        self.current, self.factor = name, factor
        return super().conv(name, x, stride=stride, factor=factor, offset=offset)

    def convolve(self, x, kernel, stride):
        error = convolve(self.spec, x, fake_weight(kernel) - kernel, stride, "auto")
        # In units of the network, whose tensor may be a sixth of the stored one.
        self.shifts[self.current] = jnp.mean(error, axis=(0, 1, 2)) / self.factor
        return convolve(self.spec, x, kernel, stride, "auto")


def correct(spec: NetSpec, folded: dict, batches: Iterable[np.ndarray]) -> dict:
    """Takes off the biases what rounding the kernels adds to them in the mean.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batches: normalised images [N, H, W, C].

    Returns:
      Folded weights with new biases.
    """

    @jax.jit
    def shifts(folded, images):
        walk = _Shifts(spec, folded)
        walk.logits(images)
        return walk.shifts

    total, images = None, 0
    for batch in batches:
        count, found = len(batch), shifts(folded, batch)
        total = total or dict.fromkeys(found, 0.0)
        total = {name: total[name] + np.asarray(found[name]) * count for name in found}
        images += count
    corrected = jax.tree.map(np.asarray, folded)
    for name, shift in total.items():
        layer = corrected
        for part in name.split("/"):
            layer = layer[part]
        layer["bias"] = (layer["bias"] - shift / images).astype(np.float32)
    return corrected
