"""Depthwise convolution and its gradients.

XLA's grouped convolution (`geometry.py`) is slow on CPU (jax issue 13800), and its gradients are
slow on GPU (jax issue 26266). `shifted.py` has another form, which is fast on CPU; this file
chooses between the two.

The convolution y = F(x, kernel) is bilinear, and so are its two gradients: by the input
X(g, kernel), by the kernel K(x, g). Each of the three has the other two as its own gradients,
so three functions with custom gradients are closed under differentiation of any order.
"""

import functools
from collections.abc import Callable

import jax

from mbv3_jax.core.checks import choose
from mbv3_jax.nn.ops import shifted
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
        "auto" takes "shifted" when lowered for CPU, where it is many times faster, and "grouped"
        for other platforms (not measured there).

    Returns:
      [N, H', W', C] in the type of `x`.

    Raises:
      ValueError: shapes, `padding` or `impl` do not fit.
    """
    geometry, kernel = _check(x, kernel, stride, padding, dilation, impl)
    if impl == "grouped":
        return geometry.convolve(x, kernel)
    return _convolution(x, kernel, geometry, impl)


def _check(
    x: jax.Array, kernel: jax.Array, stride: int, padding: str, dilation: int, impl: str
) -> tuple[Geometry, jax.Array]:
    """The geometry, and the kernel in the type of `x`; see `depthwise_conv`."""
    if kernel.ndim != 4 or x.ndim != 4 or kernel.shape[2:] != (1, x.shape[3]):
        raise ValueError(
            f"depthwise_conv: got x {x.shape} and kernel {kernel.shape}, expected "
            "[N, H, W, C] and [k, k, 1, C]"
        )
    choose("depthwise", impl, DEPTHWISE_IMPLS)
    geometry, kernel = Geometry.of(x, kernel, stride, padding, dilation), kernel.astype(x.dtype)
    return (geometry, kernel) if impl == "grouped" else geometry.trim(kernel)


def _run(
    shifted_form: Callable,
    grouped_form: Callable,
    impl: str,
    geometry: Geometry,
    *arrays: jax.Array,
) -> jax.Array:
    """Runs the form that `impl` names; "auto" decides when it is lowered for a platform."""
    shifted_form = functools.partial(shifted_form, geometry=geometry)
    if impl == "shifted":
        return shifted_form(*arrays)
    grouped_form = functools.partial(grouped_form, geometry)
    return jax.lax.platform_dependent(*arrays, cpu=shifted_form, default=grouped_form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, geometry, impl):
    """F: x [N, H, W, C], kernel [k, k, 1, C] -> [N, H', W', C]."""
    return _run(shifted.convolution, Geometry.convolve, impl, geometry, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(g, kernel, geometry, impl):
    """X: g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C]."""
    return _run(shifted.input_gradient, Geometry.input_gradient, impl, geometry, g, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x, g, geometry, impl):
    """K: x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`."""
    return _run(shifted.kernel_gradient, Geometry.kernel_gradient, impl, geometry, x, g)


_convolution.defvjp(
    lambda x, kernel, *static: (_convolution(x, kernel, *static), (x, kernel)),
    lambda geometry, impl, saved, g: (
        _input_gradient(g, saved[1], geometry, impl),
        _kernel_gradient(saved[0], g, geometry, impl),
    ),
)
_input_gradient.defvjp(
    lambda g, kernel, *static: (_input_gradient(g, kernel, *static), (g, kernel)),
    lambda geometry, impl, saved, x: (
        _convolution(x, saved[1], geometry, impl),
        _kernel_gradient(x, saved[0], geometry, impl),
    ),
)
_kernel_gradient.defvjp(
    lambda x, g, *static: (_kernel_gradient(x, g, *static), (x, g)),
    lambda geometry, impl, saved, kernel: (
        _input_gradient(saved[1], kernel, geometry, impl),
        _convolution(saved[0], kernel, geometry, impl),
    ),
)
