"""The sixteen image operations of AutoAugment and RandAugment, one of them for each image.

Which operation an image gets is data and not code: one compilation serves every draw, and a batch
costs one pass per family of operations (geometry, grey levels, neighbourhood, box), not one per
operation.
"""

from collections.abc import Callable, Collection, Iterable

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
FILL = 128  # grey, for what lies outside the image, as in the reference


def apply(
    images: jax.Array,
    op: jax.Array,
    arg: jax.Array,
    centre: jax.Array,
    *,
    among: Collection[str] = OPS,
    interpolation: str = "nearest",
) -> jax.Array:
    """Applies one operation to each image.

    The results equal those of Pillow within one grey level: of ImageOps (autocontrast, equalize,
    invert, posterize, solarize), ImageEnhance (brightness, contrast, color, sharpness), and of
    `Image.transform` and `rotate` with "nearest" or "bilinear" and grey 128 outside. The TensorFlow
    reference is meant to equal Pillow too, but differs in two places, in which this code follows
    Pillow: its `contrast` blends with the number of pixels over 256 instead of the mean, and it
    moves the corners of pixels instead of their centres.

    Args:
      images: uint8 [batch, height, width, 3], or [batch, height, width, 1] for grey ones, which
        color does not change.
      op: int [batch], indices into `OPS`.
      arg: float [batch]: degrees counter-clockwise (rotate); columns per row or rows per column
        (shear); pixels to the left or up (translate); bits kept (posterize); threshold (solarize);
        levels added below 128 (solarize_add); factor (brightness, contrast, color, sharpness);
        half a side in pixels (cutout).
      centre: int [batch, 2], the row and column of the centre of the cutout.
      among: the operations that `op` can be; passes that none of them needs are left out.
      interpolation: of the geometric operations.

    Returns:
      uint8 of the same shape.
    """

    def on(name: str) -> jax.Array:
        return op == OPS.index(name)

    def any_of(names: Iterable[str]) -> bool:
        return any(name in among for name in names)

    def moved(images: jax.Array) -> jax.Array:
        matrices = _matrices(on, arg, *images.shape[1:3])
        return warp.transform(images, matrices, interpolation=interpolation, fill=FILL)

    # Each image has one operation, so all passes can read the `original`, in any order. A gather
    # comes last, because XLA writes its result to memory. Other results are fused into whatever
    # reads them and computed again by each reader, of which the next round has many.
    original = images
    if any_of(MOVING) and interpolation == "bilinear":
        images = moved(images)
    if any_of(BLENDING):
        factor = jnp.where(on("color") | on("sharpness"), arg, 1.0)[:, None, None, None]
        images = colour.blend(_blend_base(original, on, among), images, factor)
    if "cutout" in among:
        half = jnp.where(on("cutout"), arg, 0).astype(jnp.int32)
        height, width = original.shape[1:3]
        inside = box(centre - half[:, None], centre + half[:, None], height, width)
        images = jnp.where(inside, jnp.uint8(FILL), images)
    if any_of(LEVELLING):
        images = colour.look_up(images, _tables(original, on, arg, among))
    if any_of(MOVING) and interpolation == "nearest":
        images = moved(images)
    return images


def box(start: jax.Array, stop: jax.Array, height: int, width: int) -> jax.Array:
    """Whether each pixel lies in the box of its image: bool [batch, height, width, 1].

    Args:
      start: int [batch, 2], the first row and column of each box.
      stop: int [batch, 2], the row and column after the last.
      height, width: of the images, in pixels.
    """
    row = jnp.arange(height)[None, :, None]
    column = jnp.arange(width)[None, None, :]
    start, stop = start[:, :, None, None], stop[:, :, None, None]
    inside = (row >= start[:, 0]) & (row < stop[:, 0])
    return (inside & (column >= start[:, 1]) & (column < stop[:, 1]))[..., None]


def _matrices(on: Callable[[str], jax.Array], arg: jax.Array, height: int, width: int) -> jax.Array:
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


def _tables(
    images: jax.Array, on: Callable[[str], jax.Array], arg: jax.Array, among: Collection[str]
) -> jax.Array:
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
    masks = [on(name) for name in used]
    chosen = jnp.stack([~jnp.any(jnp.stack(masks), axis=0), *masks])
    stacked = jnp.stack([jnp.broadcast_to(table, shape) for table in made])
    # A matrix product, because XLA would move a chain of selections into the pass over the pixels.
    # It is exact: levels fit into the 8 bits that a TPU multiplies.
    return jnp.einsum("on,oncl->ncl", chosen.astype(jnp.float32), stacked.astype(jnp.float32))


def _blend_base(
    images: jax.Array, on: Callable[[str], jax.Array], among: Collection[str]
) -> jax.Array:
    """What an image is blended with: its grey for color, a smoothed image for sharpness."""
    if "sharpness" not in among:
        return colour.luma(images)
    if "color" not in among:
        return smooth(images)
    return jnp.where(on("sharpness")[:, None, None, None], smooth(images), colour.luma(images))


def smooth(images: jax.Array) -> jax.Array:
    """Pillow's ImageFilter.SMOOTH, int32 [batch, h, w, channels]; border pixels stay unchanged."""
    whole = images.astype(jnp.int32)
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    nine = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (2 * (nine + 4 * whole[:, 1:-1, 1:-1]) + 13) // 26  # thirteenths, rounded
    return jax.lax.dynamic_update_slice(whole, inner, (0, 1, 1, 0))
