"""The sixteen image operations of AutoAugment and RandAugment, one of them an image of a batch.

Which operation an image gets is data, not code: one compilation serves every draw, and a batch
costs one pass a family (motion, grey levels, neighbourhood, box), not one an operation.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from mbv3_jax.data.augment import colour, warp

MOVING = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
LEVELLING = (
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "brightness",
    "contrast",
)
BLENDING = ("color", "sharpness")
OPS = ("identity", *MOVING, *LEVELLING, *BLENDING, "cutout")
FILL = 128  # grey; what lies outside, in the reference


def apply(images, op, arg, centre, *, among: Collection[str] = OPS, interpolation="nearest"):
    """Applies to each image its operation.

    Equal to Pillow within one grey level: ImageOps (autocontrast, equalize, invert, posterize,
    solarize), ImageEnhance (brightness, contrast, color, sharpness), and `Image.transform` and
    `rotate` with "nearest" or "bilinear" and grey 128 outside. So too where the TensorFlow
    reference differs from Pillow, which its operations are meant to equal: its `contrast` blends
    with the number of pixels over 256 instead of the mean, and it moves corners, not centres.

    Args:
      images: uint8 [N, H, W, 3].
      op: int [N], places in `OPS`.
      arg: float [N]: degrees counter-clockwise (rotate); columns a row, rows a column (shear);
        pixels to the left, up (translate); bits kept (posterize); threshold (solarize); levels
        added below 128 (solarize_add); factor (brightness, contrast, color, sharpness); half a
        side in pixels (cutout).
      centre: int [N, 2], the row and column of the cutout's centre.
      among: the operations that `op` can be; passes that none of them needs are left out.
      interpolation: of the moving operations.

    Returns:
      uint8 [N, H, W, 3].
    """

    def on(name):
        return op == OPS.index(name)

    def any_of(names):
        return any(name in among for name in names)

    def moved(images):
        matrices = _matrices(on, arg, *images.shape[1:3])
        return warp.transform(images, matrices, interpolation=interpolation, fill=FILL)

    # Each image has one operation, so that all can read the same `source`, in any order. A gather
    # comes last, because XLA writes its result out; what it fuses into its readers is computed
    # again by each, of which the next round has many.
    source = images
    if any_of(MOVING) and interpolation == "bilinear":
        images = moved(images)
    if any_of(BLENDING):
        factor = jnp.where(on("color") | on("sharpness"), arg, 1.0)[:, None, None, None]
        images = colour.blend(_less(source, on, among), images, factor)
    if "cutout" in among:
        half = jnp.where(on("cutout"), arg, 0).astype(jnp.int32)
        inside = box(centre - half[:, None], centre + half[:, None], *source.shape[1:3])
        images = jnp.where(inside, jnp.uint8(FILL), images)
    if any_of(LEVELLING):
        images = colour.look_up(images, _tables(source, on, arg, among))
    if any_of(MOVING) and interpolation == "nearest":
        images = moved(images)
    return images


def box(start, stop, height: int, width: int):
    """bool [N, H, W, 1]: whether a pixel's row and column lie from `start` to below `stop`, [N, 2]

    each.
    """
    row = jnp.arange(height)[None, :, None]
    column = jnp.arange(width)[None, None, :]
    start, stop = start[:, :, None, None], stop[:, :, None, None]
    inside = (row >= start[:, 0]) & (row < stop[:, 0])
    return (inside & (column >= start[:, 1]) & (column < stop[:, 1]))[..., None]


def _matrices(on, arg, height: int, width: int):
    one, zero = jnp.ones_like(arg), jnp.zeros_like(arg)
    straight = [
        one,
        jnp.where(on("shear_x"), arg, 0),
        jnp.where(on("translate_x"), arg, 0),
        jnp.where(on("shear_y"), arg, 0),
        one,
        jnp.where(on("translate_y"), arg, 0),
    ]
    turned = warp.about_centre(jnp.deg2rad(jnp.where(on("rotate"), arg, zero)), height, width)
    return jnp.where(on("rotate")[:, None], turned, jnp.stack(straight, axis=-1))


def _tables(images, on, arg, among):
    count = images.shape[0]
    tables = {
        "autocontrast": lambda: colour.autocontrast(images),
        "equalize": lambda: colour.equalize(images),
        "invert": lambda: colour.invert(count),
        "posterize": lambda: colour.posterize(jnp.clip(arg, 0, 8)),
        "solarize": lambda: colour.solarize(arg),
        "solarize_add": lambda: colour.solarize_add(arg),
        "brightness": lambda: colour.brightness(arg),
        "contrast": lambda: colour.contrast(images, arg),
    }
    used = [name for name in LEVELLING if name in among]
    shape = (count, images.shape[3], colour.LEVELS)
    made = [colour.identity(count), *(tables[name]() for name in used)]
    chosen = [on(name) for name in used]
    chosen = jnp.stack([~jnp.any(jnp.stack(chosen), axis=0), *chosen])
    stacked = jnp.stack([jnp.broadcast_to(table, shape) for table in made])
    # A product, because XLA would move a chain of selections into the pass over the pixels. It is
    # exact: levels fit in the 8 bits that a TPU multiplies.
    return jnp.einsum("on,oncl->ncl", chosen.astype(jnp.float32), stacked.astype(jnp.float32))


def _less(images, on, among):
    """What the blends start from: a grey image for colour, a smooth one for sharpness."""
    if "sharpness" not in among:
        return colour.luma(images)
    if "color" not in among:
        return smooth(images)
    return jnp.where(on("sharpness")[:, None, None, None], smooth(images), colour.luma(images))


def smooth(images):
    """int32 [N, H, W, C]: Pillow's ImageFilter.SMOOTH; pixels at the border stay as they are."""
    whole = images.astype(jnp.int32)
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    nine = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (2 * (nine + 4 * whole[:, 1:-1, 1:-1]) + 13) // 26  # thirteenths, rounded
    return jax.lax.dynamic_update_slice(whole, inner, (0, 1, 1, 0))
