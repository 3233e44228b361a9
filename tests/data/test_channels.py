"""Grey images and other numbers of channels: reading, normalising and augmenting them."""

import io

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mbv3_jax.data import augment, decode
from mbv3_jax.data import source as data_source
from mbv3_jax.data.augment import colour, ops
from mbv3_jax.data.source import Source, open_pair, source

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 52, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("jpeg", mode) for mode in ("RGB", "L", "CMYK")]
    + [("png", mode) for mode in ("RGB", "L", "LA", "RGBA", "P", "I;16")],
)
def test_grey_is_pillows_luminance_of_any_mode(kind, mode):
    image = Image.fromarray(COLOURS)
    if mode == "I;16":
        image = Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    data = encoded(image, kind)
    square = {"resolution": 40, "crop_fraction": 1.0}  # all rows, nothing is interpolated
    in_colour = decode.decode_view(data, **square)
    grey = decode.decode_view(data, **square, channels=1)
    assert grey.shape == (40, 40, 1) and grey.dtype == np.uint8
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(in_colour).convert("L")))
    if mode in ("L", "LA", "I;16"):  # as stored, in both
        assert np.array_equal(in_colour, np.repeat(grey, 3, axis=2))


def test_grey_crops_without_the_fast_libraries(monkeypatch):
    data = encoded(Image.fromarray(COLOURS), "jpeg")

    def views():
        drawn = decode.decode_view(data, resolution=24, view=np.random.default_rng(3), channels=1)
        return drawn.astype(int), decode.decode_view(data, resolution=24, channels=1).astype(int)

    fast = views()
    monkeypatch.setattr(decode, "resizer", None)
    for a, b in zip(fast, views(), strict=True):
        assert a.shape == b.shape == (24, 24, 1) and abs(a - b).max() <= 2


def test_other_numbers_are_for_sources_that_have_them(tmp_path, monkeypatch):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(COLOURS).save(tmp_path / split / name / "x.png")
    folder = f"folder:{tmp_path}"
    assert open_pair(folder, resolution=32, channels=1)[0][0]["image"].shape == (32, 32, 1)
    with pytest.raises(ValueError, match=r"^net.in_channels: image files are read in 1 channel .*"):
        open_pair(folder, resolution=32, channels=4)
    with pytest.raises(ValueError, match="images of 'clutter' have 3 channels, but the network"):
        open_pair("clutter", resolution=32, channels=1)
    many = open_pair("synthetic", resolution=32, channels=5)[0]
    assert many.batch([1, 2])["image"].shape == (2, 32, 32, 5)
    digits, usual = (open_pair("digits", resolution=32, channels=c)[1] for c in (1, None))
    grey = digits.batch([4])["image"]
    assert np.array_equal(np.repeat(grey, 3, axis=3), usual.batch([4])["image"])
    assert digits.fingerprint == usual.fingerprint

    monkeypatch.setattr(data_source, "_REGISTRY", dict(data_source._REGISTRY))

    @source("bands", splits=("train", "test"), default_recipe="modest")
    class Bands(Source):
        channels = 7

        def __init__(self, split, resolution):
            self.name, self.split, self.resolution = "bands", split, resolution
            self.class_names, self.fingerprint = ("a", "b"), "bands"

        def __len__(self):
            return 4

        def batch(self, indices, views=None):
            shape = (len(indices), self.resolution, self.resolution, self.channels)
            return {"image": np.zeros(shape, np.uint8), "label": np.zeros(len(indices), np.int32)}

    for asked in (7, None):
        assert open_pair("bands", resolution=32, channels=asked)[0].channels == 7
    with pytest.raises(ValueError, match="'bands' have 7 channels, but the network takes 3"):
        open_pair("bands", resolution=32, channels=3)


def test_the_mean_and_deviation_of_other_numbers_of_channels():
    assert augment.normalization("inception", 1) == ((0.5,), (0.5,))
    assert augment.normalization("inception", 5) == ((0.5,) * 5, (0.5,) * 5)
    # 0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406, and the same of the deviations.
    assert augment.normalization("torch", 1) == ((0.458971,), (0.225609,))
    assert augment.normalization(((0.1,), (0.2,)), 3) == ((0.1,) * 3, (0.2,) * 3)
    assert augment.normalization(((0.1, 0.2), (0.3, 0.4))) == ((0.1, 0.2), (0.3, 0.4))


def test_operations_on_grey_images_are_pillows():
    grey = RNG.integers(0, 256, (4, 24, 24, 1), np.uint8)
    names = ("equalize", "contrast", "color", "sharpness")
    arguments = np.array([0.0, 1.6, 0.3, 1.9], np.float32)
    op = np.array([ops.OPS.index(name) for name in names])
    centre = np.zeros((4, 2), np.int32)
    made = np.asarray(ops.apply(grey, op, arguments, centre, among=names))[..., 0]
    for i, enhance in ((1, ImageEnhance.Contrast), (2, ImageEnhance.Color)):
        expected = np.asarray(enhance(Image.fromarray(grey[i, ..., 0])).enhance(arguments[i]))
        assert abs(made[i].astype(int) - expected).max() <= 1
    assert np.array_equal(made[2], grey[2, ..., 0]) and not np.array_equal(made[3], grey[3, ..., 0])


def test_contrast_blends_with_the_mean_of_grey_images():
    grey = RNG.integers(60, 200, (2, 8, 8, 1), np.uint8)
    half, one = np.array([[1, 0.5, 1]] * 2, np.float32), np.zeros(2, np.float32)
    drawn = colour.Jitter(half, one, np.array([[0, 1, 2]] * 2), np.zeros(2, np.int32))
    mean = grey.mean(axis=(1, 2), keepdims=True)
    got = colour.jitter(grey, drawn, with_hue=False)
    np.testing.assert_allclose(got, mean + (grey - mean) / 2, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_training_batches_of_other_numbers_of_channels(channels):
    options = {"flip": True, "zoom": 0.2, "brightness": 0.3, "erase_prob": 0.5, "mixup_alpha": 0.2}
    if channels == 1:
        options |= {"policy": "randaugment", "contrast": 0.3}
    normalize = augment.normalization("inception", channels)
    preprocess, _ = augment.make_preprocess(normalize=normalize, num_classes=2, **options)
    batch = {
        "image": np.zeros((2, 32, 32, channels), np.uint8),
        "label": np.zeros(2, np.int32),
    }
    images, _ = jax.eval_shape(preprocess, batch, jax.random.key(0))
    assert images.shape == batch["image"].shape
    for refused in ({"saturation": 0.2}, {"hue": 0.1}, {"policy": "autoaugment_v0"}):
        if channels == 4 or "policy" not in refused:
            with pytest.raises(ValueError, match=f"^augment.*, but these have {channels}; switch"):
                augment.make_preprocess(normalize=normalize, **refused)
