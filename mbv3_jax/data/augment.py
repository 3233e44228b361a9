"""What happens to a batch on the device, inside the jitted step: augment and normalise.

Every random draw comes from the key given; each operation folds its own number into that key, so
that switching one on leaves the draws of the others as they were. An operation is a pair: a
function of explicit parameters, and the drawing of these parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbv3_jax.arch.spec import choose
from mbv3_jax.data import warp

# name -> (mean, standard deviation) of pixel values 0 to 255.
NORMALIZATIONS = {
    "inception": (127.5, 127.5),  # to [-1, 1]; weights that come from TensorFlow
    "torch": (  # ImageNet channel statistics; weights that come from PyTorch
        (0.485 * 255, 0.456 * 255, 0.406 * 255),
        (0.229 * 255, 0.224 * 255, 0.225 * 255),
    ),
}
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
    choose("augment.pad", pad, warp.PADS)
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
            images = warp.flip_where(images, jax.random.bernoulli(_key(key, _FLIP), shape=(count,)))
        if rotate_degrees or zoom or translate:
            draws = warp.draw_affine(
                _key(key, _AFFINE),
                count,
                rotate_degrees=rotate_degrees,
                zoom=zoom,
                translate=translate,
            )
            images = warp.affine(images, *draws, pad=pad)
        images = eval_preprocess(images)
        if mixup_alpha:
            share = jax.random.beta(_key(key, _MIXUP), mixup_alpha, mixup_alpha)
            images, labels = mixup(images, labels, share, num_classes)
        return images, labels

    return train_preprocess, eval_preprocess


def _key(key, operation: int):
    return jax.random.fold_in(key, operation)


def mixup(images, labels, share, num_classes: int):
    """Blends each example with its neighbour in the batch: `share` of itself, the rest of it.

    Returns:
      (images [N, H, W, C], labels float32 [N, num_classes]).
    """
    onehot = jax.nn.one_hot(labels, num_classes)
    return (
        share * images + (1 - share) * neighbours(images),
        share * onehot + (1 - share) * neighbours(onehot),
    )


def neighbours(x):
    """x [N, ...] with the first and second, third and fourth, ... examples exchanged.

    The partners of mixup: as good as any in a shuffled batch, and on the same device where each
    holds an even number of examples. Of an odd number all, the last three go round in a circle.
    """
    count = x.shape[0]
    if count % 2 and count > 1:
        last = [count - 2, count - 1, count - 3]
        return jnp.concatenate([neighbours(x[: count - 3]), x[jnp.array(last)]])
    return x if count < 2 else x.reshape(count // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
