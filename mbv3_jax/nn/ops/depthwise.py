"""Depthwise convolution and its gradients.

XLA's grouped convolution is slow on CPU (jax issue 13800), and so are its gradients on GPU
(jax issue 26266). So there are two forms of it, `grouped.py` (XLA's) and `shifted.py` (for CPU);
the choice between them is here.

The convolution y = F(x, kernel) is bilinear, and so are its two gradients: by the input
X(g, kernel), by the kernel K(x, g). Each of the three has the other two as its own gradients,
so three functions with custom gradients are closed under differentiation of any order.
"""

import functools

import jax

from mbv3_jax.nn.ops import grouped, shifted
from mbv3_jax.nn.ops.geometry import Geometry

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
    geometry, kernel = _check(x, kernel, stride, padding, dilation, impl)
    if impl == "grouped":
        return geometry.convolve(x, kernel)
    return _convolution(x, kernel, geometry, impl)


def _check(x, kernel, stride, padding, dilation, impl):
    """The geometry, and the kernel in the type of `x`; see `depthwise_conv`."""
    if kernel.ndim != 4 or x.ndim != 4 or kernel.shape[2:] != (1, x.shape[3]):
        raise ValueError(
            f"depthwise_conv: got x {x.shape} and kernel {kernel.shape}, expected "
            "[N, H, W, C] and [k, k, 1, C]"
        )
    if impl not in DEPTHWISE_IMPLS:
        listed = ", ".join(repr(i) for i in DEPTHWISE_IMPLS)
        raise ValueError(f"depthwise: got {impl!r}, expected one of {listed}")
    geometry, kernel = Geometry.of(x, kernel, stride, padding, dilation), kernel.astype(x.dtype)
    return (geometry, kernel) if impl == "grouped" else geometry.trim(kernel)


def _run(operation, impl, geometry, *arrays):
    """Runs `operation` in the form that `impl` stands for on what it is lowered for."""

    def of(form):
        return functools.partial(getattr(form, operation), geometry=geometry)

    if impl == "shifted":
        return of(shifted)(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=of(shifted), default=of(grouped))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, geometry, impl):
    """F: x [N, H, W, C], kernel [k, k, 1, C] -> [N, H', W', C]."""
    return _run("convolution", impl, geometry, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(g, kernel, geometry, impl):
    """X: g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C]."""
    return _run("input_gradient", impl, geometry, g, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x, g, geometry, impl):
    """K: x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`."""
    return _run("kernel_gradient", impl, geometry, x, g)


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
