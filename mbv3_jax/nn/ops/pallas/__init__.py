"""The depthwise convolution and its two gradients as Pallas kernels, for GPUs by way of Triton.

A program of the grid owns a tile of pixels, a few rows by a few columns, for one block of
channels. It holds the tile's sums in registers and walks over the rows of input that the tile
needs: each is loaded once for every column of taps and multiplied into every row of sums that it
belongs to, so that 5x5 taps cost 10 loads a value and not 25. What lies outside of the image is
masked, so nothing is padded in memory. Sums are float32.

Tile sizes are reasoned, not measured: no GPU was at hand.

`interpret` has XLA evaluate the kernels, on any platform; it is slow. The functions below are for
[N, H, W, C]; the kernels themselves have one more dimension in front, see `partition.py`.
"""

import functools
from collections.abc import Callable

import jax

from mbv3_jax.nn.ops.geometry import Geometry
from mbv3_jax.nn.ops.pallas import correlate, pixel_sums
from mbv3_jax.nn.ops.pallas.partition import over_batch


def convolution(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, *, interpret: bool
) -> jax.Array:
    """x [N, H, W, C], kernel [k, k, 1, C] -> [N, H', W', C] in the type of `x`."""
    return _convolution(geometry, interpret)(x, _by_tap(kernel))


def convolution_affine(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    geometry: Geometry,
    *,
    act: Callable[[jax.Array], jax.Array] | None,
    interpret: bool,
) -> jax.Array:
    """act(convolution * scale + bias); `scale` and `bias` [C] float32, all of it in float32."""
    return _convolution_affine(geometry, act, interpret)(x, _by_tap(kernel), scale, bias)


def input_gradient(
    g: jax.Array, kernel: jax.Array, geometry: Geometry, *, interpret: bool
) -> jax.Array:
    """g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C] in the type of `g`."""
    return _input_gradient(geometry, interpret)(g, _by_tap(kernel))


def kernel_gradient(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, interpret: bool
) -> jax.Array:
    """x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`."""
    sums = _kernel_gradient(geometry, interpret)(x, g)
    return sums.reshape(*geometry.kernel, 1, x.shape[3]).astype(x.dtype)


def _by_tap(kernel):
    return kernel.reshape(-1, kernel.shape[3])


@functools.cache
def _convolution(geometry, interpret):
    run = functools.partial(correlate.convolution, geometry=geometry, interpret=interpret)
    return over_batch(run, ("image", "kernel"), "image")


@functools.cache
def _convolution_affine(geometry, act, interpret):
    how = {"geometry": geometry, "act": act, "interpret": interpret}
    run = functools.partial(correlate.convolution, **how)
    return over_batch(run, ("image", "kernel", "vector", "vector"), "image")


@functools.cache
def _input_gradient(geometry, interpret):
    run = functools.partial(correlate.input_gradient, geometry=geometry, interpret=interpret)
    return over_batch(run, ("image", "kernel"), "image")


@functools.cache
def _kernel_gradient(geometry, interpret):
    run = functools.partial(pixel_sums.kernel_gradient, geometry=geometry, interpret=interpret)
    return over_batch(run, ("image", "image"), "kernel")
