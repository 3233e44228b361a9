"""AutoAugment and RandAugment: strengths, frequencies, and whole policies by Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_augment_ops import photographs, pillow

from mbv3_jax.data import augment
from mbv3_jax.data.augment import ops, policies

KEY = jax.random.key(0)
ARGUMENT = jax.jit(lambda *args: policies.argument(*args, policies.strengths(100.0, 40.0)))

# Arguments that the TensorFlow reference gives its operations at levels 2 and 9.
PUBLISHED = {
    "rotate": (6.0, 27.0),
    "shear_x": (0.06, 0.27),
    "shear_y": (0.06, 0.27),
    "translate_x": (20.0, 90.0),
    "translate_y": (20.0, 90.0),
    "posterize": (int(0.2 * 4), int(0.9 * 4)),
    "solarize": (int(0.2 * 256), int(0.9 * 256)),
    "solarize_add": (int(0.2 * 110), int(0.9 * 110)),
    "color": (0.46, 1.72),
    "contrast": (0.46, 1.72),
    "brightness": (0.46, 1.72),
    "sharpness": (0.46, 1.72),
    "cutout": (int(0.2 * 40), int(0.9 * 40)),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_strengths_at_levels(name):
    op = np.full(4, ops.OPS.index(name))
    levels, signs = np.array([2.0, 9.0, 2.0, 9.0]), np.array([True, True, False, False])
    got = ARGUMENT(op, levels, signs)
    published = np.array(PUBLISHED[name])
    either = name in ops.MOVING
    expected = np.concatenate([published, -published if either else published])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_whole_arguments_at_every_level():
    level = np.arange(11)
    for name, span in (("posterize", 4), ("solarize", 256), ("solarize_add", 110)):
        op = np.full(11, ops.OPS.index(name))
        got = ARGUMENT(op, level.astype(float), op > 0)
        np.testing.assert_array_equal(got, [int(v / 10 * span) for v in level])


def test_v0_is_the_published_table():
    assert len(policies.V0) == 25 and all(len(row) == 2 for row in policies.V0)
    flat = [entry for row in policies.V0 for entry in row]
    assert {name for name, _, _ in flat} < set(ops.OPS)
    assert sum(prob for _, prob, _ in flat) == pytest.approx(29.8)
    assert sum(level for _, _, level in flat) == 240
    place = sum(i * prob * level for i, (_, prob, level) in enumerate(flat))
    assert place == pytest.approx(3561)  # holds each to its place
    counts = {name: sum(entry[0] == name for entry in flat) for name in {e[0] for e in flat}}
    assert counts == {
        "equalize": 12,
        "solarize": 8,
        "color": 9,
        "rotate": 7,
        "shear_y": 4,
        "shear_x": 2,
        "solarize_add": 2,
        "posterize": 2,
        "autocontrast": 2,
        "invert": 1,
        "translate_y": 1,
    }


def test_frequencies_of_v0():
    first, second = jax.jit(policies.autoaugment_v0().draw, static_argnums=1)(KEY, 20000, 32, 32)
    for i, layer in enumerate((first, second)):
        expected = np.zeros(len(ops.OPS))
        for row in policies.V0:
            name, prob, _ = row[i]
            expected[ops.OPS.index(name)] += prob / 25
            expected[0] += (1 - prob) / 25
        got = np.bincount(layer.op, minlength=len(ops.OPS)) / 20000
        np.testing.assert_allclose(got, expected, atol=0.012)
        among = policies.autoaugment_v0().among[i]
        assert {ops.OPS[k] for k in np.flatnonzero(got)} == among | {"identity"}
    # Rows are drawn whole: the translation only comes after a rotation of the same image.
    moved = np.asarray(second.op) == ops.OPS.index("translate_y")
    assert moved.any() and (np.asarray(first.op)[moved] == ops.OPS.index("rotate")).all()
    assert set(np.abs(np.asarray(second.arg)[moved]).tolist()) == {225.0}


def test_frequencies_of_randaugment():
    policy = policies.randaugment(magnitude=9.0, magnitude_std=0.5, prob=0.5, cutout=0.0)
    layers = jax.jit(policy.draw, static_argnums=1)(KEY, 16000, 32, 32)
    assert len(layers) == 2
    for layer in layers:
        share = np.bincount(layer.op, minlength=len(ops.OPS)) / 16000
        assert share[ops.OPS.index("cutout")] == 0
        np.testing.assert_allclose(share[1:-1], 0.5 / 15, atol=0.006)
        degrees = np.asarray(layer.arg)[np.asarray(layer.op) == ops.OPS.index("rotate")]
        assert abs(np.abs(degrees).mean() - 27) < 0.3 and abs(np.abs(degrees).std() - 1.5) < 0.3
        assert np.abs(degrees).max() <= 30 and abs((degrees > 0).mean() - 0.5) < 0.08
    assert abs(np.corrcoef(layers[0].op, layers[1].op)[0, 1]) < 0.03
    draw = jax.jit(policies.randaugment(layers=1, magnitude=9.0).draw, static_argnums=1)
    whole = draw(KEY, 16000, 32, 48)[0]
    np.testing.assert_allclose(np.bincount(whole.op)[1:] / 16000, 1 / 16, atol=0.008)
    assert (whole.centre.min(0) == 0).all() and whole.centre.max(0).tolist() == [31, 47]


def test_a_deviation_of_100_draws_uniform_magnitudes():
    policy = policies.randaugment(layers=1, magnitude=8.0, magnitude_std=101.0)
    (layer,) = jax.jit(policy.draw, static_argnums=1)(KEY, 16000, 32, 32)
    degrees = np.abs(np.asarray(layer.arg)[np.asarray(layer.op) == ops.OPS.index("rotate")])
    quarters = np.histogram(degrees, bins=4, range=(0, 24))[0] / len(degrees)
    assert degrees.max() <= 24
    np.testing.assert_allclose(quarters, 0.25, atol=0.05)


@pytest.mark.parametrize("name", ["autoaugment_v0", "randaugment"])
def test_whole_policies_by_pillow(name):
    policy = getattr(policies, name)(translate=12.0)

    def off_the_ties(*args):
        # At level 4 shears meet the lines between pixels, where Pillow's fall to either side.
        moving = jnp.array([ops.OPS.index(name) for name in ops.MOVING])
        return [
            layer._replace(arg=layer.arg * jnp.where(jnp.isin(layer.op, moving), 1.001, 1))
            for layer in policy.draw(*args)
        ]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(images, key):
        shifted = policy._replace(draw=off_the_ties)
        return off_the_ties(key, *images.shape[:3]), policies.apply(shifted, images, key)

    images = photographs(48)
    layers, got = run(images, KEY)
    changed = 0
    for i, image in enumerate(images):
        expected = image
        for layer in layers:
            op, arg = ops.OPS[int(layer.op[i])], float(layer.arg[i])
            expected = pillow(op, expected, arg, np.asarray(layer.centre[i]))
        # Later operations spread a difference of one level, as of autocontrast.
        off = np.abs(np.asarray(got[i]).astype(int) - expected)
        assert (off.max(-1) > 4).mean() < 0.003, [ops.OPS[int(layer.op[i])] for layer in layers]
        changed += (expected != image).any()
    assert changed > 30


# What timm's augmix gives its operations at a level, up to the sign of what is added, for images of
# 40 x 60 pixels (timm/data/auto_augment.py).
AUGMIX = {
    "autocontrast": lambda level: 0,
    "equalize": lambda level: 0,
    "color": lambda level: 1 + level / 10 * 0.9,
    "contrast": lambda level: 1 + level / 10 * 0.9,
    "brightness": lambda level: 1 + level / 10 * 0.9,
    "sharpness": lambda level: 1 + level / 10 * 0.9,
    "rotate": lambda level: level / 10 * 30,
    "posterize": lambda level: 4 - int(level / 10 * 4),
    "solarize": lambda level: 256 - int(level / 10 * 256),
    "shear_x": lambda level: level / 10 * 0.3,
    "shear_y": lambda level: level / 10 * 0.3,
    "translate_x": lambda level: level / 10 * 0.45 * 60,
    "translate_y": lambda level: level / 10 * 0.45 * 40,
}


def test_augmix_has_the_strengths_of_timm():
    assert {*AUGMIX} == {*policies.AUGMIX_OPS}
    levels = np.array([0.1, 0.9, 1.7, 2.4, 2.6, 3.0] * 2)
    positive = np.arange(12) < 6
    by_name = policies.augmix_strengths(40, 60)
    for name, argument in AUGMIX.items():
        op = np.full(12, ops.OPS.index(name))
        want = np.array([argument(level) for level in levels], np.float32)
        centre = {"color": 1, "contrast": 1, "brightness": 1, "sharpness": 1}.get(name, 0)
        if name not in ("posterize", "solarize"):
            want = np.where(positive, want, 2 * centre - want)
        got = policies.argument(op, levels, positive, by_name)
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)


def test_augmix_draws_chains_of_one_to_three_operations():
    draw = jax.jit(policies.augmix(magnitude=6.0).draw, static_argnums=(1, 2, 3))
    layers = [jax.tree.map(np.asarray, layer) for layer in draw(KEY, 16000, 32, 48)]
    used = np.stack([layer.op != 0 for layer in layers])
    np.testing.assert_allclose(used.mean(1), [1, 2 / 3, 1 / 3], atol=0.02)
    assert (used[:-1] >= used[1:]).all()
    share = np.bincount(layers[0].op, minlength=len(ops.OPS)) / 16000
    assert {ops.OPS[i] for i in np.flatnonzero(share)} == set(policies.AUGMIX_OPS)
    np.testing.assert_allclose(share[share > 0], 1 / 13, atol=0.01)
    degrees = np.abs(layers[0].arg[layers[0].op == ops.OPS.index("rotate")])
    quarters = np.histogram(degrees, bins=4, range=(0, 18))[0] / len(degrees)
    np.testing.assert_allclose(quarters, 0.25, atol=0.06)


def test_augmix_draws_its_mixture_from_dirichlet_and_beta():
    weights, share = map(np.asarray, policies.draw_mixture(KEY, 16000, 3))
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights.mean(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(weights.var(0), 1 / 18, atol=0.002)
    assert abs(share.mean() - 1 / 2) < 0.01 and abs(share.var() - 1 / 12) < 0.003


def test_augmix_is_that_mixture_of_its_chains_and_the_image():
    policy = policies.augmix(magnitude=10.0)
    images = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3), np.uint8)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(images, key):
        keys = jax.random.split(jax.random.split(key)[1], 3)
        alone = policy._replace(chains=0)
        chains = jax.lax.map(lambda one: policies.apply(alone, images, one), keys)
        return policies.apply(policy, images, key), chains

    got, chains = (np.asarray(x, np.float64) for x in run(images, KEY))
    assert (chains != images).any(axis=(2, 3, 4)).mean() > 0.8
    weights, share = policies.draw_mixture(jax.random.split(KEY)[0], 32, 3)
    mixed = np.einsum("nk,knhwc->nhwc", weights, chains)
    want = images + np.asarray(share)[:, None, None, None] * (mixed - images)
    off = want - got
    # The mixture, and then the result, are cut off to whole grey levels.
    assert off.min() > -0.01 and off.max() < 2 and abs(off.mean() - 0.5) < 0.5


def test_augmix_by_its_options():
    once, other = (
        jax.jit(augment.make_preprocess(policy="augmix", **options)[0])
        for options in ({}, {"augmix_magnitude": 10.0, "augmix_width": 1})
    )
    batch = {"image": photographs(24), "label": np.zeros(len(photographs(24)), np.int32)}
    (first, _), (again, _), (strong, _) = once(batch, KEY), once(batch, KEY), other(batch, KEY)
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(strong)).any()
    for options, message in (
        ({"policy": "randaugment", "augmix_width": 3}, "augmix_width: got 3, but augment.policy="),
        ({"policy": "augmix", "augmix_width": 0}, "augmix_width: got 0, expected a whole number"),
        ({"policy": "augmix", "augmix_magnitude": 11.0}, "augmix_magnitude: got 11.0, expected"),
        ({"policy": "augmix", "randaugment_prob": 1.0}, "randaugment_prob: got 1.0, but augment"),
    ):
        with pytest.raises(ValueError, match=message):
            augment.make_preprocess(**options)
