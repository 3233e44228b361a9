"""Geometric operations: mirroring, and affine maps with one map per image.

All functions treat each image separately, so that a batch that is split over devices needs no
communication.
"""

import jax
import jax.numpy as jnp

PADS = ("zero", "edge")
INTERPOLATIONS = ("nearest", "bilinear")


def flip_where(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors images [batch, h, w, channels] left to right where `mirrored` [batch] is true."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def draw_affine(
    key: jax.Array, count: int, *, rotate_degrees: float, zoom: float, translate: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the arguments of `affine`, uniform in the ranges that `make_preprocess` describes.

    Returns:
      The angle in radians [batch], the scale [batch], and the shift down and right as fractions of
      the sides [batch, 2].
    """
    u = jax.random.uniform(key, (count, 4), minval=-1.0, maxval=1.0)
    return jnp.deg2rad(rotate_degrees) * u[:, 0], 1.0 + zoom * u[:, 1], translate * u[:, 2:]


def affine(
    images: jax.Array, angle: jax.Array, scale: jax.Array, shift: jax.Array, *, pad: str = "zero"
) -> jax.Array:
    """Rotates, scales and shifts each image about its centre with bilinear interpolation.

    The image is resampled once, by gathering four neighbours per pixel. On a CPU this is as fast as
    separable matrices or three shears, and it is exact for every map. Pixels at the border are
    interpolated with what lies outside: black or the nearest pixel.

    Args:
      images: [batch, height, width, channels], uint8 or float.
      angle: [batch] radians, counter-clockwise as seen.
      scale: [batch], above 1 enlarges.
      shift: [batch, 2] down and right, in fractions of height and width.
      pad: "zero" or "edge".

    Returns:
      float32 [batch, height, width, channels].
    """
    height, width = images.shape[1:3]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    # Where in the input each output pixel comes from: undo the shift, the rotation, the scale.
    y = jnp.arange(height)[None, :, None] - centre_y - (shift[:, 0] * height)[:, None, None]
    x = jnp.arange(width)[None, None, :] - centre_x - (shift[:, 1] * width)[:, None, None]
    cos = (jnp.cos(angle) / scale)[:, None, None]
    sin = (jnp.sin(angle) / scale)[:, None, None]
    # Coordinates outside the image are clipped into one pixel of padding around it.
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(images, border, mode="constant" if pad == "zero" else "edge")
    from_y = jnp.clip(cos * y + sin * x + centre_y + 1, 0, height + 1)
    from_x = jnp.clip(cos * x - sin * y + centre_x + 1, 0, width + 1)
    return _bilinear(padded, from_y, from_x)


def _bilinear(images: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Interpolates images [batch, height, width, channels] at points inside them.

    Args:
      images: what to sample.
      y, x: [batch, h, w] rows and columns, from 0 to height - 1 and width - 1.

    Returns:
      float32 [batch, h, w, channels].
    """
    top = jnp.minimum(y.astype(jnp.int32), images.shape[1] - 2)
    left = jnp.minimum(x.astype(jnp.int32), images.shape[2] - 2)
    down, right = (y - top)[..., None], (x - left)[..., None]

    def pixel(row: jax.Array, column: jax.Array) -> jax.Array:
        return _pixels(images, row, column).astype(jnp.float32)

    upper = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
    lower = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


def _pixels(images: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The pixels at `row`, `column` [batch, h, w], whole numbers inside of the images."""
    n, _, width, channels = images.shape
    index = (row * width + column).reshape(n, -1, 1)
    flat = images.reshape(n, -1, channels)
    taken = jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds")
    return taken.reshape(*row.shape, channels)


def transform(
    images: jax.Array, matrices: jax.Array, *, interpolation: str = "nearest", fill: int = 0
) -> jax.Array:
    """Maps each image like Pillow's `Image.transform(size, AFFINE, matrix)`.

    The output pixel with the centre (x, y) = (column + 1/2, row + 1/2) is taken from the point
    (a x + b y + c, d x + e y + f) of the input: from the pixel that contains the point ("nearest"),
    or from the four around it ("bilinear", truncated to whole grey levels). Points outside the
    image give `fill`.

    Args:
      images: uint8 [batch, height, width, channels].
      matrices: [batch, 6], (a, b, c, d, e, f).
      interpolation: "nearest" or "bilinear".
      fill: 0 to 255.

    Returns:
      uint8 [batch, height, width, channels].
    """
    height, width = images.shape[1:3]
    a, b, c, d, e, f = matrices.T[:, :, None, None]
    x = jnp.arange(width)[None, None, :] + 0.5
    y = jnp.arange(height)[None, :, None] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    if interpolation == "nearest":
        # A row of `fill` below the image stands for all points outside, so that the gather comes
        # last (see `ops.apply`).
        padded = jnp.pad(images, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=fill)
        row = jnp.where(inside, from_y.astype(jnp.int32), height)
        return _pixels(padded, row, jnp.where(inside, from_x.astype(jnp.int32), 0))
    from_y = jnp.clip(from_y - 0.5, 0, height - 1)
    from_x = jnp.clip(from_x - 0.5, 0, width - 1)
    moved = _bilinear(images, from_y, from_x).astype(jnp.uint8)
    return jnp.where(inside[..., None], moved, jnp.uint8(fill))


def about_centre(angle: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices [batch, 6] for `transform`, counter-clockwise by `angle` [batch] in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], axis=-1)
