"""Augmentation and normalisation of a batch on the device, inside the jitted step.

Each operation folds its own number into the key of the batch, so that switching one operation on
does not change the draws of the others. An operation consists of a function with explicit
parameters and a function that draws them. All operations work image by image or within pairs of
neighbours, so that a batch that is split over devices needs no communication.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

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
# Red, green and blue in the luminance (ITU-R 601-2, as in Pillow). The mean of grey images follows
# exactly, and their deviation as far as the colours go up and down together.
LUMINANCE = (0.299, 0.587, 0.114)
# name -> the policy and its options, by the field of config.augment.
POLICIES: dict[str, tuple[Callable[..., policies.Policy] | None, Mapping[str, str]]] = {
    "none": (None, {}),
    "autoaugment_v0": (policies.autoaugment_v0, {"policy_translate": "translate"}),
    "randaugment": (
        policies.randaugment,
        {
            "policy_translate": "translate",
            **{
                f"randaugment_{option}": option
                for option in ("layers", "magnitude", "magnitude_std", "prob", "cutout")
            },
        },
    ),
    "augmix": (
        policies.augmix,
        {
            "policy_translate": "translate",
            "augmix_magnitude": "magnitude",
            "augmix_width": "width",
        },
    ),
}
# The number that each operation folds into the key.
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
    augmix_magnitude: float | None = None,
    augmix_width: int | None = None,
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

    The operations run in the order of the arguments, with normalisation before erasing.

    Args:
      normalize: "inception" or "torch", see `NORMALIZATIONS`; or (mean, std) in the same form, with
        a number for each channel: they tell how many channels the images have.
      flip: mirror each image left to right with probability one half.
      rotate_degrees: rotate each image by a uniform angle of at most this, in either direction.
      zoom: scale each image by a uniform factor from 1 - zoom to 1 + zoom.
      translate: shift each image along each axis, in either direction, by a uniform fraction of its
        side of at most this.
      pad: what lies outside the image: "zero" (black) or "edge" (the nearest pixel).
      policy: "none", "autoaugment_v0", "randaugment" or "augmix", see `policies`. Images of other
        numbers of channels than 1 and 3 have neither policy nor contrast.
      policy_interpolation: of the geometric operations of the policy: "nearest", as in TensorFlow,
        or "bilinear".
      policy_translate: pixels at level 10; None takes TensorFlow's value, 250 (autoaugment_v0) or
        100 (randaugment), which does not depend on the size of the image, or for augmix timm's,
        0.45 sides.
      randaugment_layers, randaugment_magnitude, randaugment_magnitude_std, randaugment_prob,
        randaugment_cutout: see `policies.randaugment`; None takes its default.
      augmix_magnitude, augmix_width: see `policies.augmix`; None takes its default.
      brightness, contrast, saturation: a value x gives factors from max(0, 1 - x) to 1 + x, see
        `colour`. Only images of 3 channels have saturation and hue.
      hue: the largest shift of the hue in either direction, as a fraction of the colour circle up
        to 0.5.
      erase_prob: probability of erasing a box (Zhong et al. 2017), see `mix.draw_erasing`.
      erase_mode: what fills the box in the normalised image: "pixel" for normal noise, which all
        images of a batch share, or "const" for zero.
      mixup_alpha: blend each image with its neighbour in the batch, by a weight drawn once per
        batch from Beta(alpha, alpha) (Zhang et al. 2017); 0 switches it off.
      cutmix_alpha: replace a box, drawn once per batch, by that of the neighbour (Yun et al. 2019);
        0 switches it off. If mixup is on too, each batch gets one of the two with equal
        probability.
      num_classes: the width of the mixed labels; needed only with mixup and cutmix.

    Returns:
      `train_preprocess(batch, key) -> (images, labels)`, which takes {"image": uint8
      [batch, height, width, channels], "label": int [batch] or float [batch, num_classes]} and
      returns float32 images of the same shape, with the labels unchanged or, with mixup or cutmix,
      as float32 [batch, num_classes];
      and `eval_preprocess(images) -> images`, which only normalises.

    Raises:
      ValueError: an unknown name, a number out of range, an option of an operation that is off, an
        operation that images with this number of channels do not have, or mixing without
        `num_classes`.
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
    _check_colours(len(mean), {"saturation": saturation, "hue": hue}, (3,))
    in_grey = {"policy": policy if policy != "none" else 0, "contrast": contrast}
    _check_colours(len(mean), in_grey, (1, 3))
    drawn_policy = _make_policy(
        policy,
        policy_translate=policy_translate,
        randaugment_layers=randaugment_layers,
        randaugment_magnitude=randaugment_magnitude,
        randaugment_magnitude_std=randaugment_magnitude_std,
        randaugment_prob=randaugment_prob,
        randaugment_cutout=randaugment_cutout,
        augmix_magnitude=augmix_magnitude,
        augmix_width=augmix_width,
    )

    def eval_preprocess(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) - jnp.array(mean)) / jnp.array(std)

    def train_preprocess(
        batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        images, labels = batch["image"], batch["label"]
        count, height, width, _ = images.shape

        def key_for(operation: int) -> jax.Array:
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
            noise: jax.Array | float = 0.0
            if erase_mode == "pixel":
                noise = jax.random.normal(key_for(_NOISE), images.shape[1:])
            images = mix.erase(images, where, noise)
        if mixup_alpha or cutmix_alpha:
            if labels.ndim == 1:
                labels = jax.nn.one_hot(labels, num_classes or 0)  # mixing without is refused above
            with_cutmix: jax.Array | bool = bool(cutmix_alpha)
            if mixup_alpha and cutmix_alpha:
                with_cutmix = jax.random.bernoulli(key_for(_WHICH_MIX))
            # The operation that is not drawn mixes nothing: its weight is one, its box empty.
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


def normalization(
    normalize: str | tuple, channels: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel, for values from 0 to 1; a name is looked up.

    Args:
      normalize: as for `make_preprocess`.
      channels: how many; None for as many as `normalize` has.
    """
    if isinstance(normalize, str | None):
        normalize = NORMALIZATIONS[choose("augment.normalize", normalize, NORMALIZATIONS)]
    mean, std = (tuple(values) for values in normalize)
    return for_channels(mean, channels), for_channels(std, channels)


def for_channels(values: tuple[float, ...], channels: int | None) -> tuple[float, ...]:
    """The mean or the deviation of images of another number of channels.

    Equal values are kept. Otherwise each channel gets the value of the luminance, which is right
    for grey images; for other channels nothing better is known.

    Args:
      values: of each channel.
      channels: how many are wanted; None for as many as there are.
    """
    if channels in (None, len(values)):
        return values
    value = values[0]
    if len(set(values)) > 1 and len(values) == len(LUMINANCE):
        value = round(sum(w * v for w, v in zip(LUMINANCE, values, strict=True)), 6)
    return (value,) * (channels or 1)


def _check_colours(channels: int, options: Mapping[str, Any], expected: tuple[int, ...]) -> None:
    """Refuses operations that images with this number of channels do not have."""
    for name, value in options.items():
        if value and channels not in expected:
            numbers_of = " or ".join(map(str, expected))
            raise ValueError(
                f"augment.{name}: got {value!r}, which needs images of {numbers_of} channels, but "
                f"these have {channels}; switch it off"
            )


def _make_policy(name: str, **options) -> policies.Policy | None:
    """The policy of this name; an option that is None takes the policy's default."""
    make, names = POLICIES[choose("augment.policy", name, POLICIES)]
    options = {field: value for field, value in options.items() if value is not None}
    for field, value in options.items():
        if field not in names:
            raise ValueError(
                f"augment.{field}: got {value!r}, but augment.policy={name!r} has none"
            )
        if field in ("randaugment_layers", "augmix_width"):
            check_whole(f"augment.{field}", value, 1)
        else:
            most = {"magnitude": policies.MAX_LEVEL, "prob": 1.0}.get(names[field], math.inf)
            _number(field, value, most)
    return make(**{names[field]: value for field, value in options.items()}) if make else None


def _number(name: str, value: Any, most: float = math.inf, below: float = math.inf) -> None:
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not 0 <= value <= most or value >= below:
        bound = f" to {most:g}" if most < math.inf else ""
        bound = f" to below {below:g}" if below < math.inf else bound
        raise ValueError(f"augment.{name}: got {value!r}, expected from 0{bound or ' up'}")
