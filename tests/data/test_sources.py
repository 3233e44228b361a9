"""The sources that need no files, and what the opening of any source refuses."""

import numpy as np
import pytest

from mbv3_jax.data.source import open_pair
from mbv3_jax.data.sources.digits import Digits
from mbv3_jax.data.sources.synthetic import Synthetic


def test_digits_are_split_by_class_and_share_no_image():
    train, test = open_pair("digits", resolution=16)
    assert (len(train), len(test), train.num_classes) == (1433, 364, 10)
    assert train.class_names == tuple("0123456789")
    both = [source.batch(range(len(source))) for source in (train, test)]
    counts = [np.bincount(b["label"], minlength=10) for b in both]
    # Every fifth of each class, the first among them.
    np.testing.assert_array_equal(counts[1], -(-(counts[0] + counts[1]) // 5))
    seen = [{image.tobytes() for image in b["image"]} for b in both]
    assert not seen[0] & seen[1]


def test_digits_are_resized_like_pillow_does():
    from PIL import Image
    from sklearn.datasets import load_digits

    test = Digits("test", 32)
    data = load_digits()
    first = Image.fromarray(data.images[0].astype(np.float32) * (255 / 16))
    expected = np.asarray(first.resize((32, 32), Image.Resampling.BILINEAR))
    image = test[0]["image"]
    assert image.dtype == np.uint8 and test[0]["label"] == data.target[0]
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()
    assert np.abs(image[..., 0] - expected).max() <= 0.51


@pytest.mark.parametrize("resolution", [8, 33])
def test_synthetic_images_are_computed_from_their_index(resolution):
    def make(split="train", count=100):
        return Synthetic(split, resolution, num_classes=7, num_examples=count)

    source = make()
    batch = source.batch([0, 8, 99])
    assert batch["image"].shape == (3, resolution, resolution, 3)
    np.testing.assert_array_equal(batch["label"], [0, 1, 1])
    np.testing.assert_array_equal(batch["image"], make().batch([0, 8, 99])["image"])
    np.testing.assert_array_equal(batch["image"][1], make(count=9)[8]["image"])
    assert (batch["image"] != make("test").batch([0, 8, 99])["image"]).any(axis=(1, 2, 3)).all()
    assert source.fingerprint != make(count=99).fingerprint


def test_indices():
    source = Synthetic("test", 8)
    assert (len(source), source[-1]["label"]) == (256, source[255]["label"])
    with pytest.raises(IndexError):
        source[256]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "cifar",
            {},
            "data.name: got 'cifar', expected one of 'clutter', 'digits', 'folder:PATH',",
        ),
        ("folder:", {}, "data.name: got 'folder:', expected one of"),
        ("digits", {"num_examples": 3}, "data.num_examples: 'digits' has no such option"),
        ("digits", {"crop": {"central": "square"}}, "data.central: 'digits' has no such option"),
        ("digits", {"split_fraction": 0.1}, "data.split_fraction: 'digits' has no such option"),
        ("synthetic", {"data_dir": "/x"}, "data.data_dir: 'synthetic' has no such option"),
        ("synthetic", {"num_classes": 0}, "data.num_classes: got 0, expected a whole number"),
        ("synthetic", {"resolution": 0}, "data.resolution: got 0, expected a whole number"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        open_pair(name, **{"resolution": 8, **options})


def test_crop_options_that_are_none_count_as_not_given():
    train, _ = open_pair("digits", resolution=8, crop={"area": None, "central": None})
    assert len(train) == 1433
