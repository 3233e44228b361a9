"""Depthwise convolution and its gradients.

XLA's grouped convolution is slow on CPU (jax issue 13800), and so are its gradients on GPU
(jax issue 26266). The shifted form computes the same from k*k shifted copies of the padded
input, which XLA fuses into one pass.

The convolution y = F(x, kernel) is bilinear, and so are its two gradients: by the input
X(g, kernel), by the kernel K(x, g). Each of the three has the other two as its own gradients,
so three functions with custom gradients are closed under differentiation of any order.
"""

import jax
import jax.numpy as jnp

from mbv3_jax.nn.ops.padding import pad_amounts

DEPTHWISE_IMPLS = ("auto", "grouped", "shifted")


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    padding: str,
    dilation: int = 1,
    impl: str = "auto",
) -> jax.Array:
    """Convolves every channel with its own kernel.

    Args:
      x: [N, H, W, C].
      kernel: [k, k, 1, C].
      stride: the same in both directions.
      padding: "same" or "symmetric", see `padding.pad_amounts`.
      dilation: distance of neighbouring taps, the same in both directions.
      impl: "grouped" is XLA's own convolution; "shifted" sums shifted inputs; "auto" takes the
        faster one for the platform it is lowered for.

    Returns:
      [N, H', W', C] in the type of `x`, summed in float32.

    Raises:
      ValueError: shapes, `padding` or `impl` do not fit.
    """
    if kernel.ndim != 4 or x.ndim != 4 or kernel.shape[2:] != (1, x.shape[3]):
        raise ValueError(
            f"depthwise_conv: got x {x.shape} and kernel {kernel.shape}, expected "
            "[N, H, W, C] and [k, k, 1, C]"
        )
    pads = tuple(
        pad_amounts(size, kernel=k, stride=stride, dilation=dilation, padding=padding)
        for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    kernel = kernel.astype(x.dtype)
    args = (x, kernel)
    if impl == "grouped":
        return _grouped(*args, stride, pads, dilation)
    if impl == "shifted":
        return _shifted(*args, stride, pads, dilation)
    if impl == "auto":
        return _shifted(*args, stride, pads, dilation)
    listed = ", ".join(repr(i) for i in DEPTHWISE_IMPLS)
    raise ValueError(f"depthwise: got {impl!r}, expected one of {listed}")


def _grouped(x, kernel, stride, pads, dilation):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def _taps(padded, kernel_hw, stride, dilation, out_hw):
    """Yields the tap (i, j) and the [N, *out_hw, C] view of `padded` that it multiplies."""
    for i in range(kernel_hw[0]):
        for j in range(kernel_hw[1]):
            start = (i * dilation, j * dilation)
            stop = [s + (o - 1) * stride + 1 for s, o in zip(start, out_hw, strict=True)]
            yield (
                i,
                j,
                jax.lax.slice(
                    padded,
                    (0, *start, 0),
                    (padded.shape[0], *stop, padded.shape[3]),
                    (1, stride, stride, 1),
                ),
            )


def _shifted(x, kernel, stride, pads, dilation):
    out_hw = [
        (size + sum(pad) - dilation * (k - 1) - 1) // stride + 1
        for size, pad, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)
    ]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(jnp.float32)
    total = 0.0
    for i, j, view in _taps(padded, kernel.shape[:2], stride, dilation, out_hw):
        total += view * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)
