"""Erasing, mixup and cutmix against NumPy, on the same draws, and the statistics of the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.data.augment import mix

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(8, 12, 10, 3)).astype(np.float32)
LABELS = np.eye(8, dtype=np.float32)
PARTNER = [1, 0, 3, 2, 5, 4, 7, 6]
DRAW_ERASING = jax.jit(mix.draw_erasing, static_argnums=(1,), static_argnames="prob")


def test_mixup_blends_images_and_labels_alike():
    images, labels = mix.mixup(IMAGES, LABELS, 0.3)
    np.testing.assert_allclose(images, 0.3 * IMAGES + 0.7 * IMAGES[PARTNER], atol=1e-6)
    np.testing.assert_allclose(labels, 0.3 * LABELS + 0.7 * LABELS[PARTNER], atol=1e-6)


@pytest.mark.parametrize(
    ("count", "order"), [(1, [0]), (2, [1, 0]), (3, [1, 2, 0]), (5, [1, 0, 3, 4, 2])]
)
def test_partners_of_small_and_odd_batches(count, order):
    np.testing.assert_array_equal(mix.neighbours(jnp.arange(count)), order)


@pytest.mark.parametrize("noise", [0.0, IMAGES[0] + 5])
def test_erase(noise):
    where = mix.Box(np.tile([3, 2], (8, 1)), np.tile([9, 7], (8, 1)))
    where.stop[1] = where.start[1]  # no box
    expected = IMAGES.copy()
    for i in (0, 2, 3, 4, 5, 6, 7):
        expected[i, 3:9, 2:7] = noise if np.isscalar(noise) else noise[3:9, 2:7]
    np.testing.assert_array_equal(mix.erase(IMAGES, where, noise), expected)


def test_boxes_of_erasing_have_the_areas_and_ratios_of_timm():
    where = DRAW_ERASING(jax.random.key(0), 4000, 224, 160, prob=0.25)
    sides = np.asarray(where.stop - where.start)
    used = sides.all(axis=1)
    assert abs(used.mean() - 0.25) < 0.03
    assert (sides[~used] == 0).all()
    sides = sides[used]
    area, ratio = sides.prod(1) / (224 * 160), np.log(sides[:, 0] / sides[:, 1])
    assert 0.018 < area.min() < 0.03 and 0.32 < area.max() < 0.34
    assert abs(area.mean() - 0.172) < 0.01  # of 0.02 to 1/3 0.177; boxes too wide drop out
    assert abs(ratio).max() < np.log(1 / 0.3) + 0.05 and abs(ratio.mean()) < 0.15
    start, stop = where.start[used], where.stop[used]
    assert start.min() == 0 and (stop <= np.array([224, 160])).all()
    assert (stop.max(axis=0) == np.array([224, 160])).all()  # the last place is drawn too


def test_no_box_where_none_fits():
    where = DRAW_ERASING(jax.random.key(0), 4000, 64, 1, prob=0.25)
    np.testing.assert_array_equal(where.start, where.stop)


def test_cutmix_pastes_the_box_and_counts_its_pixels():
    images, labels = mix.cutmix(IMAGES, LABELS, mix.Box(np.array([2, 1]), np.array([8, 6])))
    expected = IMAGES.copy()
    expected[:, 2:8, 1:6] = IMAGES[PARTNER, 2:8, 1:6]
    np.testing.assert_array_equal(images, expected)
    share = 1 - 6 * 5 / (12 * 10)
    np.testing.assert_allclose(labels, share * LABELS + (1 - share) * LABELS[PARTNER], atol=1e-6)


def test_boxes_of_cutmix_have_uniform_shares():
    draw = jax.vmap(lambda key: mix.draw_cutmix(key, 224, 224, alpha=1.0))
    where = jax.jit(draw)(jax.random.split(jax.random.key(0), 4000))
    start, stop = np.asarray(where.start), np.asarray(where.stop)
    assert (start >= 0).all() and (stop <= 224).all() and (start <= stop).all()
    inner = ((start > 0) & (stop < 224)).all(axis=1)
    sides = (stop - start)[inner]
    assert (np.ptp(sides, axis=1) == 0).all()  # square as the image, if not cut off
    # Beta(1, 1) is uniform; the same in NumPy.
    generator = np.random.default_rng(1)
    side = (224 * np.sqrt(generator.random(20000))).astype(int)[:, None] // 2
    centre = generator.integers(0, 224, (20000, 2))
    box = np.clip(centre + side, 0, 224) - np.clip(centre - side, 0, 224)
    assert abs((stop - start).prod(1).mean() - box.prod(1).mean()) < 0.012 * 224**2
