"""Convolutions and BatchNorm as pure functions of arrays, fast on CPU, sound everywhere.

All images are [batch, height, width, channels], all kernels [height, width, in, out].
"""

from mbv3_jax.nn.ops.batch_norm import batch_norm_affine, batch_norm_infer, batch_norm_train
from mbv3_jax.nn.ops.depthwise import DEPTHWISE_IMPLS, depthwise_conv
from mbv3_jax.nn.ops.geometry import PADDINGS
from mbv3_jax.nn.ops.spatial import conv, pointwise_conv

__all__ = [
    "DEPTHWISE_IMPLS",
    "PADDINGS",
    "batch_norm_affine",
    "batch_norm_infer",
    "batch_norm_train",
    "conv",
    "depthwise_conv",
    "pointwise_conv",
]
