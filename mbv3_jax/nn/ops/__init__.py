"""Convolutions, BatchNorm and dropout as pure functions of arrays, fast on CPU.

All images are [batch, height, width, channels], all kernels [height, width, in, out].
"""

from mbv3_jax.nn.ops.batch_norm import batch_norm_affine, batch_norm_infer, batch_norm_train
from mbv3_jax.nn.ops.depthwise import DEPTHWISE_IMPLS, depthwise_conv
from mbv3_jax.nn.ops.dropout import block_key, drop_path, dropout, dropout_key
from mbv3_jax.nn.ops.spatial import conv, pointwise_conv

__all__ = [
    "DEPTHWISE_IMPLS",
    "batch_norm_affine",
    "batch_norm_infer",
    "batch_norm_train",
    "block_key",
    "conv",
    "depthwise_conv",
    "drop_path",
    "dropout",
    "dropout_key",
    "pointwise_conv",
]
