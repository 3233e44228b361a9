"""The gradient by the kernel: a sum over all pixels for each tap."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mbv3_jax.nn.ops.geometry import Geometry
from mbv3_jax.nn.ops.pallas import tiles
from mbv3_jax.nn.ops.pallas.tiles import COLUMNS, ROWS

# A program stores one partial sum for each tap. It is over this many pixels a tap, so that
# partial sums are a few percent of the images' bytes, unless that leaves too few programs.
_PIXELS_A_TAP = 64
_PROGRAMS = 1024


def kernel_gradient(
    x: jax.Array, g: jax.Array, *, geometry: Geometry, interpret: bool
) -> jax.Array:
    """x [G, N, H, W, C], g [G, N, H', W', C] -> [G, k * k, C] float32."""
    groups, n, height, width, channels = g.shape
    taps = math.prod(geometry.kernel)
    block = tiles.channel_block(channels)
    blocks, across = pl.cdiv(channels, block), pl.cdiv(width, COLUMNS)
    tiles_an_image = pl.cdiv(height, ROWS) * across
    most = pl.cdiv(_PIXELS_A_TAP * taps, ROWS * COLUMNS)
    steps = max(1, min(most, n * tiles_an_image * blocks * groups // _PROGRAMS))
    parts = pl.cdiv(n * tiles_an_image, steps)
    body = functools.partial(
        _kernel_gradient_kernel,
        axes=[tiles.forward_axis(geometry, axis) for axis in (0, 1)],
        shapes=((*geometry.size, channels), (height, width, channels)),
        block=block,
        across=across,
        tiles_an_image=tiles_an_image,
        images=n,
        steps=steps,
        kernel_width=geometry.kernel[1],
    )
    partial = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((groups, parts, taps, channels), jnp.float32),
        grid=(blocks, parts, groups),
        # A thread has a sum for each tap and value: fewer values where taps are many.
        compiler_params=tiles.compiler_params(block, values_a_thread=max(1, 64 // taps)),
        interpret=interpret,
        name="depthwise_kernel_gradient",
    )(x.reshape(-1, x.shape[3] * channels), g.reshape(-1, width * channels))
    return jnp.sum(partial, axis=1)


def _kernel_gradient_kernel(
    x_ref,
    g_ref,
    partial_ref,
    *,
    axes,
    shapes,
    block,
    across,
    tiles_an_image,
    images,
    steps,
    kernel_width,
):
    x, g = tiles.Memory(x_ref, *shapes[0]), tiles.Memory(g_ref, *shapes[1])
    rows, columns = axes
    part, group = pl.program_id(1), pl.program_id(2)
    channel = pl.program_id(0) * block + lax.iota(jnp.int32, block)
    taps = [(i, j) for _, _, i in rows.taps for _, _, j in columns.taps]

    def add_tile(step, totals):
        tile = part * steps + step
        image, tile = lax.div(tile, tiles_an_image), lax.rem(tile, tiles_an_image)
        # The last program may have steps left for which there is no image.
        present = image < images
        image = image + group * images
        top = lax.div(tile, across) * ROWS
        column = lax.rem(tile, across) * COLUMNS + lax.iota(jnp.int32, COLUMNS)
        places = g.places(column, channel, present)
        cotangents = [g.load(image, top + r, places) for r in range(ROWS)]
        totals = dict(zip(taps, totals, strict=True))
        for offset, _, j in columns.taps:
            places = x.places(column * columns.read + offset, channel, present)
            for position, at_position in tiles.users(rows, ROWS):
                value = x.load(image, top * rows.read + position, places)
                for r, _, i in at_position:
                    totals[i, j] += value * cotangents[r]
        return tuple(totals.values())

    zeros = jnp.zeros((COLUMNS, block), jnp.float32)
    totals = lax.fori_loop(0, steps, add_tile, (zeros,) * len(taps))
    for (i, j), total in zip(taps, totals, strict=True):
        triton.store(
            partial_ref.at[group, part, i * kernel_width + j, channel],
            jnp.sum(total, axis=0),
            mask=channel < x.channels,
        )
