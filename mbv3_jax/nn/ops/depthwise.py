"""Depthwise convolution and its gradients.

XLA's grouped convolution is slow on CPU (jax issue 13800), and so are its gradients on GPU
(jax issue 26266). The shifted form computes the same from k*k shifted views of the padded
input, which XLA fuses into one pass.

The convolution y = F(x, kernel) is bilinear, and so are its two gradients: by the input
X(g, kernel), by the kernel K(x, g). Each of the three has the other two as its own gradients,
so three functions with custom gradients are closed under differentiation of any order.
"""

import functools

import jax
import jax.numpy as jnp

from mbv3_jax.nn.ops.geometry import Geometry, pad_image

DEPTHWISE_IMPLS = ("auto", "grouped", "shifted")
_TERMS = 14  # see _shifted_kernel_gradient


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
      kernel: [k, k, 1, C], cast to the type of `x`.
      stride: the same in both directions.
      padding: "same" or "symmetric", see `geometry.pad_amounts`.
      dilation: distance of neighbouring taps, the same in both directions.
      impl: "grouped" is XLA's own convolution and gradients; "shifted" sums shifted inputs;
        "auto" chooses when it is lowered: "shifted" for CPU, where it is many times faster,
        "grouped" for other platforms (not measured there).

    Returns:
      [N, H', W', C] in the type of `x`.

    Raises:
      ValueError: shapes, `padding` or `impl` do not fit.
    """
    if kernel.ndim != 4 or x.ndim != 4 or kernel.shape[2:] != (1, x.shape[3]):
        raise ValueError(
            f"depthwise_conv: got x {x.shape} and kernel {kernel.shape}, expected "
            "[N, H, W, C] and [k, k, 1, C]"
        )
    if impl not in DEPTHWISE_IMPLS:
        listed = ", ".join(repr(i) for i in DEPTHWISE_IMPLS)
        raise ValueError(f"depthwise: got {impl!r}, expected one of {listed}")
    geometry = Geometry.of(x, kernel, stride, padding, dilation)
    kernel = kernel.astype(x.dtype)
    if impl == "grouped":
        return geometry.convolve(x, kernel)
    return _convolution(x, kernel, geometry, impl)


def _choose(impl, shifted, grouped, *args):
    """Runs the form that `impl` stands for; "auto" leaves the choice to the lowering."""
    if impl == "shifted":
        return shifted(*args)
    return jax.lax.platform_dependent(*args, cpu=shifted, default=grouped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, geometry, impl):
    """F: x [N, H, W, C], kernel [k, k, 1, C] -> [N, H', W', C]."""

    def shifted(x, kernel):
        total = 0.0
        for tap, view in geometry.views(geometry.pad(x)):
            total += view.astype(jnp.float32) * kernel[tap].astype(jnp.float32)
        return total.astype(x.dtype)

    return _choose(impl, shifted, geometry.convolve, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(g, kernel, geometry, impl):
    """X: g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C]."""

    def grouped(g, kernel):
        shape = jax.ShapeDtypeStruct((g.shape[0], *geometry.size, g.shape[3]), g.dtype)
        return jax.linear_transpose(lambda x: geometry.convolve(x, kernel), shape)(g)[0]

    shifted = functools.partial(_shifted_input_gradient, geometry=geometry)
    return _choose(impl, shifted, grouped, g, kernel)


def _shifted_input_gradient(g, kernel, geometry):
    """Every phase of the input (odd or even row, odd or even column, at stride 2) is a small
    convolution of `g`. The kernels of all phases are laid side by side, with zeros where a phase
    has fewer taps than another, so that the phases come out interleaved from one loop.
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
    total = 0.0
    for row, at_row in zip(rows, row_taps, strict=True):
        for column, at_column in zip(columns, column_taps, strict=True):
            top, left = row + pads[0][0], column + pads[1][0]
            view = jax.lax.slice(padded, (0, top, left, 0), (n, top + height, left + width, c))
            total += view[:, :, None, :, None].astype(jnp.float32) * jnp.stack(
                [jnp.stack([_tap(kernel, i, j) for j in at_column])[None] for i in at_row]
            )
    full = total.astype(g.dtype).reshape(n, height * s, width * s, c)
    return full[:, : geometry.size[0], : geometry.size[1]]


def _tap(kernel, i, j):
    """[C] float32; zeros where `i` or `j` is None."""
    if i is None or j is None:
        return jnp.zeros(kernel.shape[3:], jnp.float32)
    return kernel[i, j, 0].astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x, g, geometry, impl):
    """K: x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`."""

    def grouped(x, g):
        shape = jax.ShapeDtypeStruct((*geometry.kernel, 1, x.shape[3]), x.dtype)
        return jax.linear_transpose(lambda kernel: geometry.convolve(x, kernel), shape)(g)[0]

    shifted = functools.partial(_shifted_kernel_gradient, geometry=geometry)
    return _choose(impl, shifted, grouped, x, g)


def _shifted_kernel_gradient(x, g, geometry):
    """Sums over parts of each row, for all taps in one loop; then over the rest of the pixels.

    The first sum is written out term by term, so that the loop over channels is the innermost
    and LLVM vectorises it: a reduction is scalar code, 1.3 to 1.6 times as slow for 72 channels
    and more. It stops doing so somewhere between 14 and 28 terms. The taps go through a gather,
    whose index becomes a loop. They come in two halves because XLA on CPU hands a sum of
    products to a library, for which it would first write out every slice of the image; it does
    not where a concatenation is summed.
    """
    stride, dilation = geometry.stride, geometry.dilation
    n, height, width, c = g.shape
    step = -(-width // min(width, _TERMS))
    terms = -(-width // step)
    surplus = terms * step - width
    (top, left) = geometry.pads
    padded = pad_image(x, (top, (left[0], left[1] + surplus * stride)))
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
        total = 0.0
        for term in range(terms):
            start = term * step
            left = start * stride
            view = views[:, :, :, left : left + (step - 1) * stride + 1 : stride]
            part = g[:, :, None, start : start + step]
            total += view.astype(jnp.float32) * part.astype(jnp.float32)
        halves.append(total)
    per_row = jnp.concatenate(halves, axis=2)
    return jnp.sum(per_row, axis=(0, 1, 3)).reshape(*geometry.kernel, 1, c).astype(x.dtype)


_convolution.defvjp(
    lambda x, kernel, *how: (_convolution(x, kernel, *how), (x, kernel)),
    lambda geometry, impl, saved, g: (
        _input_gradient(g, saved[1], geometry, impl),
        _kernel_gradient(saved[0], g, geometry, impl),
    ),
)
_input_gradient.defvjp(
    lambda g, kernel, *how: (_input_gradient(g, kernel, *how), (g, kernel)),
    lambda geometry, impl, saved, x: (
        _convolution(x, saved[1], geometry, impl),
        _kernel_gradient(x, saved[0], geometry, impl),
    ),
)
_kernel_gradient.defvjp(
    lambda x, g, *how: (_kernel_gradient(x, g, *how), (x, g)),
    lambda geometry, impl, saved, kernel: (
        _input_gradient(saved[1], kernel, geometry, impl),
        _convolution(saved[0], kernel, geometry, impl),
    ),
)
