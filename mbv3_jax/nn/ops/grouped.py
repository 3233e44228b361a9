"""XLA's grouped convolution, and its gradients as autodiff makes them."""

import jax

from mbv3_jax.nn.ops.geometry import Geometry


def convolution(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """x [N, H, W, C], kernel [k, k, 1, C] -> [N, H', W', C]."""
    return geometry.convolve(x, kernel)


def input_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C]."""
    shape = jax.ShapeDtypeStruct((g.shape[0], *geometry.size, g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda x: geometry.convolve(x, kernel), shape)(g)[0]


def kernel_gradient(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`."""
    shape = jax.ShapeDtypeStruct((*geometry.kernel, 1, x.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: geometry.convolve(x, kernel), shape)(g)[0]
