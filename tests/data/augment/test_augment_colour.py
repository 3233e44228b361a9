"""Colour jitter against plain NumPy and the standard library's colorsys, on the same draws."""

import colorsys

import jax
import numpy as np

from mbv3_jax.data.augment import colour

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 3), np.uint8)
IMAGES[:, 0, 0] = 90  # grey: no hue
IMAGES[:, 0, 1] = 0
DRAW = jax.jit(colour.draw, static_argnums=1)
JITTER = jax.jit(colour.jitter, static_argnames="with_hue")


def reference(image, factors, hue, order, hue_after):
    """torchvision's ColorJitter on one image of floats."""
    value = image / 255.0

    def grey(v):
        return v @ np.array([0.2989, 0.587, 0.114])

    def blended(v, kind):
        other = [0.0, grey(v).mean(), grey(v)[..., None]][kind]
        return np.clip(factors[kind] * v + (1 - factors[kind]) * other, 0, 1)

    def turned(v):
        out = np.empty_like(v)
        for place in np.ndindex(v.shape[:2]):
            h, s, brightest = colorsys.rgb_to_hsv(*v[place])
            out[place] = colorsys.hsv_to_rgb((h + hue) % 1.0, s, brightest)
        return out

    for i, kind in enumerate(order):
        value = turned(value) if i == hue_after else value
        value = blended(value, kind)
    return (turned(value) if hue_after == 3 else value) * 255


def test_against_numpy_and_colorsys():
    drawn = DRAW(jax.random.key(1), 6, brightness=0.5, contrast=0.6, saturation=0.7, hue=0.5)
    assert len({tuple(row) for row in np.asarray(drawn.order)}) > 1
    got = JITTER(IMAGES, drawn)
    for i in range(6):
        expected = reference(IMAGES[i], *(np.asarray(x)[i] for x in drawn))
        np.testing.assert_allclose(got[i], expected, atol=0.02)


def test_hue_first_and_last():
    drawn = DRAW(jax.random.key(2), 6, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.3)
    drawn = drawn._replace(hue_after=np.array([0, 3] * 3))
    got = JITTER(IMAGES, drawn)
    for i in range(2):
        expected = reference(IMAGES[i], *(np.asarray(x)[i] for x in drawn))
        np.testing.assert_allclose(got[i], expected, atol=0.02)


def test_nothing_drawn_changes_nothing():
    drawn = DRAW(jax.random.key(1), 6, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    np.testing.assert_allclose(JITTER(IMAGES, drawn), IMAGES, atol=0.02)
    without = JITTER(IMAGES, drawn, with_hue=False)
    np.testing.assert_allclose(without, IMAGES, atol=1e-3)


def test_ranges_of_the_draws():
    drawn = DRAW(jax.random.key(0), 4000, brightness=0.4, contrast=1.5, saturation=0.0, hue=0.1)
    low, high = drawn.factors.min(0), drawn.factors.max(0)
    np.testing.assert_allclose(low, [0.6, 0.0, 1.0], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 2.5, 1.0], atol=0.01)
    assert drawn.hue.min() < -0.099 and drawn.hue.max() > 0.099
    orders, counts = np.unique(np.asarray(drawn.order), axis=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > 4000 / 6 * 0.85
    assert np.bincount(drawn.hue_after).min() > 1000 * 0.9
