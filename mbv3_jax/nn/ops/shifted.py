"""The shifted form of the depthwise convolution and its gradients, which is fast on CPU.

Every tap multiplies a shifted view of the padded input; XLA fuses all taps into one pass.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mbv3_jax.nn.ops.geometry import Geometry, pad_image

_TERMS = 14  # see kernel_gradient


def convolution(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """x [N, H, W, C], kernel [k, k, 1, C] -> [N, H', W', C]."""
    total: Any = 0.0
    for tap, view in geometry.views(geometry.pad(x)):
        total += view.astype(jnp.float32) * kernel[tap].astype(jnp.float32)
    return total.astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C].

    Every phase of the input (odd or even row, odd or even column, at stride 2) is a small
    convolution of `g`. The kernels of all phases lie side by side, with zeros where a phase has
    fewer taps than another, so that one loop writes the phases interleaved.
    """
    (rows, row_taps), (columns, column_taps) = geometry.phases(0), geometry.phases(1)
    n, c, s = g.shape[0], g.shape[3], geometry.stride
    height, width = (-(-size // s) for size in geometry.size)
    pads = [
        (max(0, -min(offsets)), max(0, quotient + max(offsets) - size))
        for offsets, quotient, size in zip(
            (rows, columns), (height, width), g.shape[1:3], strict=True
        )
    ]
    padded = pad_image(g, pads)
    total: Any = 0.0
    for row, at_row in zip(rows, row_taps, strict=True):
        for column, at_column in zip(columns, column_taps, strict=True):
            top, left = row + pads[0][0], column + pads[1][0]
            view = jax.lax.slice(padded, (0, top, left, 0), (n, top + height, left + width, c))
            total += view[:, :, None, :, None].astype(jnp.float32) * jnp.stack(
                [jnp.stack([_tap(kernel, i, j) for j in at_column])[None] for i in at_row]
            )
    full = total.astype(g.dtype).reshape(n, height * s, width * s, c)
    return full[:, : geometry.size[0], : geometry.size[1]]


def _tap(kernel: jax.Array, i: int | None, j: int | None) -> jax.Array:
    """[C] float32; zeros where `i` or `j` is None."""
    if i is None or j is None:
        return jnp.zeros(kernel.shape[3:], jnp.float32)
    return kernel[i, j, 0].astype(jnp.float32)


def kernel_gradient(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`.

    It first sums over parts of each row, for all taps in one loop, then over the other pixels.

    The first sum is written out term by term, so that the loop over channels is the innermost
    and LLVM vectorises it: a reduction is scalar code, 1.3 to 1.6 times as slow for 72 channels
    and more. LLVM stops vectorising somewhere between 14 and 28 terms. The taps are read by a
    gather, whose index becomes a loop. They are processed in two halves because XLA on CPU hands a
    sum of products to a library, for which it would first write out every slice of the image; it
    does not do so when it sums a concatenation.
    """
    stride, dilation = geometry.stride, geometry.dilation
    n, height, width, c = g.shape
    step = -(-width // min(width, _TERMS))
    terms = -(-width // step)
    surplus = terms * step - width
    rows, (before, after) = geometry.pads
    padded = pad_image(x, (rows, (before, after + surplus * stride)))
    g = pad_image(g, ((0, 0), (0, surplus)))
    window = (n, (height - 1) * stride + 1, (width + surplus - 1) * stride + 1, c)
    # [N, H, taps, W, C], of which only the loop below ever sees a part
    dimensions = jax.lax.GatherDimensionNumbers(
        offset_dims=(0, 1, 3, 4), collapsed_slice_dims=(), start_index_map=(1, 2)
    )
    taps = [
        (i * dilation, j * dilation)
        for i in range(geometry.kernel[0])
        for j in range(geometry.kernel[1])
    ]
    halves = []
    for half in filter(None, (taps[: len(taps) // 2], taps[len(taps) // 2 :])):
        views = jax.lax.gather(
            padded, jnp.asarray(half), dimensions, window, mode="promise_in_bounds"
        )[:, ::stride]
        total: Any = 0.0
        for term in range(terms):
            start = term * step
            left = start * stride
            view = views[:, :, :, left : left + (step - 1) * stride + 1 : stride]
            part = g[:, :, None, start : start + step]
            total += view.astype(jnp.float32) * part.astype(jnp.float32)
        halves.append(total)
    per_row = jnp.concatenate(halves, axis=2)
    return jnp.sum(per_row, axis=(0, 1, 3)).reshape(*geometry.kernel, 1, c).astype(x.dtype)
