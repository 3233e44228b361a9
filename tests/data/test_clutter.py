"""The rendered letters."""

import hashlib

import numpy as np
import pytest

from mbv3_jax.data.loader import eval_batches
from mbv3_jax.data.source import crop_for, open_pair
from mbv3_jax.data.sources.clutter import LETTERS, SPLITS, Clutter


def test_the_splits_have_as_many_of_each_letter_and_share_no_image():
    seen = set()
    for split, count in SPLITS.items():
        source = Clutter(split, 8)
        batch = source.batch(range(count))
        assert len(source) == count and source.class_names == tuple("AEFHIKLMNTVWXYZ")
        assert batch["image"].shape == (count, 8, 8, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert set(np.bincount(batch["label"])) == {count // len(LETTERS)}
        seen |= {image.tobytes() for image in batch["image"]}
    assert len(seen) == sum(SPLITS.values())


def test_an_image_has_the_same_bytes_everywhere():
    """If this fails, results before and after do not compare: every run's data has changed."""
    digest = hashlib.sha256()
    for side in (32, 45):
        batch = Clutter("test", side).batch([0, 7, 2999])
        digest.update(batch["image"].tobytes())
    assert digest.hexdigest()[:16] == "5afef783577a9ad8"


def test_an_image_does_not_depend_on_what_was_read_before():
    once = Clutter("train", 16).batch([5, 2999, 5, 64])["image"]
    again = Clutter("train", 16)
    again.batch(range(3000))
    np.testing.assert_array_equal(again.batch([5, 2999, 5, 64])["image"], once)
    np.testing.assert_array_equal(once[0], once[2])
    assert once.flags.writeable and not np.shares_memory(once, again._images)


def test_resolutions_show_the_same_image():
    """Four times the pixels, averaged, are nearly the small image; the noise is not shared."""
    small, large = (Clutter("train", side).batch(range(30))["image"] for side in (32, 64))
    averaged = large.reshape(30, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    difference = np.abs(averaged - small).mean(axis=(1, 2, 3))
    other = np.abs(averaged - small[::-1]).mean(axis=(1, 2, 3))
    assert difference.max() < 30 < other.min()


def test_colours_and_letters_do_not_go_together():
    """The mean colour of an image says nothing about its letter."""
    batch = Clutter("train", 8).batch(range(3000))
    colour = batch["image"].astype(float).mean(axis=(1, 2))
    centres = np.stack([colour[batch["label"] == c].mean(axis=0) for c in range(15)])
    spread = colour.std(axis=0) / np.sqrt(200)
    assert (np.abs(centres - colour.mean(axis=0)) / spread).max() < 4


def test_validation_and_test_by_option():
    train, test = open_pair("clutter", resolution=8)
    assert (train.split, test.split) == ("train", "test")
    _, validation = open_pair("clutter", resolution=8, eval_split="validation")
    assert (validation.split, len(validation)) == ("validation", 1500)
    assert len({s.fingerprint for s in (train, test, validation)}) == 3
    assert train.where(3) == "clutter/train/3"
    assert crop_for("clutter", {"crop_fraction": 0.9}) == {}
    batches = list(eval_batches(validation, batch_size=400))
    assert sum(b["mask"].sum() for b in batches) == 1500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_split": "train"}, "data.eval_split: got 'train', expected one of 'test', 'valid"),
        ({"num_examples": 9}, "data.num_examples: 'clutter' has no such option"),
        ({"resolution": 0}, "data.resolution: got 0"),
    ],
)
def test_wrong_options_of_clutter(options, message):
    with pytest.raises(ValueError, match=message):
        open_pair("clutter", **{"resolution": 8, **options})
