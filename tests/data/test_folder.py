"""Folders of images: layouts, formats, labels, and what is wrong with a path named."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.data.source import BadExample, NotFound, open_pair

COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}


def save(path, colour, size=(24, 18), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    # The ordinary way to a palette dithers.
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    image.save(path, **options)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """PATH/CLASS/*.jpg, ten images of each of three classes."""
    root = tmp_path_factory.mktemp("flat")
    for name, colour in COLOURS.items():
        for i in range(10):
            save(root / name / f"{i}.jpg", colour, quality=95)
    return root


@pytest.fixture
def split(flat, tmp_path):
    """PATH/{train,val}/CLASS/*.jpg, a copy to damage."""
    shutil.copytree(flat, tmp_path / "data" / "train")
    shutil.copytree(flat, tmp_path / "data" / "val")
    return tmp_path / "data"


def opened(root, **options):
    return open_pair(f"folder:{root}", resolution=16, **options)


def files(source) -> set[str]:
    return {os.path.relpath(source.where(i)) for i in range(len(source))}


def test_splits(split):
    train, evaluate = opened(split)
    assert (train.split, len(train), evaluate.split, len(evaluate)) == ("train", 30, "val", 30)
    assert train.class_names == evaluate.class_names == ("blue", "green", "red")
    for i in (0, 10, 29):
        example = train[i]
        assert example["label"] == i // 10
        colour = list(COLOURS.values())[i // 10]
        assert np.abs(example["image"].astype(int) - colour).max() <= 3
    assert train.where(11) == str(split / "train" / "green" / "1.jpg")


@pytest.mark.parametrize("name", ["validation", "val", "valid", "test"])
def test_names_of_the_held_out_split(split, name):
    (split / "val").rename(split / name)
    assert opened(split)[1].split == name


def test_validation_goes_before_test_unless_named(split):
    shutil.copytree(split / "val", split / "test")
    assert opened(split)[1].split == "val"
    assert opened(split, eval_split="test")[1].split == "test"
    (split / "train").rename(split / "training")
    train, _ = opened(split, train_split="training", eval_split="val")
    assert (train.split, len(train)) == ("training", 30)


@pytest.mark.parametrize(("fraction", "held"), [(None, 1), (0.3, 3), (0.01, 1), (0.99, 9)])
def test_a_part_of_each_class_is_held_out(flat, fraction, held):
    train, evaluate = opened(flat, split_fraction=fraction)
    assert (len(train), len(evaluate)) == (30 - 3 * held, 3 * held)
    assert not files(train) & files(evaluate)
    assert len(files(train) | files(evaluate)) == 30
    labels = evaluate.batch(range(len(evaluate)))["label"]
    np.testing.assert_array_equal(np.bincount(labels), [held] * 3)


def test_what_is_held_out_stays_so_when_files_are_added(flat, tmp_path):
    root = shutil.copytree(flat, tmp_path / "grown")
    before = files(opened(root, split_fraction=0.3)[1])
    again = files(opened(root, split_fraction=0.3)[1])
    assert before == again
    for name, colour in COLOURS.items():
        save(root / name / "another.jpg", colour)
    after = files(opened(root, split_fraction=0.3)[1])
    assert len(before & after) >= 6  # at most one of each class has given way


def test_a_part_of_train_though_there_is_val(split):
    train, evaluate = opened(split, split_fraction=0.2)
    assert (len(train), len(evaluate)) == (24, 6)
    assert all(os.sep + "train" + os.sep in f for f in files(evaluate))


def test_a_class_called_train(tmp_path):
    for name in ("bus", "train", "test"):
        for i in range(2):
            save(tmp_path / name / f"{i}.png", (9, 9, 9))
    assert opened(tmp_path)[0].class_names == ("bus", "test", "train")


def test_formats(split):
    red = split / "train" / "red"
    shutil.rmtree(red)
    colour = (200, 20, 20)
    save(red / "0.png", colour)
    save(red / "1.webp", colour, lossless=True)
    save(red / "2.JPEG", colour, mode="CMYK", quality=95)
    save(red / "3.png", colour, mode="P")
    save(red / "4.gif", colour, mode="P")
    save(red / "deep" / "er" / "5.tiff", colour)
    save(red / "6.jpg", colour, mode="L", quality=95)
    Image.fromarray(np.full((18, 24), 40_000, np.uint16)).save(red / "7.png")
    train, _ = opened(split)
    images = {os.path.relpath(train.where(i), red): train[i]["image"] for i in range(20, 28)}
    grey = round(0.299 * 200 + 0.587 * 20 + 0.114 * 20)
    for name, image in images.items():
        expected = {"6.jpg": grey, "7.png": round(40_000 / 257)}.get(name, colour)
        assert np.abs(image.astype(int) - expected).max() <= 3, name
    assert len(images) == 8


def test_exif_turns_an_image_upright(split):
    path = split / "train" / "blue" / "0.jpg"
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # white above as it is stored; 6 means that its top is on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    for turned, options in ((True, {}), (False, {"crop": {"exif_rotate": False}})):
        image = opened(split, **options)[0][0]["image"][..., 0]
        right, above = image[:, 9:].mean(), image[:7].mean()
        assert (right > 240) == turned
        assert (above > 240) != turned


def test_hidden_files_and_links(split, tmp_path):
    (split / ".git").mkdir()
    (split / "train" / ".DS_Store").write_text("x")
    (split / "train" / "red" / "._0.jpg").write_text("x")
    (split / "train" / "red" / "link.jpg").symlink_to(split / "val" / "red" / "1.jpg")
    (split / "train" / "red" / "loop").symlink_to(split / "train" / "red")
    elsewhere = shutil.copytree(split / "val" / "red", tmp_path / "yellow")
    (split / "train" / "yellow").symlink_to(elsewhere)
    train, _ = opened(split)
    assert len(train) == 41
    assert train.class_names[-1] == "yellow"


def test_the_fingerprint_follows_names_and_labels(split):
    first = opened(split)[0].fingerprint
    assert opened(split)[0].fingerprint == first
    assert opened(split)[1].fingerprint != first
    (split / "train" / "red" / "0.jpg").rename(split / "train" / "red" / "z.jpg")
    assert opened(split)[0].fingerprint != first


def _drop(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE = {
    "nowhere": (_drop, "", NotFound, "{path}: no such folder"),
    "no train": (
        lambda p: p.rename(p.parent / "x"),
        "train",
        NotFound,
        "{path}: no such split; the folders in {root}: val, x",
    ),
    "no val": (
        _drop,
        "val",
        NotFound,
        "{root}: no split to evaluate on, expected a folder validation, val, valid, test",
    ),
    "empty class": (
        lambda p: [_drop(f) for f in p.iterdir()],
        "train/red",
        ValueError,
        "{path}: an empty class folder",
    ),
    "a text": (
        lambda p: p.write_text("x"),
        "train/red/read.me",
        ValueError,
        "{path}: not an image file by its name",
    ),
    "loose image": (
        lambda p: save(p, (1, 2, 3)),
        "val/a.png",
        ValueError,
        "{path}: an image outside of any class folder",
    ),
    "one class": (
        lambda p: [_drop(f) for f in p.iterdir() if f.name != "red"],
        "train",
        ValueError,
        "{path}: expected a folder for each of at least 2 classes, got: red",
    ),
    "new class": (
        lambda p: save(p / "1.png", (1, 2, 3)),
        "val/pink",
        ValueError,
        "{path}: a class that {root}/train does not have",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_folder(split, name):
    damage, where, error, message = DAMAGE[name]
    damage(split / where)
    with pytest.raises(error) as caught:
        opened(split)
    assert message.format(path=split / where, root=split).rstrip("/") in str(caught.value)


def test_a_file_in_place_of_a_folder(split):
    with pytest.raises(NotFound, match=r"0.jpg: not a folder"):
        opened(split / "train" / "red" / "0.jpg")


def test_no_permission(split, monkeypatch):
    # By a stand-in for the system's refusal, because root may read everything.
    scandir, secret = os.scandir, split / "train" / "red"

    def refuse(path):
        if str(path) == str(secret):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(NotFound, match=f"{secret}: cannot be read: Permission denied"):
        opened(split)


def test_a_file_that_cannot_be_read(split):
    train, _ = opened(split)
    path = split / "train" / "blue" / "0.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadExample, match=f"{path}: cannot decode"):
        train[0]
    path.unlink()
    with pytest.raises(BadExample, match=f"{path}: No such file or directory"):
        train[0]
    path.symlink_to(split / "away.jpg")
    assert len(opened(split)[0]) == 30


def test_skip_keeps_what_is_wrong_for_the_loader_to_count(split):
    (split / "train" / "red" / "read.me").write_text("x")
    shutil.rmtree(split / "train" / "green")
    (split / "train" / "green").mkdir()
    train, _ = opened(split, on_error="skip")
    assert (len(train), train.num_classes) == (21, 3)
    with pytest.raises(BadExample, match=r"read.me: cannot decode 1 bytes"):
        train[20]


def test_options(flat):
    small = opened(flat, crop={"crop_fraction": 0.5, "interpolation": "bicubic", "area": None})[0]
    assert small[0]["image"].shape == (16, 16, 3)
    for options, message in (
        ({"data_dir": "/x"}, "data.data_dir: 'folder:.*' has no such option"),
        ({"num_examples": 3}, "data.num_examples: 'folder:.*' has no such option"),
        ({"split_fraction": 1.0}, "data.split_fraction: got 1.0, expected between 0 and 1"),
        ({"split_fraction": 0.5, "eval_split": "val"}, "data.split_fraction: data.eval_split is"),
        ({"on_error": "no"}, "data.on_error: got 'no', expected one of 'raise', 'skip'"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(flat, **options)
