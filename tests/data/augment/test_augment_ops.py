"""Each image operation against Pillow's, all in one batch: one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mbv3_jax.data.augment import colour, ops

HEIGHT, WIDTH = 30, 41
ARGS = {
    "identity": (0.0,),
    "rotate": (30.0, -13.7, 5.0),
    "shear_x": (0.3, -0.17),
    "shear_y": (0.27, -0.3),
    "translate_x": (7.0, -11.3, 100.0),
    "translate_y": (3.4, -12.0),
    "autocontrast": (0.0,),
    "equalize": (0.0,),
    "invert": (0.0,),
    "posterize": (0.0, 1.0, 3.0, 8.0),
    "solarize": (0.0, 77.0, 128.0, 256.0),
    "solarize_add": (0.0, 33.0, 110.0),
    "brightness": (0.1, 0.73, 1.0, 1.9),
    "contrast": (0.1, 0.73, 1.0, 1.9),
    "color": (0.0, 0.73, 1.0, 1.9),
    "sharpness": (0.0, 0.73, 1.0, 1.9),
    "cutout": (0.0, 4.0, 100.0),
}


def pillow(name, image, arg, centre, resample=Image.Resampling.NEAREST):
    """The operation by Pillow, where it has it: image uint8 [H, W, 3] -> the same."""
    picture = Image.fromarray(image)
    motion = {
        "shear_x": (1, arg, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, arg, 1, 0),
        "translate_x": (1, 0, arg, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, arg),
    }
    grey = (128, 128, 128)
    if name in motion:
        affine = Image.Transform.AFFINE
        return np.asarray(
            picture.transform(picture.size, affine, motion[name], resample, fillcolor=grey)
        )
    if name == "cutout":
        out, half = image.copy(), int(arg)
        (top, left), (bottom, right) = np.maximum(centre - half, 0), np.maximum(centre + half, 0)
        out[top:bottom, left:right] = 128
        return out
    made = {
        "identity": lambda: picture,
        "rotate": lambda: picture.rotate(arg, resample, fillcolor=grey),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
        # Of no bits, which the policies ask for, Pillow makes an error.
        "posterize": lambda: ImageOps.posterize(picture, int(arg)) if arg else image * 0,
        "solarize": lambda: ImageOps.solarize(picture, int(arg)),
        "solarize_add": lambda: picture.point(
            [min(255, v + int(arg)) if v < 128 else v for v in range(256)] * 3
        ),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(arg),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(arg),
        "color": lambda: ImageEnhance.Color(picture).enhance(arg),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(arg),
    }
    return np.asarray(made[name]())


def photographs(count, height=HEIGHT, width=WIDTH, seed=0):
    """Smooth shapes, edges and noise, with other ranges per channel: uint8 [batch, h, w, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    out = []
    for _ in range(count):
        wave = rng.uniform(2, 9, (3, 3))
        value = np.sin(wave[0] * x + wave[1] * y + wave[2]) + (x > rng.random(3)) * 0.7
        value += rng.normal(0, 0.1, (height, width, 3))
        value = (value - value.min()) / np.ptp(value)
        out.append(rng.uniform(0, 80, 3) + value * rng.uniform(90, 175, 3))
    return np.stack(out).astype(np.uint8)


APPLY = jax.jit(ops.apply, static_argnames=("among", "interpolation"))


@functools.cache
def applied(interpolation):
    """{(name, arg): (input, centre, output)} of every operation, from a single call."""
    cases = [(name, arg) for name, args in ARGS.items() for arg in args]
    images = photographs(len(cases))
    op = np.array([ops.OPS.index(name) for name, _ in cases])
    arg = np.array([arg for _, arg in cases], np.float32)
    rng = np.random.default_rng(1)
    centre = np.stack([rng.integers(0, HEIGHT, len(cases)), rng.integers(0, WIDTH, len(cases))], 1)
    got = np.asarray(APPLY(images, op, arg, centre, interpolation=interpolation))
    assert got.dtype == np.uint8 and got.shape == images.shape
    return dict(zip(cases, zip(images, centre, got, strict=True), strict=True))


@pytest.mark.parametrize("name", [name for name in ops.OPS if name not in ops.MOVING])
def test_levels_against_pillow(name):
    for arg in ARGS[name]:
        image, centre, got = applied("nearest")[name, arg]
        expected = pillow(name, image, arg, centre)
        worst = np.abs(got.astype(int) - expected).max()
        assert worst <= (1 if name in ("autocontrast", *tuple(ops.BLENDING)) else 0), (arg, worst)
        assert name in ("identity", "cutout") or arg in (0, 1, 8, 256) or (got != image).any()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", ops.MOVING)
def test_motion_against_pillow(name, interpolation):
    resample = Image.Resampling[interpolation.upper()]
    for arg in ARGS[name]:
        image, centre, got = applied(interpolation)[name, arg]
        expected = pillow(name, image, arg, centre, resample)
        far = np.abs(got.astype(int) - expected).max(-1) > 1
        # A point on the line between two pixels falls to either: Pillow's are fixed-point.
        assert far.mean() < 0.003, (arg, far.sum())


def test_passes_left_out_do_not_matter():
    image = photographs(3)
    op = jnp.array([ops.OPS.index("invert"), 0, ops.OPS.index("solarize")])
    arg, centre = jnp.array([0.0, 0.0, 50.0]), jnp.zeros((3, 2), jnp.int32)
    some = APPLY(image, op, arg, centre, among=("invert", "solarize"))
    np.testing.assert_array_equal(some[0], 255 - image[0])
    np.testing.assert_array_equal(some[1], image[1])
    np.testing.assert_array_equal(some[2], pillow("solarize", image[2], 50, 0))


def test_flat_and_two_valued_channels():
    image = np.zeros((2, 8, 8, 3), np.uint8)
    image[0] = 77
    image[1, :3] = [10, 200, 255]
    image = np.concatenate([image, image])
    names = ("autocontrast", "autocontrast", "equalize", "equalize")
    op = jnp.array([ops.OPS.index(name) for name in names])
    got = APPLY(image, op, jnp.zeros(4), jnp.zeros((4, 2)), among=names[1:3])
    for i, name in enumerate(names):
        np.testing.assert_allclose(got[i], pillow(name, image[i], 0, 0), atol=1)
    np.testing.assert_array_equal(got[::2], image[::2])
    assert (got[1].max((0, 1)) == 255).all() and (got[1].min((0, 1)) == 0).all()


@jax.jit
def both_forms(images):
    counts, tables = colour.histogram(images), colour.equalize(images)
    compared = colour.histogram_by_comparing(images), colour.look_up_by_comparing(images, tables)
    return (counts, colour.look_up(images, tables)), compared


def test_forms_for_tpus_are_equal():
    images = photographs(2, 9, 7)
    (counts, levels), (compared_counts, compared_levels) = both_forms(images)
    np.testing.assert_array_equal(counts, compared_counts)
    np.testing.assert_array_equal(levels, compared_levels)
    assert counts.sum() == images.size
    np.testing.assert_array_equal(counts[1, 2], np.bincount(images[1, :, :, 2].ravel(), None, 256))
