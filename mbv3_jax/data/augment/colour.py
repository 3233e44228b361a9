"""Operations on grey levels as tables of 256 entries, equal to Pillow's ImageOps and ImageEnhance,
and the colour jitter of torchvision.

Tables are int32 [batch, channels, 256], one per channel of each image, and `look_up` applies them.
A batch in which every image gets another operation therefore costs one pass over its pixels, not
one pass per operation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LEVELS = 256


def luma(images: jax.Array) -> jax.Array:
    """The grey of RGB images [batch, h, w, 3], as Pillow's convert("L"): int32 [batch, h, w, 1].

    Grey images [batch, h, w, 1] are returned as they are.
    """
    if images.shape[-1] == 1:
        return images.astype(jnp.int32)
    red, green, blue = jnp.split(images.astype(jnp.int32), 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # ITU-R 601-2


def blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """other + factor * (image - other), truncated to whole grey levels from 0 to 255, as uint8.

    As Pillow's ImageEnhance: a `factor` of 0 gives `other`, 1 gives `image`, and a larger one
    extrapolates.
    """
    other = other.astype(jnp.float32)
    mixed = other + factor * (image.astype(jnp.float32) - other)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def histogram(images: jax.Array) -> jax.Array:
    """Counts of the grey levels of uint8 [batch, h, w, channels]: int32 [batch, channels, 256]."""

    def by_adding(images: jax.Array) -> jax.Array:
        count, _, _, channels = images.shape
        bins = images.astype(jnp.int32) + LEVELS * jnp.arange(channels)
        counts = jax.vmap(lambda row: jnp.bincount(row, length=LEVELS * channels))
        return counts(bins.reshape(count, -1)).reshape(count, channels, LEVELS)

    # TPUs scatter one element at a time; comparing all pixels with all levels is faster there.
    return jax.lax.platform_dependent(images, tpu=histogram_by_comparing, default=by_adding)


def histogram_by_comparing(images: jax.Array) -> jax.Array:
    """`histogram` without a scatter."""
    levels = jnp.arange(LEVELS, dtype=jnp.uint8)
    return jnp.sum(images[..., None] == levels, axis=(1, 2), dtype=jnp.int32)


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Replaces each pixel by its entry in its channel's table: uint8 [batch, h, w, channels]."""
    tables = tables.astype(jnp.uint8)

    def by_gathering(images: jax.Array, tables: jax.Array) -> jax.Array:
        def one(image: jax.Array, table: jax.Array) -> jax.Array:
            return table[jnp.arange(image.shape[-1]), image.astype(jnp.int32)]

        return jax.vmap(one)(images, tables)

    return jax.lax.platform_dependent(
        images, tables, tpu=look_up_by_comparing, default=by_gathering
    )


def look_up_by_comparing(images: jax.Array, tables: jax.Array) -> jax.Array:
    """`look_up` without a gather."""
    levels = jnp.arange(LEVELS, dtype=jnp.uint8)
    entries = tables.astype(jnp.int32)[:, None, None, :, :]
    same = images[..., None] == levels
    return jnp.sum(jnp.where(same, entries, 0), axis=-1).astype(jnp.uint8)


def _ramp(count: int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(LEVELS), (count, 1, LEVELS))


def identity(count: int) -> jax.Array:
    """Tables [batch, 1, 256] that change nothing."""
    return _ramp(count)


def invert(count: int) -> jax.Array:
    """Tables [batch, 1, 256] of the negative."""
    return LEVELS - 1 - _ramp(count)


def posterize(bits: jax.Array) -> jax.Array:
    """Tables [batch, 1, 256] that keep the highest `bits` [batch] bits, 0 to 8."""
    dropped = 8 - bits.astype(jnp.int32)[:, None, None]
    return _ramp(bits.shape[0]) >> dropped << dropped


def solarize(threshold: jax.Array) -> jax.Array:
    """Tables [batch, 1, 256] that invert levels from `threshold` [batch] on."""
    ramp = _ramp(threshold.shape[0])
    return jnp.where(ramp < threshold[:, None, None], ramp, LEVELS - 1 - ramp)


def solarize_add(addition: jax.Array) -> jax.Array:
    """Tables [batch, 1, 256] that add `addition` [batch] to levels below 128."""
    ramp = _ramp(addition.shape[0])
    added = jnp.clip(ramp + addition.astype(jnp.int32)[:, None, None], 0, LEVELS - 1)
    return jnp.where(ramp < 128, added, ramp)


def brightness(factor: jax.Array) -> jax.Array:
    """Tables [batch, 1, 256] that blend with black by `factor` [batch]."""
    ramp = _ramp(factor.shape[0])
    return blend(jnp.zeros_like(ramp), ramp, factor[:, None, None])


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Tables [batch, 1, 256] that blend with the mean grey of each image by `factor` [batch]."""
    grey = luma(images)
    total = jnp.sum(grey, axis=(1, 2, 3))  # int32 holds up to 8.4 million pixels
    pixels = grey[0].size
    mean = (2 * (total % pixels) + pixels) // (2 * pixels) + total // pixels
    ramp = _ramp(images.shape[0])
    return blend(jnp.broadcast_to(mean[:, None, None], ramp.shape), ramp, factor[:, None, None])


def autocontrast(images: jax.Array) -> jax.Array:
    """Tables [batch, channels, 256] that spread each channel over 0 to 255.

    A channel with a single level stays unchanged.
    """
    low = jnp.min(images, axis=(1, 2)).astype(jnp.int32)[:, :, None]
    high = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, :, None]
    ramp = _ramp(images.shape[0])
    spread = (ramp - low) * (LEVELS - 1) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(spread, 0, LEVELS - 1), ramp)


def equalize(images: jax.Array) -> jax.Array:
    """Tables [batch, channels, 256] that make the levels of each channel about equally frequent."""
    counts = histogram(images)
    high = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, :, None]
    of_highest = jnp.take_along_axis(counts, high, axis=2)
    pixels = images.shape[1] * images.shape[2]
    step = (pixels - of_highest) // (LEVELS - 1)
    below = jnp.cumsum(counts, axis=2) - counts
    equal = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, LEVELS - 1)
    return jnp.where(step > 0, equal, _ramp(images.shape[0]))


# The colour jitter: brightness, contrast, saturation and hue, as in torchvision's ColorJitter.

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in torchvision


class Jitter(NamedTuple):
    """The colour jitter of each image.

    Attributes:
      factors: [batch, 3] of brightness, contrast and saturation.
      hue: [batch] shift of the hue, as a fraction of the colour circle.
      order: [batch, 3] the order of the three blends: 0 brightness, 1 contrast, 2 saturation.
      hue_after: [batch] how many of the blends, 0 to 3, come before the hue.
    """

    factors: jax.Array
    hue: jax.Array
    order: jax.Array
    hue_after: jax.Array


def draw(
    key: jax.Array, count: int, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Jitter:
    """Draws factors from max(0, 1 - x) to 1 + x, hues from -x to x, and the order, all uniform."""
    key_factor, key_hue, key_order, key_after = jax.random.split(key, 4)
    reach = jnp.array([brightness, contrast, saturation])
    low = jnp.maximum(0, 1 - reach)
    factors = low + jax.random.uniform(key_factor, (count, 3)) * (1 + reach - low)
    hues = jax.random.uniform(key_hue, (count,), minval=-hue, maxval=hue)
    order = jnp.argsort(jax.random.uniform(key_order, (count, 3)), axis=1)
    return Jitter(factors, hues, order, jax.random.randint(key_after, (count,), 0, 4))


def jitter(images: jax.Array, drawn: Jitter, *, with_hue: bool = True) -> jax.Array:
    """Applies the colour jitter in the order drawn for each image, without rounding in between.

    Args:
      images: [batch, height, width, 3], 0 to 255; any number of channels, if the factors of
        contrast and saturation are 1, and a single one if those of saturation are.
      drawn: see `draw`.
      with_hue: False leaves out the pass for the hue, by far the most expensive one.

    Returns:
      float32 of the same shape, 0 to 255.
    """
    images = images.astype(jnp.float32)
    kinds = jnp.arange(3)
    rounds = [drawn.order[:, i : i + 1] == kinds for i in range(3)]  # [batch, 3], one true per row
    if not with_hue:
        for chosen in rounds:
            images = _blend(images, jnp.where(chosen, drawn.factors, 1))
        return images
    for i, chosen in enumerate(rounds):
        before_hue = chosen & (i < drawn.hue_after)[:, None]
        images = _blend(images, jnp.where(before_hue, drawn.factors, 1))
    images = shift_hue(images, drawn.hue)
    for i, chosen in enumerate(rounds):
        after_hue = chosen & (i >= drawn.hue_after)[:, None]
        images = _blend(images, jnp.where(after_hue, drawn.factors, 1))
    return images


def _blend(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Blends with black, the mean grey or the grey image.

    At most one of the three `factors` [batch, 3] of an image differs from 1.
    """
    brightness, contrast, saturation = (f[:, None, None, None] for f in factors.T)
    if images.shape[-1] == len(GREY):
        grey = sum(images[..., i : i + 1] * weight for i, weight in enumerate(GREY))
    else:  # of other images than grey ones it is not used, see `jitter`
        grey = images
    mean = jnp.mean(grey, axis=(1, 2), keepdims=True)
    mixed = images * (brightness * contrast * saturation)
    mixed += (1 - contrast) * mean + (1 - saturation) * grey
    return jnp.clip(mixed, 0, 255)


def shift_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Shifts the hue of images [batch, height, width, 3]; value and chroma stay the same.

    Computed in hue, saturation and value, as in torchvision: a channel is the value minus the
    chroma times a trapezoidal function of the hue.

    Args:
      images: [batch, height, width, 3].
      turns: [batch] the shift, as a fraction of the colour circle.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = (sixths + 6 * turns[:, None, None])[..., None]
    place = sixths + jnp.array([5.0, 3.0, 1.0])
    place -= 6 * jnp.floor(place / 6)  # jnp.mod takes 4 times as long on a CPU
    drop = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return value[..., None] - chroma[..., None] * drop
