"""The convolution and the gradient by its input, which are one kind of sum."""

import functools
from collections import defaultdict
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mbv3_jax.nn.ops.geometry import Geometry
from mbv3_jax.nn.ops.pallas import tiles
from mbv3_jax.nn.ops.pallas.tiles import COLUMNS, ROWS


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    *affine: jax.Array,
    geometry: Geometry,
    interpret: bool,
    act: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """x [G, N, H, W, C], kernel [G, k * k, C] -> [G, N, H', W', C] in the type of `x`.

    Args:
      x: its leading dimension is of groups, each with a kernel of its own.
      kernel: cast to float32 inside.
      affine: nothing, or scale and bias [G, C] float32 that the sums are put through.
      geometry: of one image.
      interpret: has XLA evaluate the kernel, on any platform; slow.
      act: elementwise, applied to the float32 result.
    """
    axes = [tiles.forward_axis(geometry, axis) for axis in (0, 1)]
    return _correlate(
        x, kernel, *affine, axes=axes, geometry=geometry, interpret=interpret, act=act
    )


def input_gradient(
    g: jax.Array, kernel: jax.Array, *, geometry: Geometry, interpret: bool
) -> jax.Array:
    """g [G, N, H', W', C], kernel [G, k * k, C] -> [G, N, H, W, C] in the type of `g`."""
    axes = [tiles.backward_axis(geometry, axis) for axis in (0, 1)]
    return _correlate(g, kernel, axes=axes, geometry=geometry, interpret=interpret, act=None)


def _correlate(x, kernel, *affine, axes, geometry, interpret, act):
    groups, n, height, width, channels = x.shape
    rows, columns = axes
    # At stride 2 a tile of the input gradient has four sums a position: half the rows then.
    deep = max(1, ROWS // rows.write)
    block = tiles.channel_block(channels)
    across = pl.cdiv(columns.count, COLUMNS)
    body = functools.partial(
        _correlate_kernel,
        axes=axes,
        shapes=((height, width, channels), (rows.out, columns.out, channels)),
        deep=deep,
        block=block,
        across=across,
        images=n,
        kernel_width=geometry.kernel[1],
        act=act,
    )
    y = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((groups * n * rows.out, columns.out * channels), x.dtype),
        grid=(pl.cdiv(channels, block), pl.cdiv(rows.count, deep) * across, groups * n),
        compiler_params=tiles.compiler_params(block, values_a_thread=4),
        interpret=interpret,
        name="depthwise_correlate",
    )(x.reshape(-1, width * channels), kernel, *affine)
    return y.reshape(groups, n, rows.out, columns.out, channels)


def _correlate_kernel(
    x_ref, kernel_ref, *refs, axes, shapes, deep, block, across, images, kernel_width, act
):
    *affine, y_ref = refs
    x, y = tiles.Memory(x_ref, *shapes[0]), tiles.Memory(y_ref, *shapes[1])
    rows, columns = axes
    tile, image = pl.program_id(1), pl.program_id(2)
    group = lax.div(image, images)
    channel = pl.program_id(0) * block + lax.iota(jnp.int32, block)
    top = lax.div(tile, across) * deep
    column = lax.rem(tile, across) * COLUMNS + lax.iota(jnp.int32, COLUMNS)

    def vector(ref, *place):
        part = ref.at[group, *place, channel]
        return triton.load(part, mask=channel < x.channels, other=0).astype(jnp.float32)[None]

    sums = defaultdict(lambda: jnp.zeros((COLUMNS, block), jnp.float32))
    for offset, at_offset in tiles.by_offset(columns):
        places = x.places(column * columns.read + offset, channel)
        weights = {
            (i, j): vector(kernel_ref, i * kernel_width + j)
            for _, _, i in rows.taps
            for _, j in at_offset
        }
        for position, at_position in tiles.users(rows, deep):
            value = x.load(image, top * rows.read + position, places)
            for r, vertical, i in at_position:
                for horizontal, j in at_offset:
                    sums[r, vertical, horizontal] += value * weights[i, j]

    scale, bias = map(vector, affine) if affine else (None, None)
    for horizontal in range(columns.write):
        places = y.places(column * columns.write + horizontal, channel)
        for r in range(deep):
            for vertical in range(rows.write):
                total = sums[r, vertical, horizontal]
                total = total * scale + bias if affine else total
                total = act(total) if act else total
                y.store(image, (top + r) * rows.write + vertical, places, total)
