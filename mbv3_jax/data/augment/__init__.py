"""What happens to a batch on the device, inside the jitted step: augment and normalise.

Every random draw comes from the key given; each operation folds its own number into that key, so
that switching one on leaves the draws of the others as they were. An operation is a pair: a
function of explicit parameters, and the drawing of these parameters. All of them work image by
image or within pairs of neighbours: a batch split over devices moves nothing between them.
"""

import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbv3_jax.core.checks import check_whole, choose
from mbv3_jax.data.augment import colour, mix, policies, warp

# name -> (mean, standard deviation) of each channel, of values from 0 to 1.
NORMALIZATIONS = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to [-1, 1]; weights from TensorFlow
    # ImageNet channel statistics; weights that come from PyTorch
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
POLICIES = ("none", "autoaugment_v0", "randaugment")
# Folded into the key.
_FLIP, _AFFINE, _MIXUP, _POLICY, _COLOUR, _ERASE, _NOISE, _CUTMIX, _WHICH_MIX = range(9)


def make_preprocess(
    *,
    normalize: str | tuple = "inception",
    flip: bool = False,
    rotate_degrees: float = 0.0,
    zoom: float = 0.0,
    translate: float = 0.0,
    pad: str = "zero",
    policy: str = "none",
    policy_interpolation: str = "nearest",
    policy_translate: float | None = None,
    randaugment_layers: int | None = None,
    randaugment_magnitude: float | None = None,
    randaugment_magnitude_std: float | None = None,
    randaugment_prob: float | None = None,
    randaugment_cutout: float | None = None,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    erase_prob: float = 0.0,
    erase_mode: str = "pixel",
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    num_classes: int | None = None,
) -> tuple[Callable, Callable]:
    """Returns (train_preprocess, eval_preprocess), both jittable.

    `train_preprocess(batch, key) -> (images, labels)` takes {"image": uint8 [N, H, W, C],
    "label": int [N]} and returns float32 [N, H, W, C] with the labels unchanged, or with mixup or
    cutmix float32 [N, num_classes]. `eval_preprocess(images) -> images` only normalises. The
    operations come in the order of the arguments, normalisation before erasing.

    Args:
      normalize: "inception" or "torch", see `NORMALIZATIONS`; or (mean, std), as they are there.
      flip: mirror each image left to right with probability one half.
      rotate_degrees: turn each image by a uniform angle of at most this, either way.
      zoom: scale each image by a uniform factor from 1 - zoom to 1 + zoom.
      translate: shift each image, along each axis, by a uniform fraction of its side of at most
        this, either way.
      pad: what lies outside of the image: "zero" (black) or "edge" (the nearest pixel).
      policy: "none", "autoaugment_v0" or "randaugment", see `policies.py`. Colour images only, as
        the jitter.
      policy_interpolation: of the policy's motions: "nearest", as in TensorFlow, or "bilinear".
      policy_translate: pixels at level 10; None is TensorFlow's, 250 (autoaugment_v0) or 100
        (randaugment), whatever the size of the image.
      randaugment_layers, randaugment_magnitude, randaugment_magnitude_std, randaugment_prob,
        randaugment_cutout: see `policies.randaugment`; None is its default.
      brightness, contrast, saturation: factors from max(0, 1 - x) to 1 + x, see `colour`.
      hue: turns of the colour circle of at most this, either way, to 0.5.
      erase_prob: of erasing a box (Zhong et al. 2017), see `mix.draw_erasing`.
      erase_mode: "pixel", normal noise, which the images of a batch share, or "const", zero; both
        of normalised values.
      mixup_alpha: blend each image with its neighbour in the batch, by a share drawn once a batch
        from Beta(alpha, alpha) (Zhang et al. 2017); 0 is off.
      cutmix_alpha: replace a box by the neighbour's (Yun et al. 2019), drawn once a batch; 0 is
        off. With mixup on as well, one of the two is drawn for each batch, evenly.
      num_classes: the width of the mixed labels; needed with mixup and cutmix only.

    Raises:
      ValueError: an unknown name, a number out of range, an option of what is not on, or mixing
        without `num_classes`.
    """
    mean, std = ([255 * v for v in values] for values in normalization(normalize))
    choose("augment.pad", pad, warp.PADS)
    choose("augment.policy_interpolation", policy_interpolation, warp.INTERPOLATIONS)
    choose("augment.erase_mode", erase_mode, mix.ERASE_MODES)
    for name, value, below in (
        ("rotate_degrees", rotate_degrees, 180.0),
        ("zoom", zoom, 1.0),
        ("translate", translate, 1.0),
    ):
        _number(name, value, below=below)
    for name, value, most in (
        ("brightness", brightness, math.inf),
        ("contrast", contrast, math.inf),
        ("saturation", saturation, math.inf),
        ("hue", hue, 0.5),
        ("erase_prob", erase_prob, 1.0),
        ("mixup_alpha", mixup_alpha, math.inf),
        ("cutmix_alpha", cutmix_alpha, math.inf),
    ):
        _number(name, value, most)
    if (mixup_alpha or cutmix_alpha) and not num_classes:
        raise ValueError(f"augment.num_classes: got {num_classes!r}, expected a number with mixing")
    drawn_policy = _make_policy(
        policy,
        translate=policy_translate,
        layers=randaugment_layers,
        magnitude=randaugment_magnitude,
        magnitude_std=randaugment_magnitude_std,
        prob=randaugment_prob,
        cutout=randaugment_cutout,
    )

    def eval_preprocess(images):
        return (images.astype(jnp.float32) - jnp.array(mean)) / jnp.array(std)

    def train_preprocess(batch, key):
        images, labels = batch["image"], batch["label"]
        count, height, width, _ = images.shape

        def key_for(operation: int):
            return jax.random.fold_in(key, operation)

        if flip:
            images = warp.flip_where(images, jax.random.bernoulli(key_for(_FLIP), shape=(count,)))
        if rotate_degrees or zoom or translate:
            draws = warp.draw_affine(
                key_for(_AFFINE),
                count,
                rotate_degrees=rotate_degrees,
                zoom=zoom,
                translate=translate,
            )
            images = warp.affine(images, *draws, pad=pad)
        if drawn_policy:
            if images.dtype != jnp.uint8:
                images = jnp.round(images).astype(jnp.uint8)
            images = policies.apply(
                drawn_policy, images, key_for(_POLICY), interpolation=policy_interpolation
            )
        if brightness or contrast or saturation or hue:
            drawn = colour.draw(
                key_for(_COLOUR),
                count,
                brightness=brightness,
                contrast=contrast,
                saturation=saturation,
                hue=hue,
            )
            images = colour.jitter(images, drawn, with_hue=bool(hue))
        images = eval_preprocess(images)
        if erase_prob:
            where = mix.draw_erasing(key_for(_ERASE), count, height, width, prob=erase_prob)
            noise = 0.0
            if erase_mode == "pixel":
                noise = jax.random.normal(key_for(_NOISE), images.shape[1:])
            images = mix.erase(images, where, noise)
        if mixup_alpha or cutmix_alpha:
            labels = jax.nn.one_hot(labels, num_classes)
            with_cutmix = bool(cutmix_alpha)
            if mixup_alpha and cutmix_alpha:
                with_cutmix = jax.random.bernoulli(key_for(_WHICH_MIX))
            # The one that is not drawn mixes nothing: a share of one, an empty box.
            if mixup_alpha:
                share = jax.random.beta(key_for(_MIXUP), mixup_alpha, mixup_alpha)
                share = jnp.where(with_cutmix, 1.0, share)
                images, labels = mix.mixup(images, labels, share)
            if cutmix_alpha:
                where = mix.draw_cutmix(key_for(_CUTMIX), height, width, alpha=cutmix_alpha)
                where = where._replace(stop=jnp.where(with_cutmix, where.stop, where.start))
                images, labels = mix.cutmix(images, labels, where)
        return images, labels

    return train_preprocess, eval_preprocess


def normalization(normalize: str | tuple) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel, of values from 0 to 1, by name or as they are."""
    if isinstance(normalize, str | None):
        return NORMALIZATIONS[choose("augment.normalize", normalize, NORMALIZATIONS)]
    mean, std = normalize
    return tuple(mean), tuple(std)


def _make_policy(name: str, **options) -> policies.Policy | None:
    """The policy of this name; options that are None have the policy's own value."""
    choose("augment.policy", name, POLICIES)
    prefixes = {key: "policy_" if key == "translate" else "randaugment_" for key in options}
    options = {key: value for key, value in options.items() if value is not None}
    allowed = {"none": (), "autoaugment_v0": ("translate",), "randaugment": tuple(options)}[name]
    for key, value in options.items():
        full = prefixes[key] + key
        if key not in allowed:
            raise ValueError(f"augment.{full}: got {value!r}, but augment.policy={name!r} has none")
        if key == "layers":
            check_whole(f"augment.{full}", value, 1)
        else:
            most = {"magnitude": policies.MAX_LEVEL, "prob": 1.0}.get(key, math.inf)
            _number(full, value, most)
    if name == "autoaugment_v0":
        return policies.autoaugment_v0(**options)
    return policies.randaugment(**options) if name == "randaugment" else None


def _number(name: str, value, most: float = math.inf, below: float = math.inf) -> None:
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not 0 <= value <= most or value >= below:
        bound = f" to {most:g}" if most < math.inf else ""
        bound = f" to below {below:g}" if below < math.inf else bound
        raise ValueError(f"augment.{name}: got {value!r}, expected from 0{bound or ' up'}")
