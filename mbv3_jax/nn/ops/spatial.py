"""Dense convolutions: the stem, and the 1x1 convolutions that do most of the arithmetic."""

import jax
import jax.numpy as jnp

from mbv3_jax.nn.ops.padding import pad_amounts


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: str) -> jax.Array:
    """Dense convolution.

    Args:
      x: [N, H, W, Cin].
      kernel: [k, k, Cin, Cout], cast to the type of `x`.
      stride: the same in both directions.
      padding: "same" or "symmetric", see `padding.pad_amounts`.

    Returns:
      [N, H', W', Cout] in the type of `x`.

    Raises:
      ValueError: shapes or `padding` do not fit.
    """
    if kernel.ndim != 4 or x.ndim != 4 or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            f"conv: got x {x.shape} and kernel {kernel.shape}, expected "
            "[N, H, W, Cin] and [k, k, Cin, Cout]"
        )
    pads = [
        pad_amounts(size, kernel=k, stride=stride, dilation=1, padding=padding)
        for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    ]
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def pointwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """1x1 convolution, as a matrix product over all pixels.

    Args:
      x: [N, H, W, Cin].
      kernel: [1, 1, Cin, Cout], cast to the type of `x`.
      bias: [Cout] or None.

    Returns:
      [N, H, W, Cout] in the type of `x`; sums are float32 inside.

    Raises:
      ValueError: the shapes do not fit.
    """
    if kernel.ndim != 4 or kernel.shape[:2] != (1, 1) or kernel.shape[2] != x.shape[-1]:
        raise ValueError(
            f"pointwise_conv: got x {x.shape} and kernel {kernel.shape}, expected "
            "[N, H, W, Cin] and [1, 1, Cin, Cout]"
        )
    y = jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0].astype(x.dtype))
    return y if bias is None else y + bias.astype(y.dtype)
