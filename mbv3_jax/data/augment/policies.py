"""AutoAugment, RandAugment and AugMix: which operation each image of a batch gets, how strongly.

The references are TensorFlow's EfficientNet code (tensorflow/tpu, efficientnet/autoaugment.py) and
the model garden (official/vision/ops/augment.py), which agree on the policy and the strengths.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.data.augment import ops

MAX_LEVEL = 10.0
_UNIFORM_STD = 100.0  # a deviation from which levels are uniform


class Layer(NamedTuple):
    """The operation on each image in one round; see `ops.apply`."""

    op: jax.Array  # [batch]
    arg: jax.Array  # [batch]
    centre: jax.Array  # [batch, 2]


class Policy(NamedTuple):
    """A policy.

    Attributes:
      draw: `draw(key, count, height, width)` returns a Layer for each round.
      among: the operations that each round can draw.
      chains: 0, or how many draws are applied to each image, to be mixed with one another and with
        the image, as in AugMix.
    """

    draw: Callable[..., list[Layer]]
    among: tuple[frozenset[str], ...]
    chains: int = 0


# Pairs of (operation, probability, level), applied in this order; each image gets one of the 25
# rows. Cubuk et al. 2018 (arXiv 1805.09501) searched for such policies. "v0" is the one with which
# the reference trains ImageNet networks; the appendix of the paper prints another. It is copied
# unchanged, although posterizing at level 2 leaves no bit, and moving 224 pixels by 225 no image.
V0 = (
    (("equalize", 0.8, 1), ("shear_y", 0.8, 4)),
    (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)),
    (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
    (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)),
    (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)),
    (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear_y", 0.6, 3)),
    (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("autocontrast", 0.4, 7)),
    (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
    (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
    (("shear_x", 0.0, 0), ("solarize", 0.8, 4)),
    (("shear_y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)),
    (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("autocontrast", 0.6, 2)),
    (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)),
    (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)


class Strength(NamedTuple):
    """How the argument of an operation depends on the level.

    Attributes:
      least: the argument at level 0.
      span: how much is added up to level 10.
      whole: whether what is added is truncated to a whole number.
      either: whether its sign is drawn.
      around: what changes sign is the distance from here.
    """

    least: float = 0.0
    span: float = 0.0
    whole: bool = False
    either: bool = False
    around: float = 0.0


def strengths(translate: float, cutout: float) -> dict[str, Strength]:
    """The mapping from levels to arguments of the reference; `translate`, `cutout` in pixels."""
    factor = Strength(0.1, 1.8)
    return {
        "rotate": Strength(span=30.0, either=True),
        "shear_x": Strength(span=0.3, either=True),
        "shear_y": Strength(span=0.3, either=True),
        "translate_x": Strength(span=translate, either=True),
        "translate_y": Strength(span=translate, either=True),
        "posterize": Strength(span=4.0, whole=True),
        "solarize": Strength(span=256.0, whole=True),
        "solarize_add": Strength(span=110.0, whole=True),
        "color": factor,
        "contrast": factor,
        "brightness": factor,
        "sharpness": factor,
        "cutout": Strength(span=cutout, whole=True),
    }


def argument(
    op: jax.Array, level: jax.Array, positive: jax.Array, by_name: dict[str, Strength]
) -> jax.Array:
    """The arguments of operations, float32 [batch].

    Args:
      op: int [batch], indices into `ops.OPS`.
      level: [batch], 0 to 10.
      positive: bool [batch], the sign of the argument.
      by_name: see `strengths`.
    """
    table = [by_name.get(name, Strength()) for name in ops.OPS]
    columns = (jnp.array(column)[op] for column in zip(*table, strict=True))
    least, span, whole, either, around = columns
    added = level * span / MAX_LEVEL
    # A rounding error can leave a whole number slightly too small.
    added = jnp.where(whole, jnp.sign(span) * jnp.floor(jnp.abs(added) + 1e-4), added)
    arg = least + added
    return jnp.where(either & ~positive, 2 * around - arg, arg)


def autoaugment_v0(*, translate: float = 250.0) -> Policy:
    """AutoAugment's policy v0.

    Args:
      translate: pixels at level 10; 250 in the reference.
    """
    op = np.array([[ops.OPS.index(name) for name, _, _ in row] for row in V0])
    prob = np.array([[prob for _, prob, _ in row] for row in V0], np.float32)
    level = np.array([[level for _, _, level in row] for row in V0], np.float32)
    by_name = strengths(translate, 0.0)

    def draw(key: jax.Array, count: int, height: int, width: int) -> list[Layer]:
        row = jax.random.randint(jax.random.fold_in(key, 0), (count,), 0, len(V0))
        layers = []
        for i in range(2):
            key_i = jax.random.fold_in(key, i + 1)
            use, positive, centre = _draw(key_i, count, jnp.array(prob)[row, i], height, width)
            chosen = jnp.array(op)[row, i]
            arg = argument(chosen, jnp.array(level)[row, i], positive, by_name)
            layers.append(Layer(jnp.where(use, chosen, 0), arg, centre))
        return layers

    among = (frozenset(row[i][0] for row in V0 if row[i][1]) for i in range(2))
    return Policy(draw, tuple(among))


def randaugment(
    *,
    layers: int = 2,
    magnitude: float = 10.0,
    magnitude_std: float = 0.0,
    prob: float = 1.0,
    translate: float = 100.0,
    cutout: float = 40.0,
) -> Policy:
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719) over the 16 operations of the reference.

    timm's version has magnitude_std=0.5, prob=0.5, no cutout, and translations of 0.45 sides.

    Args:
      layers: how many operations each image gets, each drawn from all of them.
      magnitude: the level of all operations, 0 to 10.
      magnitude_std: standard deviation of a normal draw around the magnitude, clipped to 0 to 10;
        from 100 up a uniform draw from 0 to the magnitude, as timm's mstd101.
      prob: probability of applying an operation that was drawn.
      translate: pixels at level 10.
      cutout: half a side in pixels at level 10; 0 leaves cutout out of the list.
    """
    by_name = strengths(translate, cutout)
    names = [name for name in ops.OPS[1:] if name != "cutout" or cutout]

    def draw(key: jax.Array, count: int, height: int, width: int) -> list[Layer]:
        drawn = []
        for i in range(layers):
            key_op, key_level, key_rest = jax.random.split(jax.random.fold_in(key, i), 3)
            chosen = 1 + jax.random.randint(key_op, (count,), 0, len(names))
            level = jnp.full((count,), magnitude)
            if magnitude_std >= _UNIFORM_STD:
                level = magnitude * jax.random.uniform(key_level, (count,))
            elif magnitude_std:
                noise = magnitude_std * jax.random.normal(key_level, (count,))
                level = jnp.clip(level + noise, 0, MAX_LEVEL)
            use, positive, centre = _draw(key_rest, count, prob, height, width)
            arg = argument(chosen, level, positive, by_name)
            drawn.append(Layer(jnp.where(use, chosen, 0), arg, centre))
        return drawn

    return Policy(draw, (frozenset(names),) * layers)


# timm's list; the paper leaves out color, contrast, brightness and sharpness, which resemble the
# corruptions that it tests on.
AUGMIX_OPS = (
    "autocontrast",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "equalize",
    "rotate",
    "posterize",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
AUGMIX_DEPTH = 3  # the longest chain


def augmix_strengths(
    height: int, width: int, translate: float | None = None
) -> dict[str, Strength]:
    """timm's mapping from levels to arguments, all of which change more at higher levels.

    Args:
      height, width: of the images, in pixels.
      translate: as for `augmix`.
    """
    enhanced = Strength(1.0, 0.9, either=True, around=1.0)
    across, down = (0.45 * width, 0.45 * height) if translate is None else (translate,) * 2
    return strengths(0.0, 0.0) | {
        "translate_x": Strength(span=across, either=True),
        "translate_y": Strength(span=down, either=True),
        "posterize": Strength(4.0, -4.0, whole=True),
        "solarize": Strength(256.0, -256.0, whole=True),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), enhanced),
    }


def augmix(*, magnitude: float = 3.0, width: int = 3, translate: float | None = None) -> Policy:
    """AugMix (Hendrycks et al. 2020, arXiv 1912.02781) as timm's augmix-m3-w3 has it.

    Each of the chains has 1 to 3 operations, with equal probability, at levels that are uniform
    from 0 to the magnitude. The chains are mixed with weights from a Dirichlet distribution, and
    the result with the image, with a weight from a Beta distribution, both of parameter 1. The loss
    of the paper that compares several views (JSD) is not part of it.

    Args:
      magnitude: the largest level, 0 to 10.
      width: how many chains.
      translate: pixels at level 10; None for 0.45 sides.
    """

    def draw(key: jax.Array, count: int, height: int, width: int) -> list[Layer]:
        depth = jax.random.randint(jax.random.fold_in(key, 0), (count,), 1, AUGMIX_DEPTH + 1)
        table = augmix_strengths(height, width, translate)
        choices = jnp.array([ops.OPS.index(name) for name in AUGMIX_OPS])
        layers = []
        for i in range(AUGMIX_DEPTH):
            key_op, key_level, key_rest = jax.random.split(jax.random.fold_in(key, i + 1), 3)
            chosen = choices[jax.random.randint(key_op, (count,), 0, len(AUGMIX_OPS))]
            level = magnitude * jax.random.uniform(key_level, (count,))
            _, positive, centre = _draw(key_rest, count, 1.0, height, width)
            arg = argument(chosen, level, positive, table)
            layers.append(Layer(jnp.where(i < depth, chosen, 0), arg, centre))
        return layers

    return Policy(draw, (frozenset(AUGMIX_OPS),) * AUGMIX_DEPTH, chains=width)


def _draw(
    key: jax.Array, count: int, prob: jax.Array | float, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws whether to apply the operation, the sign of its argument, and the cutout's centre."""
    u = jax.random.uniform(key, (count, 4))
    centre = jnp.floor(u[:, 2:] * jnp.array([height, width])).astype(jnp.int32)
    return u[:, 0] < prob, u[:, 1] < 0.5, centre


def draw_mixture(key: jax.Array, count: int, chains: int) -> tuple[jax.Array, jax.Array]:
    """Draws how AugMix mixes.

    Returns:
      The weights of the chains [count, chains], from Dirichlet(1, ..., 1), and the share of their
      mixture in the result [count], from Beta(1, 1).
    """
    key_weights, key_share = jax.random.split(key)
    drawn = jax.random.exponential(key_weights, (count, chains))
    return drawn / jnp.sum(drawn, axis=1, keepdims=True), jax.random.uniform(key_share, (count,))


def apply(
    policy: Policy, images: jax.Array, key: jax.Array, *, interpolation: str = "nearest"
) -> jax.Array:
    """Draws and applies a policy to images uint8 [batch, height, width, 3 or 1]."""
    count, height, width, _ = images.shape

    def chain(key: jax.Array) -> jax.Array:
        changed = images
        layers = policy.draw(key, count, height, width)
        for layer, among in zip(layers, policy.among, strict=True):
            changed = ops.apply(changed, *layer, among=among, interpolation=interpolation)
        return changed

    if not policy.chains:
        return chain(key)
    key_mixture, key_chains = jax.random.split(key)
    weights, share = draw_mixture(key_mixture, count, policy.chains)

    def add(mixed: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        key, weight = one
        return mixed + weight[:, None, None, None] * chain(key), None

    # A loop, so that the operations are compiled once.
    start = jnp.zeros(images.shape, jnp.float32)
    keys = jax.random.split(key_chains, policy.chains)
    mixed, _ = jax.lax.scan(add, start, (keys, weights.T))
    mixed = jnp.floor(jnp.clip(mixed + 1e-3, 0, 255))  # a rounding error is not a level less
    return (images + share[:, None, None, None] * (mixed - images)).astype(jnp.uint8)
