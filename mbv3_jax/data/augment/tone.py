"""Changes of grey levels, each a table of 256 entries: equal to Pillow's ImageOps, ImageEnhance.

A table is int32 [N, C, 256], one a channel of each image; `look_up` applies it. So that a batch
in which every image gets another operation costs one pass over its pixels, not one an operation.
"""

import jax
import jax.numpy as jnp

LEVELS = 256


def luma(images):
    """int32 [N, H, W, 1]: the grey of RGB images [N, H, W, 3], as Pillow's convert("L")."""
    red, green, blue = jnp.split(images.astype(jnp.int32), 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # ITU-R 601-2


def blend(other, image, factor):
    """other + factor * (image - other), cut to whole grey levels within 0 to 255, as uint8.

    Pillow's ImageEnhance: `factor` 0 gives `other`, 1 gives `image`, above 1 what lies beyond.
    """
    other = other.astype(jnp.float32)
    mixed = other + factor * (image.astype(jnp.float32) - other)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def histogram(images):
    """Counts of grey levels: int32 [N, C, 256] of uint8 [N, H, W, C]."""

    def by_adding(images):
        count, _, _, channels = images.shape
        bins = images.astype(jnp.int32) + LEVELS * jnp.arange(channels)
        counts = jax.vmap(lambda row: jnp.bincount(row, length=LEVELS * channels))
        return counts(bins.reshape(count, -1)).reshape(count, channels, LEVELS)

    # TPUs scatter one element at a time; comparing all pixels with all levels is quick there.
    return jax.lax.platform_dependent(images, tpu=histogram_by_comparing, default=by_adding)


def histogram_by_comparing(images):
    """`histogram` without a scatter."""
    levels = jnp.arange(LEVELS, dtype=jnp.uint8)
    return jnp.sum(images[..., None] == levels, axis=(1, 2), dtype=jnp.int32)


def look_up(images, tables):
    """uint8 [N, H, W, C]: the entry of its channel's table for each pixel."""
    tables = tables.astype(jnp.uint8)

    def by_gathering(images, tables):
        def one(image, table):
            return table[jnp.arange(image.shape[-1]), image.astype(jnp.int32)]

        return jax.vmap(one)(images, tables)

    return jax.lax.platform_dependent(
        images, tables, tpu=look_up_by_comparing, default=by_gathering
    )


def look_up_by_comparing(images, tables):
    """`look_up` without a gather."""
    levels = jnp.arange(LEVELS, dtype=jnp.uint8)
    entries = tables.astype(jnp.int32)[:, None, None, :, :]
    same = images[..., None] == levels
    return jnp.sum(jnp.where(same, entries, 0), axis=-1).astype(jnp.uint8)


def _ramp(count: int):
    return jnp.broadcast_to(jnp.arange(LEVELS), (count, 1, LEVELS))


def identity(count: int):
    """Tables [N, 1, 256] that change nothing."""
    return _ramp(count)


def invert(count: int):
    """Tables [N, 1, 256] of the negative."""
    return LEVELS - 1 - _ramp(count)


def posterize(bits):
    """Tables [N, 1, 256] that keep the `bits` [N] highest bits, 0 to 8."""
    dropped = 8 - bits.astype(jnp.int32)[:, None, None]
    return _ramp(bits.shape[0]) >> dropped << dropped


def solarize(threshold):
    """Tables [N, 1, 256] that invert what is not below `threshold` [N]."""
    ramp = _ramp(threshold.shape[0])
    return jnp.where(ramp < threshold[:, None, None], ramp, LEVELS - 1 - ramp)


def solarize_add(addition):
    """Tables [N, 1, 256] that add `addition` [N] to what is below 128."""
    ramp = _ramp(addition.shape[0])
    added = jnp.clip(ramp + addition.astype(jnp.int32)[:, None, None], 0, LEVELS - 1)
    return jnp.where(ramp < 128, added, ramp)


def brightness(factor):
    """Tables [N, 1, 256] of a blend with black by `factor` [N]."""
    ramp = _ramp(factor.shape[0])
    return blend(jnp.zeros_like(ramp), ramp, factor[:, None, None])


def contrast(images, factor):
    """Tables [N, 1, 256] of a blend with the mean grey of each RGB image by `factor` [N]."""
    grey = luma(images)
    total = jnp.sum(grey, axis=(1, 2, 3))  # whole: up to 8.4 million pixels fit
    pixels = grey[0].size
    mean = (2 * (total % pixels) + pixels) // (2 * pixels) + total // pixels
    ramp = _ramp(images.shape[0])
    return blend(jnp.broadcast_to(mean[:, None, None], ramp.shape), ramp, factor[:, None, None])


def autocontrast(images):
    """Tables [N, C, 256] that spread each channel over 0 to 255; a channel of one level stays."""
    low = jnp.min(images, axis=(1, 2)).astype(jnp.int32)[:, :, None]
    high = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, :, None]
    ramp = _ramp(images.shape[0])
    spread = (ramp - low) * (LEVELS - 1) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(spread, 0, LEVELS - 1), ramp)


def equalize(images):
    """Tables [N, C, 256] that make each channel's levels about equally frequent."""
    counts = histogram(images)
    high = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, :, None]
    of_highest = jnp.take_along_axis(counts, high, axis=2)
    pixels = images.shape[1] * images.shape[2]
    step = (pixels - of_highest) // (LEVELS - 1)
    below = jnp.cumsum(counts, axis=2) - counts
    equal = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, LEVELS - 1)
    return jnp.where(step > 0, equal, _ramp(images.shape[0]))
