"""The steps of preprocessing: normalise, draw by key, mix; and the options' errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.data import augment

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
LABELS = np.arange(8, dtype=np.int32)
BATCH = {"image": IMAGES, "label": LABELS}
KEY = jax.random.key(3)


def train(key=KEY, **options):
    return jax.jit(augment.make_preprocess(**options)[0])(BATCH, key)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("inception", 0.5, 0.5),
        ("torch", np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
    ],
)
def test_normalize(name, mean, std):
    got = augment.make_preprocess(normalize=name)[1](jnp.asarray(IMAGES))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, (IMAGES / 255 - mean) / std, atol=2e-6)


def test_inception_ends_at_minus_one_and_one():
    ends = jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1) * jnp.ones((1, 1, 1, 3), jnp.uint8)
    got = augment.make_preprocess()[1](ends)
    assert got.min() == -1 and got.max() == 1


def test_nothing_is_on_by_default():
    train_preprocess, eval_preprocess = augment.make_preprocess()
    images, labels = train_preprocess(BATCH, KEY)
    np.testing.assert_array_equal(images, eval_preprocess(IMAGES))
    np.testing.assert_array_equal(labels, LABELS)


def test_every_image_is_itself_or_mirrored():
    straight, _ = train()
    flipped, labels = train(flip=True)
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(flipped, straight, strict=True)])
    assert 0 < mirrored.sum() < 8
    where = mirrored[:, None, None, None]
    np.testing.assert_array_equal(flipped, np.where(where, straight[:, :, ::-1], straight))
    np.testing.assert_array_equal(labels, LABELS)


def test_same_key_same_images_and_another_key_others():
    options = {"flip": True, "rotate_degrees": 10.0}
    np.testing.assert_array_equal(train(**options)[0], train(**options)[0])
    assert not np.array_equal(train(**options)[0], train(jax.random.key(4), **options)[0])


def test_an_operation_does_not_move_the_draws_of_another():
    alone = train(flip=True)[0]
    mixed, soft = train(flip=True, mixup_alpha=0.4, num_classes=8)
    share = float(soft[0, 0])
    partner = np.asarray(alone)[[1, 0, 3, 2, 5, 4, 7, 6]]
    np.testing.assert_allclose(mixed, share * alone + (1 - share) * partner, atol=1e-5)


def test_mixup_blends_images_and_labels_alike():
    got, soft = augment.mixup(jnp.asarray(IMAGES, jnp.float32), LABELS, 0.3, 8)
    images = IMAGES.astype(np.float32)
    np.testing.assert_allclose(got[2], 0.3 * images[2] + 0.7 * images[3], rtol=1e-5)
    expected = np.zeros((8, 8), np.float32)
    for i in range(8):
        expected[i, i] += 0.3
        expected[i, i ^ 1] += 0.7
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "order"), [(1, [0]), (2, [1, 0]), (3, [1, 2, 0]), (5, [1, 0, 3, 4, 2])]
)
def test_partners_of_small_and_odd_batches(count, order):
    np.testing.assert_array_equal(augment.neighbours(jnp.arange(count)), order)


def test_share_of_mixup_follows_beta():
    draw = jax.jit(augment.make_preprocess(mixup_alpha=0.4, num_classes=8)[0])
    shares = [draw(BATCH, jax.random.key(i))[1][0, 0] for i in range(300)]
    assert abs(np.mean(shares) - 0.5) < 0.07
    assert abs(np.var(shares) - 0.25 / 1.8) < 0.03  # of Beta(a, a): 1 / (4 (2a + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "imagenet"}, "augment.normalize: got 'imagenet', expected one of 'incept"),
        ({"pad": "mirror"}, "augment.pad: got 'mirror', expected one of 'zero', 'edge'"),
        ({"zoom": 1.0}, "augment.zoom: got 1.0, expected from 0 to below 1"),
        ({"translate": -0.1}, "augment.translate: got -0.1"),
        ({"rotate_degrees": float("nan")}, "augment.rotate_degrees: got nan"),
        ({"mixup_alpha": 0.2}, "augment.num_classes: got None"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        augment.make_preprocess(**options)
