"""Operations after normalisation: erasing boxes, and mixing examples with their neighbours."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbv3_jax.data.augment.ops import box

ERASE_MODES = ("pixel", "const")
ATTEMPTS = 10  # to draw a box that fits, as in timm


class Box(NamedTuple):
    """Rows and columns from `start` to below `stop`, each [batch, 2] or [2].

    The box is empty where they are equal.
    """

    start: jax.Array
    stop: jax.Array


def draw_erasing(
    key: jax.Array,
    count: int,
    height: int,
    width: int,
    *,
    prob: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: float = 0.3,
) -> Box:
    """Draws a box for each image with probability `prob`; the default values are timm's.

    Zhong et al. 2017 (arXiv 1708.04896): a fraction of the area of the image, uniform in `area`,
    with a log-uniform ratio of height to width from `ratio` to 1 / `ratio`; drawn again, up to
    `ATTEMPTS` times, while it is as high or as wide as the image.
    """
    key_use, key_area, key_ratio, key_place = jax.random.split(key, 4)
    use = jax.random.uniform(key_use, (count,)) < prob
    tries = (count, ATTEMPTS)
    pixels = jax.random.uniform(key_area, tries, minval=area[0], maxval=area[1]) * height * width
    log_ratio = jnp.log(ratio)
    ratios = jnp.exp(jax.random.uniform(key_ratio, tries, minval=log_ratio, maxval=-log_ratio))
    sides = jnp.stack([jnp.sqrt(pixels * ratios), jnp.sqrt(pixels / ratios)], axis=-1)
    sides = jnp.round(sides).astype(jnp.int32)
    whole = jnp.array([height, width])
    fits = jnp.all(sides < whole, axis=-1)
    first = jnp.argmax(fits, axis=1)[:, None, None]
    side = jnp.take_along_axis(sides, first, axis=1)[:, 0]
    use &= jnp.any(fits, axis=1)
    side = jnp.where(use[:, None], side, 0)
    u = jax.random.uniform(key_place, (count, 2))
    start = jnp.floor(u * (whole - side + 1)).astype(jnp.int32)
    return Box(start, start + side)


def erase(images: jax.Array, where: Box, noise: jax.Array | float) -> jax.Array:
    """Fills the box of each image with `noise`, which broadcasts to [batch, h, w, channels]."""
    inside = box(where.start, where.stop, *images.shape[1:3])
    return jnp.where(inside, noise, images)


def neighbours(x: jax.Array) -> jax.Array:
    """x [batch, ...] with the first and second, third and fourth, ... examples exchanged.

    These are the partners of mixup and cutmix. In a shuffled batch they are as good as any others,
    and they are on the same device if each device holds an even number of examples, so that mixing
    needs no communication. If the batch has an odd number of examples, the last three rotate.
    """
    count = x.shape[0]
    if count % 2 and count > 1:
        last = [count - 2, count - 1, count - 3]
        return jnp.concatenate([neighbours(x[: count - 3]), x[jnp.array(last)]])
    return x if count < 2 else x.reshape(count // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mixup(
    images: jax.Array, labels: jax.Array, share: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Blends each example with its neighbour.

    Args:
      images: float [batch, height, width, channels].
      labels: float [batch, num_classes], distributions over classes.
      share: the weight of the example itself, 0 to 1; the rest is that of its neighbour.

    Returns:
      The mixed (images, labels).
    """

    def blend(x: jax.Array) -> jax.Array:
        return share * x + (1 - share) * neighbours(x)

    return blend(images), blend(labels)


def draw_cutmix(key: jax.Array, height: int, width: int, *, alpha: float) -> Box:
    """Draws one box for the batch (Yun et al. 2019, arXiv 1905.04899, algorithm A1).

    Its sides are those of the image times sqrt(1 - share), truncated to whole pixels, with the
    share from Beta(alpha, alpha). Its centre is uniform, and what lies outside the image is cut
    off.
    """
    key_share, key_centre = jax.random.split(key)
    share = jax.random.beta(key_share, alpha, alpha)
    whole = jnp.array([height, width])
    side = jnp.floor(whole * jnp.sqrt(1 - share)).astype(jnp.int32)
    centre = jnp.floor(jax.random.uniform(key_centre, (2,)) * whole).astype(jnp.int32)
    start = centre - side // 2
    return Box(jnp.clip(start, 0, whole), jnp.clip(centre + side // 2, 0, whole))


def cutmix(images: jax.Array, labels: jax.Array, where: Box) -> tuple[jax.Array, jax.Array]:
    """Replaces a box in each image by that of its neighbour; labels mix by the exact area.

    Args:
      images: [batch, height, width, channels].
      labels: float [batch, num_classes], distributions over classes.
      where: one box for all images, [2].

    Returns:
      The mixed (images, labels).
    """
    height, width = images.shape[1:3]
    inside = box(where.start[None], where.stop[None], height, width)
    rows, columns = where.stop - where.start
    share = 1 - rows * columns / (height * width)
    mixed = jnp.where(inside, neighbours(images), images)
    return mixed, share * labels + (1 - share) * neighbours(labels)
