"""Moving pixels about: mirroring, and affine maps of a batch with one map an image.

All functions work along the batch without looking across it, so that a batch that is split over
devices stays where it is.
"""

import jax
import jax.numpy as jnp

PADS = ("zero", "edge")
INTERPOLATIONS = ("nearest", "bilinear")


def flip_where(images, mirrored):
    """Mirrors left to right the images [N, H, W, C] for which `mirrored` [N] is true."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def draw_affine(key, count: int, *, rotate_degrees: float, zoom: float, translate: float):
    """Draws (angle in radians [N], scale [N], shift as fractions of the sides, down and right

    [N, 2]), uniform in the ranges that `augment.make_preprocess` names.
    """
    u = jax.random.uniform(key, (count, 4), minval=-1.0, maxval=1.0)
    return jnp.deg2rad(rotate_degrees) * u[:, 0], 1.0 + zoom * u[:, 1], translate * u[:, 2:]


def affine(images, angle, scale, shift, *, pad: str = "zero"):
    """Turns, scales and shifts each image about its centre, by bilinear interpolation.

    The map is resampled once by gathering four neighbours: as fast on CPU as separable matrices
    or three shears, and exact for all of them. Outside lies black or the nearest pixel, and
    pixels at the border are interpolated with it.

    Args:
      images: [N, H, W, C], uint8 or float.
      angle: [N] radians, counter-clockwise as seen.
      scale: [N] above 1 enlarges.
      shift: [N, 2] down and right, in fractions of height and width.
      pad: "zero" or "edge".

    Returns:
      float32 [N, H, W, C].
    """
    height, width = images.shape[1:3]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    # From where in the input does each output pixel come: undo the shift, the turn, the scale.
    y = jnp.arange(height)[None, :, None] - centre_y - (shift[:, 0] * height)[:, None, None]
    x = jnp.arange(width)[None, None, :] - centre_x - (shift[:, 1] * width)[:, None, None]
    cos = (jnp.cos(angle) / scale)[:, None, None]
    sin = (jnp.sin(angle) / scale)[:, None, None]
    # One pixel of padding all round; coordinates are clipped into it.
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(images, border, mode="constant" if pad == "zero" else "edge")
    from_y = jnp.clip(cos * y + sin * x + centre_y + 1, 0, height + 1)
    from_x = jnp.clip(cos * x - sin * y + centre_x + 1, 0, width + 1)
    return _bilinear(padded, from_y, from_x)


def _bilinear(images, y, x):
    """float32: images [N, H, W, C] at rows and columns y, x [N, h, w] from 0 to H - 1, W - 1."""
    top = jnp.minimum(y.astype(jnp.int32), images.shape[1] - 2)
    left = jnp.minimum(x.astype(jnp.int32), images.shape[2] - 2)
    down, right = (y - top)[..., None], (x - left)[..., None]

    def pixel(row, column):
        return _pixels(images, row, column).astype(jnp.float32)

    upper = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
    lower = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


def _pixels(images, row, column):
    """images [N, H, W, C] at whole numbers row, column [N, h, w], which lie inside."""
    n, _, width, channels = images.shape
    index = (row * width + column).reshape(n, -1, 1)
    flat = images.reshape(n, -1, channels)
    taken = jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds")
    return taken.reshape(*row.shape, channels)


def transform(images, matrices, *, interpolation: str = "nearest", fill: int = 0):
    """Maps each image as Pillow's `Image.transform(size, AFFINE, matrix)` does.

    The output pixel at column x and row y, whose centre is (x + 1/2, y + 1/2), is the input at
    (a x' + b y' + c, d x' + e y' + f) of this centre (x', y'): the pixel that holds this point
    ("nearest"), or the four about it ("bilinear", cut to whole grey levels). Where the point lies
    outside of the image, `fill` is.

    Args:
      images: uint8 [N, H, W, C].
      matrices: [N, 6], (a, b, c, d, e, f).
      interpolation: "nearest" or "bilinear".
      fill: 0 to 255.

    Returns:
      uint8 [N, H, W, C].
    """
    height, width = images.shape[1:3]
    a, b, c, d, e, f = matrices.T[:, :, None, None]
    x = jnp.arange(width)[None, None, :] + 0.5
    y = jnp.arange(height)[None, :, None] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    if interpolation == "nearest":
        # A row of `fill` below the image, so that the pass ends with the gather.
        padded = jnp.pad(images, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=fill)
        row = jnp.where(inside, from_y.astype(jnp.int32), height)
        return _pixels(padded, row, jnp.where(inside, from_x.astype(jnp.int32), 0))
    from_y = jnp.clip(from_y - 0.5, 0, height - 1)
    from_x = jnp.clip(from_x - 0.5, 0, width - 1)
    moved = _bilinear(images, from_y, from_x).astype(jnp.uint8)
    return jnp.where(inside[..., None], moved, jnp.uint8(fill))


def about_centre(angle, height: int, width: int):
    """Matrices [N, 6] for `transform` that turn counter-clockwise by `angle` [N] radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], axis=-1)
