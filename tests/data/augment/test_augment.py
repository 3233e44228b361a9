"""The steps of preprocessing: normalise, draw by key, mix; and the options' errors."""

import functools

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
QUICKLY = {"xla_backend_optimization_level": 0}  # compiles in half the time


@functools.cache
def compiled(**options):
    return jax.jit(augment.make_preprocess(**options)[0], compiler_options=QUICKLY)


def train(key=KEY, **options):
    return compiled(**options)(BATCH, key)


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
    options = {"flip": True, "brightness": 0.1, "erase_prob": 0.5}
    images = train(**options)[0]
    np.testing.assert_array_equal(images, train(**options)[0])
    assert not np.array_equal(images, train(jax.random.key(4), **options)[0])


def test_an_operation_does_not_move_the_draws_of_another():
    alone = train(flip=True)[0]
    mixed, soft = train(flip=True, mixup_alpha=0.4, num_classes=8)
    share = float(soft[0, 0])
    partner = np.asarray(alone)[[1, 0, 3, 2, 5, 4, 7, 6]]
    np.testing.assert_allclose(mixed, share * alone + (1 - share) * partner, atol=1e-5)


def test_share_of_mixup_follows_beta():
    draw = compiled(flip=True, mixup_alpha=0.4, num_classes=8)
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
        ({"brightness": True}, "augment.brightness: got True"),
        ({"hue": 0.6}, "augment.hue: got 0.6, expected from 0 to 0.5"),
        ({"erase_prob": 1.5}, "augment.erase_prob: got 1.5"),
        ({"erase_mode": "rand"}, "augment.erase_mode: got 'rand', expected one of 'pixel', 'con"),
        ({"mixup_alpha": 0.2}, "augment.num_classes: got None"),
        ({"cutmix_alpha": 1.0}, "augment.num_classes: got None"),
        ({"policy": "v0"}, "augment.policy: got 'v0', expected one of 'none', 'autoaugment_v0'"),
        ({"policy_interpolation": "cubic"}, "augment.policy_interpolation: got 'cubic'"),
        ({"policy_translate": 10.0}, "augment.policy_translate: got 10.0, but augment.policy='no"),
        (
            {"policy": "autoaugment_v0", "randaugment_prob": 0.5},
            "augment.randaugment_prob: got 0.5, but augment.policy='autoaugment_v0' has none",
        ),
        (
            {"policy": "randaugment", "randaugment_magnitude": 11.0},
            "augment.randaugment_magnitude: got 11.0, expected from 0 to 10",
        ),
        (
            {"policy": "randaugment", "randaugment_layers": 0},
            "augment.randaugment_layers: got 0, expected a whole number of at least 1",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        augment.make_preprocess(**options)


def test_erasing_comes_after_normalisation():
    straight, _ = train()
    for mode in ("const", "pixel"):
        erased, _ = train(erase_prob=1.0, erase_mode=mode)
        changed = np.asarray(erased != straight)
        share = changed.any(-1).mean(axis=(1, 2))
        assert (share > 0.01).all() and (share < 0.4).all()
        filled = np.asarray(erased)[changed]
        if mode == "const":
            assert (filled == 0).all()
        else:
            assert abs(filled.mean()) < 0.15 and abs(filled.std() - 1) < 0.15


def test_jitter_keeps_images_in_range():
    jittered, _ = train(brightness=0.4, contrast=0.4, saturation=0.4)
    straight, _ = train()
    assert jittered.min() >= -1 and jittered.max() <= 1
    assert (np.abs(jittered - straight).mean(axis=(1, 2, 3)) > 0.01).all()


def test_with_both_on_one_of_mixup_and_cutmix_is_drawn():
    draw = compiled(mixup_alpha=1.0, cutmix_alpha=1.0, num_classes=8)
    straight = np.asarray(train()[0])
    partner = straight[[1, 0, 3, 2, 5, 4, 7, 6]]
    blended = pasted = 0
    for i in range(20):
        images, soft = (np.asarray(x) for x in draw(BATCH, jax.random.key(i)))
        share = soft[0, 0]
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-5)
        if np.allclose(images, share * straight + (1 - share) * partner, atol=1e-4):
            blended += 1
        else:
            pasted += 1
            own = (images == straight).all(axis=-1)
            assert (own | (images == partner).all(axis=-1)).all()
            assert abs(own[0].mean() - share) < 1e-5
    assert blended > 4 and pasted > 4


def test_policies_change_images_after_motion():
    moved, _ = train(rotate_degrees=10.0)
    both, _ = train(rotate_degrees=10.0, policy="randaugment", randaugment_layers=1)
    levels = (np.asarray(both) * 127.5) + 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)  # whole again
    same = [np.allclose(a, b, atol=0.6 / 127.5) for a, b in zip(moved, both, strict=True)]
    assert sum(same) < 8
