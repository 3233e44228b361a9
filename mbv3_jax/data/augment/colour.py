"""Colour jitter: brightness, contrast, saturation and hue, as torchvision's ColorJitter."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in torchvision


class Jitter(NamedTuple):
    """What each image gets. `order[n]` lists the three blends: 0 brightness, 1 contrast, 2

    saturation; `hue_after[n]` of them, 0 to 3, come before the hue.
    """

    factors: jax.Array  # [N, 3]
    hue: jax.Array  # [N], turns of the colour circle
    order: jax.Array  # [N, 3]
    hue_after: jax.Array  # [N]


def draw(
    key, count: int, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Jitter:
    """Draws factors from max(0, 1 - x) to 1 + x, hues from -x to x, and the order, all uniform."""
    key_factor, key_hue, key_order, key_after = jax.random.split(key, 4)
    reach = jnp.array([brightness, contrast, saturation])
    low = jnp.maximum(0, 1 - reach)
    factors = low + jax.random.uniform(key_factor, (count, 3)) * (1 + reach - low)
    hues = jax.random.uniform(key_hue, (count,), minval=-hue, maxval=hue)
    order = jnp.argsort(jax.random.uniform(key_order, (count, 3)), axis=1)
    return Jitter(factors, hues, order, jax.random.randint(key_after, (count,), 0, 4))


def jitter(images, drawn: Jitter, *, with_hue: bool = True):
    """Applies the four in the order drawn for each image; nothing is rounded between.

    Args:
      images: [N, H, W, 3], 0 to 255.
      drawn: see `draw`.
      with_hue: False leaves out the pass for the hue, by far the dearest.

    Returns:
      float32 [N, H, W, 3], 0 to 255.
    """
    images = images.astype(jnp.float32)
    kinds = jnp.arange(3)
    rounds = [drawn.order[:, i : i + 1] == kinds for i in range(3)]  # [N, 3], one of them true
    if not with_hue:
        for chosen in rounds:
            images = _blend(images, jnp.where(chosen, drawn.factors, 1))
        return images
    for i, chosen in enumerate(rounds):
        now = chosen & (i < drawn.hue_after)[:, None]
        images = _blend(images, jnp.where(now, drawn.factors, 1))
    images = shift_hue(images, drawn.hue)
    for i, chosen in enumerate(rounds):
        now = chosen & (i >= drawn.hue_after)[:, None]
        images = _blend(images, jnp.where(now, drawn.factors, 1))
    return images


def _blend(images, factors):
    """Blends with black, the mean grey, or the grey image; at most one factor [N, 3] is not 1."""
    brightness, contrast, saturation = (f[:, None, None, None] for f in factors.T)
    grey = sum(images[..., i : i + 1] * weight for i, weight in enumerate(GREY))
    mean = jnp.mean(grey, axis=(1, 2), keepdims=True)
    mixed = images * (brightness * contrast * saturation)
    mixed += (1 - contrast) * mean + (1 - saturation) * grey
    return jnp.clip(mixed, 0, 255)


def shift_hue(images, turns):
    """Turns the hue of images [N, H, W, 3] by `turns` [N] of the circle; value and chroma stay.

    In hue, saturation and value, as torchvision: a channel is the value less a trapezoid of the
    hue times the chroma.
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
    place -= 6 * jnp.floor(place / 6)  # jnp.mod takes 4 times as long on CPU
    drop = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return value[..., None] - chroma[..., None] * drop
