"""Affine maps against SciPy's, on the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mbv3_jax.data.augment import warp

rng = np.random.default_rng(1)
IMAGES = rng.integers(0, 256, (6, 20, 24, 3), np.uint8)
AFFINE = jax.jit(warp.affine, static_argnames="pad")
DRAW = jax.jit(warp.draw_affine, static_argnums=1)


def scipy_affine(image, angle, scale, shift, mode):
    """The same map by scipy: it takes output to input coordinates as matrix @ out + offset."""
    height, width, _ = image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    offset = centre - turn @ (centre + shift * [height, width])
    channels = [
        ndimage.affine_transform(channel, turn, offset, order=1, mode=mode)
        for channel in np.moveaxis(image.astype(np.float64), -1, 0)
    ]
    return np.stack(channels, -1)


@pytest.mark.parametrize(("pad", "mode"), [("zero", "grid-constant"), ("edge", "nearest")])
def test_affine_against_scipy(pad, mode):
    draws = DRAW(jax.random.key(0), 6, rotate_degrees=40.0, zoom=0.5, translate=0.3)
    got = AFFINE(IMAGES, *draws, pad=pad)
    for i, (angle, scale, shift) in enumerate(zip(*map(np.asarray, draws), strict=True)):
        expected = scipy_affine(IMAGES[i], float(angle), float(scale), shift, mode)
        np.testing.assert_allclose(got[i], expected, atol=0.02)


def test_no_motion_is_exact():
    zero = jnp.zeros(6)
    got = AFFINE(IMAGES, zero, zero + 1, jnp.zeros((6, 2)))
    np.testing.assert_array_equal(got, IMAGES)


def test_directions():
    image = np.zeros((1, 9, 9, 1), np.uint8)
    image[0, 4, 7] = 255  # right of the centre
    one, none = jnp.ones(1), jnp.zeros((1, 2))
    turned = AFFINE(image, one * np.pi / 2, one, none)
    assert float(turned[0, 1, 4, 0]) > 254  # counter-clockwise: to the top
    shifted = AFFINE(image, one * 0, one, jnp.array([[2 / 9, -3 / 9]]))
    assert float(shifted[0, 6, 4, 0]) > 254  # down by 2, left by 3
    larger = AFFINE(image, one * 0, one * 4 / 3, none)
    assert float(larger[0, 4, 8, 0]) > 254  # 3 from the centre, now 4


def test_draws_fill_their_ranges():
    angle, scale, shift = DRAW(
        jax.random.key(0), 4000, rotate_degrees=10.0, zoom=0.2, translate=0.1
    )
    for values, low, high in (
        (np.rad2deg(angle), -10, 10),
        (scale, 0.8, 1.2),
        (shift, -0.1, 0.1),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
    assert abs(np.corrcoef(angle, shift[:, 0])[0, 1]) < 0.05


def test_flip_where():
    got = warp.flip_where(IMAGES, jnp.arange(6) % 2 == 1)
    np.testing.assert_array_equal(got[0], IMAGES[0])
    np.testing.assert_array_equal(got[1], IMAGES[1][:, ::-1])
