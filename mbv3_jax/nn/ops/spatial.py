"""Dense convolutions: the stem, and the 1x1 convolutions that do most of the arithmetic."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mbv3_jax.nn.ops.geometry import Geometry

# Up to this many inputs for each pixel (taps x channels), a dense convolution on CPU is faster as
# multiply-adds of shifted inputs than as XLA's convolution (9.5 ms against 26 for the stem).
_MAX_SHIFTED_INPUTS = 32


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: str) -> jax.Array:
    """Dense convolution.

    Args:
      x: [N, H, W, Cin].
      kernel: [k, k, Cin, Cout], cast to the type of `x`.
      stride: the same in both directions.
      padding: "same" or "symmetric", see `geometry.pad_amounts`.

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
    geometry = Geometry.of(x, kernel, stride, padding)
    return _conv(x, kernel.astype(x.dtype), geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, geometry):
    if kernel.shape[0] * kernel.shape[1] * kernel.shape[2] > _MAX_SHIFTED_INPUTS:
        return geometry.convolve(x, kernel)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted(x, kernel, geometry),
        default=geometry.convolve,
    )


def _conv_forward(x, kernel, geometry):
    return _conv(x, kernel, geometry), (x, kernel)


def _conv_backward(geometry, saved, g):
    return jax.vjp(geometry.convolve, *saved)[1](g)


_conv.defvjp(_conv_forward, _conv_backward)


def _shifted(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    total: Any = 0.0
    for tap, view in geometry.views(geometry.pad(x)):
        for channel in range(x.shape[3]):
            weights = kernel[(*tap, channel)].astype(jnp.float32)
            total += view[..., channel : channel + 1].astype(jnp.float32) * weights
    return total.astype(x.dtype)


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
    y = _matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0].astype(x.dtype))
    y = y.reshape(*x.shape[:-1], kernel.shape[3])
    return y if bias is None else y + bias.astype(y.dtype)


def _dot(a, b, contracting):
    dot = jax.lax.dot_general(a, b, (contracting, ((), ())), preferred_element_type=jnp.float32)
    return dot.astype(a.dtype)


@jax.custom_vjp
def _matmul(x, kernel):
    return _dot(x, kernel, ((1,), (0,)))


def _matmul_backward(saved, g):
    # Autodiff's gradient of an einsum over [N, H, W, C] makes XLA on CPU transpose `g` first.
    x, kernel = saved
    return _dot(g, kernel, ((1,), (1,))), _dot(x, g, ((0,), (0,)))


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _matmul_backward)
