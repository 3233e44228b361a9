"""What happens to a batch on the device, inside the jitted step: augment and normalise.

Every random draw comes from the key given; each operation folds its own number into that key, so
that switching one on leaves the draws of the others as they were. An operation is a pair: a
function of explicit parameters, and the drawing of these parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbv3_jax.arch.spec import choose

# name -> (mean, standard deviation) of pixel values 0 to 255.
NORMALIZATIONS = {
    "inception": (127.5, 127.5),  # to [-1, 1]; weights that come from TensorFlow
    "torch": (  # ImageNet channel statistics; weights that come from PyTorch
        (0.485 * 255, 0.456 * 255, 0.406 * 255),
        (0.229 * 255, 0.224 * 255, 0.225 * 255),
    ),
}
PADS = ("zero", "edge")
_FLIP, _AFFINE, _MIXUP = range(3)  # folded into the key


def make_preprocess(
    *,
    normalize: str = "inception",
    flip: bool = False,
    rotate_degrees: float = 0.0,
    zoom: float = 0.0,
    translate: float = 0.0,
    pad: str = "zero",
    mixup_alpha: float = 0.0,
    num_classes: int | None = None,
) -> tuple[Callable, Callable]:
    """Returns (train_preprocess, eval_preprocess), both jittable.

    `train_preprocess(batch, key) -> (images, labels)` takes {"image": uint8 [N, H, W, C],
    "label": int [N]} and returns float32 [N, H, W, C] with the labels unchanged, or with mixup
    float32 [N, num_classes]. `eval_preprocess(images) -> images` only normalises.

    Args:
      normalize: "inception" or "torch", see `NORMALIZATIONS`.
      flip: mirror each image left to right with probability one half.
      rotate_degrees: turn each image by a uniform angle of at most this, either way.
      zoom: scale each image by a uniform factor from 1 - zoom to 1 + zoom.
      translate: shift each image, along each axis, by a uniform fraction of its side of at most
        this, either way.
      pad: what lies outside of the image: "zero" (black) or "edge" (the nearest pixel).
      mixup_alpha: blend each image with another of the batch, by a share drawn once a batch from
        Beta(alpha, alpha) (Zhang et al. 2017); 0 is off.
      num_classes: the width of the mixed labels; needed with mixup only.

    Raises:
      ValueError: an unknown name, a number out of range, or mixup without `num_classes`.
    """
    mean, std = NORMALIZATIONS[choose("augment.normalize", normalize, NORMALIZATIONS)]
    choose("augment.pad", pad, PADS)
    for name, value, below in (
        ("rotate_degrees", rotate_degrees, 180.0),
        ("zoom", zoom, 1.0),
        ("translate", translate, 1.0),
        ("mixup_alpha", mixup_alpha, float("inf")),
    ):
        if not 0 <= value < below:
            raise ValueError(f"augment.{name}: got {value!r}, expected from 0 to below {below}")
    if mixup_alpha and not num_classes:
        raise ValueError(f"augment.num_classes: got {num_classes!r}, expected a number with mixup")

    def eval_preprocess(images):
        return (images.astype(jnp.float32) - jnp.array(mean)) / jnp.array(std)

    def train_preprocess(batch, key):
        images, labels = batch["image"], batch["label"]
        count = images.shape[0]
        if flip:
            images = flip_where(images, jax.random.bernoulli(_key(key, _FLIP), shape=(count,)))
        if rotate_degrees or zoom or translate:
            draws = draw_affine(
                _key(key, _AFFINE),
                count,
                rotate_degrees=rotate_degrees,
                zoom=zoom,
                translate=translate,
            )
            images = affine(images, *draws, pad=pad)
        images = eval_preprocess(images)
        if mixup_alpha:
            share = jax.random.beta(_key(key, _MIXUP), mixup_alpha, mixup_alpha)
            images, labels = mixup(images, labels, share, num_classes)
        return images, labels

    return train_preprocess, eval_preprocess


def _key(key, operation: int):
    return jax.random.fold_in(key, operation)


def flip_where(images, mirrored):
    """Mirrors left to right the images [N, H, W, C] for which `mirrored` [N] is true."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def draw_affine(key, count: int, *, rotate_degrees: float, zoom: float, translate: float):
    """Draws (angle in radians [N], scale [N], shift as fractions of the sides, down and right

    [N, 2]), uniform in the ranges that `make_preprocess` names.
    """
    u = jax.random.uniform(key, (count, 4), minval=-1.0, maxval=1.0)
    return jnp.deg2rad(rotate_degrees) * u[:, 0], 1.0 + zoom * u[:, 1], translate * u[:, 2:]


def affine(images, angle, scale, shift, *, pad: str = "zero"):
    """Turns, scales and shifts each image about its centre, by bilinear interpolation.

    An affine map is resampled once by gathering four neighbours: 2.6 ms of one CPU core for 64
    images of 64x64x3, as fast as separable matrices or three shears, and exact for all of them.

    Args:
      images: [N, H, W, C], uint8 or float.
      angle: [N] radians, counter-clockwise as seen.
      scale: [N] above 1 enlarges.
      shift: [N, 2] down and right, in fractions of height and width.
      pad: "zero" or "edge".

    Returns:
      float32 [N, H, W, C].
    """
    n, height, width, channels = images.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    # From where in the input does each output pixel come: undo the shift, the turn, the scale.
    y = jnp.arange(height)[None, :, None] - centre_y - (shift[:, 0] * height)[:, None, None]
    x = jnp.arange(width)[None, None, :] - centre_x - (shift[:, 1] * width)[:, None, None]
    cos = (jnp.cos(angle) / scale)[:, None, None]
    sin = (jnp.sin(angle) / scale)[:, None, None]
    from_y = cos * y + sin * x + centre_y
    from_x = cos * x - sin * y + centre_x

    # One pixel of padding all round; coordinates are clipped into it.
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(images, border, mode="constant" if pad == "zero" else "edge")
    pixels = padded.astype(jnp.float32).reshape(-1, channels)
    from_y = jnp.clip(from_y + 1, 0, height + 1)
    from_x = jnp.clip(from_x + 1, 0, width + 1)
    top = jnp.minimum(from_y.astype(jnp.int32), height)
    left = jnp.minimum(from_x.astype(jnp.int32), width)
    down, right = (from_y - top)[..., None], (from_x - left)[..., None]
    first = jnp.arange(n)[:, None, None] * ((height + 2) * (width + 2))

    def pixel(row, column):
        index = first + row * (width + 2) + column
        return pixels.at[index].get(mode="promise_in_bounds")

    upper = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
    lower = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


def mixup(images, labels, share, num_classes: int):
    """Blends each example with its mirror place in the batch: `share` of itself, the rest of it.

    Returns:
      (images [N, H, W, C], labels float32 [N, num_classes]).
    """
    onehot = jax.nn.one_hot(labels, num_classes)
    return (
        share * images + (1 - share) * images[::-1],
        share * onehot + (1 - share) * onehot[::-1],
    )
