"""What comes after normalisation: erased boxes, and examples mixed with their neighbours."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbv3_jax.data.augment.ops import box

ERASE_MODES = ("pixel", "const")
ATTEMPTS = 10  # at a box that fits, as timm


class Box(NamedTuple):
    """Rows and columns from `start` to below `stop`, [N, 2] each or [2]; equal: no box."""

    start: jax.Array
    stop: jax.Array


def draw_erasing(
    key, count: int, height: int, width: int, *, prob: float, area=(0.02, 1 / 3), ratio=0.3
) -> Box:
    """Draws a box for each image with probability `prob`; the values are timm's.

    Zhong et al. 2017 (arXiv 1708.04896): a share of the image's area, uniform in `area`, at a
    ratio of height to width log-uniform from `ratio` to 1 / `ratio`, drawn again while it is as
    high or as wide as the image.
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


def erase(images, where: Box, noise):
    """Fills each image's box with `noise`, which broadcasts to float images [N, H, W, C]."""
    inside = box(where.start, where.stop, *images.shape[1:3])
    return jnp.where(inside, noise, images)


def neighbours(x):
    """x [N, ...] with the first and second, third and fourth, ... examples exchanged.

    The partners of mixup and cutmix: as good as any in a shuffled batch, and on the same device
    where each holds an even number of examples, so that mixing moves nothing between devices.
    Of an odd number all, the last three go round in a circle.
    """
    count = x.shape[0]
    if count % 2 and count > 1:
        last = [count - 2, count - 1, count - 3]
        return jnp.concatenate([neighbours(x[: count - 3]), x[jnp.array(last)]])
    return x if count < 2 else x.reshape(count // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mixup(images, labels, share):
    """Blends each example with its neighbour: `share` of itself, the rest of the other.

    Args:
      images: float [N, H, W, C].
      labels: float [N, K], distributions over classes.
      share: 0 to 1.

    Returns:
      (images, labels), mixed.
    """

    def blend(x):
        return share * x + (1 - share) * neighbours(x)

    return blend(images), blend(labels)


def draw_cutmix(key, height: int, width: int, *, alpha: float) -> Box:
    """Draws one box for the batch (Yun et al. 2019, arXiv 1905.04899, algorithm A1).

    Its sides are the image's times sqrt(1 - share), share from Beta(alpha, alpha), cut to whole
    pixels; its centre is uniform, and what lies outside of the image is cut off.
    """
    key_share, key_centre = jax.random.split(key)
    share = jax.random.beta(key_share, alpha, alpha)
    whole = jnp.array([height, width])
    side = jnp.floor(whole * jnp.sqrt(1 - share)).astype(jnp.int32)
    centre = jnp.floor(jax.random.uniform(key_centre, (2,)) * whole).astype(jnp.int32)
    start = centre - side // 2
    return Box(jnp.clip(start, 0, whole), jnp.clip(centre + side // 2, 0, whole))


def cutmix(images, labels, where: Box):
    """Puts the neighbour's box in place of each image's; labels mix by the exact area.

    Args:
      images: [N, H, W, C].
      labels: float [N, K], distributions over classes.
      where: one box, [2].

    Returns:
      (images, labels), mixed.
    """
    height, width = images.shape[1:3]
    inside = box(where.start[None], where.stop[None], height, width)
    rows, columns = where.stop - where.start
    share = 1 - rows * columns / (height * width)
    mixed = jnp.where(inside, neighbours(images), images)
    return mixed, share * labels + (1 - share) * neighbours(labels)
